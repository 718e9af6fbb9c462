"""Box AP, mask AP and Boundary AP of instance segmentation results."""

from .boundary import boundary_iou, mask_iou, mask_to_boundary
from .coco import COCOInstanceEvaluator

__all__ = ["COCOInstanceEvaluator", "boundary_iou", "mask_iou", "mask_to_boundary"]
