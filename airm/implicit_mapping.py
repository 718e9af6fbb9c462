"""The implicit representation mapping: SIRMF with shared weights (Eq. 2), AIRMF with predicted ones (Eq. 5 and 6).

Both are the same small MLP ``f``. What differs is where its weights come from, so both modules do nothing but give
them: features in, the weights and biases of each layer out. :func:`query_grid` evaluates the MLP.

The MLP's input are D feature channels and six coordinates: p - q, q and the query's cell, each as (y, x). All are in
units of the feature map: it spans [-1, 1], and p - q and the cell are scaled so that one feature position is 2 wide.
Not of the paper, further inputs can be maps of a finer resolution, at q: see :mod:`.query_inputs`.

Eq. 2 and 5 ask, for each position q, the four nearest feature positions p for ``f(z_p, p - q)`` and weigh the answers.
On a grid three things are common to many positions, with the same result:

- the first layer is linear, so what it makes of features, of p and of the cell is computed once per feature position;
- of what is left of it, which is linear in q, the y part depends on the row alone, the x part on the column alone;
- the weights, areas of rectangles, are products of one number per row and one per column.

Letters: B samples, D channels, (h, w) feature positions, R rows and C columns of the grid, K a hidden width. The hidden
width comes last, so that a position's numbers are side by side in memory: they are gathered as one.
"""

import itertools
import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from detectron2.layers import Conv2d, get_norm
from torch import Tensor, nn

COORDINATES = 6
# How much the predicted weights differ between samples at the start, as a share of their own spread: with more, short
# trainings fail on images that are unlike their crops. And how much that differs which they are predicted from
INITIAL_VARIATION, POOLED_SPREAD = 0.1, 0.3

MappingParameters = list[tuple[Tensor, Tensor]]
"""(B or 1, out, in) weight and (B or 1, out) bias of each layer."""


def layer_shapes(in_channels: int, hidden_features: Sequence[int], map_channels: int = 0) -> list[tuple[int, int]]:
    """Return (out, in) of each layer of the mapping of features with ``in_channels``, and of maps."""
    widths = [in_channels + COORDINATES + map_channels, *hidden_features, 1]
    return [(widths[i + 1], widths[i]) for i in range(len(widths) - 1)]


class SIRMF(nn.Module):
    """Shared implicit representation mapping function: one MLP for all samples (Eq. 2)."""

    def __init__(self, in_channels: int, hidden_features: Sequence[int], map_channels: int = 0):
        super().__init__()
        self.shapes = layer_shapes(in_channels, hidden_features, map_channels)
        layers = [nn.Linear(i, o) for o, i in self.shapes]
        for layer in layers:
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            nn.init.zeros_(layer.bias)
        self.layers = nn.ModuleList(layers)

    def forward(self, features: Tensor) -> MappingParameters:
        """Return the weights and biases, the same for whatever (B, D, h, w) features."""
        layers: Any = self.layers
        return [(layer.weight[None], layer.bias[None]) for layer in layers]


class _ConvReLUNorm(Conv2d):
    """The paper's "Conv+ReLU+BatchNorm", in this order: what is pooled has no mean in common with other samples."""

    def forward(self, x: Tensor) -> Tensor:
        x = self._conv_forward(x, self.weight, self.bias).relu_()
        return x if self.norm is None else self.norm(x)


class AIRMF(nn.Module):
    """Adaptive implicit representation mapping function: a hypernetwork predicts the MLP of each sample (Eq. 5, 6)."""

    def __init__(
        self,
        in_channels: int,
        hidden_features: Sequence[int],
        rank: int,
        channels: Sequence[int],
        norm: str = "BN",
        map_channels: int = 0,
    ):
        """
        Args:
            in_channels: of the features, D.
            hidden_features: widths of the MLP's hidden layers.
            rank: columns of A and rows of B in W = A B, parameter ``r``.
            channels: of the hypernetwork's convolutions, stride 2 each.
            norm: of these, a name of Detectron2's ``get_norm``.
            map_channels: of the maps that :func:`query_grid` will get, E.
        """
        super().__init__()
        self.rank = rank
        self.shapes = layer_shapes(in_channels, hidden_features, map_channels)
        widths = [in_channels, *channels]
        self.convs = nn.Sequential(
            *(_ConvReLUNorm(i, o, 3, 2, 1, norm=get_norm(norm, o)) for i, o in zip(widths[:-1], channels, strict=True))
        )
        self.sizes = [n for o, i in self.shapes for n in (o * rank, rank * i, o)]
        self.linear = nn.Linear(widths[-1], sum(self.sizes))
        self._init_linear()

    def _init_linear(self) -> None:
        """Let the bias alone give an MLP whose activations are of order one, and the samples vary about it."""
        weights, biases = self.linear.weight.split(self.sizes), self.linear.bias.split(self.sizes)
        with torch.no_grad():
            for layer, (_, inputs) in enumerate(self.shapes):
                gain = 2.0 if layer < len(self.shapes) - 1 else 1.0
                std = (gain / (inputs * self.rank)) ** 0.25
                for part in (3 * layer, 3 * layer + 1):
                    biases[part].normal_(0, std)
                    weights[part].normal_(
                        0, INITIAL_VARIATION * std / (POOLED_SPREAD * math.sqrt(self.linear.in_features))
                    )
                weights[3 * layer + 2].zero_()
                biases[3 * layer + 2].zero_()

    def embed(self, features: Tensor) -> Tensor:
        """Return the (B, sum of sizes) predicted numbers for (B, D, h, w) features; Fig. 7 shows these."""
        return self.linear(self.convs(features).mean(dim=(2, 3)))

    def forward(self, features: Tensor) -> MappingParameters:
        """Predict the weights and biases of each layer from (B, D, h, w) features, for each sample its own."""
        parts = iter(self.embed(features).split(self.sizes, dim=1))
        parameters = []
        for _ in self.shapes:
            a, b, bias = (next(parts) for _ in range(3))
            weight = a.unflatten(1, (-1, self.rank)) @ b.unflatten(1, (self.rank, -1))
            parameters.append((weight, bias))
        return parameters


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


class _FirstLayer(NamedTuple):
    """The first layer of the mapping, in what depends on the feature position p and what on q; it is their sum."""

    projected: Tensor
    """(B, h, w, K) float32: features, bias, the p of p - q, and the cell."""
    slopes: Tensor
    """(2, 1 or B, K): times y and x of q, the rest."""
    of_maps: Tensor
    """(1 or B, K, E)."""

    @classmethod
    def of(cls, features: Tensor, parameters: tuple[Tensor, Tensor], cell: float) -> "_FirstLayer":
        weight, bias = parameters
        channels, *sides = features.shape[1:]
        first_map = channels + COORDINATES
        # Of p - q, q and the cell, each (2, 1 or B, K): of y and x. Products, not matrices: autocast leaves them be
        coordinates = weight[:, :, channels:first_map].float().unflatten(2, (COORDINATES // 2, 2))
        between, position, of_cell = coordinates.permute(2, 3, 0, 1)
        # In p - q one feature position is 2 wide, so that it is n times as large as in the frame of q
        y, x = (n * pixel_centres(n, features)[:, None] * of[:, None] for n, of in zip(sides, between, strict=True))
        projected = _linear(features.flatten(2).mT, weight[:, :, :channels], bias).unflatten(1, sides)
        projected = projected + ((y + cell * of_cell.sum(0)[:, None])[:, :, None] + x[:, None])
        slopes = torch.stack([own - n * of for own, n, of in zip(position, sides, between, strict=True)])
        return cls(projected, slopes, weight[:, :, first_map:])


def query_grid(
    features: Tensor,
    parameters: MappingParameters,
    rows: Tensor,
    cols: Tensor,
    cell: float,
    chunk: int | None = None,
    maps: Tensor | None = None,
) -> Tensor:
    """Evaluate the mapping of Eq. 2 or 5 on a grid.

    Args:
        features: F, (B, D, h, w).
        parameters: of the mapping, from ``SIRMF`` or ``AIRMF``.
        rows, cols: (R,) and (C,) positions, neither empty, in the feature map's frame, which spans [-1, 1].
        cell: side of a query's pixel; one feature position is 2.
        chunk: grid positions evaluated at once, in whole rows and at least one; None for all, which can be exported.
        maps: (B, E, H, W) in the same frame; their values at q are E more inputs, after the others.

    Returns:
        (B, 1, R, C) logits of the refined mask.
    """
    layer, hidden_layers = _FirstLayer.of(features, parameters[0], cell), parameters[1:]
    y, x = neighbours(rows, features.shape[2]), neighbours(cols, features.shape[3])
    of_rows, of_cols = (q[:, None] * slope[:, None] for q, slope in zip((rows, cols), layer.slopes, strict=True))

    def evaluate(part: slice) -> Tensor:
        own = of_rows[:, part, None] + of_cols[:, None]
        if maps is not None:
            own = own + sample_grid(maps, rows[part], cols).permute(0, 2, 3, 1) @ layer.of_maps[:, None].mT
        answer = own.new_zeros(())
        for i in range(2):
            nearest = layer.projected.index_select(1, y.indices[i, part])
            for j in range(2):
                area = y.weights[i, part, None] * x.weights[j]
                answer = answer + area * _mlp(nearest.index_select(2, x.indices[j]) + own, hidden_layers)
        return answer

    if chunk is None:
        return evaluate(slice(None))[:, None]
    step = max(1, chunk // len(cols))
    return torch.cat([evaluate(slice(start, start + step)) for start in range(0, len(rows), step)], dim=1)[:, None]


def query_blocks(
    features: Tensor,
    parameters: MappingParameters,
    window: Tensor,
    rows: Tensor,
    cols: Tensor,
    cell: float,
    chunk: int,
    maps: Tensor | None = None,
) -> Tensor:
    """Evaluate the mapping as :func:`query_grid` does, on many small grids in place of one.

    Args:
        features: F of windows, (B, D, h, w).
        parameters: of the mapping, for all windows or for each.
        window: (K,) int64, which window a grid is in.
        rows, cols: (K, R) and (K, C) positions in its frame.
        cell: see :func:`query_grid`.
        chunk: positions evaluated at once, in whole grids and at least one.
        maps: (B, E, H, W), see :func:`query_grid`.

    Returns:
        (K, R, C) logits.
    """
    layer, hidden_layers = _FirstLayer.of(features, parameters[0], cell), parameters[1:]
    projected, is_shared = layer.projected.flatten(0, 2), len(parameters[0][0]) == 1
    pixels = None if maps is None else maps.permute(0, 2, 3, 1).flatten(0, 2)

    def evaluate(windows: Tensor, rows: Tensor, cols: Tensor) -> Tensor:
        def of_grid(x: Tensor) -> Tensor:
            return x if is_shared else x[windows]

        of_rows, of_cols = (
            q[:, :, None] * of_grid(slope)[:, None] for q, slope in zip((rows, cols), layer.slopes, strict=True)
        )
        own = of_rows[:, :, None] + of_cols[:, None]
        if maps is not None and pixels is not None:
            corners = _corners(windows, neighbours(rows, maps.shape[2]), neighbours(cols, maps.shape[3]), maps.shape)
            values = torch.stack([area[..., None] * _gather(pixels, index) for index, area in corners]).sum(0)
            own = own + values @ of_grid(layer.of_maps)[:, None].mT
        layers = [(of_grid(weight), of_grid(bias)) for weight, bias in hidden_layers]
        y, x = neighbours(rows, features.shape[2]), neighbours(cols, features.shape[3])
        answer = own.new_zeros(())
        for index, area in _corners(windows, y, x, features.shape):
            hidden = _gather(projected, index) + own
            # With weights that are all grids' it is one product
            hidden = hidden.flatten(0, 1)[None] if is_shared else hidden
            answer = answer + area * _mlp(hidden, layers).view(index.shape)
        return answer

    number = max(1, chunk // (rows.shape[1] * cols.shape[1]))
    return torch.cat([evaluate(*part) for part in zip(*(x.split(number) for x in (window, rows, cols)), strict=True)])


def _corners(windows: Tensor, y: Neighbours, x: Neighbours, shape: Sequence[int]) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the places of each of the four neighbours in the flattened (B, h, w), and their areas, both (K, R, C)."""
    first = windows[:, None, None] * (shape[2] * shape[3])
    for i, j in itertools.product(range(2), range(2)):
        index = first + y.indices[i, :, :, None] * shape[3] + x.indices[j, :, None]
        yield index, y.weights[i, :, :, None] * x.weights[j, :, None]


def _gather(x: Tensor, index: Tensor) -> Tensor:
    """(N, C) to (*index.shape, C)."""
    return x.index_select(0, index.flatten()).unflatten(0, index.shape)


def sample_grid(maps: Tensor, rows: Tensor, cols: Tensor) -> Tensor:
    """Interpolate (B, E, H, W) maps bilinearly at (R,) and (C,) positions of their frame, to (B, E, R, C)."""
    for axis, positions in ((2, rows), (3, cols)):
        near = neighbours(positions, maps.shape[axis])
        before, after = (
            maps.index_select(axis, index) * weight.view(-1, *[1] * (3 - axis))
            for index, weight in zip(near.indices, near.weights, strict=True)
        )
        maps = before + after
    return maps


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
