import pytest
import torch

from pixelmask.config import get_cfg
from pixelmask.engine.optimizer import build_optimizer
from pixelmask.errors import UserError


def small_model() -> torch.nn.Module:
    return torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.BatchNorm1d(2))


@pytest.mark.parametrize(("name", "kind"), [("SGD", torch.optim.SGD), ("ADAMW", torch.optim.AdamW)])
def test_config_chooses_the_optimizer(name, kind):
    cfg = get_cfg()
    cfg.SOLVER.OPTIMIZER = name
    cfg.SOLVER.BASE_LR = 0.125
    cfg.SOLVER.WEIGHT_DECAY = cfg.SOLVER.WEIGHT_DECAY_BIAS = 0.5
    cfg.SOLVER.WEIGHT_DECAY_NORM = 0.0
    optimizer = build_optimizer(cfg, small_model())
    assert isinstance(optimizer, kind)
    assert {group["lr"] for group in optimizer.param_groups} == {0.125}
    assert {group["weight_decay"] for group in optimizer.param_groups} == {0.0, 0.5}


def test_gradients_are_clipped_when_asked():
    cfg = get_cfg()
    cfg.SOLVER.OPTIMIZER = "ADAMW"
    cfg.SOLVER.CLIP_GRADIENTS.ENABLED = True
    cfg.SOLVER.CLIP_GRADIENTS.CLIP_TYPE = "norm"
    cfg.SOLVER.CLIP_GRADIENTS.CLIP_VALUE = 1.0
    model = small_model()
    model[0].weight.grad = torch.full((2, 2), 100.0)
    build_optimizer(cfg, model).step()
    assert model[0].weight.grad.norm() <= 1.001


def test_another_name_is_refused():
    cfg = get_cfg()
    cfg.SOLVER.OPTIMIZER = "LION"
    with pytest.raises(UserError, match=r"SOLVER\.OPTIMIZER"):
        build_optimizer(cfg, small_model())
