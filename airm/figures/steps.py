"""What each ratio makes of a coarse mask, and the tiles that it encoded for that (AIRM, Sec. 4.3)."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from pixelmask.drawing import find_largest_change
from pixelmask.errors import UserError

from ..coarse_to_fine import CoarseToFine, GridAxis, Settings, Tile
from ..evaluation import intersection_and_union, mean_boundary_accuracy
from ..meta_arch import AIRM

ZOOM_SHARE = 10  # an enlarged part is this share of the image's sides

Box = tuple[float, float, float, float]
"""x0, y0, x1, y1 in pixels of the image."""


class Step(NamedTuple):
    """One ratio of a refinement."""

    size: tuple[int, int]
    """(h, w) of image and mask at this ratio, without the border."""
    encoded: list[Box]
    """Cores of the tiles that were encoded, as far as they lie in the image."""
    tiles: int
    """All tiles; those that were not encoded keep the mask of the ratio before."""
    mask: np.ndarray
    """(H, W) float32 in [0, 1]: the answer, enlarged from the resolution of the next ratio to the image's."""


def refinement_steps(model: AIRM, image: Tensor, coarse_mask: Tensor, settings: Settings | None = None) -> list[Step]:
    """Refine a coarse mask, and keep what each ratio answers.

    Args:
        model: in evaluation mode.
        image: (3, H, W) RGB in [0, 255].
        coarse_mask: (1, H, W) in [0, 1]; if it is empty, there are no steps.
        settings: by default the model's.

    Returns:
        the ratios, the lowest first. The last one's mask is what :meth:`AIRM.refine` returns without MIN_CONFIDENCE.
    """
    recorder = _RecordingPass(model.step, model.normalise(image)[None], settings or model.settings)
    recorder.refine(coarse_mask.to(model.device, torch.float32)[None])
    return recorder.steps


class _RecordingPass(CoarseToFine):
    """Also notes the answer and the encoded tiles of each ratio."""

    def __init__(self, *args: Any):
        super().__init__(*args)
        self.steps: list[Step] = []

    def refine_ratio(self, level: int, masks: Tensor) -> tuple[Tensor, list[Tile]]:
        answer, tiles = super().refine_ratio(level, masks)
        rows, cols = grid = self.grids[level]
        full = F.interpolate(answer, (rows.full, cols.full), mode="bilinear", align_corners=False)
        encoded = [_core(tile, grid) for tile in tiles]
        size = rows.size, cols.size
        self.steps.append(Step(size, encoded, len(self.tiles(level)), full[0, 0].cpu().numpy()))
        return answer, tiles


def _core(tile: Tile, grid: Sequence[GridAxis]) -> Box:
    """Return where the core of a tile lies in the image, in its pixels."""
    rows, cols = grid
    ends = (tile.cols.low, cols), (tile.rows.low, rows), (tile.cols.high, cols), (tile.rows.high, rows)
    x0, y0, x1, y1 = (
        min(max((end - axis.before) * axis.full / axis.size, 0.0), float(axis.full)) for end, axis in ends
    )
    return x0, y0, x1, y1


def score_mask(mask: np.ndarray, truth: np.ndarray) -> dict[str, float | None]:
    """Return IoU and mBA of a boolean mask in percent; None where they are not defined."""
    intersection, union = intersection_and_union(mask, truth)
    accuracy = mean_boundary_accuracy(mask, truth)
    return {
        "IoU": 100 * intersection / union if union else None,
        "mBA": None if accuracy is None else 100 * accuracy,
    }


def zoom_windows(
    coarse: np.ndarray, refined: np.ndarray, centres: Sequence[Sequence[int]] | None = None
) -> list[tuple[slice, slice]]:
    """Return rows and columns of parts to enlarge, a tenth of the image's sides each.

    Args:
        coarse, refined: (H, W) boolean.
        centres: (x, y) in pixels; None for a single part, that in which most pixels changed, if any did.

    Raises:
        UserError: for a centre outside the image.
    """
    if centres is None:
        part = find_largest_change(coarse ^ refined)
        return [] if part is None else [part]
    height, width = coarse.shape
    parts = []
    for x, y in centres:
        if not (0 <= x < width and 0 <= y < height):
            raise UserError(f"zoom {x} {y} is outside the image, which has {width} x {height} pixels")
        sides = max(1, height // ZOOM_SHARE), max(1, width // ZOOM_SHARE)
        top, left = (
            min(max(c - n // 2, 0), limit - n) for c, n, limit in zip((y, x), sides, coarse.shape, strict=True)
        )
        parts.append((slice(top, top + sides[0]), slice(left, left + sides[1])))
    return parts
