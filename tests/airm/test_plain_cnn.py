"""The plain CNN encoder of Fig. 2: its receptive field, its place in AIRM, and training with a fixed encoder."""

from pathlib import Path

import pytest
import torch
from detectron2.modeling import build_model

from airm.backbone.plain_cnn import PlainCNN, receptive_field
from airm.trainer import load_encoder
from pixelmask.checkpoint.checkpointer import SafeCheckpointer
from pixelmask.config import load_cfg
from pixelmask.errors import UserError
from tests.support.models import refinement_batch, tiny_airm_cfg, untrained_airm


@pytest.mark.parametrize(
    ("kernel_size", "num_layers", "stride", "side"),
    [(3, 1, 1, 3), (3, 2, 1, 5), (3, 2, 2, 7), (3, 3, 4, 15), (5, 3, 4, 29), (1, 4, 1, 1)],
)
def test_receptive_field_is_what_the_output_depends_on(kernel_size, num_layers, stride, side):
    assert receptive_field(kernel_size, num_layers, stride) == side
    network = PlainCNN(
        in_channels=1, channels=2, kernel_size=kernel_size, num_layers=num_layers, stride=stride, norm=""
    )
    for parameter in network.parameters():
        torch.nn.init.ones_(parameter)
    x = torch.zeros(1, 1, 65, 65, requires_grad=True)
    output = network(x)["plain"]
    output[0, 0, output.shape[2] // 2, output.shape[3] // 2].backward()
    rows, cols = x.grad[0, 0].nonzero(as_tuple=True)
    assert (rows.max() - rows.min() + 1, cols.max() - cols.min() + 1) == (side, side)


def test_output_has_the_declared_shape_at_odd_sizes():
    network = PlainCNN(in_channels=4, channels=6, kernel_size=5, num_layers=4, stride=4)
    (name, shape), *others = network.output_shape().items()
    assert (name, shape.channels, shape.stride, others) == ("plain", 6, 4, [])
    assert network(torch.zeros(1, 4, 33, 50))["plain"].shape == (1, 6, 9, 13)


@pytest.mark.parametrize("kernel_size", [3, 5, 7, 9, 11])
@pytest.mark.parametrize("mapping", ["sirmf", "airmf"])
def test_configs_differ_in_kernel_size_and_mapping_alone(kernel_size, mapping):
    cfg = load_cfg(f"configs/airm/figure_2/kernel_{kernel_size}_{mapping}.yaml", ["MODEL.DEVICE", "meta"])
    assert mapping.upper() == cfg.MODEL.AIRM.MAPPING
    with torch.device("meta"):
        model = build_model(cfg)
    weights = sum(p.numel() for name, p in model.encoder.backbone.named_parameters() if p.dim() == 4)
    assert weights == (4 * 64 + 5 * 64 * 64) * kernel_size**2
    assert (model.encoder.out_channels, model.encoder.stride, model.encoder.affinity) == (256, 4, None)


@pytest.mark.parametrize(
    ("change", "message"),
    [({"kernel_size": 4}, "KERNEL_SIZE is 4"), ({"stride": 6}, "STRIDE is 6"), ({"stride": 16}, "at most 8")],
)
def test_bad_values_are_named(change, message):
    with pytest.raises(UserError, match=message):
        PlainCNN(**{"in_channels": 4, "channels": 4, "kernel_size": 3, "num_layers": 3, "stride": 4, **change})


@pytest.mark.parametrize("mapping", ["SIRMF", "AIRMF"])
def test_airm_trains_and_refines_with_it(mapping):
    model = untrained_airm("plain", MAPPING=mapping)
    losses = model.train()(refinement_batch(1, 32))
    assert set(losses) == {"loss_l1", "loss_l2", "loss_ce", "loss_gradient"}
    sum(losses.values()).backward()
    assert all(p.grad is not None for p in model.parameters())
    (output,) = model.eval()(refinement_batch(1, 32))
    assert output["refined_mask"].shape == (1, 32, 32)


def test_a_frozen_encoder_stays_as_it_is_and_the_mapping_learns():
    model = untrained_airm("plain", FROZEN_ENCODER="some.pth").train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    sum(model(refinement_batch(1, 32)).values()).backward()
    optimizer.step()
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert not any(name.startswith("encoder.") for name in changed)  # norms' statistics are among these
    assert {name for name in before if name.startswith("mapping.linear")} <= changed
    assert model.mapping.training and not model.encoder.training


def test_the_encoder_alone_is_loaded(tmp_path: Path):
    trained = untrained_airm("plain", MAPPING="SIRMF")
    fresh = build_model(tiny_airm_cfg("plain", MAPPING="SIRMF", FROZEN_ENCODER="x"))  # of other random numbers
    SafeCheckpointer(trained, str(tmp_path)).save("model")
    mapping = [p.clone() for p in fresh.mapping.parameters()]
    load_encoder(fresh, str(tmp_path / "model.pth"))
    for name, value in trained.encoder.state_dict().items():
        torch.testing.assert_close(fresh.encoder.state_dict()[name], value, rtol=0, atol=0)
    assert all(torch.equal(p, q) for p, q in zip(fresh.mapping.parameters(), mapping, strict=True))


def test_an_encoder_that_does_not_fit_is_refused(tmp_path: Path):
    cfg = tiny_airm_cfg("plain")
    SafeCheckpointer(build_model(cfg), str(tmp_path)).save("model")
    cfg.MODEL.PLAIN_CNN.KERNEL_SIZE = 5
    other = build_model(cfg)
    with pytest.raises(UserError, match="MODEL.AIRM.FROZEN_ENCODER: .*would stay random"):
        load_encoder(other, str(tmp_path / "model.pth"))
    with pytest.raises(UserError, match="MODEL.AIRM.FROZEN_ENCODER: no checkpoint nowhere.pth"):
        load_encoder(other, "nowhere.pth")
