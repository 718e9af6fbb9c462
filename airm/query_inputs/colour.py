"""Of a picture's colours, how much each speaks for the object: the coarse mask knows.

Letters: B images, (H, W) their pixels, K bins of a colour channel.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

BINS = 16
STRIP = 512  # rows
LIMIT = 4.0  # of the log ratio: a colour that is e^4 times as frequent on one side is that side's
PRIOR = 2.0  # pixels of each side that are taken to be of every colour


def colour_table(images: Tensor, masks: Tensor) -> Tensor:
    """Return how much each colour speaks for the foreground.

    Fore- and background are histograms over the whole image, weighted by the mask and by its complement, and smoothed
    over neighbouring bins.

    Args:
        images, masks: (B, 3, H, W) RGB in [0, 1], and (B, 1, H, W) coarse masks in [0, 1].

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


def look_up(table: Tensor, images: Tensor) -> Tensor:
    """Return what a (B, K^3) table has for the colours of (B, 3, H, W) images, (B, 1, H, W)."""
    return table.gather(1, _bins(images)).unflatten(1, (1, *images.shape[2:]))


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
