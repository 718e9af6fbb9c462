"""Figures of models whose weights are drawn from their parameters' names, noted when these names were published.

A parameter that is renamed, reshaped or used otherwise gives other figures: a checkpoint would no longer evaluate to
the digits that it did.
"""

import zlib

import numpy as np
import pytest
import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_model
from detectron2.modeling.roi_heads import build_mask_head
from detectron2.utils.events import EventStorage
from torch import nn

from tests.support.models import HEADS, detections, disc, feature_maps, proposals, tiny_airm_cfg, tiny_cfg

# Head: loss, mean of the soft masks, their standard deviation, number of parameters
MASK_HEADS = {
    "dct_mask": (3.981025, 0.007681013, 0.09837739, 57884),
    "patchdct": (4.335598, 0.2856696, 0.4518402, 67783),
    "two_stage_dct": (3.28877, 0.003222069, 0.06020587, 122888),
    "binary_grid": (2.466007, 0.4629215, 0.07830343, 63775),
}
# Mapping: sum of the losses, mean and standard deviation of the refined mask, whole and in tiles, number of parameters
REFINERS = {
    "AIRMF": (0.8930435, 0.330293, 0.01772683, 0.3163245, 0.00856467, 81966),
    "SIRMF": (0.9125595, 0.555427, 0.00340766, 0.5575498, 0.001825635, 66498),
}


def draw_weights(model: nn.Module) -> int:
    """Fill a model's state with numbers that depend on the names alone; return how many parameters it has."""
    with torch.no_grad():
        for name, value in model.state_dict().items():
            drawn = np.random.default_rng(zlib.crc32(name.encode())).standard_normal(tuple(value.shape))
            scale = value[0].numel() ** -0.5 if value.dim() > 1 else 0.3
            scale *= 0.2 if name == "mapping.linear.weight" else 1  # else the predicted weights give but 0 and 1
            drawn = np.abs(drawn) + 0.5 if name.endswith("running_var") else scale * drawn
            value.copy_(torch.from_numpy(drawn.astype(np.float32)) if value.is_floating_point() else value)
    return sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("name", MASK_HEADS)
def test_mask_heads_give_the_figures_noted(name):
    cfg = tiny_cfg(name)
    shapes = {f"p{i}": ShapeSpec(channels=16, stride=2**i) for i in (2, 3, 4, 5)}
    pooled = HEADS[name].get("POOLER_TYPE") != ""
    head = build_mask_head(cfg, ShapeSpec(channels=16, height=14, width=14) if pooled else shapes)
    parameters = draw_weights(head)
    maps = feature_maps(1)
    features = torch.randn(4, 16, 14, 14, generator=torch.Generator().manual_seed(0)) if pooled else maps
    with EventStorage(), torch.no_grad():
        loss = head.train()(features, [proposals(4)])["loss_mask"].item()
        masks = head.eval()(features, [detections(4)])[0].pred_masks
    assert (loss, masks.mean().item(), masks.std().item()) == pytest.approx(MASK_HEADS[name][:3], rel=1e-4)
    assert parameters == MASK_HEADS[name][3]


@pytest.mark.parametrize("mapping", REFINERS)
def test_refiners_give_the_figures_noted(mapping):
    cfg = tiny_airm_cfg(MAPPING=mapping)
    cfg.MODEL.MIT.DROP_PATH = 0.0
    cfg.MODEL.AIRM.MIN_SIZE_TEST = 32
    expected, figures = REFINERS[mapping], []
    for tile_size in (0, 64):
        cfg.MODEL.AIRM.TILE_SIZE = tile_size
        model = build_model(cfg)
        parameters = draw_weights(model)
        mask = disc(100, 140, (60, 50), 30).float()[None]
        image = (mask * torch.tensor([200.0, 100.0, 50.0])[:, None, None] + 30).to(torch.uint8)
        sample = {"image": image[:, :64, :64], "coarse_mask": mask[:, :64, :64].roll(3, 2), "mask": mask[:, :64, :64]}
        with torch.no_grad():
            if not figures:
                state = {name: value.clone() for name, value in model.state_dict().items()}
                figures.append(sum(model.train()([sample, sample]).values()).item())
                model.load_state_dict(state)  # training changed the norms' statistics
            refined = model.eval()([{"image": image, "coarse_mask": mask.roll(4, 1)}])[0]["refined_mask"]
        figures += [refined.mean().item(), refined.std().item()]
    assert figures == pytest.approx(expected[:-1], rel=1e-4)
    assert parameters == expected[-1]
