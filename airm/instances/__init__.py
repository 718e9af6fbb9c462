"""Refinement of the instances that a detector finds, or that COCO results hold."""

from .crops import InstanceRefiner, RefinedPredictor, RefinedResults

__all__ = ["InstanceRefiner", "RefinedPredictor", "RefinedResults"]
