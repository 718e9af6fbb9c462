"""Where the encoder looks: the padded grid of each ratio, and the windows in which a large one is encoded."""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

ALIGNMENT = 16
"""Sides of an encoder input are multiples of this, the stride of its last stage, so that features keep their places."""
SMALLEST_SIDE = 32


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


class Reads(NamedTuple):
    """Bilinear resizing along one axis: each output is a sum of two inputs."""

    indices: Tensor
    """(2, n) int64, the inputs."""
    weights: Tensor
    """(2, n), adding up to 1."""

    def select(self, chosen: slice) -> "Reads":
        return Reads(self.indices[:, chosen], self.weights[:, chosen])


def resize_reads(n_in: int, n_out: int, device: torch.device) -> Reads:
    """Return what ``interpolate(mode="bilinear", align_corners=False)`` reads to make n_out pixels of n_in."""
    position = (torch.arange(n_out, device=device, dtype=torch.float64) + 0.5) * (n_in / n_out) - 0.5
    position = position.clamp(0, n_in - 1)
    before = position.floor()
    after = (position - before).float()
    indices = torch.stack([before, (before + 1).clamp(max=n_in - 1)]).long()
    return Reads(indices, torch.stack([1 - after, after]))
