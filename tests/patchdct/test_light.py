"""The light PatchDCT: what the projection of the fine feature maps changes, and what it leaves."""

import pytest
import torch
from detectron2.modeling import build_model

from patchdct.mask_network import MaskNetwork, mask_branch_cost
from pixelmask.checkpoint import load_trained
from pixelmask.config import flat, load_cfg
from pixelmask.errors import UserError
from tests.patchdct.test_mask_head import assert_finite_gradients, make_head, run_training
from tests.support.checkpoints import save_model
from tests.support.models import detections, feature_maps, tiny_cfg

SMALL_BACKBONE = ["MODEL.DEVICE", "cpu", "MODEL.RESNETS.DEPTH", "18", "MODEL.RESNETS.RES2_OUT_CHANNELS", "64"]


def masks_of(head, seed: int = 0) -> torch.Tensor:
    with torch.no_grad():
        return head.eval()(feature_maps(1, seed=seed), [detections(3, seed=seed)])[0].pred_masks


def test_configs_differ_from_the_full_ones_in_three_keys():
    for light, full in (
        ("patchdct_light_R_50_FPN_1x_coco", "patchdct_R_50_FPN_1x_coco"),
        ("shapes/patchdct_light_shapes", "shapes/patchdct_shapes"),
    ):
        a, b = (flat(load_cfg(f"configs/patchdct/{name}.yaml")) for name in (light, full))
        changed = {key.rpartition(".")[2] for key in a if a[key] != b[key]}
        assert changed == {"FINE_PROJECTION", "NUM_FUSION", "HIDDEN_FEATURES", "OUTPUT_DIR"}


def test_cost_of_the_coco_model():
    cost = mask_branch_cost(
        build_model(load_cfg("configs/patchdct/patchdct_light_R_50_FPN_1x_coco.yaml", SMALL_BACKBONE))
    )
    coarse = 4 * 256 * 256 * 9 * 14**2 + 256 * 14**2 * 384 + 384 * 384 + 384 * 300
    fuse = 256 * 64 * 42**2 + 64 * 9 * 42**2
    patches = (64 + 384) * 384 * 9 * 14**2 + 384 * 80 * (6 + 3) * 14**2
    assert cost.every_class == coarse + fuse + patches
    assert 0.8e9 < cost.spent < cost.every_class < 1.0e9


def test_maps_projected_by_the_identity_give_the_masks_of_the_full_head():
    full, light = make_head(), make_head(FINE_PROJECTION=16)
    state = {
        **full.state_dict(),
        "projection.weight": torch.eye(16)[..., None, None],
        "projection.bias": torch.zeros(16),
    }
    light.load_state_dict(state)
    torch.testing.assert_close(masks_of(light), masks_of(full))


def test_without_convolutions_the_fusion_is_the_sum():
    head = make_head(NUM_FUSION=0)
    masks, fine = torch.rand(2, 42, 42), torch.randn(2, 16, 42, 42)
    torch.testing.assert_close(head.fuse(masks, fine), head.reshape(masks[:, None]) + fine)
    assert not any(name.startswith("fusion") for name in head.state_dict())


def test_what_is_pooled_has_the_projected_channels():
    head, pooled = make_head(FINE_PROJECTION=4), []
    head.fine_pooler.register_forward_hook(lambda pooler, inputs, output: pooled.append(output))
    assert masks_of(head).shape == (3, 1, 112, 112)
    assert pooled[0].shape == (3, 4, 42, 42) and head.fusion[0].weight.shape == (4, 4, 3, 3)


def test_the_network_by_itself_projects_what_was_pooled():
    """Boxes that leave the map are left to no one: Detectron2 clips them to the image."""
    model = build_model(tiny_cfg(FINE_PROJECTION=4)).eval()
    head, features, instances = model.roi_heads.mask_head, feature_maps(1), detections(3)
    instances.pred_boxes.tensor[0] = torch.tensor([0.0, 0.0, 96.0, 96.0])
    torch.nn.init.normal_(head.projection.bias)
    with torch.no_grad():
        coarse, fine = (
            pooler([features[name] for name in names], [instances.pred_boxes])
            for pooler, names in ((head.coarse_pooler, head.in_features), (head.fine_pooler, head.fine_features))
        )
        expected = head(features, [instances])[0].pred_masks[:, 0]
        masks = MaskNetwork(model)(instances.pred_classes, coarse, fine)
    torch.testing.assert_close(masks, expected, atol=1e-4, rtol=0)


def test_training_reaches_the_projection():
    head = make_head(FINE_PROJECTION=4, NUM_FUSION=0)
    losses, _ = run_training(head, [2, 1])
    losses["loss_mask"].backward()
    assert_finite_gradients(head)
    assert head.projection.weight.grad.abs().sum() > 0


def test_autocast_stays_close():
    head = make_head(FINE_PROJECTION=4)
    expected = masks_of(head)
    with torch.autocast("cpu", torch.bfloat16):
        masks = masks_of(head)
    assert masks.dtype == torch.float32 and ((masks > 0.5) == (expected > 0.5)).float().mean() > 0.97


def test_a_checkpoint_of_the_full_head_does_not_fit(tmp_path):
    weights = save_model(tiny_cfg(), tmp_path)
    with pytest.raises(UserError, match=r"parameters would stay random, roi_heads\.mask_head"):
        load_trained(build_model(tiny_cfg(FINE_PROJECTION=4)), str(weights))
