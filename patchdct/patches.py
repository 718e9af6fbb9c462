"""Masks as grids of patches (PatchDCT, Sec. 3.2). Imports torch alone.

Letters: B masks, M side of a mask, m side of a patch, P = (M / m)^2 patches of a mask, row-major.
"""

import math
from enum import IntEnum

import torch
from torch import Tensor


class PatchLabel(IntEnum):
    """What the three-class classifier tells apart; the values are the channels of its output."""

    BACKGROUND = 0
    MIXED = 1
    FOREGROUND = 2


def split_into_patches(masks: Tensor, patch_size: int) -> Tensor:
    """Cut (B, M, M) masks into (B, P, m, m) patches; M must be a multiple of m."""
    side = masks.shape[-1] // patch_size
    grid = masks.reshape(masks.shape[0], side, patch_size, side, patch_size)
    return grid.transpose(2, 3).reshape(masks.shape[0], side * side, patch_size, patch_size)


def assemble_patches(patches: Tensor) -> Tensor:
    """Put (B, P, m, m) patches together to (B, M, M) masks, the inverse of :func:`split_into_patches`."""
    batch, num_patches, patch_size, _ = patches.shape
    side = math.isqrt(num_patches)
    grid = patches.reshape(batch, side, side, patch_size, patch_size)
    return grid.transpose(2, 3).reshape(batch, side * patch_size, side * patch_size)


def classify_patches(patches: Tensor) -> Tensor:
    """Label patches by counting their pixels: none, some or all of them foreground.

    Args:
        patches: (..., m, m) boolean, or soft with foreground above 0.5.

    Returns:
        (...) int64 :class:`PatchLabel` values.
    """
    foreground = patches if patches.dtype == torch.bool else patches > 0.5
    flat = foreground.flatten(-2)
    return flat.any(-1).long() + flat.all(-1).long()


def fill_uniform_patches(patches: Tensor, labels: Tensor) -> Tensor:
    """Make patches labelled background 0 and those labelled foreground 1, and leave mixed ones.

    Args:
        patches: (..., m, m) soft masks.
        labels: (...) :class:`PatchLabel` values.
    """
    labels = labels[..., None, None]
    # Plain integers, because torch.compile does not trace comparisons of tensors with members of an enumeration
    uniform = (labels == PatchLabel.FOREGROUND.value).to(patches.dtype)
    return torch.where(labels == PatchLabel.MIXED.value, patches, uniform)
