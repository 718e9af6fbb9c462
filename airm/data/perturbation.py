"""Coarse masks for training, made from the truth: simplified contours, then patches dilated and eroded at random.

There are two kinds. "regions", the default, has the statistics of the recipe whose words the paper uses, that of CRM:
errors may be anywhere, so that islands and holes appear, and reach far from the contour. Those of "contour" are on the
contour and near it, as a network's are that has seen the whole object. :mod:`.perturbation_statistics` measures both.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import cv2
import numpy as np

TOLERANCE = 0.005  # of the IoU; a mask that is as near to its target is done
MAX_STEPS = 300
SMALLEST_SCALE = 2.0**-12
# In pixels. The cost of an elliptical kernel grows with its area, so that a larger one is made of several in sequence
LARGEST_RADIUS = 8.0


class _Kind(NamedTuple):
    """Lengths are in units of the square root of an area.

    It is the image's where errors may be anywhere, else that of object or background, whichever is smaller.
    """

    simplification: float  # largest tolerance
    patch_halves: tuple[float, float]
    kernel_radii: tuple[float, float]  # the largest of one mask; small: errors in many places, large: in few
    anywhere: float  # share of patches that may be anywhere in the image; the others are centred on the contour
    iou_draws: int  # the lowest counts


KINDS = {
    # CRM's masks have an IoU of 0.839 on average. The lowest of four even draws from 0.8 to 1 has a mean of 0.84
    "regions": _Kind(0.04, (0.05, 0.23), (0.03, 0.12), anywhere=0.65, iou_draws=4),
    "contour": _Kind(0.04, (0.03, 0.2), (0.03, 0.1), anywhere=0, iou_draws=1),
}


def draw_iou(iou_range: Sequence[float], rng: np.random.Generator, kind: str = "regions") -> float:
    """Draw a target for :func:`perturb_mask` from [least, largest]; for "regions" low ones are more frequent."""
    least, largest = iou_range
    return float(least + (largest - least) * rng.random(KINDS[kind].iou_draws).min())


def perturb_mask(mask: np.ndarray, target_iou: float, rng: np.random.Generator, kind: str = "regions") -> np.ndarray:
    """Damage a mask until its IoU with what it was falls to a target.  See AIRM, Sec. 4.3, "Training details".

    First its contours are simplified, as far as the target allows. Then patches of random size, on its contour or
    anywhere, are dilated or eroded with random elliptical kernels; one that is anywhere gets a pixel of what grows into
    its centre first, so that it makes an island or a hole where there is no contour. A step that would go below the
    target is left out, and all later ones are half as large, and on the contour. Sizes go with the image's ("regions")
    or with the object's, or the background's if that is smaller ("contour").

    Args:
        mask: (H, W) bool; it is left as it is.
        target_iou: in (0, 1]. It is never fallen below, and missed by at most 0.005 but where a mask is so small that
            a few pixels matter, or has next to no boundary. 1 gives a copy of the mask, and so does a mask that is
            empty or full, as it has no boundary.
        rng: source of all randomness.
        kind: one of ``KINDS``.

    Returns:
        (H, W) bool.
    """
    truth = np.ascontiguousarray(mask, dtype=bool).view(np.uint8)
    boundary = _boundary(truth)
    if target_iou >= 1 or not len(boundary):
        return truth.astype(bool)
    coarse = _Coarse(truth)
    settings = KINDS[kind]
    unit = (truth.size if settings.anywhere else min(coarse.truth_area, truth.size - coarse.truth_area)) ** 0.5
    _simplify(coarse, target_iou, settings.simplification * unit * rng.random())
    _step(coarse, target_iou, boundary, unit, settings, rng)
    return coarse.mask.astype(bool)


class _Coarse:
    """A mask on its way from the truth, and its IoU with it, kept up to date from the changed part alone."""

    def __init__(self, truth: np.ndarray):
        self.truth = truth
        self.mask = truth.copy()
        self.truth_area = self.area = self.intersection = cv2.countNonZero(truth)

    @property
    def iou(self) -> float:
        return self.intersection / (self.truth_area + self.area - self.intersection)

    def replace(self, part: tuple[slice, slice], new: np.ndarray, least_iou: float) -> bool:
        """Set a part of the mask unless that takes the IoU below the least; return whether it was set."""
        old, truth = self.mask[part], self.truth[part]
        area = self.area + cv2.countNonZero(new) - cv2.countNonZero(old)
        intersection = self.intersection + cv2.countNonZero(new & truth) - cv2.countNonZero(old & truth)
        if intersection < least_iou * (self.truth_area + area - intersection):
            return False
        old[:] = new
        self.area, self.intersection = area, intersection
        return True


def _boundary(mask: np.ndarray) -> np.ndarray:
    """Return (N, 2) positions (y, x) of foreground that touches background; the image's border is none."""
    inside = cv2.erode(mask, np.ones((3, 3), np.uint8))
    return np.stack(np.divmod(np.flatnonzero(mask ^ inside), mask.shape[1]), axis=1)


def _simplify(coarse: _Coarse, target_iou: float, tolerance: float) -> None:
    """Replace the contours by polygons within a tolerance in pixels, or within a half, a quarter, ... of it."""
    contours = cv2.findContours(coarse.mask, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)[0]
    everything = (slice(None), slice(None))
    while tolerance >= 0.5:
        polygons = [cv2.approxPolyDP(contour, tolerance, True) for contour in contours]
        # All at once, so that the contours of holes cut them out; outlines are foreground in either case
        if coarse.replace(everything, cv2.fillPoly(np.zeros_like(coarse.mask), polygons, 1), target_iou):
            return
        tolerance /= 2


def _step(
    coarse: _Coarse, target_iou: float, boundary: np.ndarray, unit: float, kind: _Kind, rng: np.random.Generator
) -> None:
    """Dilate or erode patches until the target is reached; ``unit`` is that of the kind, in pixels."""
    height, width = coarse.mask.shape
    centers = boundary[rng.integers(len(boundary), size=MAX_STEPS)]
    # Drawn at once, as this is many times faster than number by number
    sides = rng.uniform(*kind.patch_halves, (MAX_STEPS, 4)) * unit
    radii = rng.random((MAX_STEPS, 2)) * rng.uniform(*kind.kernel_radii) * unit
    dilates = rng.random(MAX_STEPS) < 0.5
    anywhere = np.zeros(MAX_STEPS, bool)
    if kind.anywhere:
        anywhere = rng.random(MAX_STEPS) < kind.anywhere
        centers[anywhere] = rng.integers((height, width), size=(MAX_STEPS, 2))[anywhere]
    scale = 1.0
    for (y, x), side, radius, dilate, seed in zip(centers.tolist(), sides, radii, dilates, anywhere, strict=True):
        if coarse.iou - target_iou <= TOLERANCE or scale < SMALLEST_SCALE:
            return
        if seed and scale < 1:  # what is left to change would become crumbs
            continue
        up, down, left, right = (side * scale).astype(int).tolist()
        part = slice(max(y - up, 0), min(y + down + 1, height)), slice(max(x - left, 0), min(x + right + 1, width))
        times = math.ceil(max(scale * radius.max() / LARGEST_RADIUS, 1))
        diameters = 2 * (radius * scale / times).astype(int) + 3
        kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, diameters.tolist())
        patch = coarse.mask[part].copy()
        if seed:
            patch[min(y, up), min(x, left)] = dilate
        # The patch is an array of its own to OpenCV, which looks at nothing around it
        changed = (cv2.dilate if dilate else cv2.erode)(patch, kernel, iterations=times)
        if not coarse.replace(part, changed, target_iou):
            scale /= 2
