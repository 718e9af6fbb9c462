"""AMP: which trainer it takes, in what precision that trains, and what resuming keeps of it."""

from contextlib import nullcontext

import pytest
import torch
from detectron2.engine import AMPTrainer, SimpleTrainer
from detectron2.modeling.poolers import ROIPooler
from detectron2.structures import Boxes
from torch import nn

from patchdct.trainer import Trainer
from pixelmask.config import load_cfg
from pixelmask.engine import BaseTrainer
from pixelmask.engine.compat import AMP_TAKES_PRECISION
from pixelmask.engine.precision import Bfloat16Trainer, amp_trainer, inference_autocast, set_precision
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


class Pooling(nn.Module):
    """A convolution, and boxes pooled of what it gives."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 1, 1, bias=False)
        nn.init.ones_(self.conv.weight)
        self.pooler = ROIPooler(1, [1.0], 1, "ROIAlignV2")

    def forward(self, x):
        maps = self.conv(x)
        return maps.dtype, self.pooler([maps], [Boxes(torch.tensor([[500.3, 0.0, 501.3, 1.0]]))])


def test_inference_in_bfloat16_pools_with_exact_boxes():
    """Of a ramp, at a place that bfloat16 would round to 500 or 504 pixels, in steps that it can tell."""
    model, x = Pooling().eval(), (torch.arange(1024.0) // 2)[None, None, None].expand(-1, -1, 2, -1)
    with torch.no_grad():
        _, exact = model(x / 512)
        set_precision(model, "bf16")
        dtype, found = model(x / 512)
    assert dtype == torch.bfloat16 and found.item() == pytest.approx(exact.item(), abs=1e-3)
    model.train()
    assert model(x)[0] == torch.float32


def test_precisions_that_a_device_has_not_are_errors(monkeypatch):
    with pytest.raises(UserError, match="'int8'; known are fp32, bf16, fp16"):
        inference_autocast("int8", torch.device("cpu"))
    monkeypatch.setattr(torch, "autocast", lambda *_: nullcontext())  # as of versions that stay in float32
    with pytest.raises(UserError, match="does not infer in fp16 on cpu; give bf16 or fp32"):
        inference_autocast("fp16", torch.device("cpu"))
