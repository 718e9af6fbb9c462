import json
from unittest import mock

import pytest
import torch
from detectron2.engine import AMPTrainer, SimpleTrainer
from torch import nn

from patchdct.trainer import Trainer
from pixelmask.config import load_cfg
from pixelmask.engine.precision import Bfloat16Trainer, amp_trainer
from pixelmask.errors import UserError

SHAPES = "configs/patchdct/shapes/patchdct_shapes.yaml"
TINY = [
    "MODEL.RESNETS.RES2_OUT_CHANNELS", "8", "MODEL.RESNETS.STEM_OUT_CHANNELS", "8", "MODEL.FPN.OUT_CHANNELS", "8",
    "MODEL.ROI_BOX_HEAD.FC_DIM", "16", "MODEL.ROI_MASK_HEAD.CONV_DIM", "8", "MODEL.ROI_MASK_HEAD.HIDDEN_FEATURES", "8",
    "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE", "8", "INPUT.MIN_SIZE_TRAIN", "(96,)", "INPUT.MIN_SIZE_TEST", "96",
    "SOLVER.IMS_PER_BATCH", "2", "SOLVER.MAX_ITER", "2", "SOLVER.STEPS", "()", "DATALOADER.NUM_WORKERS", "0",
    "DATASETS.TRAIN", "('shapes_train_8_96px',)", "DATASETS.TEST", "()", "SOLVER.AMP.ENABLED", "True",
]  # fmt: skip


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


def test_bfloat16_in_training_alone():
    model = Model()
    trainer = Bfloat16Trainer(model, [torch.ones(2, 4)], torch.optim.SGD(model.parameters(), lr=0.1))
    with mock.patch.object(SimpleTrainer, "_write_metrics"):
        trainer.run_step()
    model.eval()(torch.ones(2, 4))
    assert model.dtypes == [torch.bfloat16, torch.float32]
    assert model.fc.weight.grad.dtype == torch.float32
    assert trainer.model is model


@pytest.mark.parametrize(
    ("device", "dtype", "expected"),
    [
        ("cuda", "float16", AMPTrainer),
        ("cuda", "bfloat16", Bfloat16Trainer),
        ("cpu", "float16", SimpleTrainer),
        ("cpu", "bfloat16", Bfloat16Trainer),
    ],
)
def test_choice(device, dtype, expected, caplog):
    cfg = load_cfg(SHAPES, ["SOLVER.AMP.ENABLED", "True", "SOLVER.AMP.DTYPE", dtype]).clone()
    cfg.defrost()
    cfg.MODEL.DEVICE = device
    with caplog.at_level("WARNING", logger="patchdct"):
        assert amp_trainer(cfg) is expected
    assert ("training in float32" in caplog.text) == (expected is SimpleTrainer)
    cfg.SOLVER.AMP.DTYPE = "half"
    with pytest.raises(UserError, match=r"SOLVER\.AMP\.DTYPE is 'half'"):
        amp_trainer(cfg)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_a_training_with_amp_on_the_cpu(tmp_path, monkeypatch, dtype):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    options = [*TINY, "MODEL.DEVICE", "cpu", "OUTPUT_DIR", str(tmp_path / "out"), "SOLVER.AMP.DTYPE", dtype]
    cfg = load_cfg(SHAPES, options)
    (tmp_path / "out").mkdir()
    Trainer.prepare_datasets(cfg, train=True)
    torch.manual_seed(0)
    trainer = Trainer(cfg)
    assert type(trainer._trainer) is (SimpleTrainer if dtype == "float16" else Bfloat16Trainer)
    trainer.train()
    assert (tmp_path / "out" / "model_final.pth").is_file()
    last = json.loads((tmp_path / "out" / "metrics.json").read_text().splitlines()[-1])
    assert 0 < last["total_loss"] < 100
