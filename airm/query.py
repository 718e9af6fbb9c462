"""The implicit representation mapping on a grid of positions, at a fraction of the cost of one position at a time.

Eq. 2 and 5 ask, for each position q, the four nearest feature positions p for ``f(z_p, p - q)`` and weigh the answers.
On a grid three things are common to many positions, with the same result:

- the first layer is linear, so its feature columns are applied once per feature position, not per q;
- of what is left of it, p - q, q and the cell, the y parts depend on the row alone, the x parts on the column alone;
- the weights, areas of rectangles, are products of one number per row and one per column.

Letters: B samples, D channels, (h, w) feature positions, R rows and C columns of the grid, K a hidden width. The hidden
width comes last, so that a position's numbers are side by side in memory: they are gathered as one.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from .implicit_mapping import COORDINATES, MappingParameters


class Axis(NamedTuple):
    """The rows, or the columns, of a grid of query positions."""

    positions: Tensor
    """(Q,) in the feature map's frame, which spans [-1, 1]."""
    cell: float
    """Size of a query's pixel; one feature position is 2."""


class Neighbours(NamedTuple):
    """For each query along an axis, the feature position before it and the one after it."""

    indices: Tensor
    """(2, Q) int64; both are the outermost position where there is none beyond."""
    offsets: Tensor
    """(2, Q), p - q; one feature position is 2."""
    weights: Tensor
    """(2, Q), adding up to 1: the share of the distance to the *other* neighbour."""


def pixel_centres(n: int, like: Tensor) -> Tensor:
    """Return the (n,) positions of the centres of n pixels that span [-1, 1]."""
    return (torch.arange(n, device=like.device, dtype=torch.float32) * 2 + 1) / n - 1


def neighbours(positions: Tensor, n: int) -> Neighbours:
    """Find the two nearest of n feature positions for each of (Q,) query positions along one axis."""
    scaled = (positions + 1) * n / 2 - 0.5
    before = scaled.floor()
    indices = torch.stack([before, before + 1]).clamp(0, n - 1)
    offsets = 2 * (indices - scaled)
    distance = offsets.abs()
    total = distance.sum(0)
    opposite = distance.flip(0) / total.clamp(min=1e-6)
    # On the outermost position itself both neighbours are that one, at no distance
    return Neighbours(indices.long(), offsets, torch.where(total > 1e-6, opposite, 0.5))


def query_grid(features: Tensor, parameters: MappingParameters, rows: Axis, cols: Axis, chunk: int) -> Tensor:
    """Evaluate the mapping of Eq. 2 or 5 on a grid.

    Args:
        features: F, (B, D, h, w).
        parameters: of the mapping, from ``SIRMF`` or ``AIRMF``.
        rows, cols: the grid; R and C are not 0.
        chunk: grid positions evaluated at once, in whole rows and at least one.

    Returns:
        (B, 1, R, C) logits of the refined mask.
    """
    (weight, bias), hidden_layers = parameters[0], parameters[1:]
    channels, h, w = features.shape[1:]
    projected = _linear(features.flatten(2).mT, weight[:, :, :channels], bias).unflatten(1, (h, w))
    # Columns of the first layer: p - q, q and the cell, each as y, x. Products, not matrices: autocast leaves them be
    coordinates = weight[:, None, :, channels:].float().unflatten(3, (COORDINATES // 2, 2))
    y, x = neighbours(rows.positions, h), neighbours(cols.positions, w)
    row_terms = [_coordinate_term(coordinates[..., 0], offset, rows)[:, :, None] for offset in y.offsets]
    col_terms = [_coordinate_term(coordinates[..., 1], offset, cols)[:, None] for offset in x.offsets]
    step = max(1, chunk // len(cols.positions))
    parts = []
    for start in range(0, len(rows.positions), step):
        part = slice(start, start + step)
        answer = projected.new_zeros(())
        for i in range(2):
            of_rows = projected.index_select(1, y.indices[i, part]) + row_terms[i][:, part]
            for j in range(2):
                hidden = of_rows.index_select(2, x.indices[j]) + col_terms[j]
                area = y.weights[i, part, None] * x.weights[j]
                answer = answer + area * _mlp(hidden, hidden_layers)
        parts.append(answer)
    return torch.cat(parts, dim=1)[:, None]


def _coordinate_term(weight: Tensor, offset: Tensor, axis: Axis) -> Tensor:
    """(B, 1, K, 3) weights of p - q, q and the cell along one axis to their (B, Q, K) share of the first layer."""
    return weight[..., 0] * offset[:, None] + weight[..., 1] * axis.positions[:, None] + weight[..., 2] * axis.cell


def _mlp(hidden: Tensor, layers: MappingParameters) -> Tensor:
    """Apply what follows the first layer: (B, R, C, K) before its ReLU to (B, R, C) logits."""
    size = hidden.shape[1:3]
    hidden = hidden.flatten(1, 2)
    for weight, bias in layers:
        hidden = _linear(hidden.relu_(), weight, bias)
    return hidden.unflatten(1, size)[..., 0]


def _linear(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """(B, N, in) to (B, N, out) with a (B or 1, out, in) weight and a (B or 1, out) bias."""
    return torch.baddbmm(bias[:, None], x, weight.mT.expand(len(x), -1, -1))
