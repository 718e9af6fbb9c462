"""Models that no machine has the memory for."""

import resource

import pytest
import torch
from detectron2 import modeling

from pixelmask.config import changed
from pixelmask.engine.build import build_model
from pixelmask.errors import UserError
from tests.support.models import tiny_airm_cfg, tiny_cfg


@pytest.mark.parametrize(
    ("cfg", "key", "value", "said"),
    [
        (tiny_cfg, "MODEL.FPN.OUT_CHANNELS", 10**9, "GiB of memory here, as far as a layer of 1000000000 x .*channels"),
        (tiny_cfg, "MODEL.ROI_HEADS.NUM_CLASSES", 10**15, "a layer of 1000000000000001 x"),
        (tiny_airm_cfg, "MODEL.AIRM.STAGE_CHANNELS", 10**9, "GiB of memory here"),
        (tiny_cfg, "MODEL.ROI_HEADS.NUM_CLASSES", -5, "cannot be built: .* negative dimension -4"),
    ],
)
def test_layers_of_terabytes(cfg, key, value, said):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(UserError, match=said):
        build_model(changed(cfg(), key, value))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2**20  # KiB: nothing of it is taken


def test_a_model_that_fits_is_detectron2s():
    cfg = tiny_airm_cfg()
    torch.manual_seed(0)
    model = build_model(cfg)
    torch.manual_seed(0)
    expected = modeling.build_model(cfg).state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in model.state_dict().items())
