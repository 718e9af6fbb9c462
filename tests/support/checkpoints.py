"""Small models and their checkpoints, for the tests of reading and writing these."""

import pickle
from pathlib import Path

import torch
from detectron2.config import CfgNode
from torch import nn

from pixelmask.checkpoint.checkpointer import SafeCheckpointer
from tests.support.models import untrained


class Model(nn.Module):
    """A box predictor as Detectron2 names it, and a layer beside it."""

    def __init__(self, num_classes=3):
        super().__init__()
        self.box_predictor = nn.ModuleDict({"cls_score": nn.Linear(4, num_classes + 1)})
        self.fc = nn.Linear(4, 4)


def same_state(a, b):
    a, b = a.state_dict(), b.state_dict()
    return all(torch.equal(a[name], b[name]) for name in a)


def save(model, folder, name="model", **kwargs):
    SafeCheckpointer(model, str(folder)).save(name, **kwargs)
    return str(folder / f"{name}.pth")


def write_torch(path, data):
    torch.save(data, path)


def write_old_torch(path, data):
    torch.save(data, path, _use_new_zipfile_serialization=False)


def write_pickle(path, data):
    path.write_bytes(pickle.dumps(data, protocol=2))


def save_model(cfg: CfgNode, folder: Path) -> Path:
    """Write a checkpoint of an untrained model, always the same, with its config in it and beside it."""
    checkpointer = SafeCheckpointer(untrained(cfg), str(folder))
    checkpointer.config = cfg.dump()
    checkpointer.save("model_final")
    (folder / "config.yaml").write_text(cfg.dump())
    return folder / "model_final.pth"
