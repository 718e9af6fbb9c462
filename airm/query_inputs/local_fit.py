"""The coarse mask as a linear function of colour in windows: the guided filter of He et al., ECCV 2010.

Where the contour is off by less than a window, the fit moves it to the nearest edge; and what the fit leaves tells how
well the mask agrees with the picture there.

Letters: B images, (H, W) their pixels, (h, w) those of the shrunken images.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

RADIUS = 3  # windows are 7 pixels wide in the shrunken images
NOISE = 1e-4  # of colours in [0, 1], a variance: weaker edges count as none


def local_fit(images: Tensor, masks: Tensor, factor: int) -> Tensor:
    """Fit the masks by linear functions of colour in windows around each pixel.

    Args:
        images, masks: (B, 3, H, W) RGB in [0, 1], and (B, 1, H, W) coarse masks in [0, 1].
        factor: by which the images are shrunk where the functions are fitted; they are applied at full resolution.

    Returns:
        (B, 3, H, W) in [-1, 1]: the fitted masks and their means over the windows, 1 for the foreground; and the
        variance that the fit leaves, from -1, none, to 1, all of a half-filled window's.
    """
    height, width = masks.shape[2:]
    border = (0, -width % factor, 0, -height % factor)
    small = F.avg_pool2d(F.pad(torch.cat([images, masks], 1), border, mode="replicate"), factor)
    slopes, offsets, means, variances = _fit(small[:, :3], small[:, 3:])
    maps = torch.cat([_mean(torch.cat([slopes, offsets], 1)), means, variances], 1)
    maps = F.interpolate(maps, scale_factor=factor, mode="bilinear")[..., :height, :width]
    fitted = (maps[:, :3] * images).sum(1, keepdim=True) + maps[:, 3:4]
    return torch.cat([2 * fitted - 1, 2 * maps[:, 4:5] - 1, 8 * maps[:, 5:] - 1], 1).clamp_(-1, 1)


def _fit(colours: Tensor, values: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Fit (B, 1, h, w) values by (B, 3, h, w) colours in the window of each pixel.

    Returns:
        slopes of the colours, (B, 3, h, w); and offsets, means of the values and variances that are left, (B, 1, h, w).
    """
    pairs = [(i, j) for i in range(3) for j in range(i + 1)]
    products = [colours[:, i : i + 1] * colours[:, j : j + 1] for i, j in pairs]
    means = _mean(torch.cat([colours, values, colours * values, *products, values.square()], 1))
    mean, value, with_value, squares, square = means.split([3, 1, 3, len(pairs), 1], 1)
    covariance = {(i, j): squares[:, k] - mean[:, i] * mean[:, j] for k, (i, j) in enumerate(pairs)}
    right = with_value - mean * value
    slopes = _solve(covariance, [right[:, i] for i in range(3)])
    offsets = value - (slopes * mean).sum(1, keepdim=True)
    return slopes, offsets, value, square - value.square() - (slopes * right).sum(1, keepdim=True)


def _solve(matrix: dict[tuple[int, int], Tensor], right: list[Tensor]) -> Tensor:
    """Solve symmetric 3 x 3 systems, given by their lower triangles plus NOISE, by Cholesky's decomposition."""
    root: dict[tuple[int, int], Tensor] = {}
    for i in range(3):
        for j in range(i):
            root[i, j] = (matrix[i, j] - sum(root[i, k] * root[j, k] for k in range(j))) / root[j, j]
        rest = matrix[i, i] + NOISE - sum(root[i, k].square() for k in range(i))
        root[i, i] = rest.clamp(min=NOISE / 2).sqrt()  # rounding takes no more from a positive definite matrix
    solution = list(right)
    for i in range(3):
        solution[i] = (solution[i] - sum(root[i, k] * solution[k] for k in range(i))) / root[i, i]
    for i in reversed(range(3)):
        solution[i] = (solution[i] - sum(root[k, i] * solution[k] for k in range(i + 1, 3))) / root[i, i]
    return torch.stack(solution, 1)


def _mean(x: Tensor) -> Tensor:
    """Return the means over the window of each pixel, as far as it is in the image."""
    ones = x.new_ones(x.shape[1], 1, 2 * RADIUS + 1, 2 * RADIUS + 1)
    rows, cols = (_counts(n, x) for n in x.shape[2:])
    with torch.autocast(x.device.type, enabled=False):  # covariances are differences of nearly equal numbers
        sums = F.conv2d(x, ones, padding=RADIUS, groups=x.shape[1])
    return sums / (rows[:, None] * cols)


def _counts(n: int, like: Tensor) -> Tensor:
    """Return how many of n positions are in the window of each."""
    steps = torch.arange(n, device=like.device)
    return (steps.clamp(max=RADIUS) + steps.flip(0).clamp(max=RADIUS) + 1).to(like.dtype)
