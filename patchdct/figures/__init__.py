"""Pictures that explain the PatchDCT head: ``tools/draw_patchdct_figures.py`` is their command line."""

from .objects import TrueObjects, load_objects, load_records, match_detections, richest_window, square_around
from .patch_histograms import count_patches
from .representation import Reconstruction, reconstructions
from .stages import object_rows, stage_columns

__all__ = [
    "Reconstruction",
    "TrueObjects",
    "count_patches",
    "load_objects",
    "load_records",
    "match_detections",
    "object_rows",
    "reconstructions",
    "richest_window",
    "square_around",
    "stage_columns",
]
