"""Evaluation on Cityscapes and by LVIS's protocol."""

from .cityscapes import CityscapesInstanceEvaluator
from .lvis import COCOWithLVISEvaluator, LVISInstanceEvaluator

__all__ = ["COCOWithLVISEvaluator", "CityscapesInstanceEvaluator", "LVISInstanceEvaluator"]
