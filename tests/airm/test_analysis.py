"""Multiply-adds of a refinement: counts by torch, by fvcore and by hand, and the limits of the main model."""

import math

import pytest
import torch
from detectron2.modeling import build_model
from fvcore.nn import FlopCountAnalysis
from torch.utils.flop_counter import FlopCounterMode

from airm.cost import DrawnMaskPass, draw_mask, num_parameters, pass_cost, single_pass_cost
from pixelmask.config import load_cfg
from tests.support.models import untrained_airm


@pytest.mark.parametrize(("mapping", "tile_size"), [("AIRMF", 0), ("AIRMF", 64), ("SIRMF", 64)])
def test_count_is_torchs_own_of_a_real_run(mapping, tile_size):
    options = {"TILE_HALO": 16, "PADDING": 16, "RATIOS": [0.5, 1.0], "MIN_SIZE_TEST": 0}
    model = untrained_airm(MAPPING=mapping, TILE_SIZE=tile_size, **options)
    # Else the counter asks for gradients of the parameters that SIRMF hands through
    model.requires_grad_(False)
    image = torch.randint(256, (3, 72, 100), dtype=torch.uint8)
    with FlopCounterMode(display=False) as counter:
        DrawnMaskPass.of(model, image).refine(draw_mask(72, 100))
    assert 2 * pass_cost(model, (72, 100), tile_size).total == counter.get_total_flops()


def test_parts_by_hand():
    model = untrained_airm(RATIOS=[0.5, 1.0], MIN_SIZE_TEST=0, PADDING=0)
    cost = pass_cost(model, (64, 96), 0)
    # At 0.5 and at 1: tokens of the four stages, and keys; channels; blocks
    tokens = [(8 * 12, 4 * 6, 2 * 3, 2 * 3), (16 * 24, 8 * 12, 4 * 6, 4 * 6)]
    keys = [(1 * 1, 1 * 1, 1 * 1, 2 * 3), (2 * 3, 2 * 3, 2 * 3, 4 * 6)]
    products = [
        2 * n * k * channels * blocks
        for at_ratio in zip(tokens, keys, strict=True)
        for n, k, channels, blocks in zip(*at_ratio, (8, 16, 24, 32), (1, 1, 1, 2), strict=True)
    ]
    assert cost.attention == sum(products)
    # F's 32 channels once at each of its positions; then for each of four neighbours of each pixel the rest of the MLP
    assert cost.query == sum(32 * 8 * n[0] + 4 * (8 * 8 + 8) * 64 * 96 for n in tokens)
    # Two convolutions, stride 2, their mean to the factors and biases of (8, 38), (8, 8) and (1, 8); then W = A B
    predicted = sum(20 * (o + i) + o for o, i in ((8, 38), (8, 8), (1, 8)))
    products_of_factors = 20 * (8 * 38 + 8 * 8 + 8)
    convs = [9 * 32 * 8 * n // 4 + 9 * 8 * 8 * n // 16 for n, *_ in tokens]
    assert cost.hypernetwork == sum(conv + 8 * predicted + products_of_factors for conv in convs)
    assert cost.tiles == [(1, 1), (1, 1)]
    # The model is left as it was
    assert {p.device.type for p in model.parameters()} == {"cpu"} and all(p.requires_grad for p in model.parameters())


def test_rest_of_the_encoder_is_what_fvcore_counts():
    model = untrained_airm(RATIOS=[1.0], PADDING=0)
    counter = FlopCountAnalysis(model.encoder, torch.zeros(1, 4, 64, 96))
    counter.unsupported_ops_warnings(False).uncalled_modules_warnings(False).tracer_warnings("none")
    layers = counter.by_operator()
    assert pass_cost(model, (64, 96), 0).encoder == layers["conv"] + layers["linear"]


def test_only_tiles_on_the_edge_of_the_mask_are_encoded():
    model = untrained_airm(RATIOS=[0.5, 1.0], MIN_SIZE_TEST=0, PADDING=0, TILE_HALO=0)
    mask = torch.zeros(1, 1, 256, 256)
    mask[..., :70, :60] = 1
    # Four tiles of 64 a side at ratio 1: the square's edge is in (0, 0) and (1, 0), it fills neither
    assert pass_cost(model, (256, 256), 64, mask).tiles == [(4, 4), (2, 16)]
    # Nothing is refined of an empty mask
    assert pass_cost(model, (256, 256), 64, torch.zeros(1, 1, 256, 256)).total == 0


def test_every_ratio_starts_from_the_drawn_mask():
    model, seen = untrained_airm(MIN_SIZE_TEST=0), []

    def record(images, masks, *queries):
        seen.append(masks)
        return model.step(images, masks, *queries)

    drawn = draw_mask(256, 256)
    refined = DrawnMaskPass(record, torch.zeros(1, 3, 256, 256), model.settings).refine(drawn)
    assert torch.equal(refined, drawn)
    for ratio, mask in zip((0.125, 0.25, 0.5, 1), seen, strict=True):
        border = (mask.shape[2] - round(256 * ratio)) // 2
        inner = mask[..., border : mask.shape[2] - border, border : mask.shape[3] - border]
        assert inner.mean().item() == pytest.approx(drawn.mean().item(), rel=0.01)


def test_drawn_mask_is_a_disc_of_radius_600_on_the_papers_image():
    mask = draw_mask(1706, 2560)
    assert mask.shape == (1, 1, 1706, 2560) and mask.sum().item() == pytest.approx(math.pi * 600**2, rel=1e-3)
    assert mask[0, 0, 853, [679, 681, 1878, 1881]].tolist() == [0, 1, 1, 0]
    assert draw_mask(1, 1).sum() == 1


def test_main_model_stays_within_its_limits():
    model = build_model(load_cfg("configs/airm/airm_mit_b1.yaml", ["MODEL.DEVICE", "cpu"])).eval()
    assert 13.9e6 < num_parameters(model) == sum(p.numel() for p in model.parameters()) - 17 <= 14.2e6
    whole = pass_cost(model, (1706, 2560), 0)
    assert whole.total == pytest.approx(1881e9, abs=0.5e9) and whole.attention > whole.total / 2
    tiled = pass_cost(model, (1706, 2560), 512)
    assert tiled.total == pytest.approx(296e9, abs=0.5e9) and tiled.tiles[-1] == (8, 24)


def test_resnet_is_crms():
    model = build_model(load_cfg("configs/airm/sirmf_R_50.yaml", ["MODEL.DEVICE", "cpu"])).eval()
    norms = sum(p.numel() for m in model.modules() if isinstance(m, torch.nn.BatchNorm2d) for p in m.parameters())
    assert (num_parameters(model), norms) == (9_300_449, 31_616)  # 9.27 M without norms, as Table 4 prints
    assert single_pass_cost(model, (1706, 2560)) == pytest.approx(1525e9, rel=0.01)  # and 1525 G
