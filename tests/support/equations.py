"""Equations of AIRM written out, one position at a time."""

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

from airm.implicit_mapping import MappingParameters


def gradient_of(mask: np.ndarray) -> np.ndarray:
    """The gradient's magnitude in CRM's scale: a quarter of Sobel's filters over the mean of 3 x 3 pixels, eps 1e-4."""
    smooth = ndimage.uniform_filter(mask, 3, mode="nearest")
    slopes = [ndimage.sobel(smooth, axis, mode="nearest") / 4 for axis in (0, 1)]
    return np.sqrt(slopes[0] ** 2 + slopes[1] ** 2 + 1e-4)


def literal_logit(
    features: Tensor, parameters: MappingParameters, sample: int, q: tuple[float, float], cell: float
) -> float:
    """M_q of Eq. 2: the sum over the four nearest p of S_p / sum(S_p) f(z_p, p - q)."""
    h, w = features.shape[2:]
    # The corners of the square of feature positions around q; beyond the border there is none, the last one stands in
    around = []
    for n, position in zip((h, w), q, strict=True):
        at = (position + 1) / 2 * n - 0.5  # in feature positions
        before = int(at // 1)
        around.append([(min(max(k, 0), n - 1), at) for k in (before, before + 1)])
    answers, areas = [], []
    for i in range(2):
        for j in range(2):
            (row, y), (col, x) = around[0][i], around[1][j]
            relative = [2 * (row - y), 2 * (col - x)]
            z = torch.cat([features[sample, :, row, col], torch.tensor([*relative, *q, cell, cell])])
            for layer, (weight, bias) in enumerate(parameters):
                k = min(sample, len(weight) - 1)
                z = weight[k] @ z + bias[k]
                if layer < len(parameters) - 1:
                    z = z.relu()
            answers.append(z.item())
            # S_p is the rectangle between q and the corner opposite to p: the nearer p, the larger
            (other_row, _), (other_col, _) = around[0][1 - i], around[1][1 - j]
            areas.append(abs(other_row - y) * abs(other_col - x))
    if sum(areas) == 0:  # q is on a border line of positions, where opposite corners coincide with it
        areas = [1.0] * 4 if len(set(answers)) == 1 else areas
    return sum(s * f for s, f in zip(areas, answers, strict=True)) / sum(areas)
