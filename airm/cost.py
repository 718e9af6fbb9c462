"""What refining one image costs (Table 4): multiply-adds of the pass from coarse to fine, counted without running it.

Convolutions and products of matrices count, those of attention among them, one multiply-add as one; norms, activations
and resizing do not. The network runs on meta tensors, which have a shape and no values, once for each size of a step.
"""

import copy
import functools
import math
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from .coarse_to_fine import CoarseToFine, Settings, Tile
from .encoder import INPUT_CHANNELS
from .implicit_mapping import AIRMF, MappingParameters
from .meta_arch import AIRM
from .query_inputs import num_computed


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

    def __init__(self, *args: Any):
        super().__init__(*args)
        self.counts: list[tuple[int, int]] = []
        """(encoded, all) tiles of each ratio."""

    @classmethod
    def of(cls, model: AIRM, image: Tensor) -> "DrawnMaskPass":
        """Return what a model would refine the masks of a (3, H, W) RGB image in [0, 255] with."""
        return model.coarse_to_fine(model.normalise(image)[None], kind=cls)

    def refine(self, masks: Tensor) -> Tensor:
        self._drawn = masks
        return super().refine(masks)

    def refine_ratio(self, level: int, masks: Tensor) -> tuple[Tensor, list[Tile]]:
        answer, encoded = super().refine_ratio(level, masks)
        self.counts.append((len(encoded), len(self.tiles(level))))
        return F.interpolate(self._drawn, tuple(answer.shape[2:]), mode="bilinear", antialias=True), encoded


def draw_mask(height: int, width: int) -> Tensor:
    """Return the mask that all costs are given for, (1, 1, height, width) float32: a disc in the middle.

    Its radius is 600 pixels in an image of 2560 x 1706, and the same share of the shorter side in others.
    """
    y, x = torch.arange(height)[:, None] + 0.5, torch.arange(width) + 0.5
    radius = 600 / 1706 * min(height, width)
    return ((y - height / 2) ** 2 + (x - width / 2) ** 2 < radius**2).float()[None, None]


def pass_cost(
    model: AIRM,
    size: tuple[int, int],
    tile_size: int | None = None,
    mask: Tensor | None = None,
    settings: Settings | None = None,
) -> PassCost:
    """Count the multiply-adds with which a model refines one mask of one image.

    Args:
        model: is left as it is.
        size: height and width of the image in pixels.
        tile_size: 0 for the whole image; by default as the settings have it.
        mask: (1, 1, height, width), decides which tiles are encoded; else that of :func:`draw_mask`.
        settings: by default the model's.
    """
    # Parameters that SIRMF hands through would ask the counter for gradients
    network: AIRM = copy.deepcopy(model).to("meta").eval().requires_grad_(False)
    channels = INPUT_CHANNELS + num_computed(network.query_inputs)
    encode = functools.cache(functools.partial(_encode, network, channels))

    @functools.cache
    def count_queries(num_rows: int, num_cols: int, *size: int) -> int:
        rows, cols = (torch.empty(n, device="meta") for n in (num_rows, num_cols))
        with FlopCounterMode(display=False) as counter:
            inputs = torch.empty(1, channels, *size, device="meta")
            encoded = encode(*size)
            network.query(encoded.features, rows, cols, None, encoded.parameters, network.query_maps(inputs))
        return counter.get_total_flops() // 2

    costs = []

    def step(images: Tensor, masks: Tensor, rows: Tensor, cols: Tensor, chunk: int, *shared: bool) -> Tensor:
        encoded = encode(*images.shape[2:])
        queries = count_queries(len(rows), len(cols), *images.shape[2:])
        hypernetwork = 0 if any(shared) else encoded.hypernetwork
        costs.append((encoded.attention, encoded.encoder, hypernetwork, queries))
        return masks.new_zeros(1, 1, 1, 1).expand(1, 1, len(rows), len(cols))

    def predict(images: Tensor, masks: Tensor) -> bool:
        encoded = encode(*images.shape[2:])
        costs.append((encoded.attention, encoded.encoder, encoded.hypernetwork, 0))
        return True

    # One channel: the image's values are never looked at
    settings = settings or model.settings
    settings = settings if tile_size is None else replace(settings, tile_size=tile_size)
    adaptive = predict if isinstance(model.mapping, AIRMF) else None
    drawn = DrawnMaskPass(step, torch.zeros(1, 1, *size), settings, False, adaptive)
    drawn.refine(draw_mask(*size) if mask is None else mask)
    attention, encoder, hypernetwork, query = (sum(part) for part in zip((0, 0, 0, 0), *costs, strict=True))
    return PassCost(attention, encoder, hypernetwork, query, drawn.counts)


def single_pass_cost(model: AIRM, size: tuple[int, int]) -> int:
    """Count one pass at the image's own resolution, without border, with the mapping evaluated as Eq. 2 and 5 have it.

    That is at each pixel for each of its four neighbours, all features included: the nearest to the R50 of Table 4.
    """
    mapping: Any = model.mapping
    cost = pass_cost(model, size, settings=replace(model.settings, ratios=(1.0,), padding=0, tile_size=0))
    return cost.total - cost.query + 4 * math.prod(size) * sum(o * i for o, i in mapping.shapes)


def num_parameters(model: nn.Module) -> int:
    """Return how many numbers a model learns; of an AIRM without those of the affinity, which only training has."""
    return sum(p.numel() for name, p in model.named_parameters() if not name.startswith("encoder.affinity."))


class _Encoded(NamedTuple):
    """What a model makes of an image on meta tensors, and the first fields of PassCost."""

    attention: int
    encoder: int
    hypernetwork: int
    features: Tensor
    parameters: MappingParameters


def _encode(model: AIRM, channels: int, height: int, width: int) -> _Encoded:
    with FlopCounterMode(display=False) as counter:
        features = model.encoder(torch.empty(1, channels, height, width, device="meta"))
        encoding = counter.get_total_flops()
        parameters = model.mapping(features)
    # Nothing else in an encoder multiplies two activations; layers are convolutions, mm and addmm
    flops = counter.get_flop_counts().get(type(model.encoder).__name__, {})
    attention = sum(n for op, n in flops.items() if "bmm" in str(op) or "attention" in str(op))
    hypernetwork = counter.get_total_flops() - encoding
    return _Encoded(attention // 2, (encoding - attention) // 2, hypernetwork // 2, features, parameters)
