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

from .coarse_to_fine import CoarseToFine, Settings
from .encoder import INPUT_CHANNELS
from .implicit_mapping import AIRMF, MappingParameters, query_blocks
from .meta_arch import AIRM
from .query_inputs import num_computed
from .tiles import Tile


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


class CountingPass(CoarseToFine):
    """The pass, which also notes how many tiles it encodes."""

    def __init__(self, *args: Any, **options: Any):
        super().__init__(*args, **options)
        self.counts: list[tuple[int, int]] = []
        """(encoded, all) tiles of each ratio."""

    def refine_ratio(self, level: int, masks: Tensor) -> tuple[Tensor, list[Tile]]:
        answer, encoded = super().refine_ratio(level, masks)
        self.counts.append((len(encoded), len(self.tiles(level))))
        return answer, encoded


class DrawnMaskPass(CountingPass):
    """The pass with every answer of the network computed, dropped and replaced by the coarse mask.

    Which tiles are encoded depends on the mask of the ratio before. That of random weights is noise, undecided
    everywhere; with a drawn mask in its place only tiles are encoded that its boundary crosses.
    """

    @classmethod
    def of(cls, model: AIRM, image: Tensor) -> "DrawnMaskPass":
        """Return what a model would refine the masks of a (3, H, W) RGB image in [0, 255] with."""
        return model.coarse_to_fine(model.normalise(image)[None], kind=cls)

    def refine(self, masks: Tensor) -> Tensor:
        self._drawn = masks
        return super().refine(masks)

    def refine_ratio(self, level: int, masks: Tensor) -> tuple[Tensor, list[Tile]]:
        answer, encoded = super().refine_ratio(level, masks)
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
    image: Tensor | None = None,
) -> PassCost:
    """Count the multiply-adds with which a model refines one mask of one image.

    Args:
        model: is left as it is.
        size: height and width of the image in pixels.
        tile_size: 0 for the whole image; by default as the settings have it.
        mask: (1, 1, height, width), decides which tiles are encoded; else that of :func:`draw_mask`.
        settings: by default the model's.
        image: (3, height, width) RGB in [0, 255], which is then refined: its answers decide which tiles are encoded.
    """
    # Parameters that SIRMF hands through would ask the counter for gradients
    network: AIRM = copy.deepcopy(model).to("meta").eval().requires_grad_(False)
    channels = INPUT_CHANNELS + num_computed(network.query_inputs)
    encode = functools.cache(functools.partial(_encode, network, channels))
    costs: list[list[int]] = []

    @functools.cache
    def count(windows: int, *size: int, grid: tuple[int, int], blocks: int = 0) -> list[int]:
        """Return what a step costs that asks windows of a size for a grid, or for so many ``blocks`` of it."""
        encoded = encode(windows, *size)
        maps = network.query_maps(torch.empty(windows, channels, *size, device="meta"))
        with FlopCounterMode(display=False) as counter:
            if blocks:
                rows, cols = (torch.empty(blocks, n, device="meta") for n in grid)
                where = torch.empty(blocks, dtype=torch.long, device="meta")
                query_blocks(
                    encoded.features, encoded.parameters, where, rows, cols, 1.0, math.prod(grid) * blocks, maps
                )
            else:
                rows, cols = (torch.empty(n, device="meta") for n in grid)
                network.query(encoded.features, rows, cols, None, encoded.parameters, maps)
        return [encoded.attention, encoded.encoder, encoded.hypernetwork, counter.get_total_flops() // 2]

    def step(images: Tensor, masks: Tensor, rows: Tensor, cols: Tensor, *others: Any) -> Tensor:
        costs.append(count(*_sizes(images), grid=(len(rows), len(cols))))
        if image is not None:
            return model.step(images, masks, rows, cols, *others)
        return masks.new_zeros(1, 1, 1, 1).expand(1, 1, len(rows), len(cols))

    def step_at(images: Tensor, masks: Tensor, window: Tensor, rows: Tensor, cols: Tensor, *others: Any) -> Tensor:
        grid = rows.shape[1], cols.shape[1]
        cost = count(*_sizes(images), grid=grid, blocks=len(window))
        predicted = len(others) > 1 and others[1] is not None  # for all tiles of the ratio
        costs.append([0 if predicted and part == 2 else n for part, n in enumerate(cost)])
        if image is not None:
            return model.step_at(images, masks, window, rows, cols, *others)
        return rows.new_zeros(len(window), *grid)

    def predict(images: Tensor, masks: Tensor, *table: Tensor) -> MappingParameters:
        encoded = encode(*_sizes(images))
        costs.append([encoded.attention, encoded.encoder, encoded.hypernetwork, 0])
        return encoded.parameters if image is None else model.predict(images, masks, *table)

    settings = settings or model.settings
    settings = settings if tile_size is None else replace(settings, tile_size=tile_size)
    kind = DrawnMaskPass if image is None else CountingPass
    # One channel, where the image's values are never looked at
    pixels = torch.zeros(1, 1, *size) if image is None else model.normalise(image)[None]
    passes: CountingPass = model.coarse_to_fine(pixels, settings, kind=kind)
    passes.step, passes.step_at = step, step_at
    passes.predict = predict if isinstance(model.mapping, AIRMF) else None
    passes.colours = passes.colours if image is not None else None
    passes.refine(draw_mask(*size) if mask is None else mask.to(model.device))
    attention, encoder, hypernetwork, query = (sum(part) for part in zip((0, 0, 0, 0), *costs, strict=True))
    return PassCost(attention, encoder, hypernetwork, query, passes.counts)


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


def _sizes(images: Tensor) -> tuple[int, ...]:
    return len(images), *images.shape[2:]


def _encode(model: AIRM, channels: int, *size: int) -> _Encoded:
    with FlopCounterMode(display=False) as counter:
        features = model.encoder(torch.empty(size[0], channels, *size[1:], device="meta"))
        encoding = counter.get_total_flops()
        parameters = model.mapping(features)
    # Nothing else in an encoder multiplies two activations; layers are convolutions, mm and addmm
    flops = counter.get_flop_counts().get(type(model.encoder).__name__, {})
    attention = sum(n for op, n in flops.items() if "bmm" in str(op) or "attention" in str(op))
    hypernetwork = counter.get_total_flops() - encoding
    return _Encoded(attention // 2, (encoding - attention) // 2, hypernetwork // 2, features, parameters)
