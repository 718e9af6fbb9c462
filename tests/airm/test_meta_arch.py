import pytest
import torch
from detectron2.modeling import build_model

from airm.coarse_to_fine import Settings
from airm.losses import mapping_losses
from airm.meta_arch import AIRM
from airm.query import Axis, pixel_centres, query_grid
from pixelmask.config import get_cfg, load_cfg
from pixelmask.errors import UserError
from tests.support.models import disc, tiny_airm_cfg

PARTS = {"loss_l1", "loss_l2", "loss_ce", "loss_gradient", "loss_affinity"}


def make_batch(batch: int = 2, size: int = 64) -> list[dict]:
    generator = torch.Generator().manual_seed(0)
    samples = []
    for i in range(batch):
        mask = disc(size, size, (size / 2 + i, size / 2), size / 4).float()[None]
        image = 100 * mask + 100 * torch.rand(3, size, size, generator=generator)
        samples.append({"image": image.to(torch.uint8), "coarse_mask": mask.roll(5, 2), "mask": mask})
    return samples


def resnet(cfg):
    cfg.merge_from_file("configs/airm/Base-AIRM-R.yaml")
    cfg.MODEL.WEIGHTS = ""
    cfg.MODEL.AIRM.STAGE_CHANNELS = 8
    return cfg


@pytest.mark.parametrize("mapping", ["AIRMF", "SIRMF"])
@pytest.mark.parametrize("affinity", [True, False])
def test_every_loss_has_its_name_and_every_parameter_its_gradient(mapping, affinity):
    torch.manual_seed(0)
    model = build_model(tiny_airm_cfg(MAPPING=mapping, AFFINITY=affinity))
    losses = model(make_batch())
    assert set(losses) == (PARTS if affinity else PARTS - {"loss_affinity"})
    assert all(loss.isfinite() and loss > 0 for loss in losses.values())
    sum(losses.values()).backward()
    assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()] == []


@pytest.mark.parametrize("affinity", [True, False])
def test_resnet_encoders_train(affinity):
    torch.manual_seed(0)
    cfg = resnet(tiny_airm_cfg())
    cfg.MODEL.AIRM.AFFINITY = affinity
    model = build_model(cfg)
    assert list(model.encoder.backbone.output_shape()) == ["stem", "res2", "res3", "res4"]
    losses = model(make_batch())
    sum(losses.values()).backward()
    assert model.encoder.backbone.stem.conv1.weight.grad.abs().sum() > 0
    assert ("loss_affinity" in losses) == affinity


def test_weights_are_those_of_the_equations():
    torch.manual_seed(0)
    model = build_model(tiny_airm_cfg())
    # 0.2, 0.2, 0.3, 0.4 (Eq. 7), halved, and half the affinity loss (Eq. 11)
    assert model.loss_weights == {"l1": 0.1, "l2": 0.1, "ce": 0.15, "gradient": 0.2, "affinity": 0.5}


def test_losses_are_of_the_queries_at_each_pixel():
    torch.manual_seed(0)
    cfg = tiny_airm_cfg(MAPPING="SIRMF", AFFINITY=False, NORM="")
    cfg.MODEL.MIT.DROP_PATH = 0.0
    model, batch = build_model(cfg), make_batch()
    losses = model(batch)
    images = torch.stack([(x["image"] - model.pixel_mean) / model.pixel_std for x in batch])
    coarse, masks = (torch.stack([x[key] for x in batch]) for key in ("coarse_mask", "mask"))
    features = model.encoder(torch.cat([images, 2 * coarse - 1], dim=1))
    axis = Axis(pixel_centres(64, features), 0.5)
    expected = mapping_losses(query_grid(features, model.mapping(features), axis, axis, 64), masks)
    for name, value in expected.items():
        torch.testing.assert_close(losses[f"loss_{name}"], model.loss_weights[name] * value)


def test_it_learns_to_undo_one_perturbation():
    torch.manual_seed(0)
    cfg = tiny_airm_cfg()
    cfg.MODEL.MIT.DROP_PATH = 0.0
    model, batch = build_model(cfg), make_batch()
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
    for _ in range(60):
        optimizer.zero_grad()
        losses = model(batch)
        sum(losses.values()).backward()
        optimizer.step()
    error = losses["loss_l1"].item() / model.loss_weights["l1"]
    perturbed = (batch[0]["coarse_mask"] - batch[0]["mask"]).abs().mean().item()
    assert error < perturbed / 2


def test_inference_gives_a_soft_mask_of_each_image():
    model = build_model(tiny_airm_cfg()).eval()
    samples = [*make_batch(1, 48), *make_batch(1, 80)]
    refined = [output["refined_mask"] for output in model(samples)]
    assert [tuple(mask.shape) for mask in refined] == [(1, 48, 48), (1, 80, 80)]
    assert all(mask.min() >= 0 and mask.max() <= 1 and not mask.requires_grad for mask in refined)


def test_main_model_has_the_papers_size():
    model = build_model(load_cfg("configs/airm/airm_mit_b1.yaml"))
    assert isinstance(model, AIRM)
    assert sum(p.numel() for p in model.parameters()) <= 14.2e6


def test_inference_has_the_same_defaults_in_the_config_and_without():
    keys = get_cfg("AIRM").MODEL.AIRM
    assert Settings() == Settings(**{name: keys[name.upper()] for name in Settings._fields})._replace(
        ratios=tuple(keys.RATIOS)
    )


def test_unknown_mapping():
    with pytest.raises(UserError, match="MODEL.AIRM.MAPPING"):
        build_model(tiny_airm_cfg(MAPPING="LIIF"))


def test_compiled_encoder_gives_the_same():
    torch.manual_seed(0)
    model = build_model(tiny_airm_cfg()).eval()
    x = torch.randn(1, 4, 64, 64)
    with torch.no_grad():
        expected = model.encoder(x)
        torch.testing.assert_close(torch.compile(model.encoder, backend="aot_eager")(x), expected, rtol=1e-4, atol=1e-5)


def test_autocast_trains():
    torch.manual_seed(0)
    model = build_model(tiny_airm_cfg())
    with torch.autocast("cpu", torch.bfloat16):
        losses = model(make_batch())
    sum(losses.values()).backward()
    assert all(loss.isfinite() for loss in losses.values())
