"""What perturbed masks have for errors: how many, how far from the contour, and how many islands and holes."""

from collections.abc import Iterable
from typing import NamedTuple

import cv2
import numpy as np

from pixelmask.errors import UserError

from .dataset_mapper import RefinementDatasetMapper

FAR = 10.0  # pixels


class MaskErrors(NamedTuple):
    """Of one coarse mask; or the means of several.

    Attributes:
        iou: with the truth, in [0, 1].
        far: share of the wrong pixels that are more than ``FAR`` pixels away from those next to the truth's contour,
            inside or outside; in [0, 1], NaN if no pixel is wrong.
        islands: connected parts (of 8 neighbours) of the coarse mask without a pixel of the truth.
        holes: connected parts of its background without a pixel of the true background.
    """

    iou: float
    far: float
    islands: float
    holes: float


def mask_errors(coarse: np.ndarray, truth: np.ndarray) -> MaskErrors:
    """Compare two (H, W) bool masks, of which the truth has a pixel of both values."""
    contour = cv2.morphologyEx(truth.astype(np.uint8), cv2.MORPH_GRADIENT, np.ones((3, 3), np.uint8))
    distance = cv2.distanceTransform(1 - contour, cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    wrong = coarse != truth
    far = float((distance[wrong] > FAR).mean()) if wrong.any() else float("nan")
    iou = float((coarse & truth).sum() / (coarse | truth).sum())
    return MaskErrors(iou, far, _count_apart(coarse, truth), _count_apart(~coarse, ~truth))


def _count_apart(parts: np.ndarray, mask: np.ndarray) -> int:
    """Count the connected parts of a mask that do not touch another."""
    count, labels = cv2.connectedComponents(parts.astype(np.uint8), connectivity=8)
    return count - 1 - len(np.unique(labels[parts & mask]))


def perturbation_statistics(masks: Iterable[np.ndarray], mapper: RefinementDatasetMapper, seed: int = 0) -> MaskErrors:
    """Return the means over one training sample of each mask, (H, W) bool; samples of one value alone do not count.

    Raises:
        UserError: if no sample has both values.
    """
    rng = np.random.default_rng(seed)
    errors = []
    for mask in masks:
        _, truth, coarse, _ = mapper.augment(np.zeros((*mask.shape, 3), np.uint8), mask, rng)
        if truth.any() and not truth.all():
            errors.append(mask_errors(coarse, truth))
    if not errors:
        raise UserError("no crop of any mask has both foreground and background")
    return MaskErrors(*np.nanmean(errors, axis=0).tolist())
