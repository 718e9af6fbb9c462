"""AMP: which trainer it takes, in what precision that trains, and what resuming keeps of it."""

import pytest
import torch
from detectron2.engine import AMPTrainer, SimpleTrainer
from torch import nn

from patchdct.trainer import Trainer
from pixelmask.config import load_cfg
from pixelmask.engine import BaseTrainer
from pixelmask.engine.compat import AMP_TAKES_PRECISION
from pixelmask.engine.precision import Bfloat16Trainer, amp_trainer
from pixelmask.errors import UserError
from tests.support.training import PATCHDCT, logged_by


class Model(nn.Module):
    """Notes the precision that it computes in."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(4, 1)
        self.dtypes = []

    def forward(self, x):
        y = self.fc(x)
        self.dtypes.append(y.dtype)
        return {"loss": y.float().sum()}


def test_bfloat16_in_training_alone(monkeypatch):
    model = Model()
    trainer = Bfloat16Trainer(model, [torch.ones(2, 4)], torch.optim.SGD(model.parameters(), lr=0.1))
    monkeypatch.setattr(SimpleTrainer, "_write_metrics", lambda *_, **__: None)
    trainer.run_step()
    model.eval()(torch.ones(2, 4))
    assert model.dtypes == [torch.bfloat16, torch.float32]
    assert model.fc.weight.grad.dtype == torch.float32
    assert trainer.model is model


@pytest.mark.parametrize(
    ("device", "dtype", "expected"),
    [
        ("cuda", "float16", AMPTrainer),
        ("cuda", "bfloat16", AMPTrainer if AMP_TAKES_PRECISION else Bfloat16Trainer),
        ("cpu", "float16", SimpleTrainer),
        ("cpu", "bfloat16", Bfloat16Trainer),
    ],
)
def test_choice(device, dtype, expected, caplog):
    cfg = load_cfg(PATCHDCT.config, ["SOLVER.AMP.ENABLED", "True", "SOLVER.AMP.DTYPE", dtype]).clone()
    cfg.defrost()
    cfg.MODEL.DEVICE = device
    with caplog.at_level("WARNING", logger="pixelmask"):
        chosen = amp_trainer(cfg)
    if (device, dtype) == ("cuda", "bfloat16") and AMP_TAKES_PRECISION:
        assert chosen.keywords["precision"] == torch.bfloat16 and chosen.keywords["grad_scaler"].state_dict() == {}
        chosen = chosen.func
    assert chosen is expected
    assert ("training in float32" in caplog.text) == (expected is SimpleTrainer)
    cfg.SOLVER.AMP.DTYPE = "half"
    with pytest.raises(UserError, match=r"SOLVER\.AMP\.DTYPE is 'half'"):
        amp_trainer(cfg)


class Inner(Model):
    """Stands for the trainer that a BaseTrainer drives, and keeps the state that it is to load."""

    def __init__(self, scaling):
        super().__init__()
        self.optimizer = torch.optim.SGD(self.parameters(), lr=0.1)
        self.scaling, self.loaded = scaling, None

    def state_dict(self):
        return {"iteration": 1, "optimizer": self.optimizer.state_dict(), "grad_scaler": self.scaling}

    def load_state_dict(self, state):
        self.loaded = state


@pytest.mark.parametrize(
    ("own", "saved", "loaded", "warns"),
    [
        ({"scale": 4.0}, {"scale": 2.0}, {"scale": 2.0}, False),
        ({"scale": 4.0}, {}, {"scale": 4.0}, True),  # from bfloat16 to float16
        ({}, {"scale": 2.0}, {"scale": 2.0}, False),  # the other way round
        ({}, None, {}, False),  # of a trainer without AMP
    ],
)
def test_resuming_with_another_precision(own, saved, loaded, warns, caplog):
    trainer = BaseTrainer.__new__(BaseTrainer)
    trainer.__dict__.update(_hooks=[], _trainer=Inner(own), iter=1)
    state = {"iteration": 1, "_trainer": Inner(saved).state_dict()}
    if saved is None:
        del state["_trainer"]["grad_scaler"]
    with caplog.at_level("WARNING", logger="pixelmask"):
        trainer.load_state_dict(state)
    assert trainer._trainer.loaded["grad_scaler"] == loaded
    assert ("no state of the grad_scaler" in caplog.text) == warns


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_a_training_with_amp_on_the_cpu(tmp_path, data_root, dtype):
    options = ["MODEL.DEVICE", "cpu", "OUTPUT_DIR", str(tmp_path), "SOLVER.MAX_ITER", "2", "DATASETS.TEST", "()"]
    options += ["DATALOADER.NUM_WORKERS", "0", "SOLVER.AMP.ENABLED", "True", "SOLVER.AMP.DTYPE", dtype]
    cfg = load_cfg(PATCHDCT.config, [*PATCHDCT.opts, *options])
    Trainer.prepare_datasets(cfg, train=True)
    torch.manual_seed(0)
    trainer = Trainer(cfg)
    assert type(trainer._trainer) is (SimpleTrainer if dtype == "float16" else Bfloat16Trainer)
    trainer.train()
    assert (tmp_path / "model_final.pth").is_file()
    assert 0 < logged_by(tmp_path)[-1]["total_loss"] < 100
