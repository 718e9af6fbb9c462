"""How many patches of a data set's masks are background, mixed and foreground (PatchDCT, Sec. 3.2)."""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from ..evaluation.upper_bound import boxes_of, cut_out, objects_of
from ..patches import PatchLabel, classify_patches, split_into_patches


def count_patches(records: Iterable[dict[str, Any]], patch_sizes: Sequence[int]) -> tuple[int, dict[int, Tensor]]:
    """Count the patches of all objects in their true boxes, at 112 x 112 pixels.

    Args:
        records: Detectron2's dicts, with masks.
        patch_sizes: sides of patches, divisors of 112.

    Returns:
        the number of objects, and by patch size a (3,) int64 count by :class:`~patchdct.patches.PatchLabel`.
    """
    num_objects = 0
    counts = {size: torch.zeros(len(PatchLabel), dtype=torch.int64) for size in patch_sizes}
    for record in records:
        objects = objects_of(record)
        masks = cut_out(objects, boxes_of(objects))
        num_objects += len(masks)
        for size, count in counts.items():
            labels = classify_patches(split_into_patches(masks, size))
            count += torch.bincount(labels.flatten(), minlength=len(PatchLabel))
    return num_objects, counts
