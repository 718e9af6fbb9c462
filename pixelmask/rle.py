"""Masks as COCO files have them, to compressed RLE and back.

Compressed RLE is checked before pycocotools gets it: given runs that do not fill the mask, that reads and writes memory
which is not its own.
"""

import math
from typing import Annotated, Any, TypeAlias

import numpy as np
from msgspec import Meta
from pycocotools import mask as mask_util

from .images import MOST_PIXELS
from .schema import Number, find_fault

Length = Annotated[int, Meta(ge=1, le=MOST_PIXELS)]
"""Of a side of an image, in pixels."""
Rle: TypeAlias = dict[str, Any]
"""Compressed: {"size": [H, W], "counts": str}."""

# pycocotools takes memory for all of an outline's way, and crashes where it is too long
FARTHEST = 10  # sides of the image that a polygon may lie away from it
LONGEST = 2**21  # pixels of the outlines of a mask, together
_DIGITS = 7  # characters of a run: 2**35 pixels
_MORE, _SIGN = 0x20, 0x10  # bits of a character: others of this number follow, and the number is negative


def check_mask(segmentation: Any, height: int, width: int) -> None:
    """Check a COCO segmentation of an image, but not the runs of an RLE, which :func:`to_rle` reads.

    Raises:
        ValueError: for what is no mask, and RLE of another size; the message goes on after "annotation 3 ...".
    """
    if isinstance(segmentation, list):
        _check_polygons(segmentation, FARTHEST * max(height, width))
    elif not isinstance(segmentation, dict) or not {"size", "counts"} <= segmentation.keys():
        raise ValueError('has a segmentation that is neither an RLE with "size" and "counts" nor a list of polygons')
    elif find_fault(size := segmentation["size"], tuple[int, int]) or list(size) != [height, width]:
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
    if find_fault(runs, list[Annotated[int, Meta(ge=0)]]):
        raise ValueError("has counts that are neither a compressed RLE nor a list of run lengths")
    if len(runs) > 2 * height * width + 1:
        raise ValueError(f"has {len(runs)} runs, which is more than its image's {height * width} pixels have")
    if sum(runs) != height * width:
        raise ValueError(f"has runs of {sum(runs)} pixels; its image has {height * width}")
    if not isinstance(counts, str):
        counts = mask_util.frPyObjects({"size": [height, width], "counts": runs}, height, width)["counts"].decode()
    return {"size": [height, width], "counts": counts}


def read_rle(segmentation: Any) -> Rle:
    """Convert an RLE of an image that is not at hand as :func:`to_rle` does, by the size that it has itself."""
    size: Any = segmentation.get("size") if isinstance(segmentation, dict) else None
    if find_fault(size, tuple[Length, Length]) or math.prod(size) > MOST_PIXELS:
        raise ValueError("has no mask as RLE, with a size of pixels")
    return to_rle(segmentation, *size)


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
        if shift > 5 * _DIGITS:
            return [-1]
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


def _check_polygons(polygons: list[Any], farthest: float) -> None:
    if find_fault(polygons, list[list[Any]]):
        raise ValueError("has a segmentation that is not a list of polygons [x, y, x, y, ...] of at least 3 points")
    longest = 0.0
    for polygon in polygons:
        if len(polygon) < 6 or len(polygon) % 2:
            raise ValueError(f"has a polygon of {len(polygon)} coordinates, not [x, y, x, y, ...] of at least 3 points")
        if find_fault(polygon, list[Number]) or max(map(abs, polygon)) > farthest:
            raise ValueError(
                f"has a polygon whose coordinates are not all numbers of at most {farthest:,} pixels, {FARTHEST} times "
                "the longer side of its image"
            )
        longest += len(polygon) * (max(polygon) - min(polygon))
    if longest > LONGEST:  # perhaps: it would be, if each edge went from end to end
        points = [np.reshape(polygon, (-1, 2)) for polygon in polygons]
        length = sum(float(np.abs(p - np.roll(p, 1, axis=0)).max(axis=1).sum()) for p in points)
        if length > LONGEST:
            raise ValueError(f"has outlines of {length:,.0f} pixels, more than the {LONGEST:,} that a mask may have")
