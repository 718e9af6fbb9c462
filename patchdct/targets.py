"""Training targets of the mask branch: rasterised once, labelled by counting, encoded by matrix products."""

from typing import NamedTuple

import torch
from torch import Tensor

from .dct import DCTMaskCodec
from .patches import classify_patches, split_into_patches


class PatchTargets(NamedTuple):
    """What the patches of B masks are to become; P patches of a mask, n patch dimensions."""

    labels: Tensor
    """(B, P) int64 :class:`~patchdct.patches.PatchLabel` values."""
    vectors: Tensor
    """(B, P, n) DCT vectors."""


def rasterize_masks(instances: list, mask_size: int, device: torch.device) -> Tensor:
    """Crop the ground-truth masks of proposals to their boxes.

    Args:
        instances: per image, Detectron2 Instances with ``gt_masks`` (PolygonMasks or BitMasks) and ``proposal_boxes``.
            Images without proposals need no ``gt_masks``.
        mask_size: M, side of the result in pixels.
        device: where an empty result is to live.

    Returns:
        (B, M, M) boolean masks in the box frame, the images' proposals one after the other.
    """
    masks = [x.gt_masks.crop_and_resize(x.proposal_boxes.tensor, mask_size).to(device) for x in instances if len(x)]
    return torch.cat(masks) if masks else torch.zeros(0, mask_size, mask_size, dtype=torch.bool, device=device)


def encode_patches(masks: Tensor, codec: DCTMaskCodec) -> PatchTargets:
    """Label and encode the patches of (B, M, M) boolean masks; the codec's mask size is the patch size."""
    patches = split_into_patches(masks, codec.mask_size)
    return PatchTargets(classify_patches(patches), codec.encode(patches))
