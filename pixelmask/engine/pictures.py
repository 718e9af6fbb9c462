"""Pictures of a model's predictions during training, for TensorBoard."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from functools import cached_property
from typing import Any

import numpy as np
import torch
from detectron2.data import DatasetCatalog
from detectron2.engine import HookBase

PICTURES = 3
# Low, as a model is unsure early in training
SCORE_THRESHOLD = 0.3

Mapper = Callable[[dict[str, Any]], dict[str, Any]]
Draw = Callable[[torch.nn.Module, dict[str, Any], Mapper, str], np.ndarray]
"""A model in evaluation mode, a data set's dict, what makes a sample of it and the set's name to an (H, W, 3) RGB."""


def random_numbers_kept(model: torch.nn.Module) -> AbstractContextManager[None]:
    """Leave torch's generators, the model's device's included, where they were: training draws from them."""
    device = next(model.parameters()).device
    return torch.random.fork_rng([device] if device.type == "cuda" else [])


class PredictionPictures(HookBase):
    """Every ``period`` iterations, put pictures of predictions on the first images of a set into the event storage.

    The model is in evaluation mode for it. Training goes on as it would without.
    """

    def __init__(self, model: torch.nn.Module, dataset_name: str, mapper: Mapper, draw: Draw, period: int):
        """
        Args:
            model: without a wrapper for several processes.
            dataset_name: a registered set.
            mapper: makes a sample for testing of a set's dict.
            draw: makes a picture of a prediction.
            period: in iterations; 0 for never.
        """
        self.model, self.dataset_name, self.mapper, self.draw = model, dataset_name, mapper, draw
        self.period = period

    @cached_property
    def records(self) -> list[dict[str, Any]]:
        """The first dicts of the set, which is read once: Detectron2's COCO JSON take many seconds."""
        return DatasetCatalog.get(self.dataset_name)[:PICTURES]

    def after_step(self) -> None:
        if self.period and (self.trainer.iter + 1) % self.period == 0:
            for name, picture in self.pictures():
                self.trainer.storage.put_image(name, torch.from_numpy(picture.transpose(2, 0, 1).copy()))

    @torch.no_grad()
    def pictures(self) -> Iterator[tuple[str, np.ndarray]]:
        """Yield the name and the (H, W, 3) uint8 RGB of each picture."""
        was_training = self.model.training
        self.model.eval()
        try:
            for i, record in enumerate(self.records):
                with random_numbers_kept(self.model):
                    picture = self.draw(self.model, dict(record), self.mapper, self.dataset_name)
                yield f"{self.dataset_name}/prediction_{i}", picture
        finally:
            self.model.train(was_training)
