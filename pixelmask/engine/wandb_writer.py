"""Weights & Biases beside TensorBoard: what a training puts into Detectron2's event storage, in a W&B run."""

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from detectron2.config import CfgNode
from detectron2.utils.events import EventWriter, get_event_storage

from ..errors import UserError

# As TensorboardXWriter smooths, so that both show the same curves
WINDOW_SIZE = 20


def build_wandb_writers(cfg: CfgNode) -> list[EventWriter]:
    """Return the writer to the W&B project that WANDB_PROJECT names, none if it is empty.

    The run is called as OUTPUT_DIR, has the config, and is kept there too. W&B's own variables hold: with
    ``WANDB_MODE=offline`` nothing leaves the machine, until ``wandb sync`` is called.

    Raises:
        UserError: if wandb is not installed.
    """
    if not cfg.WANDB_PROJECT:
        return []
    if importlib.util.find_spec("wandb") is None:
        raise UserError(f"WANDB_PROJECT {cfg.WANDB_PROJECT} needs wandb: pip install wandb, or leave the key empty")
    import wandb

    folder = Path(cfg.OUTPUT_DIR).resolve()
    run = wandb.init(
        project=cfg.WANDB_PROJECT, name=folder.name, dir=str(folder), config=yaml.safe_load(cfg.dump()), resume="auto"
    )
    return [WandbWriter(run)]


class WandbWriter(EventWriter):
    """Writes scalars, smoothed where TensorBoard's are, and pictures to a W&B run, over the iterations.

    It has to come before Detectron2's TensorboardXWriter, which takes the pictures out of the storage.
    """

    def __init__(self, run: Any):
        self._run = run
        self._last_write = -1
        # W&B's own steps only go on; a resumed training goes back to its last checkpoint
        run.define_metric("iteration", hidden=True)
        run.define_metric("*", step_metric="iteration")

    def write(self) -> None:
        storage = get_event_storage()
        new: dict[int, dict[str, Any]] = {}
        for name, (value, iteration) in storage.latest_with_smoothing_hint(WINDOW_SIZE).items():
            if iteration > self._last_write:
                new.setdefault(iteration, {})[name] = value
        for name, picture, iteration in storage._vis_data:  # which only writers read, as Detectron2 has it
            new.setdefault(iteration, {})[name] = _image(picture)
        for iteration in sorted(new):
            self._run.log({"iteration": iteration, **new[iteration]})
            self._last_write = max(self._last_write, iteration)

    def close(self) -> None:
        self._run.finish()


def _image(picture: Any) -> Any:
    """Make W&B's image of (3, H, W) in uint8, or floats from 0 to 1."""
    import wandb

    pixels = np.asarray(picture).transpose(1, 2, 0)
    return wandb.Image(pixels if pixels.dtype == np.uint8 else (pixels * 255).astype(np.uint8))
