"""AIRM: coarse masks refined at the image's own resolution (Zhao et al., 2024), as an extension of Detectron2."""

from .backbone.plain_cnn import PlainCNN
from .backbone.resnet import DilatedResNet
from .config import add_airm_config
from .instances import InstanceRefiner, RefinedPredictor
from .meta_arch import AIRM
from .refiner import Refiner
from .trainer import RefinementTrainer

__all__ = [
    "AIRM",
    "DilatedResNet",
    "InstanceRefiner",
    "PlainCNN",
    "RefinedPredictor",
    "RefinementTrainer",
    "Refiner",
    "add_airm_config",
]
