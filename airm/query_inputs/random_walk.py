"""Where a random walk ends that avoids edges: the segmentation of Grady, PAMI 2006, around the contour of a mask.

Pixels far from the contour are certain; from each of the others a walker goes from pixel to pixel, seldom across an
edge, until it meets a certain one. The share of walks that end in the foreground is the mean of the neighbours' shares;
these equations are solved by a fixed number of steps, which can be exported and do not wait for a device.

Letters: B images, (H, W) their pixels, (h, w) those of the shrunken images.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

RADIUS = 4  # from this many pixels on in rows or columns, pixels are far from the contour
STEPS, SPECTRAL_RADIUS = 16, 0.98  # of Chebyshev's acceleration: an edge beside the certain pixels leaves modes of 0.98
SHARPNESS = 200.0  # a difference d of colours in [0, 1] is crossed exp(-200 d^2) times as often as none
LEAK = 1e-3  # the strongest edge is crossed this often


def random_walk(images: Tensor, masks: Tensor, factor: int) -> Tensor:
    """Find on which side of the masks' contours walks end.

    Args:
        images, masks: (B, 3, H, W) RGB in [0, 1], and (B, 1, H, W) coarse masks in [0, 1].
        factor: by which the images are shrunk where walkers go.

    Returns:
        (B, 1, H, W) in [-1, 1], 1 in the foreground.
    """
    height, width = masks.shape[2:]
    border = (0, -width % factor, 0, -height % factor)
    small = F.avg_pool2d(F.pad(torch.cat([images, masks], 1), border, mode="replicate"), factor)
    ends = _walk(small[:, :3], small[:, 3:])
    return 2 * F.interpolate(ends, scale_factor=factor, mode="bilinear")[..., :height, :width] - 1


def _walk(images: Tensor, masks: Tensor) -> Tensor:
    """(B, 3, h, w) and (B, 1, h, w) to (B, 1, h, w) in [0, 1]."""
    inside = (masks >= 0.5).to(masks.dtype)
    size = 2 * RADIUS + 1
    near = F.max_pool2d(inside, size, 1, RADIUS) + F.max_pool2d(-inside, size, 1, RADIUS)  # largest less smallest
    down, right = (_ease(images, axis) for axis in (2, 3))
    shares = [F.pad(down, (0, 0, 1, 0)), F.pad(down, (0, 0, 0, 1)), F.pad(right, (1, 0)), F.pad(right, (0, 1))]
    scale = near / torch.stack(shares).sum(0).clamp(min=LEAK)  # of a single pixel there is no neighbour
    above, below, left, ahead = (share * scale for share in shares)
    certain = (1 - near) * inside
    height, width = masks.shape[2:]

    def average(ends: Tensor) -> Tensor:
        padded = F.pad(ends, (1, 1, 1, 1))
        rows, cols = padded.narrow(3, 1, width), padded.narrow(2, 1, height)
        ends = certain + above * rows.narrow(2, 0, height) + below * rows.narrow(2, 2, height)
        return ends + left * cols.narrow(3, 0, width) + ahead * cols.narrow(3, 2, width)

    before, ends, weight = masks, average(masks), 2.0
    for _ in range(STEPS - 1):
        weight = 1 / (1 - SPECTRAL_RADIUS**2 * weight / 4)
        before, ends = ends, torch.lerp(before, average(ends), weight)
    return ends.clamp(0, 1)


def _ease(images: Tensor, axis: int) -> Tensor:
    """Return how easily walkers go from one pixel to the next along an axis, in [LEAK, 1 + LEAK]."""
    steps = images.shape[axis] - 1
    difference = images.narrow(axis, 1, steps) - images.narrow(axis, 0, steps)
    return torch.exp(-SHARPNESS * difference.square().sum(1, keepdim=True)) + LEAK
