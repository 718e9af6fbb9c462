"""The images that figures are made of, and the single input that the encoder gets of each."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from torch import Tensor
from torch.nn import functional as F

from pixelmask.errors import UserError

from ..coarse_to_fine import ALIGNMENT, SMALLEST_SIDE
from ..data.dataset_mapper import RefinementDatasetMapper
from ..data.datasets import CustomSet
from ..data.synthetic_dataset import is_synthetic_name, register_synthetic
from ..meta_arch import AIRM

MAX_SIDE = 512
LARGEST_SIDE = 1024
"""Attention has a row for each position of the grid at 1/16, and a column: from here on it takes gigabytes."""


def encoder_input(model: AIRM, image: Tensor, coarse_mask: Tensor, max_side: int = MAX_SIDE) -> Tensor:
    """Normalise an image with its coarse mask, and shrink both where the longer side exceeds ``max_side``.

    Args:
        model: whose encoder it is for.
        image: (3, H, W) RGB in [0, 255].
        coarse_mask: (1, H, W) in [0, 1].
        max_side: in pixels, 32 to 1024.

    Returns:
        (1, 4, h, w) on the model's device; sides are multiples of 16, the aspect changes by what that takes.

    Raises:
        UserError: for a ``max_side`` out of its range.
    """
    if not SMALLEST_SIDE <= max_side <= LARGEST_SIDE:
        raise UserError(f"max_side is {max_side} pixels; it lies in {SMALLEST_SIDE} to {LARGEST_SIDE}")
    scale = min(1.0, max_side / max(image.shape[1:]))
    largest = max_side // ALIGNMENT * ALIGNMENT
    sides = [min(max(round(n * scale / ALIGNMENT) * ALIGNMENT, SMALLEST_SIDE), largest) for n in image.shape[1:]]
    mask = coarse_mask.to(model.device, torch.float32)
    inputs = model.encoder_input(model.normalise(image)[None], mask[None])
    return F.interpolate(inputs, tuple(sides), mode="bilinear", antialias=True)


def load_dicts(argument: str) -> list[dict[str, Any]]:
    """Return the dicts of a data set for refinement, each with its "category".

    Args:
        argument: a registered or synthetic data set, a folder of any layout, or IMAGES:MASKS, two folders.

    Returns:
        dicts as in :mod:`airm.data.datasets`. The category is the folder of an image within its data set
        (``bus/1`` of FSS-1000 is of category ``bus``), else the name of the set or folder.

    Raises:
        UserError: if there is no such set or folder, or its files cannot be paired.
    """
    if is_synthetic_name(argument):
        register_synthetic(argument)
    if argument in DatasetCatalog.list():
        if MetadataCatalog.get(argument).get("evaluator_type") != "refinement":
            raise UserError(f"{argument} is no data set for refinement; known ones are in datasets/README.md")
        name, dicts = argument, DatasetCatalog.get(argument)
    else:
        folders = [argument] if Path(argument).is_dir() else argument.split(":", 1)
        for folder in folders:
            if not Path(folder).is_dir():
                raise UserError(
                    f"{folder!r} is neither a data set for refinement nor a folder; give a name of "
                    "datasets/README.md, a folder of any layout, or IMAGES:MASKS"
                )
        name, dicts = Path(folders[0]).resolve().name, CustomSet(argument, folders[0], folders[-1])()
    return [{**entry, "category": entry["image_id"].rpartition("/")[0] or name} for entry in dicts]


def read_samples(dicts: Sequence[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Read the picture and coarse mask of each dict, as testing does: see :class:`RefinementDatasetMapper`."""
    return map(RefinementDatasetMapper(is_train=False), dicts)
