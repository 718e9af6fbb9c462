"""Coarse masks of several kinds, made from the truth: what networks, detectors and hasty hands give."""

from collections.abc import Sequence

import cv2
import numpy as np

from .perturbation import KINDS as PERTURBATIONS
from .perturbation import draw_iou, perturb_mask

KINDS = (*PERTURBATIONS, "box_28", "box_112", "low_resolution", "outline", "truth")
BOX_ERROR = 0.02  # standard deviation of a box's edges, as a share of its sides
SHORTENING = (8.0, 32.0)  # of sides to a low resolution, in a picture whose longer side is 400 pixels
# Of the square root of an object's area: how far apart an outline's points are, and how far off the contour
OUTLINE_STEPS, OUTLINE_ERROR = (0.05, 0.3), 0.02


def make_coarse_mask(
    mask: np.ndarray, kind: str, rng: np.random.Generator, iou_range: Sequence[float] = (0.8, 1.0)
) -> np.ndarray:
    """Damage a mask.

    Args:
        mask: (H, W) bool, the truth; it is left as it is.
        kind: one of ``KINDS``. "regions" and "contour" are those of :mod:`.perturbation`; "box_28" and "box_112" go
            through a grid of that many cells in the object's box, which is moved and resized a little, as the masks of
            detectors do; "low_resolution" through a grid of the whole picture; "outline" is the polygon that somebody
            clicks, through points near the contour; "truth" is a copy.
        rng: source of all randomness.
        iou_range: of "regions" and "contour", see :func:`.perturbation.draw_iou`.

    Returns:
        (H, W) bool; a copy of the truth where nothing would be left of it.
    """
    if kind == "truth" or not mask.any():
        return mask.copy()
    if kind in PERTURBATIONS:
        return perturb_mask(mask, draw_iou(iou_range, rng, kind), rng, kind)
    if kind == "low_resolution":
        coarse = _through_picture(mask, rng.uniform(*SHORTENING) * max(mask.shape) / 400)
    elif kind == "outline":
        coarse = _outline(mask, rng)
    else:
        left, top, width, height = cv2.boundingRect(mask.view(np.uint8))
        sides = np.array([width, height, width, height])
        edges = np.array([left, top, left + width, top + height]) + rng.normal(0, BOX_ERROR, 4) * sides
        coarse = through_box(mask, int(kind.removeprefix("box_")), edges)
    return coarse if coarse.any() else mask.copy()


def through_box(mask: np.ndarray, cells: int, edges: Sequence[float] | None = None) -> np.ndarray:
    """Return what a grid of (cells, cells) in a box keeps of a mask, pasted as detectors do: bilinear, from 0.5 on.

    Args:
        mask: (H, W) bool, not empty.
        cells: of a side of the grid; each holds the mean of the mask in it.
        edges: left, top, right and bottom of the box in pixels; by default that of the mask.
    """
    if edges is None:
        left, top, width, height = cv2.boundingRect(mask.view(np.uint8))
        edges = (left, top, left + width, top + height)
    across, down = max(edges[2] - edges[0], 1) / cells, max(edges[3] - edges[1], 1) / cells
    # From the grid's coordinates to the picture's, both with centres of pixels at whole numbers
    matrix = np.array([[across, 0, edges[0] + across / 2 - 0.5], [0, down, edges[1] + down / 2 - 0.5]])
    means = cv2.blur(mask.astype(np.float32), (max(1, round(across)), max(1, round(down))))
    grid = cv2.warpAffine(means, matrix, (cells, cells), flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP)
    return cv2.warpAffine(grid, matrix, mask.shape[::-1], flags=cv2.INTER_LINEAR) >= 0.5


def _through_picture(mask: np.ndarray, factor: float) -> np.ndarray:
    """Shorten the sides of a mask by a factor, and enlarge it again."""
    height, width = mask.shape
    size = max(2, round(width / factor)), max(2, round(height / factor))
    small = cv2.resize(mask.astype(np.float32), size, interpolation=cv2.INTER_AREA)
    return cv2.resize(small, (width, height), interpolation=cv2.INTER_LINEAR) >= 0.5


def _outline(mask: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    contours, _ = cv2.findContours(mask.view(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    size = mask.sum() ** 0.5
    step = max(3, round(size * rng.uniform(*OUTLINE_STEPS)))
    polygons = []
    for contour in contours:
        points = contour[::step, 0].astype(np.float64)
        if len(points) > 2:
            polygons.append(np.round(points + rng.normal(0, OUTLINE_ERROR * size, points.shape)).astype(np.int32))
    filled = np.zeros(mask.shape, np.uint8)
    for polygon in polygons:  # each by itself: where two overlap, both are the object's
        cv2.fillPoly(filled, [polygon], 1)
    return filled.astype(bool)
