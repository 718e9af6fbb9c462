"""Overlaps of masks, and which detection is of which object.

Letters: D detections, N objects; for pairs of any two lists of masks, A and B.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from pycocotools import mask as mask_util

from ..rle import Rle
from .boundary import DILATION_RATIO, rle_to_boundary

MATCHING_IOU = 0.5


def mask_overlaps(first: Sequence[Rle], second: Sequence[Rle]) -> np.ndarray:
    """Return the (A, B) IoUs of masks as compressed RLE; 0 where both are empty."""
    if not first or not second:
        return np.zeros((len(first), len(second)))
    return np.asarray(mask_util.iou(list(first), list(second), [0] * len(second)))


def boundary_overlaps(
    first: Sequence[Rle], second: Sequence[Rle], dilation_ratio: float = DILATION_RATIO
) -> np.ndarray:
    """Return the (A, B) overlaps of masks as Boundary AP has them: the smaller of mask IoU and IoU of boundaries."""
    boundaries = ([rle_to_boundary(mask, dilation_ratio) for mask in masks] for masks in (first, second))
    return np.minimum(mask_overlaps(first, second), mask_overlaps(*boundaries))


def match(
    overlaps: np.ndarray,
    classes: tuple[Sequence[Any], Sequence[Any]] | None = None,
    threshold: float = MATCHING_IOU,
) -> list[int | None]:
    """Give each detection in turn the free object of its class that it overlaps most.

    Args:
        overlaps: (D, N), of masks or boxes; detections are in the order in which they choose, best score first.
        classes: D of detections and N of objects; None where all are of one class.
        threshold: least overlap, itself included.

    Returns:
        D indices of objects, of equal overlaps the first; None where no free object overlaps enough.
    """
    free = np.array(overlaps, np.float64)
    if classes is not None and free.size:
        free[np.asarray(classes[0])[:, None] != np.asarray(classes[1])] = -1
    found: list[int | None] = []
    for row in free:
        best = int(row.argmax()) if len(row) else None
        found.append(best if best is not None and row[best] >= threshold else None)
        if found[-1] is not None:
            free[:, found[-1]] = -1
    return found
