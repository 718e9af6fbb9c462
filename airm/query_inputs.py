"""What the mapping sees at a query besides the features, and what the encoder sees besides image and mask.

Not of the paper. Features are at the encoder's stride; what tells two sides of a contour apart within one feature
position is, in most pictures, their colour, and which colours are the object's, the coarse mask knows. Two inputs are
computed from image and mask for that:

- "colour", the log ratio of the likelihoods of a pixel's colour in the fore- and the background of this very picture;
- "local", the coarse mask as a linear function of colour in windows of three sizes, fitted by least squares: the guided
  filter of He et al., ECCV 2010. Where the contour is off by less than a window, it moves to the nearest edge.

Letters: B images, (H, W) their pixels, E channels of what is computed, K bins of a colour channel.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

CHANNELS = {"mask": 1, "image": 3, "colour": 1, "local": 3}
"""Channels of each query input."""
COMPUTED = ("colour", "local")
"""Those that are computed, in this order."""

BINS = 16
STRIP = 512  # rows
LIMIT = 4.0  # of the log ratio: a colour that is e^4 times as frequent on one side is that side's
PRIOR = 2.0  # pixels of each side that are taken to be of every colour
# Windows are 7 pixels wide, RADIUS on each side, in an image that is smaller by these factors
FACTORS, RADIUS = (1, 2, 8), 3
NOISE = 1e-4  # of colours in [0, 1], a variance: weaker edges count as none


def num_computed(query_inputs: Sequence[str]) -> int:
    """Return E."""
    return sum(CHANNELS[name] for name in COMPUTED if name in query_inputs)


def computed_inputs(images: Tensor, masks: Tensor, query_inputs: Sequence[str], table: Tensor | None = None) -> Tensor:
    """Compute those of the query inputs that are.

    Args:
        images: (B, 3, H, W) RGB in [0, 1].
        masks: (B, 1, H, W) coarse masks in [0, 1].
        query_inputs: keys of ``CHANNELS``.
        table: of :func:`colour_table`, where these are windows of what it is of; else it is these images'.

    Returns:
        (B, E, H, W) in [-1, 1], where 1 speaks for the foreground.
    """
    images, masks = images.float(), masks.float()
    parts = []
    if "colour" in query_inputs:
        table = colour_table(images, masks) if table is None else table
        parts.append(table.gather(1, _bins(images)).view_as(masks))
    if "local" in query_inputs:
        parts += [local_fit(images, masks, factor) for factor in FACTORS]
    return torch.cat(parts, dim=1)


def colour_table(images: Tensor, masks: Tensor) -> Tensor:
    """Return how much each colour speaks for the foreground.

    Fore- and background are histograms over the whole image, weighted by the mask and by its complement, and smoothed
    over neighbouring bins.

    Args:
        images, masks: see :func:`computed_inputs`.

    Returns:
        (B, K^3) in [-1, 1], where 1 stands for a ratio of e^4 and more; near 0 for colours that are as frequent on both
        sides, and for all if one side is empty.
    """
    histograms = [masks.new_zeros(len(masks), BINS**3, dtype=torch.float32) for _ in range(2)]
    # In strips, as indices take twice the memory of an image
    for image, mask in zip(images.split(STRIP, dim=2), masks.split(STRIP, dim=2), strict=True):
        index, weights = _bins(image.float()), mask.float().flatten(1)
        for histogram, side in zip(histograms, (weights, 1 - weights), strict=True):
            histogram.scatter_add_(1, index, side)
    logs = []
    for counts in map(_smooth, histograms):
        logs.append(((counts + PRIOR / BINS**3) / (counts.sum(1, keepdim=True) + PRIOR)).log())
    return (logs[0] - logs[1]).clamp_(-LIMIT, LIMIT) / LIMIT


def _bins(images: Tensor) -> Tensor:
    """(B, 3, H, W) in [0, 1] to the (B, H W) indices of their colours in a table."""
    bins = (images * BINS).long().clamp_(0, BINS - 1)
    return (bins[:, 0] * BINS + bins[:, 1]).mul_(BINS).add_(bins[:, 2]).flatten(1)


def _smooth(histograms: Tensor) -> Tensor:
    """Share (B, K^3) counts with the neighbouring bins, in each channel by weights 1, 2, 1."""
    cubes = histograms.view(-1, BINS, BINS, BINS)
    for axis in (1, 2, 3):
        padded = F.pad(cubes, [n for other in (3, 2, 1) for n in (int(other == axis),) * 2])
        before, same, after = (padded.narrow(axis, start, BINS) for start in range(3))
        cubes = (before + 2 * same + after) / 4
    return cubes.flatten(1)


def local_fit(images: Tensor, masks: Tensor, factor: int) -> Tensor:
    """Return the masks as linear functions of colour in windows around each pixel.

    Args:
        images, masks: see :func:`computed_inputs`.
        factor: by which the images are shrunk where the functions are fitted; they are applied at full resolution.

    Returns:
        (B, 1, H, W) in [-1, 1].
    """
    height, width = masks.shape[2:]
    border = (0, -width % factor, 0, -height % factor)
    small = F.avg_pool2d(F.pad(torch.cat([images, masks], 1), border, mode="replicate"), factor)
    slopes, offsets = _fit(small[:, :3], small[:, 3:])
    coefficients = _mean(torch.cat([slopes, offsets], 1))
    coefficients = F.interpolate(coefficients, scale_factor=factor, mode="bilinear")[..., :height, :width]
    fitted = (coefficients[:, :3] * images).sum(1, keepdim=True) + coefficients[:, 3:]
    return (2 * fitted - 1).clamp_(-1, 1)


def _fit(colours: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    """Fit (B, 1, h, w) values by (B, 3, h, w) colours in the window of each pixel, to (B, 3, h, w) and (B, 1, h, w)."""
    pairs = [(i, j) for i in range(3) for j in range(i + 1)]
    products = [colours[:, i : i + 1] * colours[:, j : j + 1] for i, j in pairs]
    means = _mean(torch.cat([colours, values, colours * values, *products], 1))
    mean, value, with_value, squares = means.split([3, 1, 3, len(pairs)], 1)
    covariance = {(i, j): squares[:, k] - mean[:, i] * mean[:, j] for k, (i, j) in enumerate(pairs)}
    right = with_value - mean * value
    slopes = _solve(covariance, [right[:, i] for i in range(3)])
    return slopes, value - (slopes * mean).sum(1, keepdim=True)


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
