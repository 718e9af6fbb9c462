"""Box AP, mask AP and Boundary AP of instance segmentation results."""

from .boundary import boundary_iou, mask_to_boundary
from .cityscapes import CityscapesInstanceEvaluator
from .coco import COCOInstanceEvaluator
from .lvis import COCOWithLVISEvaluator, LVISInstanceEvaluator

__all__ = [
    "COCOInstanceEvaluator",
    "COCOWithLVISEvaluator",
    "CityscapesInstanceEvaluator",
    "LVISInstanceEvaluator",
    "boundary_iou",
    "mask_to_boundary",
]
