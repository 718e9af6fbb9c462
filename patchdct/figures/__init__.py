"""Pictures that explain the PatchDCT head: ``tools/draw_patchdct_figures.py`` is their command line."""

from .objects import (
    TrueObjects,
    count_pieces,
    load_objects,
    load_records,
    match_detections,
    read_objects,
    richest_window,
    square_around,
)
from .patch_histograms import count_patches
from .representation import Influence, Reconstruction, influences, reconstructions
from .stages import arrange, object_rows, stage_columns

__all__ = [
    "Influence",
    "Reconstruction",
    "TrueObjects",
    "arrange",
    "count_patches",
    "count_pieces",
    "influences",
    "load_objects",
    "load_records",
    "match_detections",
    "object_rows",
    "read_objects",
    "reconstructions",
    "richest_window",
    "square_around",
    "stage_columns",
]
