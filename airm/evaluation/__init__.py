"""IoU and mean boundary accuracy (mBA) of coarse and refined masks."""

from .metrics import binarize, intersection_and_union, mean_boundary_accuracies, mean_boundary_accuracy
from .refinement import RefinementEvaluator

__all__ = [
    "RefinementEvaluator",
    "binarize",
    "intersection_and_union",
    "mean_boundary_accuracies",
    "mean_boundary_accuracy",
]
