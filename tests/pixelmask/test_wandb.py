"""Weights & Biases: without the package a message; with it, where it is installed, what a run has of a training."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
from detectron2.utils.events import EventStorage
from PIL import Image

from pixelmask.config import load_cfg
from pixelmask.engine.wandb_writer import WandbWriter, build_wandb_writers
from pixelmask.errors import UserError
from tests.support.training import PATCHDCT, logged_by

needs_wandb = pytest.mark.skipif(
    importlib.util.find_spec("wandb") is None, reason="wandb is not installed: pip install 'pixelmask[tracking]'"
)


def test_off_by_default_and_a_message_without_the_package(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert build_wandb_writers(load_cfg()) == []
    with pytest.raises(UserError, match=r"WANDB_PROJECT masks needs wandb: pip install wandb"):
        build_wandb_writers(load_cfg(opts=["WANDB_PROJECT", "masks"]))


class FakeRun:
    """What the writer calls of a run."""

    def __init__(self):
        self.logged, self.metrics, self.finished = [], {}, False

    def define_metric(self, name, **how):
        self.metrics[name] = how

    def log(self, values):
        self.logged.append(values)

    def finish(self):
        self.finished = True


def test_each_value_once_under_its_own_iteration():
    run = FakeRun()
    writer = WandbWriter(run)
    with EventStorage() as storage:
        for storage.iter in range(30):
            storage.put_scalar("loss", float(storage.iter))
            if storage.iter == 5:
                storage.put_scalar("AP", 40.0, smoothing_hint=False)
            if storage.iter in (10, 29):
                writer.write()
        writer.write()
    writer.close()
    # Losses are medians of the last 20, as in TensorBoard
    assert run.logged == [
        {"iteration": 5, "AP": 40.0},
        {"iteration": 10, "loss": 5.0},
        {"iteration": 29, "loss": 19.5},
    ]
    assert run.metrics["*"] == {"step_metric": "iteration"} and run.finished


@needs_wandb
@pytest.mark.slow
@pytest.mark.usefixtures("data_root")
def test_offline_a_training_leaves_its_curves_config_and_pictures(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    runs = []

    def close(writer):
        runs.append((dict(writer._run.summary), dict(writer._run.config), writer._run.project, writer._run.name))
        writer._run.finish()

    monkeypatch.setattr(WandbWriter, "close", close)
    PATCHDCT.run("OUTPUT_DIR", tmp_path, "WANDB_PROJECT", "masks", "VIS_PERIOD", "2")
    ((summary, config, project, name),) = runs
    assert (project, name) == ("masks", tmp_path.name)
    assert config["SOLVER"]["MAX_ITER"] == 3 and config["WANDB_PROJECT"] == "masks"
    expected = {key: value for line in logged_by(tmp_path) for key, value in line.items()}
    del expected["eta_seconds"]  # put there by the writer that prints
    assert {"total_loss", "lr", "segm/AP"} <= expected.keys() <= summary.keys()
    assert all(np.isclose(summary[key], value, equal_nan=True) for key, value in expected.items())
    pictures = Path(tmp_path, "wandb").glob(f"offline-run-*/files/media/images/{PATCHDCT.test_set}/prediction_*.png")
    shapes = [np.asarray(Image.open(path)).shape for path in pictures]
    assert len(shapes) == 3 and all(width > 3.5 * height for height, width, _ in shapes)
