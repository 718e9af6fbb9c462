"""Where a ratio of the refinement is encoded, and what is asked there: windows laid over the undecided blocks.

All of this is arithmetic on the host, with what one transfer from the device brought: which blocks are undecided.

Letters: (H, W) pixels of the next ratio's mask, in blocks of BLOCK x BLOCK; K blocks of them that are asked for.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

ALIGNMENT = 16
"""Sides of an encoder input are multiples of this, the stride of its last stage, so that features keep their places."""
SMALLEST_SIDE = 32
BLOCK = 4


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

    def block_edges(self, n: int) -> np.ndarray:
        """Return where the blocks of n pixels, of the image at another resolution, begin and end in the padded grid."""
        return np.append(np.arange(0, n, BLOCK), n) * (self.size / n) + self.before


def grid_axis(full: int, ratio: float, padding: int) -> GridAxis:
    """Return the grid of a side of ``full`` pixels at a ratio.

    The border is ``padding`` pixels of the full resolution, less what makes the sum no multiple of ALIGNMENT.
    """
    size = max(1, round(full * ratio))
    padded = (size + 2 * round(padding * ratio)) // ALIGNMENT * ALIGNMENT
    padded = max(padded, -(-size // ALIGNMENT) * ALIGNMENT, SMALLEST_SIDE)
    return GridAxis(full, size, (padded - size) // 2, padded)


class Span(NamedTuple):
    """One side of a tile, in pixels of the padded grid: what is encoded, [start, stop), and its core, [low, high)."""

    start: int
    stop: int
    low: float
    high: float


class Tile(NamedTuple):
    """A window of the padded grid; in its core are the blocks that it answers for."""

    rows: Span
    cols: Span


class Window(NamedTuple):
    """A tile of one image, and what it answers for."""

    image: int
    tile: Tile
    blocks: np.ndarray
    """(K, 2) int64, row and column of each block."""


def tile_side(padded: int, tile_size: int) -> int:
    """Return the side of the windows of an axis; 0 stands for one window."""
    return min(max(tile_size // ALIGNMENT * ALIGNMENT, SMALLEST_SIDE), padded) if tile_size > 0 else padded


class BlockAxis(NamedTuple):
    """One side of an image in blocks of the next ratio's mask, to be covered by windows."""

    edges: np.ndarray
    """(n + 1,) where blocks begin and end, in the padded grid."""
    padded: int
    """Pixels of that grid."""
    side: int
    """Of the windows, a multiple of ALIGNMENT and at most ``padded``."""
    halo: int
    """Context on both sides of what a window answers for; at the ends of the grid there is none."""

    @classmethod
    def of(cls, axis: GridAxis, n: int, side: int, halo: int) -> "BlockAxis":
        """Of n pixels of the next ratio's mask; in small windows the halo leaves room for something to answer for."""
        return cls(axis.block_edges(n), axis.padded, side, min(halo, side // 2 - ALIGNMENT))

    def latest(self, first: int) -> int:
        """Return the last place for a window whose first block is ``first``."""
        return int(np.clip((self.edges[first] - self.halo) // ALIGNMENT * ALIGNMENT, 0, self.padded - self.side))

    def span(self, first: int, last: int) -> Span:
        """Return the window that has the blocks from ``first`` to ``last`` in its middle, as far as it can."""
        low, high = float(self.edges[first]), float(self.edges[last + 1])
        middle = round((low + high - self.side) / 2 / ALIGNMENT) * ALIGNMENT
        earliest = -(-(min(high + self.halo, self.padded) - self.side) // ALIGNMENT) * ALIGNMENT
        start = int(min(max(middle, earliest, 0), self.latest(first)))
        return Span(start, start + self.side, low, high)

    def group(self, needed: np.ndarray) -> list[tuple[int, int]]:
        """Group (n,) blocks that are needed, or not, by as few windows as can be: first and last block of each."""
        groups, left = [], np.flatnonzero(needed)
        while len(left):
            stop = self.latest(left[0]) + self.side
            reach = self.padded if stop == self.padded else stop - self.halo
            last = left[max(int(np.searchsorted(self.edges[left + 1], reach, side="right")) - 1, 0)]
            groups.append((int(left[0]), int(last)))
            left = left[left > last]
        return groups


def place_windows(
    needed: np.ndarray, grid: Sequence[GridAxis], size: Sequence[int], tile_size: int, halo: int
) -> list[Window]:
    """Cover the needed blocks of images: in bands of rows, in each of these what is needed of its columns.

    Args:
        needed: (B, n, m) boolean, blocks of masks of ``size``.
        grid: in which they are encoded.
        size: (H, W).
        tile_size, halo: side of the windows, and context around what they answer for.

    Returns:
        windows of one size, image by image; each needed block is in one of them.
    """
    rows, cols = (
        BlockAxis.of(axis, n, tile_side(axis.padded, tile_size), halo) for axis, n in zip(grid, size, strict=True)
    )
    windows = []
    for image, of_image in enumerate(needed):
        for top, bottom in rows.group(of_image.any(1)):
            for left, right in cols.group(of_image[top : bottom + 1].any(0)):
                blocks = np.argwhere(of_image[top : bottom + 1, left : right + 1]) + (top, left)
                tile = Tile(rows.span(blocks[0, 0], blocks[-1, 0]), cols.span(left, right))
                windows.append(Window(image, tile, blocks))
    return windows


def resize_reads(n_in: int, n_out: int) -> tuple[np.ndarray, np.ndarray]:
    """Return what ``interpolate(mode="bilinear", align_corners=False)`` reads to make n_out pixels of n_in.

    Returns:
        (2, n_out) int64, the two pixels that each is made of, and (n_out,) the share of the second.
    """
    position = ((np.arange(n_out) + 0.5) * (n_in / n_out) - 0.5).clip(0, n_in - 1)
    before = position.astype(np.int64)
    return np.stack([before, (before + 1).clip(max=n_in - 1)]), position - before


class Questions(NamedTuple):
    """What is asked of windows: of each block the positions from which its pixels are resized, R by C of them."""

    window: Tensor
    """(K,) int64."""
    image: Tensor
    """(K,) int64."""
    pixels: list[Tensor]
    """(K, BLOCK) int64 rows and columns of the next ratio's mask; where that ends, its last ones again."""
    rows: Tensor
    """(K, R) float32, in the frame of the window, which spans [-1, 1]."""
    cols: Tensor
    """(K, C)."""
    shares: list[Tensor]
    """(K, BLOCK) of the second of two rows, or columns, of which a pixel is made; R is BLOCK if no pixel has two."""

    def merge(self, answers: Tensor) -> Tensor:
        """Resize (K, R, C) values at the positions to the (K, BLOCK, BLOCK) pixels."""
        for dim, share in zip((1, 2), self.shares, strict=True):
            if answers.shape[dim] > BLOCK:
                share = share.unsqueeze(3 - dim)
                first, second = answers.split(BLOCK, dim)
                answers = torch.lerp(first, second, share)
        return answers

    def place(self, values: Tensor, result: Tensor) -> None:
        """Put (K, BLOCK, BLOCK) pixels in their places in (B, 1, H, W)."""
        y, x = self.pixels
        result[self.image[:, None, None], 0, y[:, :, None], x[:, None]] = values


class Plan(NamedTuple):
    """What is asked of all windows of a ratio, on the device."""

    asked: Tensor
    """(K, 4 + R + C): window, image, row and column of the block, and the positions."""
    shares: Sequence[Tensor]
    """(H,) and (W,)."""
    widths: list[int]
    """1, 1, 2, R and C."""

    @classmethod
    def of(
        cls, windows: Sequence[Window], grid: Sequence[GridAxis], size: Sequence[int], device: torch.device
    ) -> "Plan":
        """Make it on the host, and send it in one transfer as float32, since each transfer waits for the device."""
        counts = [len(window.blocks) for window in windows]
        blocks = np.concatenate([window.blocks for window in windows])
        places, images = np.arange(len(windows)), np.array([window.image for window in windows])
        parts, shares = [places.repeat(counts)[:, None], images.repeat(counts)[:, None], blocks], []
        for axis, (of_axis, n) in enumerate(zip(grid, size, strict=True)):
            reads, share = resize_reads(of_axis.full, n)
            reads = reads if share.any() else reads[:1]
            pixels = (blocks[:, axis, None] * BLOCK + np.arange(BLOCK)).clip(max=n - 1)
            start, stop = np.array([window.tile[axis][:2] for window in windows]).repeat(counts, axis=0).T[:, :, None]
            positions = [2 * (of_read[pixels] - start) / (stop - start) - 1 for of_read in of_axis.position(reads)]
            parts.append(np.concatenate(positions, axis=1, dtype=np.float32))
            shares.append(share)
        asked = np.concatenate(parts, axis=1, dtype=np.float32)
        flat = torch.from_numpy(np.concatenate([asked.ravel(), *shares], dtype=np.float32)).to(device)
        first, *of_pixels = flat.split([asked.size, *size])
        return cls(first.view(asked.shape), of_pixels, [part.shape[1] for part in parts])

    def of_windows(self, first: int, start: int, stop: int) -> Questions:
        """Return what is asked for the blocks [start, stop), of windows that are counted from ``first`` on."""
        window, image, blocks, rows, cols = self.asked[start:stop].split(self.widths, dim=1)
        steps = torch.arange(BLOCK, device=blocks.device)
        pixels = [
            (block[:, None].long() * BLOCK + steps).clamp(max=len(share) - 1)
            for block, share in zip(blocks.unbind(1), self.shares, strict=True)
        ]
        shares = [share[of_block] for share, of_block in zip(self.shares, pixels, strict=True)]
        return Questions(window[:, 0].long() - first, image[:, 0].long(), pixels, rows, cols, shares)
