"""A guard against harm: keeps of the coarse mask what refinement has no reason to change, or all of it.

A network can be sure and wrong. What a coarse mask can have wrong is bounded by how it was made: one that a detector
made in a grid of 28 x 28 cells is right but for some cells along its contour. Lengths are therefore given in cells. A
mask of native resolution, drawn by hand or predicted for each pixel, counts as one of ``NATIVE_CELLS``: its errors go
with the object's size, too.
"""

from dataclasses import dataclass
from typing import NamedTuple

import cv2
import numpy as np

from .data.coarse_masks import through_box

NATIVE_CELLS = 16
BAND = 0.04, 2.0  # width on both sides of a contour, of the object's size; at least so many pixels
LEAST_MOVED = 0.075  # cells by which a grid moves the contour of a mask that has not been through it


@dataclass(frozen=True)
class Guard:
    """Thresholds of :func:`guard_mask`; None switches one off."""

    reach: float | None = 2.0
    """Cells from the pixels along the coarse contour within which others may change, too."""
    certainty: float | None = 0.5
    """Least mean of ``|2 p - 1|`` of the refined probability p along both contours, in [0, 1]."""
    shrink: float | None = 0.7
    """Least area, as a share of the coarse one."""
    growth: float | None = 2.0
    """Largest area, as a share of the coarse one."""
    overlap: float | None = 1.6
    """IoU with the coarse mask is at least 1 - overlap / sqrt(n) of n cells along the object, or pixels where these are
    fewer: 0.6 of native masks, 0.7 of 28 cells, 0.85 of 112."""


GUARD = Guard()
"""Of masks of any source, which may be wrong in large parts."""
INSTANCE_GUARD = Guard(reach=1.0, certainty=0.85, overlap=0.45)
"""Of a detector's masks, which are right but for what its grid cannot say: an IoU of 0.91 at least of 28 cells."""


class Guarded(NamedTuple):
    """What the guard leaves of a refinement."""

    mask: np.ndarray
    """(H, W) float32 in [0, 1]."""
    refusal: str
    """Why all of it is the coarse mask: "shrunk", "grown", "elsewhere" (overlap), "uncertain"; empty if it is not."""
    kept: int
    """Pixels out of reach that would have changed sides."""


def guard_mask(coarse: np.ndarray, refined: np.ndarray, guard: Guard = GUARD, resolution: int = 0) -> Guarded:
    """Guard a refinement.

    Args:
        coarse: (H, W) boolean or in [0, 1]; where none of it is foreground, the refinement stays as it is.
        refined: (H, W) float32, the probabilities that the network gave.
        guard: see there.
        resolution: cells along each side of the coarse mask's box that it was made of, 0 for native resolution.
    """
    before, coarse = coarse >= 0.5, coarse.astype(np.float32, copy=False)
    if not before.any():
        return Guarded(refined, "", 0)
    size = _size(before)
    cell = size / (resolution or NATIVE_CELLS)  # in pixels
    result, kept = refined, 0
    edge = _contour(before)
    if guard.reach is not None:
        far = _distance(edge) > guard.reach * cell
        result = np.where(far, coarse, refined)
        kept = int(np.count_nonzero(far & (before != (refined >= 0.5))))
    after = result >= 0.5
    growth = np.count_nonzero(after) / np.count_nonzero(before)
    overlap = np.count_nonzero(before & after) / np.count_nonzero(before | after)
    refusal = ""
    if guard.shrink is not None and growth < guard.shrink:
        refusal = "shrunk"
    elif guard.growth is not None and growth > guard.growth:
        refusal = "grown"
    elif guard.overlap is not None and overlap < 1 - guard.overlap / np.sqrt(size / max(cell, 1.0)):
        refusal = "elsewhere"
    elif guard.certainty is not None:
        near = refined[_distance(edge | _contour(after)) <= max(BAND[0] * size, BAND[1])]
        refusal = "uncertain" if near.size and np.abs(2 * near - 1).mean() < guard.certainty else ""
    return Guarded(coarse if refusal else result, refusal, kept)


def find_resolution(mask: np.ndarray) -> int:
    """Guess from an (H, W) boolean mask, not empty, whether it was made of 28 x 28 cells in its box: 28, or else 0.

    Such a mask stays nearly as it is on one more way through them. So does a smooth one of another source, for which
    these cells are then wide enough. Grids of 112 x 112 cells leave no trace that could be told from a native contour.
    """
    left, top, width, height = cv2.boundingRect(mask.view(np.uint8))
    inside = np.pad(mask[top : top + height, left : left + width], max(1, max(width, height) // 28))
    moved = np.count_nonzero(through_box(inside, 28) != inside) / max(np.count_nonzero(_contour(inside)) / 2, 1)
    return 28 if moved < LEAST_MOVED * max(1.0, _size(mask) / 28) else 0


def _size(mask: np.ndarray) -> float:
    """Return the geometric mean of the sides of a mask's box."""
    _, _, width, height = cv2.boundingRect(mask.view(np.uint8))
    return float(np.sqrt(width * height))


def _contour(mask: np.ndarray) -> np.ndarray:
    """Return the pixels on both sides of a boolean mask's contour, as uint8; the image's border is none."""
    return cv2.morphologyEx(mask.view(np.uint8), cv2.MORPH_GRADIENT, cv2.getStructuringElement(cv2.MORPH_CROSS, (3, 3)))


def _distance(contour: np.ndarray) -> np.ndarray:
    """Return how many pixels the next one of a contour is away; without any, more than images have."""
    return cv2.distanceTransform(1 - contour, cv2.DIST_L2, cv2.DIST_MASK_5)
