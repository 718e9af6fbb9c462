"""Pictures of the gallery: an image with the masks over it, small enough that a page can hold hundreds of them.

A *layer* is a list of masks that are shown together: "truth", "coarse", "run0", "run1", ...
"""

import base64
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import cv2
import numpy as np
from PIL import Image
from pycocotools import mask as mask_util

from pixelmask.drawing import Window, find_largest_change, fit, resize
from pixelmask.images import ImageLike, to_rgb
from pixelmask.rle import decode

WEBP_QUALITY = 78


@dataclass(frozen=True)
class Instance:
    """A true or predicted mask as compressed RLE, with its class index and score, if any, and the number of its object.

    Masks of one object in different layers, such as a true mask and what was found of it, have one number.
    """

    rle: dict[str, Any]
    label: int | None = None
    score: float | None = None
    object: int = 0


@dataclass(frozen=True)
class PatchGrid:
    """The P x P patch labels (:class:`~patchdct.patches.PatchLabel`) of a detection, in its xyxy box in pixels."""

    box: Sequence[float]
    labels: np.ndarray


@dataclass(frozen=True)
class Picture:
    """An image of the gallery with all that is shown and sorted by.

    ``values`` has figures by name for each run, None where there is nothing to measure; ``objects`` the same of each
    object, with its class index as "label". ``disagreements`` has a value for each pair of runs, by "0-1", "0-2", ...
    """

    name: str
    file: ImageLike
    layers: dict[str, list[Instance]]
    values: dict[str, list[float | None]]
    disagreements: dict[str, float | None]
    objects: list[dict[str, Any]] = field(default_factory=list)
    patches: dict[str, list[PatchGrid]] = field(default_factory=dict)

    def summary(self) -> dict[str, Any]:
        """Return what the page sorts and filters by."""
        labels = {mask.label for masks in self.layers.values() for mask in masks if mask.label is not None}
        return {
            "name": self.name,
            "labels": sorted(labels),
            "values": self.values,
            "disagreements": self.disagreements,
            "objects": self.objects,
        }

    def views(self, size: int) -> list[dict[str, Any]]:
        """Return what the page draws: the image in at most ``size`` pixels a side, as it is or reduced.

        Of a reduced image there is a second view, in its own pixels: where masks differ most, those of the first two
        runs, or those of one run and the truth.

        Raises:
            UserError: if the image cannot be read.
        """
        image = to_rgb(self.file)
        height, width = image.shape[:2]
        scale = min(1.0, size / max(height, width))
        reduced = "" if scale == 1 else f" reduced to {scale:.0%}"
        whole = slice(0, height), slice(0, width)
        views = [self._view(image, whole, scale, f"whole image, {width} x {height} pixels{reduced}")]
        window = find_largest_change(self._difference(height, width)) if reduced else None
        if window is not None:
            part = f"largest difference, from pixel {window[1].start}, {window[0].start}, not reduced"
            views.append(self._view(image, window, 1.0, part))
        return views

    def _difference(self, height: int, width: int) -> np.ndarray:
        runs = sorted(key for key in self.layers if key.startswith("run"))
        pair = [*runs[:2], *(key for key in ("truth", "coarse") if key in self.layers)][:2]
        first, second = (_union(self.layers[key], height, width) for key in (pair[0], pair[-1]))
        return first ^ second

    def _view(self, image: np.ndarray, window: Window, scale: float, label: str) -> dict[str, Any]:
        part = image[window]
        size, _ = fit(part, round(max(part.shape[:2]) * scale), 1.0)
        origin = np.array([window[1].start, window[0].start] * 2)
        return {
            "label": label,
            "width": size[0],
            "height": size[1],
            "image": encode_image(resize(part, size)),
            "layers": {
                key: [encoded for mask in masks if (encoded := _encode_part(mask, window, size))]
                for key, masks in self.layers.items()
            },
            "patches": {
                key: [
                    {
                        "box": ((np.array(grid.box) - origin) * scale).round(2).tolist(),
                        "side": len(grid.labels),
                        "labels": "".join(str(int(label)) for label in grid.labels.ravel()),
                    }
                    for grid in grids
                ]
                for key, grids in self.patches.items()
            },
        }


def encode_image(image: np.ndarray) -> str:
    """Return an (H, W, 3) uint8 RGB image as a data URI of WebP."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "WEBP", quality=WEBP_QUALITY)
    return f"data:image/webp;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def encode_mask(mask: np.ndarray) -> dict[str, Any] | None:
    """Encode an (H, W) boolean mask for the page; None if it is empty.

    Returns:
        "box", [left, top, width, height] of its pixels; and "runs", base64 of one byte for each run of equal pixels in
        the box, row by row, background first. A run of more than 255 is 255, 0, ..., the 0 being of the other kind.
    """
    left, top, width, height = cv2.boundingRect(mask.view(np.uint8))
    if not width:
        return None
    pixels = mask[top : top + height, left : left + width].ravel()
    ends = np.flatnonzero(np.diff(pixels, prepend=False, append=not pixels[-1]))
    runs = np.diff(ends, prepend=0)
    lengths = 2 * (runs // 255) + 1
    last = np.cumsum(lengths) - 1
    place = np.arange(lengths.sum()) - np.repeat(last - lengths + 1, lengths)
    data = np.where(place % 2 == 0, 255, 0).astype(np.uint8)
    data[last] = runs % 255
    return {"box": [left, top, width, height], "runs": base64.b64encode(data.tobytes()).decode()}


def _encode_part(mask: Instance, window: Window, size: tuple[int, int]) -> dict[str, Any] | None:
    encoded = encode_mask(np.ascontiguousarray(resize(decode(mask.rle)[window], size)))
    if encoded is None:
        return None
    score = None if mask.score is None else round(mask.score, 4)
    return {**encoded, "object": mask.object, "label": mask.label, "score": score}


def _union(masks: Iterable[Instance], height: int, width: int) -> np.ndarray:
    rles = [mask.rle for mask in masks]
    return decode(mask_util.merge(rles)) if rles else np.zeros((height, width), bool)
