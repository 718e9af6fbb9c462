"""Multi-resolution inference (Sec. 4.3): refine at a low resolution first, and take that as the next coarse mask.

At each ratio the encoder sees image and mask at that share of their resolution, and the mapping is queried at the
pixels of the full one; resized, its output is the mask of the next ratio. Of these pixels only those are queried which
the resizing reads. Large inputs can be encoded in tiles, and then, above the first ratio, only where the mask is
undecided.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

from .query import Axis
from .tiling import GridAxis, Reads, Span, grid_axis, resize_reads, split_axis

Encode = Callable[[Tensor, Tensor], Callable[[Axis, Axis], Tensor]]
"""(1, 3, h, w) image and (1, 1, h, w) mask to a function from a grid of queries to (1, 1, R, C) probabilities."""


class Settings(NamedTuple):
    """The keys of MODEL.AIRM with these names."""

    ratios: Sequence[float] = (0.125, 0.25, 0.5, 1.0)
    min_size_test: int = 224
    padding: int = 32
    tile_size: int = 0
    tile_halo: int = 32
    undecided: float = 0.01


class CoarseToFine:
    """Refines masks of one image; what its masks share, the resized images, is made once."""

    def __init__(self, image: Tensor, encode: Encode, settings: Settings, cell: float, progress: bool = False):
        """
        Args:
            image: (3, H, W) normalised, of any size from 1 x 1 up.
            encode: the network.
            settings: see there.
            cell: size of a pixel of the encoder's input, which training queries; one feature position is 2. The
                smaller cells of pixels between those of a lower ratio are unknown to the network: it is told this one.
            progress: whether to show a progress bar of the tiles.
        """
        self.encode, self.settings, self.cell, self.progress = encode, settings, cell, progress
        longer = max(image.shape[1:])
        ratios = settings.ratios
        used = [r for r in ratios[:-1] if longer * r >= settings.min_size_test] + list(ratios[-1:])
        self.grids = [[grid_axis(n, r, settings.padding) for n in image.shape[1:]] for r in used]
        self.images = [_resize(image[None], grid, antialias=True) for grid in self.grids]

    @torch.no_grad()
    def refine(self, mask: Tensor) -> Tensor:
        """Refine a coarse mask, (1, H, W) in [0, 1], to a soft one of the same form. An empty mask stays empty."""
        if not mask.any():
            return torch.zeros_like(mask)
        current = _resize(mask[None], self.grids[0], antialias=True)
        for level, grid in enumerate(self.grids):
            last = level + 1 == len(self.grids)
            sizes = [axis.full for axis in grid] if last else [axis.size for axis in self.grids[level + 1]]
            current = self._step(level, current, sizes)
        return current[0]

    def _step(self, level: int, mask: Tensor, sizes: Sequence[int]) -> Tensor:
        """Refine at one ratio: (1, 1, h, w) mask at its resolution to the same mask at that of the next, ``sizes``."""
        grid, settings = self.grids[level], self.settings
        image, padded = (_pad(x, grid) for x in (self.images[level], mask))
        spans = [split_axis(axis.padded, settings.tile_size, settings.tile_halo) for axis in grid]
        tiles = [(rows, cols) for rows in spans[0] for cols in spans[1]]
        everywhere = level == 0 or len(tiles) == 1
        targets = [_Targets.of(axis, n, mask.device) for axis, n in zip(grid, sizes, strict=True)]
        # What no tile answers keeps the coarser mask
        result = F.interpolate(mask, tuple(sizes), mode="bilinear", align_corners=False)
        for rows, cols in tqdm(tiles, desc=f"ratio {level + 1} of {len(self.grids)}", disable=not self.progress):
            window = ..., slice(rows.start, rows.stop), slice(cols.start, cols.stop)
            answered = targets[0].within(rows), targets[1].within(cols)
            if all(s.stop > s.start for s in answered) and (everywhere or self._is_undecided(padded[window])):
                query = self.encode(image[window], padded[window])
                result[..., answered[0], answered[1]] = self._query(query, targets, answered, (rows, cols))
        return result

    def _is_undecided(self, mask: Tensor) -> bool:
        low, high = mask.min().item(), mask.max().item()
        return bool(((mask > self.settings.undecided) & (mask < 1 - self.settings.undecided)).any()) or low < 0.5 < high

    def _query(
        self,
        query: Callable[[Axis, Axis], Tensor],
        targets: Sequence["_Targets"],
        answered: Sequence[slice],
        tile: Sequence[Span],
    ) -> Tensor:
        """Query the pixels of the full resolution that the answered pixels are resized from, and resize them."""
        axes, merges = [], []
        for target, chosen, span in zip(targets, answered, tile, strict=True):
            reads = target.reads.select(chosen)
            pixels, where = reads.indices.unique(return_inverse=True)
            frame = 2 * (target.grid.position(pixels) - span.start) / (span.stop - span.start) - 1
            axes.append(Axis(frame, self.cell))
            merges.append(Reads(where, reads.weights))
        answer = query(axes[0], axes[1])
        for dim, merge in zip((2, 3), merges, strict=True):
            first, second = (answer.index_select(dim, indices) for indices in merge.indices)
            share = merge.weights[1][:, None] if dim == 2 else merge.weights[1]
            answer = torch.lerp(first, second, share)
        return answer


class _Targets(NamedTuple):
    """The pixels of the next resolution along one axis."""

    grid: GridAxis
    reads: Reads
    positions: Tensor
    """(n,) their centres, in pixels of this ratio's padded grid, ascending."""

    @classmethod
    def of(cls, grid: GridAxis, n: int, device: torch.device) -> "_Targets":
        pixels = (torch.arange(n, device=device) + 0.5) * (grid.full / n) - 0.5
        return cls(grid, resize_reads(grid.full, n, device), grid.position(pixels))

    def within(self, span: Span) -> slice:
        """Return those whose centres are in the core of a tile."""
        bounds = torch.tensor([span.low, span.high], device=self.positions.device, dtype=self.positions.dtype)
        low, high = torch.searchsorted(self.positions, bounds).tolist()
        return slice(low, high)


def _resize(x: Tensor, grid: Sequence[GridAxis], antialias: bool) -> Tensor:
    size = tuple(axis.size for axis in grid)
    return x if x.shape[2:] == size else F.interpolate(x, size, mode="bilinear", antialias=antialias)


def _pad(x: Tensor, grid: Sequence[GridAxis]) -> Tensor:
    return x[:, :, grid[0].reflect(x.device)][..., grid[1].reflect(x.device)]
