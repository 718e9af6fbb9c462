"""Multi-resolution inference (Sec. 4.3): refine at a low resolution first, and take that as the next coarse mask.

At each ratio the encoder sees image and mask at that share of their resolution, and the mapping is queried at the
pixels of the full one; resized, its output is the mask of the next ratio. Of these pixels only those are queried which
the resizing reads. Large inputs can be encoded in tiles; then, above the first ratio, only pixels are refined near
which the mask is undecided, and only tiles encoded that have some (:mod:`.tiles`).

Letters: B images of one size with a mask each, (H, W) their pixels, (h, w) those at a ratio.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

from .tiles import BLOCK, GridAxis, Plan, Tile, Window, grid_axis, place_windows, resize_reads, tile_side

Network = Callable[..., Tensor]
"""As :meth:`AIRM.step` or :meth:`AIRM.step_at`, to probabilities."""


@dataclass(frozen=True)
class Settings:
    """How to refine: the keys of MODEL.AIRM with these names."""

    ratios: Sequence[float] = (0.125, 0.25, 0.5, 1.0)
    min_size_test: int = 0
    padding: int = 32
    query_chunk: int = 8192
    tile_size: int = 0
    tile_halo: int = 32
    batch_pixels: int = 2**18
    repeat_below: float = 0.0
    undecided: float = 0.01
    min_confidence: float = 0.0


class CoarseToFine:
    """Refines masks of images of one size; what masks of the same images share, the resized images, is made once."""

    def __init__(
        self,
        step: Network,
        images: Tensor,
        settings: Settings,
        progress: bool = False,
        predict: Callable[..., Any] | None = None,
        colours: Callable[[Tensor, Tensor], Tensor] | None = None,
        step_at: Network | None = None,
    ):
        """
        Args:
            step: the network.
            images: (B, 3, H, W) as the network takes them, of any size from 1 x 1 up.
            settings: see there.
            progress: whether to show a progress bar of the tiles.
            predict: from images and masks to what the tiles of a ratio have in common, see :meth:`AIRM.predict`.
            colours: from images and masks of a ratio to what the network is to know of all their colours, see
                :meth:`AIRM.colours`.
            step_at: the network, asked at some positions of several windows; by default by way of ``step``, which then
                answers for more than that.
        """
        self.step, self.settings, self.progress = step, settings, progress
        self.predict, self.colours, self.step_at = predict, colours, step_at or self._step_at
        longer = max(images.shape[2:])
        ratios = settings.ratios
        used = [r for r in ratios[:-1] if longer * r >= settings.min_size_test] + list(ratios[-1:])
        self.grids = [[grid_axis(n, r, settings.padding) for n in images.shape[2:]] for r in used]
        self.images = [_resize(images, grid) for grid in self.grids]

    @torch.no_grad()
    def refine(self, masks: Tensor) -> Tensor:
        """Refine coarse masks of the images, (B, 1, H, W) float32 in [0, 1], to soft ones of the same form.

        An empty mask stays empty, and where ``|2 p - 1|`` of the refined probability p is below MIN_CONFIDENCE, the
        coarse mask is kept.
        """
        given = masks.flatten(1).any(1)
        if not given.any():
            return torch.zeros_like(masks)
        refined = _resize(masks, self.grids[0])
        for level in range(len(self.grids)):
            before = refined
            refined, _ = self.refine_ratio(level, refined)
        if self.settings.repeat_below > 0:
            refined = self._repeat(before, refined)
        if self.settings.min_confidence > 0:
            refined = torch.where((2 * refined - 1).abs() < self.settings.min_confidence, masks, refined)
        return torch.where(given[:, None, None, None], refined, 0.0)

    def _repeat(self, before: Tensor, refined: Tensor) -> Tensor:
        """Refine masks at the last ratio once more if their IoU with what they were before it is low.

        A mask that has moved far has moved to where more can be seen of it; one that has not would only drift.
        """
        a, b = (_resize(x, self.grids[-1]) >= 0.5 for x in (before, refined))
        overlap = (a & b).sum((1, 2, 3)) / (a | b).sum((1, 2, 3)).clamp(min=1)
        moved = overlap < self.settings.repeat_below
        if not moved.any():
            return refined
        again, _ = self.refine_ratio(len(self.grids) - 1, _resize(refined, self.grids[-1]))
        return torch.where(moved[:, None, None, None], again, refined)

    def tiles(self, level: int) -> list[Tile]:
        """Return the windows in which all of a ratio would be encoded."""
        windows = self._place(level, np.ones((1, *self._blocks(level)), bool))
        return [window.tile for window in windows]

    def refine_ratio(self, level: int, masks: Tensor) -> tuple[Tensor, list[Tile]]:
        """Refine at one ratio. Subclasses override this to see, or to replace, what becomes of each.

        Args:
            level: index of the ratio.
            masks: (B, 1, h, w) at its resolution.

        Returns:
            (B, 1, h', w') masks at the resolution of the next ratio, after the last one at the images' own; and the
            tiles that were encoded.
        """
        if not self.settings.tile_size or (level == 0 and not self._is_tiled(level)):
            return self._refine_whole(level, masks), self.tiles(level)
        # What no tile answers keeps the coarser mask
        result = F.interpolate(masks, self._size(level), mode="bilinear", align_corners=False)
        undecided = self._undecided(result) if level > 0 else np.ones((len(masks), *self._blocks(level)), bool)
        windows = self._place(level, undecided)
        if windows:
            self._refine_windows(level, masks, windows, result)
        return result, [window.tile for window in windows]

    def _refine_whole(self, level: int, masks: Tensor) -> Tensor:
        grid, reads = self.grids[level], []
        for axis, n in zip(grid, self._size(level), strict=True):
            indices, share = resize_reads(axis.full, n)
            pixels, inverse = np.unique(indices, return_inverse=True)
            reads.append((2 * axis.position(pixels) / axis.padded - 1, inverse.reshape(2, -1), share))
        # One transfer, since each waits for the device
        flat = torch.from_numpy(np.concatenate([part.flatten() for of_axis in reads for part in of_axis]))
        sent = flat.float().to(masks.device).split([part.size for of_axis in reads for part in of_axis])
        rows, cols = sent[0], sent[3]
        images, padded = (_pad(x, grid) for x in (self.images[level], masks))
        chunk = max(1, self.settings.query_chunk // len(masks))
        shared = () if self.colours is None else (None, self.colours(self.images[level], masks))
        answer = self.step(images, padded, rows, cols, chunk, *shared)
        for dim, (inverse, share) in ((2, sent[1:3]), (3, sent[4:6])):
            first, second = (answer.index_select(dim, read) for read in inverse.long().view(2, -1))
            answer = torch.lerp(first, second, share[:, None] if dim == 2 else share)
        return answer

    def _refine_windows(self, level: int, masks: Tensor, windows: Sequence[Window], result: Tensor) -> None:
        """Put what windows answer in its place in ``result``."""
        grid, settings = self.grids[level], self.settings
        plan = Plan.of(windows, grid, self._size(level), masks.device)
        parameters, tables = self._share(level, masks)
        ends = np.cumsum([0, *(len(window.blocks) for window in windows)])
        rows, cols = windows[0].tile
        at_once = max(1, settings.batch_pixels // ((rows.stop - rows.start) * (cols.stop - cols.start)))
        title = f"ratio {level + 1} of {len(self.grids)}"
        for first in tqdm(range(0, len(windows), at_once), desc=title, disable=not self.progress):
            batch = windows[first : first + at_once]
            asked = plan.of_windows(first, ends[first], ends[first + len(batch)])
            images, coarse = (_cut(x, grid, batch) for x in (self.images[level], masks))
            shared: tuple[Any, ...] = () if parameters is None and tables is None else (parameters,)
            if parameters is not None and len(parameters[0][0]) > 1:
                shared = ([tuple(_take(x, batch) for x in layer) for layer in parameters],)
            if tables is not None:
                shared += (_take(tables, batch),)
            where = asked.window, asked.rows, asked.cols
            answers = self.step_at(images, coarse, *where, settings.query_chunk, *shared)
            asked.place(asked.merge(answers), result)

    def _undecided(self, masks: Tensor) -> np.ndarray:
        """Return (B, n, m): in which blocks, and beside which, masks are undecided; waits for the device once."""
        highest, lowest = (F.max_pool2d(x, BLOCK, ceil_mode=True) for x in (masks, -masks))
        highest, lowest = (F.max_pool2d(x, 3, 1, 1) for x in (highest, lowest))
        undecided = (highest > self.settings.undecided) & (lowest > self.settings.undecided - 1)
        return undecided[:, 0].cpu().numpy()

    def _share(self, level: int, masks: Tensor) -> tuple[Any, Tensor | None]:
        """Return what all windows of a ratio get: the mapping, if there are several, and the table of colours.

        The mapping is predicted from the whole of images and masks, shrunk to the size of a window.
        """
        tables = None if self.colours is None else self.colours(self.images[level], masks)
        if self.predict is None or not self._is_tiled(level):
            return None, tables
        grid = self.grids[level]
        scale = self.settings.tile_size / max(axis.padded for axis in grid)
        small = [grid_axis(axis.full, scale * axis.size / axis.full, self.settings.padding) for axis in grid]
        shrunk = (_pad(_resize(x, small), small) for x in (self.images[level], masks))
        return self.predict(*shrunk, *(() if tables is None else (tables,))), tables

    def _step_at(
        self, images: Tensor, masks: Tensor, window: Tensor, rows: Tensor, cols: Tensor, chunk: int, *shared: Any
    ) -> Tensor:
        """Ask each window for a grid of all its rows and columns."""
        answers = rows.new_empty(len(rows), rows.shape[1], cols.shape[1])
        for i in range(len(images)):
            own = window == i
            (y, of_y), (x, of_x) = (positions[own].unique(return_inverse=True) for positions in (rows, cols))
            others = [part[i : i + 1] if isinstance(part, Tensor) else part for part in shared]
            answer = self.step(images[i : i + 1], masks[i : i + 1], y, x, chunk, *others)
            answers[own] = answer[0, 0, of_y[:, :, None], of_x[:, None]]
        return answers

    def _size(self, level: int) -> tuple[int, int]:
        """Return the size of what a ratio answers: the next one's, after the last the images' own."""
        last = level + 1 == len(self.grids)
        height, width = (axis.full for axis in self.grids[level]) if last else (a.size for a in self.grids[level + 1])
        return height, width

    def _blocks(self, level: int) -> tuple[int, int]:
        height, width = self._size(level)
        return -(-height // BLOCK), -(-width // BLOCK)

    def _is_tiled(self, level: int) -> bool:
        return any(tile_side(axis.padded, self.settings.tile_size) < axis.padded for axis in self.grids[level])

    def _place(self, level: int, needed: np.ndarray) -> list[Window]:
        settings = self.settings
        return place_windows(needed, self.grids[level], self._size(level), settings.tile_size, settings.tile_halo)


def _take(x: Tensor, windows: Sequence[Window]) -> Tensor:
    """Return what is of the image of each window."""
    return torch.stack([x[window.image] for window in windows])


def _resize(x: Tensor, grid: Sequence[GridAxis]) -> Tensor:
    size = tuple(axis.size for axis in grid)
    return x if x.shape[2:] == size else F.interpolate(x, size, mode="bilinear", antialias=True)


def _pad(x: Tensor, grid: Sequence[GridAxis]) -> Tensor:
    return x[:, :, grid[0].reflect(x.device)][..., grid[1].reflect(x.device)]


def _cut(x: Tensor, grid: Sequence[GridAxis], windows: Sequence[Window]) -> Tensor:
    """Cut windows out of (B, C, h, w) with its reflected border, which is never made as a whole."""
    rows, cols = (axis.reflect(x.device) for axis in grid)
    parts = []
    for image, tile, _ in windows:
        y, u = (index[span.start : span.stop] for index, span in zip((rows, cols), tile, strict=True))
        parts.append(x[image][:, y][..., u])
    return torch.stack(parts)
