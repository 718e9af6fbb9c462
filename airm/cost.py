"""What refining one image costs (Table 4): multiply-adds of the pass from coarse to fine, counted without running it.

Convolutions and products of matrices count, those of attention among them, one multiply-add as one; norms, activations
and resizing do not. The network runs on meta tensors, which have a shape and no values, once for each size of a step.
"""

import copy
import functools
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from .coarse_to_fine import CoarseToFine, Network, Settings, Tile
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

    def __init__(self, step: Network, images: Tensor, settings: Settings):
        super().__init__(step, images, settings)
        self.counts: list[tuple[int, int]] = []
        """(encoded, all) tiles of each ratio."""

    @classmethod
    def of(cls, model: AIRM, image: Tensor) -> "DrawnMaskPass":
        """Return what a model would refine the masks of a (3, H, W) RGB image in [0, 255] with."""
        return cls(model.step, model.normalise(image)[None], model.settings)

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


def pass_cost(model: AIRM, size: tuple[int, int], tile_size: int, mask: Tensor | None = None) -> PassCost:
    """Count the multiply-adds with which a model refines one mask of one image.

    Args:
        model: is left as it is.
        size: height and width of the image in pixels.
        tile_size: as MODEL.AIRM.TILE_SIZE, 0 for the whole image.
        mask: (1, 1, height, width), decides which tiles are encoded; else that of :func:`draw_mask`.
    """
    # Parameters that SIRMF hands through would ask the counter for gradients
    network: AIRM = copy.deepcopy(model).to("meta").eval().requires_grad_(False)
    encode = functools.cache(functools.partial(_count_encoding, network))
    query = functools.cache(functools.partial(_count_query, network))
    costs = []

    def step(images: Tensor, masks: Tensor, rows: Tensor, cols: Tensor, chunk: int) -> Tensor:
        encoding, features = encode(*images.shape[2:])
        costs.append((*encoding, *query(features, len(rows), len(cols))))
        return masks.new_zeros(1, 1, 1, 1).expand(1, 1, len(rows), len(cols))

    # One channel: the image's values are never looked at
    drawn = DrawnMaskPass(step, torch.zeros(1, 1, *size), replace(model.settings, tile_size=tile_size))
    drawn.refine(draw_mask(*size) if mask is None else mask)
    attention, encoder, hypernetwork, query = (sum(part) for part in zip((0, 0, 0, 0), *costs, strict=True))
    return PassCost(attention, encoder, hypernetwork, query, drawn.counts)


def num_parameters(model: nn.Module) -> int:
    """Return how many numbers a model learns."""
    return sum(p.numel() for p in model.parameters())


def _count_encoding(model: AIRM, height: int, width: int) -> tuple[tuple[int, int], Tensor]:
    """Return what a model on meta tensors spends on attention and on the rest of its encoder, and F."""
    with FlopCounterMode(display=False) as counter:
        features = model.encoder(torch.empty(1, 4, height, width, device="meta"))
    # Nothing else in an encoder multiplies two activations; layers are convolutions, mm and addmm
    flops = counter.get_flop_counts().get(type(model.encoder).__name__, {})
    attention = sum(n for op, n in flops.items() if "bmm" in str(op) or "attention" in str(op))
    return (attention // 2, (counter.get_total_flops() - attention) // 2), features


def _count_query(model: AIRM, features: Tensor, num_rows: int, num_cols: int) -> tuple[int, int]:
    """Return what predicting the mapping of F costs, and what asking it does."""
    rows, cols = (torch.empty(n, device="meta") for n in (num_rows, num_cols))
    with FlopCounterMode(display=False) as counter:
        model.query(features, rows, cols)
    hypernetwork = sum(counter.get_flop_counts().get(type(model.mapping).__name__, {}).values())
    return hypernetwork // 2, (counter.get_total_flops() - hypernetwork) // 2
