"""Multi-resolution inference (Sec. 4.3): refine at a low resolution first, and take that as the next coarse mask.

At each ratio the encoder sees image and mask at that share of their resolution, and the mapping is queried at the
pixels of the full one; resized, its output is the mask of the next ratio. Of these pixels only those are queried which
the resizing reads. Large inputs can be encoded in tiles, and then, above the first ratio, only where the mask is
undecided.

Letters: B images of one size with a mask each, (H, W) their pixels, (h, w) those at a ratio.
"""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

ALIGNMENT = 16
"""Sides of an encoder input are multiples of this, the stride of its last stage, so that features keep their places."""
SMALLEST_SIDE = 32

Network = Callable[..., Tensor]
"""As :meth:`AIRM.step`: images, masks, rows, columns, chunk and what a ratio's steps share, to probabilities."""


@dataclass(frozen=True)
class Settings:
    """How to refine: the keys of MODEL.AIRM with these names."""

    ratios: Sequence[float] = (0.125, 0.25, 0.5, 1.0)
    min_size_test: int = 0
    padding: int = 32
    query_chunk: int = 16384
    tile_size: int = 0
    tile_halo: int = 32
    repeat_below: float = 0.0
    undecided: float = 0.01
    min_confidence: float = 0.0


class GridAxis(NamedTuple):
    """One side of an image at a ratio: its pixels with the reflected border on both ends."""

    full: int
    """Pixels of the image at its own resolution."""
    size: int
    """Pixels at the ratio, without border."""
    before: int
    """Width of the border before them."""
    padded: int
    """Pixels with the border, a multiple of ALIGNMENT."""

    def reflect(self, device: torch.device) -> Tensor:
        """(padded,) indices into the ``size`` pixels that put the reflected border around them."""
        last = self.size - 1
        steps = torch.arange(-self.before, self.padded - self.before, device=device).abs() % max(2 * last, 1)
        return torch.minimum(steps, 2 * last - steps)

    def position(self, pixels: np.ndarray) -> np.ndarray:
        """Return where the centres of pixels of the full resolution lie, in pixels of the padded grid."""
        return (pixels + 0.5) * (self.size / self.full) + self.before


def grid_axis(full: int, ratio: float, padding: int) -> GridAxis:
    """Return the grid of a side of ``full`` pixels at a ratio.

    The border is ``padding`` pixels of the full resolution, less what makes the sum no multiple of ALIGNMENT.
    """
    size = max(1, round(full * ratio))
    padded = (size + 2 * round(padding * ratio)) // ALIGNMENT * ALIGNMENT
    padded = max(padded, -(-size // ALIGNMENT) * ALIGNMENT, SMALLEST_SIDE)
    return GridAxis(full, size, (padded - size) // 2, padded)


class Span(NamedTuple):
    """One side of a tile: what is encoded, [start, stop), and its core, whose queries it answers, [low, high)."""

    start: int
    stop: int
    low: int
    high: int


class Tile(NamedTuple):
    """A window of the padded grid."""

    rows: Span
    cols: Span

    def of(self, x: Tensor) -> Tensor:
        """Cut the window out of (B, C, padded h, padded w)."""
        return x[:, :, self.rows.start : self.rows.stop, self.cols.start : self.cols.stop]


def split_axis(n: int, tile_size: int, halo: int) -> list[Span]:
    """Cover n pixels, a multiple of ALIGNMENT, by windows of ``tile_size`` that overlap by at least 2 halo.

    Args:
        n: pixels of the padded grid.
        tile_size: side of a window, halo included; 0 or at least n: one window.
        halo: context around a core; at the ends of the grid there is none, and less where a window has no room for it.
    """
    tile_size = max(tile_size // ALIGNMENT * ALIGNMENT, SMALLEST_SIDE) if tile_size > 0 else n
    if tile_size >= n:
        return [Span(0, n, 0, n)]
    step = max((tile_size - 2 * halo) // ALIGNMENT * ALIGNMENT, ALIGNMENT)
    count = -(-(n - tile_size) // step) + 1
    starts = [round(i * (n - tile_size) / (count - 1) / ALIGNMENT) * ALIGNMENT for i in range(count)]
    cuts = [0, *((starts[i] + tile_size + starts[i + 1]) // 2 for i in range(count - 1)), n]
    return [Span(start, start + tile_size, cuts[i], cuts[i + 1]) for i, start in enumerate(starts)]


def resize_reads(n_in: int, n_out: int) -> tuple[np.ndarray, np.ndarray]:
    """Return what ``interpolate(mode="bilinear", align_corners=False)`` reads to make n_out pixels of n_in.

    Returns:
        (2, n_out) int64, the two pixels that each is made of, and (n_out,) the share of the second.
    """
    position = ((np.arange(n_out) + 0.5) * (n_in / n_out) - 0.5).clip(0, n_in - 1)
    before = position.astype(np.int64)
    return np.stack([before, (before + 1).clip(max=n_in - 1)]), position - before


class _Answer(NamedTuple):
    """What one tile has to say along one axis of the next ratio's mask."""

    chosen: slice
    """The pixels of that mask whose centres are in the tile's core."""
    queries: Tensor
    """(Q,) the pixels of the full resolution that they are resized from, in the tile's frame, which spans [-1, 1]."""
    reads: Tensor
    """(2, n) the two queries that each is made of."""
    share: Tensor
    """(n,) of the second."""

    def merge(self, values: Tensor, dim: int) -> Tensor:
        """Resize the values at the queries along one axis to the chosen pixels."""
        first, second = (values.index_select(dim, indices) for indices in self.reads)
        return torch.lerp(first, second, self.share[:, None] if dim == 2 else self.share)


def _plan_axis(grid: GridAxis, n: int, spans: Sequence[Span]) -> list[_Answer]:
    """Plan what each span of a padded grid has to say of the n pixels of the next ratio's mask along its axis."""
    reads, share = resize_reads(grid.full, n)
    # Their centres in pixels of this ratio's padded grid, ascending
    positions = grid.position((np.arange(n) + 0.5) * (grid.full / n) - 0.5)
    answers = []
    for span in spans:
        low, high = np.searchsorted(positions, (span.low, span.high))
        pixels, inverse = np.unique(reads[:, low:high], return_inverse=True)
        queries = 2 * (grid.position(pixels) - span.start) / (span.stop - span.start) - 1
        parts = (torch.from_numpy(x) for x in (queries, inverse.reshape(2, -1), share[low:high]))
        answers.append(_Answer(slice(int(low), int(high)), *parts))
    return answers


def _plan(
    tiles: Sequence[Tile], grid: Sequence[GridAxis], size: Sequence[int], device: torch.device
) -> list[tuple[Tile, _Answer, _Answer]]:
    """Plan what tiles have to say of the next ratio's mask, of ``size``, and leave out those that have nothing to say.

    All of it is made on the host and sent in one transfer as float32, since each transfer waits for the device.
    """
    spans = [list(dict.fromkeys(of_axis)) for of_axis in zip(*tiles, strict=True)]
    plans = [_plan_axis(axis, n, of_axis) for axis, n, of_axis in zip(grid, size, spans, strict=True)]
    parts = [part for plan in plans for answer in plan for part in answer[1:]]
    flat = torch.cat([part.flatten().float() for part in parts]).to(device)
    sent = iter(flat.split([part.numel() for part in parts]))
    rows, cols = (
        {span: _Answer(answer.chosen, next(sent), next(sent).long().view(2, -1), next(sent)) for span, answer in pairs}
        for pairs in (list(zip(of_axis, plan, strict=True)) for of_axis, plan in zip(spans, plans, strict=True))
    )
    planned = [(tile, rows[tile.rows], cols[tile.cols]) for tile in tiles]
    return [(tile, y, x) for tile, y, x in planned if len(y.queries) and len(x.queries)]


class CoarseToFine:
    """Refines masks of images of one size; what masks of the same images share, the resized images, is made once."""

    def __init__(
        self,
        step: Network,
        images: Tensor,
        settings: Settings,
        progress: bool = False,
        predict: Callable[[Tensor, Tensor], Any] | None = None,
        colours: Callable[[Tensor, Tensor], Tensor] | None = None,
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
        """
        self.step, self.settings, self.progress = step, settings, progress
        self.predict, self.colours = predict, colours
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
        """Return all windows in which a ratio can be encoded."""
        settings = self.settings
        rows, cols = (split_axis(axis.padded, settings.tile_size, settings.tile_halo) for axis in self.grids[level])
        return [Tile(*spans) for spans in itertools.product(rows, cols)]

    def refine_ratio(self, level: int, masks: Tensor) -> tuple[Tensor, list[Tile]]:
        """Refine at one ratio. Subclasses override this to see, or to replace, what becomes of each.

        Args:
            level: index of the ratio.
            masks: (B, 1, h, w) at its resolution.

        Returns:
            (B, 1, h', w') masks at the resolution of the next ratio, after the last one at the images' own; and the
            tiles that were encoded, for all masks if they are undecided in one.
        """
        grid = self.grids[level]
        last = level + 1 == len(self.grids)
        size = [axis.full for axis in grid] if last else [axis.size for axis in self.grids[level + 1]]
        images, padded = (_pad(x, grid) for x in (self.images[level], masks))
        # What no tile answers keeps the coarser mask
        result = F.interpolate(masks, tuple(size), mode="bilinear", align_corners=False)
        tiles = self.tiles(level)
        encoded = self._undecided(tiles, padded) if level > 0 and len(tiles) > 1 else tiles
        planned = _plan(encoded, grid, size, masks.device) if encoded else []
        shared = self._share(level, masks, images, padded) if planned else ()
        chunk = max(1, self.settings.query_chunk // len(masks))
        title = f"ratio {level + 1} of {len(self.grids)}"
        for tile, rows, cols in tqdm(planned, desc=title, disable=not self.progress):
            answer = self.step(tile.of(images), tile.of(padded), rows.queries, cols.queries, chunk, *shared)
            result[..., rows.chosen, cols.chosen] = cols.merge(rows.merge(answer, 2), 3)
        return result, [tile for tile, *_ in planned]

    def _undecided(self, tiles: Sequence[Tile], masks: Tensor) -> list[Tile]:
        """Return the tiles in which (B, 1, padded h, padded w) masks are undecided; waits for the device once."""
        undecided = []
        for tile in tiles:
            mask = tile.of(masks)
            low, high = mask.aminmax()
            between = (mask > self.settings.undecided) & (mask < 1 - self.settings.undecided)
            undecided.append(between.any() | (low < 0.5) & (high > 0.5))
        return list(itertools.compress(tiles, torch.stack(undecided).tolist()))

    def _share(self, level: int, masks: Tensor, images: Tensor, padded: Tensor) -> tuple[Any, ...]:
        """Return what all steps of a ratio get: the mapping, if there are tiles, and the colours.

        The mapping is predicted from the whole of the padded images and masks, shrunk to the size of a tile.
        """
        table = () if self.colours is None else (self.colours(self.images[level], masks),)
        if self.predict is None or len(self.tiles(level)) == 1:
            return (None, *table) if table else ()
        scale = self.settings.tile_size / max(images.shape[2:])
        size = [max(round(n * scale / ALIGNMENT) * ALIGNMENT, SMALLEST_SIDE) for n in images.shape[2:]]
        shrunk = (F.interpolate(x, size, mode="bilinear", antialias=True) for x in (images, padded))
        return (self.predict(*shrunk, *table), *table)


def _resize(x: Tensor, grid: Sequence[GridAxis]) -> Tensor:
    size = tuple(axis.size for axis in grid)
    return x if x.shape[2:] == size else F.interpolate(x, size, mode="bilinear", antialias=True)


def _pad(x: Tensor, grid: Sequence[GridAxis]) -> Tensor:
    return x[:, :, grid[0].reflect(x.device)][..., grid[1].reflect(x.device)]
