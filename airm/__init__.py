"""AIRM: coarse masks refined at the image's own resolution (Zhao et al., 2024), as an extension of Detectron2."""

from .backbone.plain_cnn import PlainCNN
from .config import add_airm_config
from .instances import InstanceRefiner, RefinedPredictor
from .meta_arch import AIRM
from .refiner import Refiner
from .trainer import RefinementTrainer

__all__ = [
    "AIRM",
    "InstanceRefiner",
    "PlainCNN",
    "RefinedPredictor",
    "RefinementTrainer",
    "Refiner",
    "add_airm_config",
]
