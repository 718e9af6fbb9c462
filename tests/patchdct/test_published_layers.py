"""Layers as the authors of PatchDCT have them where their YAML files differ from the main model's."""

import pytest
import torch
from detectron2.layers import ROIAlign, ShapeSpec
from detectron2.modeling.roi_heads import build_mask_head
from detectron2.structures import BitMasks, PolygonMasks
from detectron2.utils.events import EventStorage

from patchdct import mask_head
from patchdct.mask_branch import Downsample
from patchdct.targets import rasterize_masks, send_boxes
from tests.support.models import detections, feature_maps, proposals, tiny_cfg

SHAPES = {f"p{i}": ShapeSpec(channels=16, stride=2**i) for i in (2, 3, 4, 5)}


@pytest.mark.parametrize(
    ("fine", "grid", "kernel"),
    [(42, 14, 3), (42, 7, 6), (56, 14, 4), (28, 14, 2)],
    ids=["main", "patches of 16", "fine 56", "fine 28"],
)
def test_windows_of_the_first_downsampling_lie_side_by_side(fine, grid, kernel):
    downsample = Downsample(4, 5, fine, grid)
    assert downsample[0].weight.shape == (5, 4, kernel, kernel)
    x = torch.randn(1, 4, fine, fine, requires_grad=True)
    y = downsample[0](x)
    assert y.shape == (1, 5, grid, grid)
    # Every element of the feature is read, each by one cell
    sums = torch.nn.functional.conv2d(x, torch.ones_like(downsample[0].weight), stride=kernel)
    (gradient,) = torch.autograd.grad(sums.sum(), x)
    assert (gradient == 5).all()
    cell = torch.einsum("oiyx,iyx->o", downsample[0].weight, x[0, :, :kernel, :kernel]) + downsample[0].bias
    torch.testing.assert_close(y[0, :, 0, 0], cell.relu())


def test_patches_of_4_on_42_have_no_published_layer_and_are_resized():
    downsample = Downsample(4, 5, 42, 28)
    assert downsample[0].weight.shape == (5, 4, 3, 3) and downsample(torch.randn(2, 4, 42, 42)).shape == (2, 5, 28, 28)


def test_norm_reaches_fusion_and_downsample():
    head = build_mask_head(
        tiny_cfg(NORM="GN", CONV_DIM=32, HIDDEN_FEATURES=32),
        {name: ShapeSpec(channels=32, stride=shape.stride) for name, shape in SHAPES.items()},
    )
    with_norm = {name.rpartition(".norm")[0] for name in head.state_dict() if ".norm." in name}
    assert with_norm == {"mask_fcn1", "fusion.0", "fusion.1", "downsample.0", "downsample.1"}
    assert not {f"{name}.bias" for name in with_norm} & set(head.state_dict())


def test_boxes_are_exact_in_half_precision():
    """Detectron2's RoIAlign rounds boxes to the type of the maps: at 800 pixels, to multiples of 4 in bfloat16."""
    head = build_mask_head(tiny_cfg(), SHAPES).eval().bfloat16()
    maps = {name: x.bfloat16() for name, x in feature_maps(1, size=1024).items()}
    instances = detections(1, size=1024)
    instances.pred_boxes.tensor[:] = torch.tensor([[801.3, 700.7, 830.9, 731.1]])
    pooled = []
    head.fine_pooler.register_forward_hook(lambda pooler, inputs, output: pooled.append(output))
    assert head(maps, [instances])[0].pred_masks.shape == (1, 1, 112, 112)
    rois = torch.cat([torch.zeros(1, 1), instances.pred_boxes.tensor], 1)
    torch.testing.assert_close(pooled[0], ROIAlign((42, 42), 1 / 4, 0, aligned=True)(maps["p2"].float(), rois))


@pytest.mark.parametrize("polygons", [False, True])
def test_heads_train_compiled(polygons):
    """Rasterising polygons is left out of what torch.compile takes."""
    torch.manual_seed(0)
    head = build_mask_head(tiny_cfg(), SHAPES).train()
    instances = proposals(2)
    if polygons:
        corners = instances.gt_boxes.tensor[:, [0, 1, 2, 1, 2, 3, 0, 3]].double()
        instances.gt_masks = PolygonMasks([[corner.numpy()] for corner in corners])
    assert isinstance(instances.gt_masks, PolygonMasks if polygons else BitMasks)
    maps = feature_maps(1)
    with EventStorage():
        expected = head(maps, [instances])["loss_mask"]
        loss = torch.compile(head, backend="eager")(maps, [instances])["loss_mask"]
    torch.testing.assert_close(loss, expected)
    assert rasterize_masks([instances], 28, torch.device("cpu")).any()


class DistantMasks(BitMasks):
    """Masks on another device than the boxes."""

    device = torch.device("meta")


@pytest.mark.parametrize("head", ["patchdct", "dct_mask"])
def test_boxes_are_sent_before_the_head_is_computed_and_waited_for_after_it(head, monkeypatch):
    done = []

    def send(instances):
        done.append("sent")
        arrive = send_boxes(instances)
        return lambda: done.append("arrived") or arrive()

    shapes = ShapeSpec(channels=16, height=14, width=14) if head == "dct_mask" else SHAPES
    built = build_mask_head(tiny_cfg(head), shapes).train()
    predict = built.predict
    monkeypatch.setattr(mask_head, "send_boxes", send)
    monkeypatch.setattr(built, "predict", lambda *args: done.append("predicted") or predict(*args))
    images = [proposals(2), proposals(0), proposals(1, seed=1)]
    with EventStorage():
        built(torch.ones(3, 16, 14, 14) if head == "dct_mask" else feature_maps(3), images)
    assert done == ["sent", "predicted", "arrived"]


def test_boxes_go_to_the_masks():
    images = [proposals(2), proposals(0), proposals(1)]
    assert [len(boxes) for boxes in send_boxes(images)()] == [2, 1]
    for image in images:
        image.gt_masks = DistantMasks(image.gt_masks.tensor)
    assert [(len(boxes), boxes.device.type) for boxes in send_boxes(images)()] == [(2, "meta"), (1, "meta")]
    assert send_boxes([proposals(0)])() == []
