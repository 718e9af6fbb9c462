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
from .implicit_mapping import AIRMF
from .meta_arch import AIRM


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
    count = functools.cache(functools.partial(_count_step, network))
    costs = []

    def step(images: Tensor, masks: Tensor, rows: Tensor, cols: Tensor, chunk: int, *shared: None) -> Tensor:
        costs.append(count(*images.shape[2:], len(rows), len(cols), bool(shared)))
        return masks.new_zeros(1, 1, 1, 1).expand(1, 1, len(rows), len(cols))

    def predict(images: Tensor, masks: Tensor) -> None:
        costs.append(count(*images.shape[2:]))

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


def _count_step(
    model: AIRM, height: int, width: int, num_rows: int = 0, num_cols: int = 0, shared: bool = False
) -> tuple[int, int, int, int]:
    """Return what one answer of a model on meta tensors costs, as the first fields of PassCost.

    With ``shared`` the mapping is given; without rows and columns it is only predicted.
    """
    image, mask = (torch.empty(1, n, height, width, device="meta") for n in (3, 1))
    rows, cols = (torch.empty(n, device="meta") for n in (num_rows, num_cols))
    given = model.predict(image, mask) if shared else None
    with FlopCounterMode(display=False) as counter:
        if num_rows:
            model.step(image, mask, rows, cols, None, given)
        else:
            model.predict(image, mask)
    flops = counter.get_flop_counts()
    encoder, mapping = (flops.get(type(x).__name__, {}) for x in (model.encoder, model.mapping))
    # Nothing else in an encoder multiplies two activations; layers are convolutions, mm and addmm
    attention = sum(n for op, n in encoder.items() if "bmm" in str(op) or "attention" in str(op))
    parts = [n // 2 for n in (attention, sum(encoder.values()) - attention, sum(mapping.values()))]
    return parts[0], parts[1], parts[2], counter.get_total_flops() // 2 - sum(parts)
