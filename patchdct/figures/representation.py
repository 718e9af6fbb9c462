"""One mask through several representations (PatchDCT, Sec. 3.1 and Table 1).

Letters: M side of a mask, N elements of the vector of a whole mask, n elements of the vector of a patch.
"""

from typing import NamedTuple

import numpy as np
from torch import Tensor

from pixelmask.evaluation.boundary import boundary_iou, mask_iou

from ..dct import DCTMaskCodec
from ..evaluation.upper_bound import reconstruct
from ..patches import PatchLabel, classify_patches, split_into_patches

PATCH_SIZE = 8
WHOLE_DIMS = (10, 50, 100, 300)
PATCH_DIMS = (1, 3, 6, 12)


class Reconstruction(NamedTuple):
    """A mask that went through a codec."""

    patch_size: int
    """M for one vector of the whole mask."""
    vector_dim: int
    """N or n."""
    elements: int
    """Elements of all vectors: N, or n for each mixed patch."""
    mask: np.ndarray
    """(M, M) boolean, cut at 0.5."""
    iou: float
    boundary_iou: float
    """As Boundary AP has it, with the mask as the image: see :func:`~pixelmask.evaluation.boundary.boundary_iou`."""


def reconstructions(mask: Tensor) -> list[list[Reconstruction]]:
    """Push an (M, M) boolean mask through vectors of WHOLE_DIMS, and 8 x 8 patches through vectors of PATCH_DIMS.

    As in PatchDCT, patches without a contour are kept as they are.
    """
    labels = classify_patches(split_into_patches(mask[None], PATCH_SIZE))
    mixed = int((labels == PatchLabel.MIXED).sum())
    whole = [_reconstruct(mask, mask.shape[0], dim, dim) for dim in WHOLE_DIMS]
    return [whole, [_reconstruct(mask, PATCH_SIZE, dim, dim * mixed) for dim in PATCH_DIMS]]


def _reconstruct(mask: Tensor, patch_size: int, dim: int, elements: int) -> Reconstruction:
    truth = mask.numpy()
    result = reconstruct(mask[None], DCTMaskCodec(patch_size, dim))[0].numpy() >= 0.5
    iou = mask_iou(truth, result, if_empty=1.0)
    return Reconstruction(patch_size, dim, elements, result, iou, boundary_iou(truth, result))
