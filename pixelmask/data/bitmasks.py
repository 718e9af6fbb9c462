"""Bitmasks that are not copied for each proposal.

Letters: N objects of an image, B rows chosen among them, M side of a cropped mask.
"""

from typing import Any

import torch
from detectron2.structures import BitMasks
from torch import Tensor

# Of the masks that are cropped at a time, as float32: four of 1024 x 2048
_PIXELS_AT_ONCE = 2**23


class SharedBitMasks(BitMasks):
    """BitMasks whose selections share the masks of the image, and only keep which of them they are.

    Detectron2's ROI heads give each of the 512 proposals that they sample of an image a copy of its object's mask: 1.07
    GB at 1024 x 2048; and cropping those of the foreground copies them as float32, which is as much again.
    """

    def __init__(self, masks: Tensor, rows: Tensor | None = None):
        """
        Args:
            masks: (N, H, W) boolean.
            rows: (B,) int64, the chosen masks; None for all in their order.
        """
        self.masks = masks
        self.rows = torch.arange(len(masks), device=masks.device) if rows is None else rows
        self.image_size = masks.shape[1:]

    @property
    def tensor(self) -> Tensor:
        """(B, H, W) boolean, made when it is asked for."""
        return self.masks[self.rows]

    @property
    def device(self) -> torch.device:
        return self.masks.device

    def __len__(self) -> int:
        return len(self.rows)

    def to(self, *args: Any, **kwargs: Any) -> "SharedBitMasks":
        masks = self.masks.to(*args, **kwargs)
        return SharedBitMasks(masks, self.rows.to(masks.device))

    def __getitem__(self, item: Any) -> "SharedBitMasks":
        return SharedBitMasks(self.masks, self.rows[item].reshape(-1))

    def crop_and_resize(self, boxes: Tensor, mask_size: int) -> Tensor:
        """Crop each mask to its box, some at a time: (B, 4) boxes to (B, M, M) boolean masks, as BitMasks does."""
        height, width = self.image_size
        step = max(1, _PIXELS_AT_ONCE // max(1, height * width))
        parts = [
            BitMasks(self.masks[rows]).crop_and_resize(part, mask_size)
            for rows, part in zip(self.rows.split(step), boxes.split(step), strict=True)
        ]
        return torch.cat(parts)
