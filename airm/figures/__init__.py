"""What AIRM's figures show, as numbers and as pictures: ``tools/draw_airm_figures.py`` is their command line."""

from .inputs import load_dicts, read_samples
from .maps import PositionMaps, position_maps
from .parameters import predict_parameters, reduce_parameters
from .runs import category_rows, kernel_size_rows, read_run
from .steps import Step, refinement_steps, score_mask, zoom_windows

__all__ = [
    "PositionMaps",
    "Step",
    "category_rows",
    "kernel_size_rows",
    "load_dicts",
    "position_maps",
    "predict_parameters",
    "read_run",
    "read_samples",
    "reduce_parameters",
    "refinement_steps",
    "score_mask",
    "zoom_windows",
]
