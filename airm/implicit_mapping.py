"""The implicit representation mapping: SIRMF with shared weights (Eq. 2), AIRMF with predicted ones (Eq. 5 and 6).

Both are the same small MLP ``f``. What differs is where its weights come from, so both modules do nothing but give
them: features in, the weights and biases of each layer out. ``query.py`` evaluates the MLP.

The MLP's input are D feature channels and six coordinates: p - q, q and the query's cell, each as (y, x). All are in
units of the feature map: it spans [-1, 1], and p - q and the cell are scaled so that one feature position is 2 wide.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from detectron2.layers import Conv2d, get_norm
from torch import Tensor, nn
from torch.nn import functional as F

COORDINATES = 6
# How much the predicted weights differ between samples at the start, as a share of their own spread
INITIAL_VARIATION = 0.3

MappingParameters = list[tuple[Tensor, Tensor]]
"""(B or 1, out, in) weight and (B or 1, out) bias of each layer."""


def layer_shapes(in_channels: int, hidden_features: Sequence[int]) -> list[tuple[int, int]]:
    """Return (out, in) of each layer of the mapping of features with ``in_channels``."""
    widths = [in_channels + COORDINATES, *hidden_features, 1]
    return [(widths[i + 1], widths[i]) for i in range(len(widths) - 1)]


class SIRMF(nn.Module):
    """Shared implicit representation mapping function: one MLP for all samples (Eq. 2)."""

    def __init__(self, in_channels: int, hidden_features: Sequence[int]):
        super().__init__()
        layers = [nn.Linear(i, o) for o, i in layer_shapes(in_channels, hidden_features)]
        for layer in layers:
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            nn.init.zeros_(layer.bias)
        self.layers = nn.ModuleList(layers)

    def forward(self, features: Tensor) -> MappingParameters:
        """Return the weights and biases, the same for whatever (B, D, h, w) features."""
        layers: Any = self.layers
        return [(layer.weight[None], layer.bias[None]) for layer in layers]


class AIRMF(nn.Module):
    """Adaptive implicit representation mapping function: a hypernetwork predicts the MLP of each sample (Eq. 5, 6)."""

    def __init__(
        self, in_channels: int, hidden_features: Sequence[int], rank: int, channels: Sequence[int], norm: str = "BN"
    ):
        """
        Args:
            in_channels: of the features, D.
            hidden_features: widths of the MLP's hidden layers.
            rank: columns of A and rows of B in W = A B, parameter ``r``.
            channels: of the hypernetwork's convolutions, stride 2 each.
            norm: of these, a name of Detectron2's ``get_norm``.
        """
        super().__init__()
        self.rank = rank
        self.shapes = layer_shapes(in_channels, hidden_features)
        widths = [in_channels, *channels]
        self.convs = nn.Sequential(
            *(
                Conv2d(i, o, 3, 2, 1, bias=norm == "", norm=get_norm(norm, o), activation=F.relu)
                for i, o in zip(widths[:-1], channels, strict=True)
            )
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
                    weights[part].normal_(0, INITIAL_VARIATION * std / math.sqrt(self.linear.in_features / 4))
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
