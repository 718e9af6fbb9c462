"""AIRM: coarse masks refined at the image's own resolution (Zhao et al., 2024), as an extension of Detectron2."""

from .config import add_airm_config
from .meta_arch import AIRM
from .plain_cnn import PlainCNN
from .refiner import Refiner

__all__ = ["AIRM", "PlainCNN", "Refiner", "add_airm_config"]
