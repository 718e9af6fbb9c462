"""What refining one image costs: multiply-adds of the whole pass from coarse to fine, counted without running it.

Convolutions and products of matrices count, those of attention among them, one multiply-add as one; norms, activations
and resizing do not. The network runs on meta tensors, which have a shape and no values, once for each shape of tile.
"""

import copy
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from .coarse_to_fine import CoarseToFine
from .encoder import INPUT_CHANNELS
from .implicit_mapping import MappingParameters
from .query import Axis, query_grid
from .tiling import split_axis


class PassCost(NamedTuple):
    """Multiply-adds of one refinement, by part of the network, and the tiles that were encoded for it."""

    attention: int
    """The two products of queries, keys and values."""
    encoder: int
    """All else of the encoder."""
    hypernetwork: int
    """What predicts the weights of the mapping; SIRMF has none."""
    query: int
    """The mapping, at all queried pixels."""
    tiles: list[tuple[int, int]]
    """(encoded, all) of each ratio."""

    @property
    def total(self) -> int:
        return self.attention + self.encoder + self.hypernetwork + self.query


class DrawnMaskPass(CoarseToFine):
    """The pass with every answer of the network computed, dropped and replaced by the coarse mask.

    Which tiles are encoded depends on the mask of the ratio before. That of random weights is noise, undecided
    everywhere; with a drawn mask in its place only tiles are encoded that its boundary crosses.
    """

    drawn: Tensor

    @classmethod
    def of(cls, model: Any, image: Tensor) -> "DrawnMaskPass":
        """Return what an ``AIRM`` would refine the masks of a (3, H, W) RGB image in [0, 255] with."""
        return cls(model._normalise(image), model._encode, model.settings, model.cell)

    def refine(self, mask: Tensor) -> Tensor:
        self.drawn = mask[None]
        return super().refine(mask)

    def _step(self, level: int, mask: Tensor, sizes: Sequence[int]) -> Tensor:
        super()._step(level, mask, sizes)
        return F.interpolate(self.drawn, tuple(sizes), mode="bilinear", antialias=True)


def draw_mask(height: int, width: int) -> Tensor:
    """Return the mask that all costs are given for, (1, height, width) float32: a disc in the middle.

    Its radius is 600 pixels in an image of 2560 x 1706, and the same share of the shorter side in others.
    """
    y, x = torch.arange(height)[:, None] + 0.5, torch.arange(width) + 0.5
    radius = 600 / 1706 * min(height, width)
    return ((y - height / 2) ** 2 + (x - width / 2) ** 2 < radius**2).float()[None]


def pass_cost(model: Any, size: tuple[int, int], tile_size: int, mask: Tensor | None = None) -> PassCost:
    """Count the multiply-adds with which a model refines one mask of one image.

    Args:
        model: an ``AIRM``.
        size: height and width of the image in pixels.
        tile_size: as MODEL.AIRM.TILE_SIZE, 0 for the whole image.
        mask: (1, height, width), decides which tiles are encoded; else that of :func:`draw_mask`.
    """
    counter = _CountingNetwork(model)
    # One channel: the image's values are never looked at
    settings = model.settings._replace(tile_size=tile_size)
    counting = _CountingPass(torch.zeros(1, *size), counter, settings, model.cell)
    counting.refine(draw_mask(*size) if mask is None else mask)
    attention, encoder, hypernetwork, query = counter.totals.tolist()
    return PassCost(attention, encoder, hypernetwork, query, counting.tiles)


def num_parameters(model: nn.Module) -> int:
    """Return how many numbers a model learns."""
    return sum(p.numel() for p in model.parameters())


class _Encoded(NamedTuple):
    """What the encoder makes of one size of input, as meta tensors, and its cost."""

    features: Tensor
    parameters: MappingParameters
    cost: Tensor


class _CountingNetwork:
    """Takes the place of ``AIRM._encode``: answers zeros and adds up what the answers would have cost."""

    def __init__(self, model: nn.Module):
        # Parameters that SIRMF hands through would ask the counter for gradients
        self.model: Any = copy.deepcopy(model).to("meta").eval().requires_grad_(False)
        self.totals = torch.zeros(4, dtype=torch.int64)
        """As the fields of PassCost."""
        self.calls = 0
        self._encoded: dict[tuple[int, int], _Encoded] = {}
        self._queries: dict[tuple[int, ...], int] = {}

    def __call__(self, image: Tensor, mask: Tensor) -> Callable[[Axis, Axis], Tensor]:
        height, width = image.shape[2:]
        if (height, width) not in self._encoded:
            self._encoded[height, width] = self._encode(height, width)
        encoded = self._encoded[height, width]
        self.calls += 1
        self.totals += encoded.cost

        def query(rows: Axis, cols: Axis) -> Tensor:
            grid = len(rows.positions), len(cols.positions)
            key = (height, width, *grid)
            if key not in self._queries:
                self._queries[key] = _query_cost(encoded, *grid)
            self.totals[3] += self._queries[key]
            return image.new_zeros(1, 1, 1, 1).expand(1, 1, *grid)

        return query

    @torch.no_grad()
    def _encode(self, height: int, width: int) -> _Encoded:
        inputs = torch.empty(1, INPUT_CHANNELS, height, width, device="meta")
        with FlopCounterMode(display=False) as of_encoder:
            features = self.model.encoder(inputs)
        with FlopCounterMode(display=False) as of_mapping:
            parameters = self.model.mapping(features)
        # Nothing else in an encoder multiplies two activations; layers are convolutions, mm and addmm
        by_operator = of_encoder.get_flop_counts()["Global"]
        products = sum(n for op, n in by_operator.items() if "bmm" in str(op) or "attention" in str(op))
        flops = [products, of_encoder.get_total_flops() - products, of_mapping.get_total_flops(), 0]
        return _Encoded(features, parameters, torch.tensor(flops) // 2)


@torch.no_grad()
def _query_cost(encoded: _Encoded, num_rows: int, num_cols: int) -> int:
    rows, cols = (Axis(torch.empty(n, device="meta"), 1.0) for n in (num_rows, num_cols))
    with FlopCounterMode(display=False) as counter:
        query_grid(encoded.features, encoded.parameters, rows, cols, chunk=num_rows * num_cols)
    return counter.get_total_flops() // 2


class _CountingPass(DrawnMaskPass):
    """Also notes the tiles of each ratio."""

    encode: _CountingNetwork

    def __init__(self, *args: Any):
        super().__init__(*args)
        self.tiles: list[tuple[int, int]] = []

    def _step(self, level: int, mask: Tensor, sizes: Sequence[int]) -> Tensor:
        before = self.encode.calls
        answer = super()._step(level, mask, sizes)
        settings = self.settings
        rows, cols = (len(split_axis(x.padded, settings.tile_size, settings.tile_halo)) for x in self.grids[level])
        self.tiles.append((self.encode.calls - before, rows * cols))
        return answer
