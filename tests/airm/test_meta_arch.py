from dataclasses import replace

import numpy as np
import pytest
import torch
from detectron2.modeling import build_model

from airm.coarse_to_fine import Settings
from pixelmask.errors import UserError
from tests.support.equations import gradient_of, literal_logit
from tests.support.models import refinement_batch, tiny_airm_cfg, untrained

PARTS = {"loss_l1", "loss_l2", "loss_ce", "loss_gradient", "loss_affinity"}


@pytest.mark.parametrize("mapping", ["AIRMF", "SIRMF"])
@pytest.mark.parametrize("affinity", [True, False])
def test_every_loss_has_its_name_and_every_parameter_its_gradient(mapping, affinity):
    model = untrained(tiny_airm_cfg(MAPPING=mapping, AFFINITY=affinity))
    losses = model(refinement_batch())
    assert set(losses) == (PARTS if affinity else PARTS - {"loss_affinity"})
    assert all(loss.isfinite() and loss > 0 for loss in losses.values())
    sum(losses.values()).backward()
    assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()] == []


@pytest.mark.parametrize("affinity", [True, False])
def test_resnet_encoders_are_crms_and_train(affinity):
    model = untrained(tiny_airm_cfg("resnet", AFFINITY=affinity))
    backbone = model.encoder.backbone
    shapes = {name: (shape.channels, shape.stride) for name, shape in backbone.output_shape().items()}
    assert shapes == {"stem": (64, 2), "res2": (64, 4), "res4": (256, 8)}
    features = backbone(torch.zeros(1, 4, 64, 96))
    assert [tuple(x.shape) for x in features.values()] == [
        (1, channels, 64 // stride, 96 // stride) for channels, stride in shapes.values()
    ]
    assert model.encoder.out_channels == 32 and model.encoder.fusion.kernel_size == (3, 3)
    dilations = [conv.dilation[0] for block in backbone.res4 for conv in (block.conv1, block.conv2)]
    assert dilations == [1, 1, 2, 2]
    losses = model(refinement_batch())
    sum(losses.values()).backward()
    assert model.encoder.backbone.stem.conv1.weight.grad.abs().sum() > 0
    assert ("loss_affinity" in losses) == affinity


def test_losses_are_those_of_eq_2_at_each_pixel():
    cfg = tiny_airm_cfg(MAPPING="SIRMF", AFFINITY=False, NORM="")
    cfg.MODEL.MIT.DROP_PATH = 0.0
    model, batch = untrained(cfg), refinement_batch(size=32)
    losses = model(batch)
    mean, std = (torch.tensor(x).view(3, 1, 1) for x in (cfg.MODEL.PIXEL_MEAN, cfg.MODEL.PIXEL_STD))
    inputs = [torch.cat([(x["image"] - mean) / std, 2 * x["coarse_mask"] - 1]) for x in batch]
    centres, logits = [(2 * i + 1) / 32 - 1 for i in range(32)], []
    with torch.no_grad():
        features = model.encoder(torch.stack(inputs))
        weights = [(layer.weight[None], layer.bias[None]) for layer in model.mapping.layers]
        for sample in range(2):
            logits += [literal_logit(features, weights, sample, (y, x), 0.5) for y in centres for x in centres]
    p = 1 / (1 + np.exp(-np.array(logits).reshape(2, 32, 32)))
    truth = np.stack([x["mask"][0].double().numpy() for x in batch])

    gradients = [np.abs(gradient_of(a) - gradient_of(b)) for a, b in zip(p, truth, strict=True)]
    expected = {
        "loss_l1": 0.1 * np.abs(p - truth).mean(),
        "loss_l2": 0.1 * np.square(p - truth).mean(),
        "loss_ce": -0.15 * np.log(np.where(truth == 1, p, 1 - p)).mean(),
        "loss_gradient": 0.2 * np.mean(gradients),
    }
    assert {name: loss.item() for name, loss in losses.items()} == pytest.approx(expected, rel=1e-4)


def test_it_learns_to_undo_one_perturbation():
    cfg = tiny_airm_cfg()
    cfg.MODEL.MIT.DROP_PATH = 0.0
    model, batch = untrained(cfg), refinement_batch()
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
    for _ in range(60):
        optimizer.zero_grad()
        losses = model(batch)
        sum(losses.values()).backward()
        optimizer.step()
    error = losses["loss_l1"].item() / model.loss_weights["l1"]
    perturbed = (batch[0]["coarse_mask"] - batch[0]["mask"]).abs().mean().item()
    assert error < perturbed / 2


def test_inference_gives_a_soft_mask_of_each_image(model):
    samples = [*refinement_batch(1, 48), *refinement_batch(1, 80)]
    refined = [output["refined_mask"] for output in model(samples)]
    assert [tuple(mask.shape) for mask in refined] == [(1, 48, 48), (1, 80, 80)]
    assert all(mask.min() >= 0 and mask.max() <= 1 and not mask.requires_grad for mask in refined)


def test_weights_are_those_of_the_equations_and_settings_those_of_the_config(model):
    # 0.2, 0.2, 0.3, 0.4 (Eq. 7), halved, and half the affinity loss (Eq. 11)
    assert model.loss_weights == {"l1": 0.1, "l2": 0.1, "ce": 0.15, "gradient": 0.2, "affinity": 0.5}
    assert replace(model.settings, ratios=tuple(model.settings.ratios)) == Settings(
        min_size_test=224
    )  # without a config
    changed = untrained(tiny_airm_cfg(QUERY_CHUNK=7, MIN_CONFIDENCE=0.5, TILE_HALO=8)).settings
    assert (changed.query_chunk, changed.min_confidence, changed.tile_halo) == (7, 0.5, 8)
    with pytest.raises(UserError, match="MODEL.AIRM.MAPPING"):
        build_model(tiny_airm_cfg(MAPPING="LIIF"))


def test_compiled_encoder_gives_the_same(model):
    x = torch.randn(1, 4, 64, 64)
    with torch.no_grad():
        expected = model.encoder(x)
        torch.testing.assert_close(torch.compile(model.encoder, backend="aot_eager")(x), expected, rtol=1e-4, atol=1e-5)


def test_autocast_trains():
    model = untrained(tiny_airm_cfg())
    with torch.autocast("cpu", torch.bfloat16):
        losses = model(refinement_batch())
    sum(losses.values()).backward()
    assert all(loss.isfinite() for loss in losses.values())
