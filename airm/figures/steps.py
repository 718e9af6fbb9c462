"""What each ratio makes of a coarse mask, and the tiles that it encoded for that (AIRM, Sec. 4.3)."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from pixelmask.drawing import find_largest_change
from pixelmask.errors import UserError

from ..coarse_to_fine import CoarseToFine
from ..evaluation import intersection_and_union, mean_boundary_accuracy
from ..meta_arch import AIRM
from ..tiling import GridAxis, Span, split_axis

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


def refinement_steps(model: AIRM, image: Tensor, coarse_mask: Tensor) -> list[Step]:
    """Refine a coarse mask with the model's settings, and keep what each ratio answers.

    Args:
        model: in evaluation mode.
        image: (3, H, W) RGB in [0, 255].
        coarse_mask: (1, H, W) in [0, 1]; if it is empty, there are no steps.

    Returns:
        the ratios, the lowest first. The last one's mask is what :meth:`AIRM.refine` returns without MIN_CONFIDENCE.
    """
    recorder = _RecordingPass(model._normalise(image), model._encode, model.settings, model.cell)
    recorder.refine(coarse_mask.to(model.device, torch.float32))
    return recorder.steps


class _RecordingPass(CoarseToFine):
    """Also notes the answer and the encoded tiles of each ratio."""

    def __init__(self, *args: Any):
        super().__init__(*args)
        self.steps: list[Step] = []
        self._encoded: list[Box] = []

    def _step(self, level: int, mask: Tensor, sizes: Sequence[int]) -> Tensor:
        self._encoded = []
        answer = super()._step(level, mask, sizes)
        grid, settings = self.grids[level], self.settings
        rows, cols = (len(split_axis(axis.padded, settings.tile_size, settings.tile_halo)) for axis in grid)
        encoded = [_clip(box, grid) for box in self._encoded]
        full = F.interpolate(answer, (grid[0].full, grid[1].full), mode="bilinear", align_corners=False)
        self.steps.append(Step((grid[0].size, grid[1].size), encoded, rows * cols, full[0, 0].cpu().numpy()))
        return answer

    def _query(self, query: Any, targets: Any, answered: Any, tile: Sequence[Span]) -> Tensor:
        rows, cols = tile
        self._encoded.append((cols.low, rows.low, cols.high, rows.high))
        return super()._query(query, targets, answered, tile)


def _clip(box: Box, grid: Sequence[GridAxis]) -> Box:
    """Return where a box of the padded grid lies in the image, in its pixels."""
    x0, y0, x1, y1 = (
        min(max((end - axis.before) * axis.full / axis.size, 0.0), float(axis.full))
        for end, axis in zip(box, (grid[1], grid[0], grid[1], grid[0]), strict=True)
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
