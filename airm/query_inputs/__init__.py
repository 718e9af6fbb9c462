"""What the mapping sees at a query besides the features, and what the encoder sees besides image and mask.

Not of the paper. Features are at the encoder's stride; what tells two sides of a contour apart within one feature
position is, in most pictures, their colour. Three inputs are computed from image and mask for that:

- "colour", the log ratio of the likelihoods of a pixel's colour in the fore- and the background of this very picture;
- "local", of windows of three sizes the coarse mask as a function of colour, its mean, and how much that leaves;
- "walk", of neighbourhoods of three sizes on which side of the contour a random walk ends that avoids edges.

Letters: B images, (H, W) their pixels, E channels of what is computed, K bins of a colour channel.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from .colour import colour_table, look_up
from .local_fit import local_fit
from .random_walk import random_walk

__all__ = ["CHANNELS", "COMPUTED", "colour_table", "computed_inputs", "num_computed"]

FIT_FACTORS, WALK_FACTORS = (1, 2, 8), (1, 2, 4)
CHANNELS = {"mask": 1, "image": 3, "colour": 1, "local": 3 * len(FIT_FACTORS), "walk": len(WALK_FACTORS)}
"""Channels of each query input."""
COMPUTED = ("colour", "local", "walk")
"""Those that are computed, in this order."""


def num_computed(query_inputs: Sequence[str]) -> int:
    """Return E."""
    return sum(CHANNELS[name] for name in COMPUTED if name in query_inputs)


def computed_inputs(images: Tensor, masks: Tensor, query_inputs: Sequence[str], table: Tensor | None = None) -> Tensor:
    """Compute those of the query inputs that are.

    Args:
        images: (B, 3, H, W) RGB in [0, 1].
        masks: (B, 1, H, W) coarse masks in [0, 1].
        query_inputs: keys of ``CHANNELS``.
        table: of :func:`colour_table`, where these are windows of what it is of; else it is these images'.

    Returns:
        (B, E, H, W) in [-1, 1], where 1 speaks for the foreground, but for what "local" says of its fits.
    """
    images, masks = images.float(), masks.float()
    parts = []
    if "colour" in query_inputs:
        parts.append(look_up(colour_table(images, masks) if table is None else table, images))
    if "local" in query_inputs:
        parts += [local_fit(images, masks, factor) for factor in FIT_FACTORS]
    if "walk" in query_inputs:
        parts += [random_walk(images, masks, factor) for factor in WALK_FACTORS]
    return torch.cat(parts, dim=1)
