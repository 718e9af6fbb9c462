"""Checkpoints as data: reading files, and loading them into models."""

from .checkpointer import LoadReport, SafeCheckpointer, load_trained
from .files import UnreadableCheckpoint, by_name, check_tensors, read_pickle, read_torch

__all__ = [
    "LoadReport",
    "SafeCheckpointer",
    "UnreadableCheckpoint",
    "by_name",
    "check_tensors",
    "load_trained",
    "read_pickle",
    "read_torch",
]
