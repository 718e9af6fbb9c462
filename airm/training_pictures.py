"""Pictures of refinement during training, for TensorBoard."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from .pictures import side_by_side


def draw_refinement(
    model: torch.nn.Module,
    record: dict[str, Any],
    mapper: Callable[[dict[str, Any]], dict[str, Any]],
    dataset_name: str,
) -> np.ndarray:
    """Set the coarse mask, the refined one and their difference side by side; (H, W, 3) uint8 RGB."""
    sample = mapper(record)
    refined = model([sample])[0]["refined_mask"]
    coarse, refined = ((mask[0].cpu() >= 0.5).numpy() for mask in (sample["coarse_mask"], refined))
    return side_by_side(sample["image"].permute(1, 2, 0).numpy(), coarse, refined)
