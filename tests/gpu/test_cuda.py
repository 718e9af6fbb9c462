"""What only a GPU shows: `make test-gpu`."""

import subprocess
import warnings
from dataclasses import replace
from typing import Any

import pytest
import torch
from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage
from torch import nn

from measuring import AIRM_CONFIGS, PATCHDCT_CONFIGS, Case, Settings, measure
from tests.support.models import (
    HEADS,
    detections,
    disc,
    feature_maps,
    proposals,
    refinement_batch,
    tiny_airm_cfg,
    tiny_cfg,
    training_input,
    untrained,
    untrained_airm,
)
from tests.support.training import AIRM, PATCHDCT, TinyModel, logged_by, metrics_of

pytestmark = pytest.mark.gpu

DEVICE = "cuda"
OUR_HEADS = [name for name in HEADS if name != "mask_rcnn"]
PRECISIONS = [torch.float16, torch.bfloat16]


@pytest.fixture(autouse=True)
def exact_products(monkeypatch: pytest.MonkeyPatch) -> None:
    """Convolutions in float32 as the CPU has it, without TF32's 10 bits."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


def detector(head: str) -> nn.Module:
    """A whole model on the CPU, always the same."""
    return untrained(tiny_cfg(head))


def run_masks(model: nn.Module, device: str, dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, torch.Tensor]:
    """Take a model to a device; return there its mask loss, whose gradients it then has, and the masks of boxes."""
    heads = model.to(device).roi_heads
    features = {key: x.to(device) for key, x in feature_maps(2).items()}
    batch, found = ([make(3, seed=i).to(device) for i in range(2)] for make in (proposals, detections))
    with torch.autocast(device, dtype, enabled=dtype != torch.float32), EventStorage():
        (loss,) = heads.train()._forward_mask(features, batch).values()
    loss.backward()
    with torch.no_grad():
        found = heads.eval()._forward_mask(features, found)
    return loss.detach().cpu(), torch.cat([x.pred_masks for x in found]).cpu()


def gradients(model: nn.Module) -> dict[str, torch.Tensor]:
    found = {name: parameter.grad.cpu() for name, parameter in model.named_parameters() if parameter.grad is not None}
    model.zero_grad()
    return found


def assert_close_gradients(actual: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert actual.keys() == expected.keys() != set()
    for name, gradient in expected.items():
        scale = max(gradient.abs().max().item(), 1e-6)
        torch.testing.assert_close(actual[name] / scale, gradient / scale, atol=1e-2, rtol=0, msg=name)


@pytest.mark.parametrize("head", OUR_HEADS)
def test_mask_heads_compute_what_they_do_on_the_cpu(head):
    model = detector(head)
    loss, masks = run_masks(model, "cpu")
    expected = gradients(model)
    cuda_loss, cuda_masks = run_masks(model, DEVICE)
    torch.testing.assert_close(cuda_loss, loss, rtol=1e-4, atol=0)
    assert_close_gradients(gradients(model), expected)
    # A patch whose classes are as good as equal may change sides
    assert ((cuda_masks - masks).abs() > 1e-2).float().mean() < 1e-3


@pytest.mark.parametrize("encoder", ["mit", "plain", "resnet"])
def test_refiner_computes_what_it_does_on_the_cpu(encoder):
    cfg = tiny_airm_cfg(encoder, MIN_SIZE_TEST=32)
    cfg.MODEL.MIT.DROP_PATH = 0.0
    model = untrained(cfg)
    image, mask = 255 * torch.rand(3, 160, 192), disc(160, 192, (90, 80), 50).float()[None]

    def run(device: str) -> tuple[Any, ...]:
        state = {key: value.clone() for key, value in model.state_dict().items()}
        losses = model.to(device).train()(refinement_batch())
        sum(losses.values()).backward()
        model.load_state_dict(state)  # training changed the norms' statistics
        tiles = replace(model.settings, tile_size=64, tile_halo=16)
        refined = [model.eval().refine(image, mask, settings).cpu() for settings in (model.settings, tiles)]
        return {name: loss.detach().cpu() for name, loss in losses.items()}, refined, gradients(model)

    losses, refined, expected = run("cpu")
    cuda_losses, cuda_refined, cuda_gradients = run(DEVICE)
    torch.testing.assert_close(cuda_losses, losses, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(cuda_refined, refined, rtol=0, atol=1e-3)
    assert_close_gradients(cuda_gradients, expected)


@pytest.mark.parametrize("head", HEADS)
def test_whole_models_train_and_infer(head):
    cfg = tiny_cfg(head)
    cfg.MODEL.DEVICE = DEVICE
    cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST = 0.0
    model = build_model(cfg)
    with EventStorage():
        losses = model([training_input(2), training_input(0, seed=1)])
    sum(losses.values()).backward()
    assert all(torch.isfinite(gradient).all() for gradient in gradients(model).values())
    with torch.no_grad():
        (output,) = model.eval()([training_input(1)])
    masks = output["instances"].pred_masks
    assert len(masks) > 0 and masks.shape[1:] == (96, 96) and masks.is_cuda


@pytest.mark.parametrize("dtype", PRECISIONS)
def test_losses_of_reduced_precision_are_near_those_of_float32(dtype):
    for head in OUR_HEADS:
        exact, _ = run_masks(detector(head), DEVICE)
        reduced, _ = run_masks(detector(head), DEVICE, dtype)
        torch.testing.assert_close(reduced, exact, rtol=0.05, atol=0)
    cfg = tiny_airm_cfg()
    cfg.MODEL.MIT.DROP_PATH = 0.0
    model = untrained(cfg).to(DEVICE)
    expected = model(refinement_batch())
    with torch.autocast(DEVICE, dtype):
        losses = model(refinement_batch())
    torch.testing.assert_close(losses, expected, rtol=0.05, atol=0.01, check_dtype=False)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("model", [PATCHDCT, AIRM], ids=lambda model: model.name)
def test_training_with_amp(model: TinyModel, dtype, tmp_path, data_root):
    amp = ("SOLVER.AMP.ENABLED", True, "SOLVER.AMP.DTYPE", dtype)
    model.run("OUTPUT_DIR", tmp_path, "MODEL.DEVICE", DEVICE, "DATALOADER.NUM_WORKERS", 0, *amp)
    assert 0 < logged_by(tmp_path)[-1]["total_loss"] < 100
    assert metrics_of(tmp_path)


@pytest.mark.parametrize("model", [PATCHDCT, AIRM], ids=lambda model: model.name)
def test_training_of_a_process_with_nccl(model: TinyModel, tmp_path, data_root):
    opts = ("OUTPUT_DIR", tmp_path, "MODEL.DEVICE", DEVICE, "DATALOADER.NUM_WORKERS", 0)
    command = model.command(*opts, launcher=["--standalone", "--nproc_per_node=1"])
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    assert (tmp_path / "model_final.pth").is_file() and metrics_of(tmp_path)


def test_compiled_head_and_encoder_compute_the_same():
    model = detector("patchdct")
    loss, masks = run_masks(model, DEVICE)
    model.roi_heads.mask_head.predict = torch.compile(model.roi_heads.mask_head.predict)
    compiled_loss, compiled_masks = run_masks(model, DEVICE)
    torch.testing.assert_close(compiled_loss, loss, rtol=1e-3, atol=0)
    assert ((compiled_masks - masks).abs() > 1e-2).float().mean() < 1e-3

    refiner = untrained_airm().to(DEVICE)
    image, mask = 255 * torch.rand(3, 96, 96), disc(96, 96, (48, 48), 30).float()[None]
    expected = refiner.refine(image, mask)
    refiner.encoder.compile()
    torch.testing.assert_close(refiner.refine(image, mask), expected, rtol=0, atol=1e-3)


def test_training_of_the_mask_head_does_not_wait_for_the_gpu():
    heads = detector("patchdct").to(DEVICE).roi_heads.train()
    features = {key: x.to(DEVICE) for key, x in feature_maps(2).items()}
    batch = [proposals(3, seed=i).to(DEVICE) for i in range(2)]
    with EventStorage():
        heads._forward_mask(features, batch)  # the first time libraries set themselves up
        torch.cuda.set_sync_debug_mode("warn")
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            heads._forward_mask(features, batch)
        torch.cuda.set_sync_debug_mode("default")
    waits = [f"{w.filename}:{w.lineno}" for w in caught if "synchroniz" in str(w.message)]
    assert len([wait for wait in waits if "detectron2" not in wait]) <= 1, waits


@pytest.mark.parametrize(
    ("case", "size", "limit_mb"),
    [
        (Case(PATCHDCT_CONFIGS[-1], "head", 100), (800, 1333), 2500),
        (Case(AIRM_CONFIGS[-1], "refine", 1, tile_size=512), (4000, 6000), 3000),
    ],
    ids=["100 instances", "6000 x 4000 in tiles"],
)
def test_peak_of_memory(case, size, limit_mb):
    row = measure(case, Settings(device=DEVICE, size=size, warmup=0, repeats=1))
    assert row["memory_before_mb"] < row["peak_memory_mb"] < limit_mb
