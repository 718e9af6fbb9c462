"""What one position of an image attends to, and which positions it is found to belong with (AIRM, Fig. 6)."""

from typing import NamedTuple

import numpy as np
import torch

from pixelmask.errors import UserError

from ..backbone.mix_transformer import MixTransformer
from ..meta_arch import AIRM
from .inputs import MAX_SIDE, encoder_input


class PositionMaps(NamedTuple):
    """What one position has to do with every position of the encoder's last stage, an h x w grid over the image."""

    cell: tuple[int, int]
    """Row and column of the position in the grid."""
    attention: np.ndarray | None
    """(h, w), adding up to 1: attention of the last stage, the mean of its blocks and heads; None of a CNN."""
    affinity: np.ndarray | None
    """(h, w) in [0, 1], Eq. 4; None of a model that was trained without."""


@torch.no_grad()
def position_maps(
    model: AIRM, image: torch.Tensor, coarse_mask: torch.Tensor, position: tuple[int, int], max_side: int = MAX_SIDE
) -> PositionMaps:
    """Compute the maps of one position of an image.

    Training alone makes these matrices, of (h w) x (h w), which is why the input is limited.

    Args:
        model: in evaluation mode.
        image: (3, H, W) RGB in [0, 255].
        coarse_mask: (1, H, W) in [0, 1].
        position: (x, y) in pixels of the image.
        max_side: see :func:`~airm.figures.inputs.encoder_input`.

    Raises:
        UserError: if the position is outside the image, or the model has neither map.
    """
    height, width = image.shape[1:]
    x, y = position
    if not (0 <= x < width and 0 <= y < height):
        raise UserError(f"position {x} {y} is outside the image, which has {width} x {height} pixels")
    encoder, inputs = model.encoder, encoder_input(model, image, coarse_mask, max_side)
    attention, affinity = None, None
    if isinstance(encoder.backbone, MixTransformer):
        stages, attention = encoder.backbone.forward_with_attention(inputs)
        h, w = stages[encoder.in_features[-1]].shape[2:]
        affinity = encoder.affinity(attention) if encoder.affinity is not None else None
    elif encoder.affinity is not None:
        _, affinity, (h, w) = encoder.forward_with_affinity(inputs)
    else:
        raise UserError("this model has neither attention, which takes a Mix Transformer, nor affinity")
    row, col = y * h // height, x * w // width
    query = row * w + col
    return PositionMaps(
        (row, col),
        None if attention is None else _to_map(attention[0, :, query].float().softmax(-1).mean(0), h, w),
        None if affinity is None else _to_map(affinity.same[0, query].exp(), h, w),
    )


def _to_map(values: torch.Tensor, h: int, w: int) -> np.ndarray:
    return values.view(h, w).cpu().numpy()
