"""Masks as COCO files have them, to compressed RLE and back.

Compressed RLE is checked before pycocotools gets it: given runs that do not fill the mask, that reads and writes memory
which is not its own.
"""

import math
from typing import Any, TypeAlias

import numpy as np
from pycocotools import mask as mask_util

Rle: TypeAlias = dict[str, Any]
"""Compressed: {"size": [H, W], "counts": str}."""

FARTHEST = 1e6  # coordinate of a polygon in pixels; pycocotools takes memory for all of its way, and crashes with 1e9
_MORE, _SIGN = 0x20, 0x10  # bits of a character: others of this number follow, and the number is negative


def check_mask(segmentation: Any, height: int, width: int) -> None:
    """Check a COCO segmentation of an image, but not the runs of an RLE, which :func:`to_rle` reads.

    Raises:
        ValueError: for what is no mask, and RLE of another size; the message goes on after "annotation 3 ...".
    """
    if isinstance(segmentation, list):
        for polygon in segmentation:
            _check_polygon(polygon)
    elif not isinstance(segmentation, dict) or not {"size", "counts"} <= segmentation.keys():
        raise ValueError('has a segmentation that is neither an RLE with "size" and "counts" nor a list of polygons')
    elif not isinstance(size := segmentation["size"], (list, tuple)) or list(size) != [height, width]:
        raise ValueError(f"has the size {size} (height, width), but its image is {[height, width]}")


def to_rle(segmentation: Any, height: int, width: int) -> Rle:
    """Convert a COCO segmentation of an image.

    Args:
        segmentation: RLE, compressed ("counts" is a string) or not (a list of run lengths), or a list of polygons
            [x, y, x, y, ...]. Compressed RLE comes back with the very same counts. No polygons are an empty mask.
        height, width: of the image in pixels.

    Raises:
        ValueError: as :func:`check_mask` does, and for runs that do not fill the image.
    """
    check_mask(segmentation, height, width)
    if isinstance(segmentation, list):
        if not segmentation:
            return encode(np.zeros((height, width), bool))
        rle = mask_util.merge(mask_util.frPyObjects(segmentation, height, width))
        return {"size": [height, width], "counts": rle["counts"].decode()}
    counts = segmentation["counts"]
    if isinstance(counts, bytes):
        counts = counts.decode("latin-1")
    runs = read_runs(counts) if isinstance(counts, str) else counts
    if not isinstance(runs, list) or not all(isinstance(run, int) and run >= 0 for run in runs):
        raise ValueError("has counts that are neither a compressed RLE nor a list of run lengths")
    if sum(runs) != height * width:
        raise ValueError(f"has runs of {sum(runs)} pixels; its image has {height * width}")
    if not isinstance(counts, str):
        counts = mask_util.frPyObjects({"size": [height, width], "counts": runs}, height, width)["counts"].decode()
    return {"size": [height, width], "counts": counts}


def read_runs(counts: str) -> list[int]:
    """Return the run lengths of compressed counts, of background and foreground in turn; [-1] for what is none.

    Numbers are written in characters of five bits, the lowest first, and from the fourth on as the difference to the
    one before the previous.
    """
    runs: list[int] = []
    number = shift = 0
    for character in counts:
        bits = ord(character) - 48
        if not 0 <= bits < 64:
            return [-1]
        number |= (bits & 0x1F) << shift
        shift += 5
        if bits & _MORE:
            continue
        if bits & _SIGN:
            number -= 1 << shift
        runs.append(number + runs[-2] if len(runs) > 2 else number)
        number = shift = 0
    return [-1] if shift else runs


def encode(mask: np.ndarray) -> Rle:
    """Encode an (H, W) boolean mask."""
    rle = mask_util.encode(np.asfortranarray(mask, dtype=np.uint8))
    return {"size": list(mask.shape), "counts": rle["counts"].decode()}


def measure(rle: Rle) -> dict[str, Any]:
    """Return what an annotation says of its mask: segmentation, bbox and area."""
    return {"segmentation": rle, "bbox": mask_util.toBbox(rle).tolist(), "area": int(mask_util.area(rle))}


def decode(rle: Rle) -> np.ndarray:
    """Decode a mask to (H, W) boolean."""
    return mask_util.decode(rle).view(bool)


def _check_polygon(polygon: Any) -> None:
    if not isinstance(polygon, list):
        raise ValueError("has a segmentation that is not a list of polygons [x, y, x, y, ...] of at least 3 points")
    if len(polygon) < 6 or len(polygon) % 2:
        raise ValueError(f"has a polygon of {len(polygon)} coordinates, not [x, y, x, y, ...] of at least 3 points")
    try:
        # The sum is finite if there is no NaN, which no comparison would find
        usable = math.isfinite(sum(polygon)) and max(map(abs, polygon)) <= FARTHEST
    except (TypeError, OverflowError):
        usable = False
    if not usable:
        raise ValueError(f"has a polygon whose coordinates are not all numbers of at most {FARTHEST:,.0f} pixels")
