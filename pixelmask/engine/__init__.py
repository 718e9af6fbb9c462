"""Training and its processes."""

from .launch import launch
from .trainer import BaseTrainer

__all__ = ["BaseTrainer", "launch"]
