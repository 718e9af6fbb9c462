"""One mask through several representations, and what a change of their elements does (PatchDCT, Fig. 1, Table 1).

Letters: M side of a mask, N elements of the vector of a whole mask, n elements of the vector of a patch.
"""

from typing import NamedTuple

import numpy as np
from torch import Tensor

from pixelmask.evaluation.boundary import boundary_iou, mask_iou

from ..dct import DCTMaskCodec
from ..evaluation.upper_bound import reconstruct
from ..patches import PatchLabel, assemble_patches, classify_patches, fill_uniform_patches, split_into_patches

PATCH_SIZE = 8
WHOLE_DIMS = (10, 50, 100, 300)
PATCH_DIMS = (1, 3, 6, 12)
VECTOR_DIM, PATCH_VECTOR_DIM = 300, 6  # of the published model
CHANGED = slice(3, 6)  # elements, of the second-lowest frequencies


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


class Influence(NamedTuple):
    """What a change of some elements of one vector does to a mask."""

    patch_size: int
    vector_dim: int
    before: np.ndarray
    """(M, M) boolean, cut at 0.5, as is ``after``."""
    after: np.ndarray
    change: np.ndarray
    """(M, M) by how much each pixel of the soft mask moves."""


def influences(mask: Tensor) -> list[Influence]:
    """Change the same elements of the vector of an (M, M) boolean mask, and of that of one of its patches."""
    codecs = DCTMaskCodec(mask.shape[0], VECTOR_DIM), DCTMaskCodec(PATCH_SIZE, PATCH_VECTOR_DIM)
    return [_influence(mask, codec) for codec in codecs]


def _influence(mask: Tensor, codec: DCTMaskCodec) -> Influence:
    patches = split_into_patches(mask[None], codec.mask_size)
    labels, vectors = classify_patches(patches), codec.encode(patches)
    mixed = (labels[0] == PatchLabel.MIXED).nonzero()[:, 0]
    changed = vectors.clone()
    # Of a mixed patch in the middle; an eighth of the side moves a pixel by up to 1/4 for each element
    changed[0, mixed[len(mixed) // 2 :][:1], CHANGED] += codec.mask_size / 8
    before, after = (
        assemble_patches(fill_uniform_patches(codec.decode(v), labels))[0].numpy() for v in (vectors, changed)
    )
    return Influence(codec.mask_size, codec.vector_dim, before >= 0.5, after >= 0.5, np.abs(after - before))
