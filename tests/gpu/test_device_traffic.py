"""What the models ask of the host while a device computes, counted on any machine.

See tests/support/counting_device.py. Backward passes are left out: torch's own engine runs them, and it takes no device
that is written in Python.
"""

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_mask_head
from detectron2.structures import Instances, PolygonMasks
from detectron2.utils.events import EventStorage

from tests.support.counting_device import DEVICE, CountingDevice
from tests.support.models import (
    HEADS,
    detections,
    disc,
    feature_maps,
    proposals,
    refinement_batch,
    tiny_airm_cfg,
    tiny_cfg,
    untrained,
    untrained_airm,
)

HEADS_OF_OURS = [name for name in HEADS if name != "mask_rcnn"]


@pytest.fixture
def device() -> Iterator[CountingDevice]:
    with CountingDevice() as device:
        yield device


def test_device_counts_mixes(device):
    x = torch.arange(4.0).to(DEVICE)
    assert (2 * x + torch.tensor(1.0)).tolist() == [1, 3, 5, 7] and not device.mixes, "numbers may take part"
    assert (x + torch.ones(4)).device == DEVICE and len(device.mixes) == 1
    x[torch.tensor([0, 2])] = 1.0
    torch.cat([x, torch.ones(1)])
    assert [mix.split()[0] for mix in device.mixes] == [
        "aten.add.Tensor",
        "aten.index_put_.default",
        "aten.cat.default",
    ]
    assert all(__name__ in mix for mix in device.mixes)


def test_device_counts_copies(device):
    x = torch.ones(3).to(DEVICE)
    torch.tensor([1, 2], device=DEVICE)
    x.new_tensor([1.0, 2.0])
    x.copy_(torch.zeros(3))
    assert len(device.copies) == 4 and not device.waits
    torch.zeros(3, device=DEVICE).copy_(x).to(DEVICE)
    assert len(device.copies) == 4, "within the device"
    assert x.to("cpu", non_blocking=True).tolist() == [0, 0, 0] and not device.waits


@pytest.mark.parametrize(
    "wait",
    [
        torch.Tensor.cpu,
        lambda x: x.tolist(),
        torch.nonzero,
        torch.unique,
        lambda x: x[0].item(),
        lambda x: bool(x.any()),
        lambda x: x[x > 1],
        lambda x: torch.zeros(3).copy_(x),
        lambda x: x.equal(x + 1),
    ],
)
def test_device_counts_waits(device, wait):
    x = torch.arange(3.0).to(DEVICE)
    assert (x[1:].view(2, 1).cumsum(0) * x[torch.tensor([1]).to(DEVICE)]).shape == (2, 1) and not device.waits
    wait(x)
    assert len(device.waits) == 1 and __name__ in device.waits[0]


def own_waits(device: CountingDevice) -> list[str]:
    """Those that are not of Detectron2's RoI pooling, which looks for the boxes of each map."""
    return [wait for wait in device.waits if "detectron2.modeling.poolers" not in wait]


def with_polygons(instances: Instances) -> Instances:
    corners = instances.gt_boxes.tensor.double()[:, [0, 1, 2, 1, 2, 3, 0, 3]]
    instances.gt_masks = PolygonMasks([[polygon.numpy()] for polygon in corners])
    return instances


@pytest.mark.parametrize("polygons", [False, True], ids=["bitmasks", "polygons"])
@pytest.mark.parametrize("name", HEADS_OF_OURS)
def test_mask_heads_wait_once_in_training_and_never_at_inference(device, name, polygons):
    torch.manual_seed(0)
    pooled = name == "dct_mask"
    shapes = {f"p{i}": ShapeSpec(channels=16, stride=2**i) for i in (2, 3, 4, 5)}
    head = build_mask_head(tiny_cfg(name), ShapeSpec(channels=16, height=14, width=14) if pooled else shapes)
    features = torch.randn(4, 16, 14, 14) if pooled else feature_maps(2)
    batch, found = ([make(2, seed=i) for i in range(2)] for make in (proposals, detections))
    batch = [with_polygons(x) for x in batch] if polygons else batch

    def run() -> tuple[torch.Tensor, list[str], torch.Tensor, list[str]]:
        with EventStorage():
            device.waits.clear()
            loss = head.train()(features, batch)["loss_mask"]
        training = own_waits(device)
        device.waits.clear()
        with torch.no_grad():
            masks = head.eval()(features, found)[0].pred_masks
        return loss.detach(), training, masks, own_waits(device)

    on_cpu = run()
    head, batch, found = head.to(DEVICE), [x.to(DEVICE) for x in batch], [x.to(DEVICE) for x in found]
    features = features.to(DEVICE) if pooled else {key: x.to(DEVICE) for key, x in features.items()}
    loss, training, masks, inference = run()
    assert not device.mixes
    assert len(training) <= 1, training
    assert not inference
    torch.testing.assert_close([loss.cpu(), masks.cpu()], [on_cpu[0], on_cpu[2]])


@pytest.mark.parametrize("encoder", ["mit", "plain", "resnet"])
def test_refiner_never_waits_in_training(device, encoder):
    cfg = tiny_airm_cfg(encoder)
    cfg.MODEL.MIT.DROP_PATH = 0.0
    model, batch = untrained(cfg), refinement_batch()
    expected = model(batch)
    model.to(DEVICE)
    device.copies.clear()
    losses = model(batch)
    assert not device.mixes and not device.waits
    assert len(device.copies) == 6, device.copies  # image, coarse mask and truth of both samples
    torch.testing.assert_close({name: loss.cpu() for name, loss in losses.items()}, expected)


@pytest.mark.parametrize("tile_size", [0, 64])
def test_refiner_waits_twice_for_each_ratio(device, tile_size):
    model = untrained_airm("plain", MIN_SIZE_TEST=32)
    settings = replace(model.settings, ratios=(0.5, 1.0), padding=0, tile_size=tile_size, tile_halo=16)
    image, mask = torch.rand(3, 96, 112) * 255, disc(96, 112, (50, 50), 25).float()[None]
    expected = model.refine(image, mask, settings)
    model.to(DEVICE)
    refined = model.refine(image, mask, settings)
    assert not device.mixes
    assert len(device.waits) <= 1 + 2 * 2, device.waits  # and one to tell whether the mask is empty
    torch.testing.assert_close(refined.cpu(), expected)
