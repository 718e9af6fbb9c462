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
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

ALIGNMENT = 16
"""Sides of an encoder input are multiples of this, the stride of its last stage, so that features keep their places."""
SMALLEST_SIDE = 32

Network = Callable[[Tensor, Tensor, Tensor, Tensor, int], Tensor]
"""As :meth:`AIRM.step`: images, masks, rows, columns and chunk to (B, 1, R, C) probabilities."""


@dataclass(frozen=True)
class Settings:
    """How to refine: the keys of MODEL.AIRM with these names."""

    ratios: Sequence[float] = (0.125, 0.25, 0.5, 1.0)
    min_size_test: int = 0
    padding: int = 32
    query_chunk: int = 16384
    tile_size: int = 0
    tile_halo: int = 32
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
        border = (self.before, self.padded - self.size - self.before)
        return torch.from_numpy(np.pad(np.arange(self.size), border, mode="reflect")).to(device)

    def position(self, pixels: Tensor) -> Tensor:
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
        halo: context around a core; at the ends of the grid there is none.
    """
    if tile_size <= 0 or tile_size >= n:
        return [Span(0, n, 0, n)]
    tile_size = max(tile_size // ALIGNMENT * ALIGNMENT, SMALLEST_SIDE)
    step = max(tile_size - 2 * halo, ALIGNMENT)
    count = -(-(n - tile_size) // step) + 1
    starts = [round(i * (n - tile_size) / (count - 1) / ALIGNMENT) * ALIGNMENT for i in range(count)]
    cuts = [0, *((starts[i] + tile_size + starts[i + 1]) // 2 for i in range(count - 1)), n]
    return [Span(start, start + tile_size, cuts[i], cuts[i + 1]) for i, start in enumerate(starts)]


def resize_reads(n_in: int, n_out: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return what ``interpolate(mode="bilinear", align_corners=False)`` reads to make n_out pixels of n_in.

    Returns:
        (2, n_out) int64, the two pixels that each is made of, and (n_out,) the share of the second.
    """
    position = (torch.arange(n_out, device=device, dtype=torch.float64) + 0.5) * (n_in / n_out) - 0.5
    position = position.clamp(0, n_in - 1)
    before = position.floor()
    return torch.stack([before, (before + 1).clamp(max=n_in - 1)]).long(), (position - before).float()


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


class _TargetAxis:
    """The pixels of the next ratio's mask along one axis."""

    def __init__(self, grid: GridAxis, n: int, device: torch.device):
        self.grid = grid
        self.reads, self.share = resize_reads(grid.full, n, device)
        # Their centres in pixels of this ratio's padded grid, ascending
        self.positions = grid.position((torch.arange(n, device=device) + 0.5) * (grid.full / n) - 0.5)

    def within(self, span: Span) -> _Answer:
        low, high = torch.searchsorted(self.positions, self.positions.new_tensor([span.low, span.high])).tolist()
        pixels, reads = self.reads[:, low:high].unique(return_inverse=True)
        queries = 2 * (self.grid.position(pixels) - span.start) / (span.stop - span.start) - 1
        return _Answer(slice(low, high), queries, reads, self.share[low:high])


class CoarseToFine:
    """Refines masks of images of one size; what masks of the same images share, the resized images, is made once."""

    def __init__(self, step: Network, images: Tensor, settings: Settings, progress: bool = False):
        """
        Args:
            step: the network.
            images: (B, 3, H, W) as the network takes them, of any size from 1 x 1 up.
            settings: see there.
            progress: whether to show a progress bar of the tiles.
        """
        self.step, self.settings, self.progress = step, settings, progress
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
            refined, _ = self.refine_ratio(level, refined)
        if self.settings.min_confidence > 0:
            refined = torch.where((2 * refined - 1).abs() < self.settings.min_confidence, masks, refined)
        return torch.where(given[:, None, None, None], refined, 0.0)

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
        targets = [_TargetAxis(axis, n, masks.device) for axis, n in zip(grid, size, strict=True)]
        # What no tile answers keeps the coarser mask
        result = F.interpolate(masks, tuple(size), mode="bilinear", align_corners=False)
        tiles, encoded = self.tiles(level), []
        chunk = max(1, self.settings.query_chunk // len(masks))
        for tile in tqdm(tiles, desc=f"ratio {level + 1} of {len(self.grids)}", disable=not self.progress):
            if level > 0 and len(tiles) > 1 and not self._is_undecided(tile.of(padded)):
                continue
            rows, cols = (target.within(span) for target, span in zip(targets, tile, strict=True))
            if len(rows.queries) and len(cols.queries):
                answer = self.step(tile.of(images), tile.of(padded), rows.queries, cols.queries, chunk)
                result[..., rows.chosen, cols.chosen] = cols.merge(rows.merge(answer, 2), 3)
                encoded.append(tile)
        return result, encoded

    def _is_undecided(self, mask: Tensor) -> bool:
        low, high = mask.min().item(), mask.max().item()
        return bool(((mask > self.settings.undecided) & (mask < 1 - self.settings.undecided)).any()) or low < 0.5 < high


def _resize(x: Tensor, grid: Sequence[GridAxis]) -> Tensor:
    size = tuple(axis.size for axis in grid)
    return x if x.shape[2:] == size else F.interpolate(x, size, mode="bilinear", antialias=True)


def _pad(x: Tensor, grid: Sequence[GridAxis]) -> Tensor:
    return x[:, :, grid[0].reflect(x.device)][..., grid[1].reflect(x.device)]
