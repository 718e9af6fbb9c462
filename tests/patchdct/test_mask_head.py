import pytest
import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_mask_head, build_model
from detectron2.modeling.roi_heads import build_roi_heads
from detectron2.utils.events import EventStorage

from patchdct import MaskRCNNDCTHead, MaskRCNNPatchDCTHead, PatchLabel, PatchPrediction, split_into_patches
from pixelmask.errors import UserError
from tests.patchdct.test_mask_branch import published_shapes
from tests.support.models import detections, feature_maps, proposals, tiny_cfg, training_input

OPTIONS = {
    "default": {},
    "two classes": {"PATCH_CLASSES": 2},
    "all patches": {"PATCH_CLASSES": 1},
    "no regressor": {"PATCH_REGRESSOR": False},
    "two modules": {"NUM_STAGE": 3, "MASK_LOSS_PARA_EACH_STAGE": [1.0] * 3},
    "two classes, no regressor": {"PATCH_CLASSES": 2, "PATCH_REGRESSOR": False},
    "light": {"FINE_PROJECTION": 4, "NUM_FUSION": 0},
}
SHAPES = {f"p{i}": ShapeSpec(channels=16, stride=2**i) for i in (2, 3, 4, 5)}


def make_head(head: str = "patchdct", **mask_head):
    torch.manual_seed(0)
    return build_mask_head(tiny_cfg(head, **mask_head), SHAPES)


def run_training(head, num_instances: list[int]):
    with EventStorage() as storage:
        losses = head(feature_maps(len(num_instances)), [proposals(n, seed=i) for i, n in enumerate(num_instances)])
    return losses, {k: v[0] for k, v in storage.latest().items()}


def assert_finite_gradients(head) -> None:
    for name, parameter in head.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name


@pytest.mark.parametrize("agnostic", [False, True])
@pytest.mark.parametrize("loss_type", ["l1", "sl1", "l2"])
@pytest.mark.parametrize("num_stage", [2, 3, 4])
def test_loss_is_equation_3_of_its_logged_parts(num_stage, loss_type, agnostic):
    weights = [0.5, 0.25, 2.0, 3.0][:num_stage]
    keys = {"NUM_STAGE": num_stage, "MASK_LOSS_PARA_EACH_STAGE": weights, "DCT_LOSS_TYPE": loss_type}
    head = make_head(**keys, CLS_AGNOSTIC_MASK=agnostic, MASK_LOSS_PARA=0.7)
    losses, logged = run_training(head, [2, 1])
    parts = {k.removeprefix("patchdct/loss_"): v for k, v in logged.items()}
    expected = weights[0] * parts["dct"]
    for i, weight in enumerate(weights[1:], start=1):
        suffix = f"_stage{i}" if num_stage > 2 else ""
        expected += weight * (parts[f"patch_cls{suffix}"] + parts[f"patch_dct{suffix}"])
    assert set(losses) == {"loss_mask"}
    assert losses["loss_mask"].item() == pytest.approx(0.7 * expected, rel=1e-5)
    losses["loss_mask"].backward()
    assert_finite_gradients(head)


def test_losses_of_known_predictions():
    head = make_head()
    instances = [proposals(2)]
    masks = instances[0].gt_masks.crop_and_resize(instances[0].proposal_boxes.tensor, 112)
    vectors = head.codec.encode(masks)
    patches = split_into_patches(masks, 8)
    counts = patches.sum((2, 3))
    labels = (counts > 0).long() + (counts == 64).long()
    patch_vectors = head.patch_codec.encode(patches)
    errors = torch.where(labels == PatchLabel.MIXED, 2.0, 50.0)[..., None]
    stage = PatchPrediction(torch.zeros(2, 196, 3), patch_vectors + errors)
    with EventStorage() as storage:
        head.losses(vectors + 0.5, [stage], instances)
    logged = {k: v[0] for k, v in storage.latest().items()}
    assert logged["patchdct/loss_dct"] == pytest.approx(0.5, rel=1e-4)
    assert logged["patchdct/loss_patch_cls"] == pytest.approx(torch.tensor(3.0).log().item(), rel=1e-4)
    assert logged["patchdct/loss_patch_dct"] == pytest.approx(2.0, rel=1e-4), "patches that are not mixed do not count"


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("counts", [[2, 1], [0, 2], [2, 0], [0], [0, 0]])
def test_options_train_and_infer(options, counts):
    head = make_head(**options)
    losses, logged = run_training(head, counts)
    parts = {"patchdct/loss_dct", "patchdct/loss_patch_cls", "patchdct/loss_patch_dct"}
    if options.get("PATCH_CLASSES") == 1:
        parts.remove("patchdct/loss_patch_cls")
    if not options.get("PATCH_REGRESSOR", True):
        parts.remove("patchdct/loss_patch_dct")
    assert {name.partition("_stage")[0] for name in logged} == parts
    assert losses["loss_mask"].item() == pytest.approx(sum(logged.values()), rel=1e-5)
    assert (losses["loss_mask"].item() == 0) == (sum(counts) == 0)
    losses["loss_mask"].backward()
    assert_finite_gradients(head)
    head.eval().keep_stages = True
    with torch.no_grad():
        out = head(feature_maps(len(counts)), [detections(n, seed=i) for i, n in enumerate(counts)])
    assert [tuple(x.pred_masks.shape) for x in out] == [(n, 1, 112, 112) for n in counts]
    assert all(x.pred_patch_labels.shape == (n, 14, 14) for x, n in zip(out, counts, strict=True))


def test_losses_of_two_classes_and_of_all_patches():
    instances = [proposals(2)]
    masks = instances[0].gt_masks.crop_and_resize(instances[0].proposal_boxes.tensor, 112)
    patches = split_into_patches(masks, 8)
    counts = patches.sum((2, 3))
    mixed = (counts > 0) & (counts < 64)
    head = make_head(PATCH_CLASSES=2)
    sure = torch.stack([~mixed, mixed], -1) * 20.0
    head_losses = head.stage_losses(PatchPrediction(sure, None), head.make_targets(masks))
    assert head_losses["patch_cls"] < 1e-6, "labels are mixed or not"
    head = make_head(PATCH_CLASSES=1)
    errors = torch.where(mixed, 2.0, 50.0)[..., None]
    vectors = head.patch_codec.encode(patches) + errors
    (loss,) = head.stage_losses(PatchPrediction(None, vectors), head.make_targets(masks)).values()
    assert loss == pytest.approx(errors.mean().item(), rel=1e-4), "all patches count"


@pytest.mark.parametrize("head", ["two_stage_dct", "binary_grid"])
@pytest.mark.parametrize("counts", [[2, 1], [0]])
def test_losses_of_refinements_without_patches(head, counts):
    built = make_head(head, MASK_LOSS_PARA_EACH_STAGE=[1.0, 0.5])
    losses, logged = run_training(built, counts)
    part = {"two_stage_dct": "patchdct/loss_refined_dct", "binary_grid": "patchdct/loss_grid"}[head]
    expected = logged["patchdct/loss_dct"] + 0.5 * logged[part]
    assert losses["loss_mask"].item() == pytest.approx(expected, rel=1e-5) and (expected > 0) == (sum(counts) > 0)
    losses["loss_mask"].backward()
    assert_finite_gradients(built)
    truth = torch.rand(2, 112, 112) > 0.5
    perfect = built.refined_codec.encode(truth) if head == "two_stage_dct" else (truth.float() - 0.5) * 60
    assert next(iter(built.stage_losses(perfect, built.make_targets(truth)).values())) < 1e-6


def test_batch_without_mixed_patches():
    head = make_head()
    instances = proposals(2)
    instances.gt_masks.tensor[:] = True
    instances.proposal_boxes.tensor[:] = torch.tensor([10.0, 10, 60, 60])
    with EventStorage() as storage:
        loss = head(feature_maps(1), [instances])["loss_mask"]
    loss.backward()
    assert storage.latest()["patchdct/loss_patch_dct"][0] == 0
    assert_finite_gradients(head)


def test_batch_at_inference_equals_its_images_alone():
    head = make_head().eval()
    features = feature_maps(3)
    counts = [3, 0, 2]
    with torch.no_grad():
        together = head(features, [detections(n, seed=i) for i, n in enumerate(counts)])
        for i, n in enumerate(counts):
            alone = head({k: v[i : i + 1] for k, v in features.items()}, [detections(n, seed=i)])[0]
            assert together[i].pred_masks.shape == (n, 1, 112, 112)
            torch.testing.assert_close(together[i].pred_masks, alone.pred_masks, atol=1e-5, rtol=1e-4)


def test_kept_stages_are_those_of_the_masks():
    head = make_head().eval()
    head.keep_stages = True
    with torch.no_grad():
        (out,) = head(feature_maps(1), [detections(3)])
    assert out.pred_coarse_masks.shape == (3, 1, 112, 112)
    patches, labels = split_into_patches(out.pred_masks[:, 0], 8), out.pred_patch_labels.flatten(1)
    assert (patches[labels == PatchLabel.FOREGROUND] == 1).all()
    assert (patches[labels == PatchLabel.BACKGROUND] == 0).all()


def test_dct_mask_loss_sums_elements_and_averages_instances():
    cfg = tiny_cfg("dct_mask", MASK_LOSS_PARA=0.5)
    head = build_mask_head(cfg, ShapeSpec(channels=16, height=14, width=14))
    assert isinstance(head, MaskRCNNDCTHead)
    instances = [proposals(2), proposals(1, seed=1)]
    x = torch.randn(3, 16, 14, 14)
    masks = torch.cat([i.gt_masks.crop_and_resize(i.proposal_boxes.tensor, 128) for i in instances])
    vectors = head.predict(x, torch.zeros(3, dtype=torch.int64))
    expected = 0.5 * (vectors - head.codec.encode(masks)).abs().sum() / 3
    torch.testing.assert_close(head(x, instances)["loss_mask"], expected)
    empty = head(x[:0], [proposals(0)])["loss_mask"]
    assert empty.item() == 0
    empty.backward()
    assert_finite_gradients(head)


def test_published_state_dict_loads_strictly():
    cfg = tiny_cfg(num_classes=80, CONV_DIM=256, HIDDEN_FEATURES=1024, NUM_CONV=4)
    with torch.device("meta"):
        head = build_mask_head(cfg, {k: ShapeSpec(channels=256, stride=v.stride) for k, v in SHAPES.items()})
    state = {k: torch.empty(v, device="meta") for k, v in published_shapes(80, 6).items()}
    result = head.load_state_dict(state, strict=True, assign=True)
    assert not result.missing_keys and not result.unexpected_keys


@pytest.mark.parametrize("roi_heads", ["StandardROIHeads", "CascadeROIHeads", "PatchDCTROIHeads"])
@pytest.mark.parametrize(
    ("head", "agnostic"),
    [("dct_mask", True), ("dct_mask", False), ("patchdct", False), ("two_stage_dct", False), ("binary_grid", False)],
)
def test_whole_models_train_and_infer(roi_heads, head, agnostic):
    cfg = tiny_cfg(head, CLS_AGNOSTIC_MASK=agnostic)
    cfg.MODEL.ROI_HEADS.NAME = roi_heads
    cfg.MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG = roi_heads == "CascadeROIHeads"
    cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST = 0.0
    torch.manual_seed(0)
    model = build_model(cfg)
    with EventStorage():
        losses = model([training_input(2), training_input(0, seed=1)])
    assert torch.isfinite(sum(losses.values()))
    sum(losses.values()).backward()
    model.eval()
    with torch.no_grad():
        outputs = model([{**training_input(1), "height": 50, "width": 70}, training_input(1, seed=1)])
    masks = outputs[0]["instances"].pred_masks
    assert len(masks) > 0
    assert masks.shape[1:] == (50, 70)
    assert masks.dtype == torch.bool


@pytest.mark.parametrize("head", ["patchdct", "two_stage_dct", "binary_grid"])
def test_published_config_takes_the_feature_map_path_without_pooler_type(head):
    cfg = tiny_cfg(head, POOLER_TYPE="ROIAlignV2")
    cfg.MODEL.ROI_HEADS.NAME = "PatchDCTROIHeads"
    heads = build_roi_heads(cfg, SHAPES)
    assert heads.mask_pooler is None
    assert isinstance(heads.mask_head, MaskRCNNPatchDCTHead) == (head == "patchdct")


def test_in_features_are_those_of_the_mask_head():
    head = make_head(IN_FEATURES=["p3"]).eval()
    features = feature_maps(1)
    changed = {**features, "p4": features["p4"] + 10, "p5": features["p5"] + 10}
    with torch.no_grad():
        a, b = (head(f, [detections(2)])[0].pred_masks for f in (features, changed))
    assert torch.equal(a, b)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"EVAL_GT": True}, "upper_bound.py"),
        ({"DCT_LOSS_TYPE": "huber"}, "DCT_LOSS_TYPE"),
        ({"NUM_STAGE": 1}, "NUM_STAGE"),
        ({"NUM_STAGE": 3}, "MASK_LOSS_PARA_EACH_STAGE"),
        ({"FINE_FEATURES": ["p1"]}, "FINE_FEATURES"),
        ({"FINE_PROJECTION": -1}, "FINE_PROJECTION is -1"),
        ({"NUM_FUSION": -1}, "NUM_FUSION is -1"),
        ({"DCT_VECTOR_DIM": 20000}, "DCT_VECTOR_DIM"),
        ({"head": "binary_grid", "FINE_FEATURES_RESOLUTION": 42}, "FINE_FEATURES_RESOLUTION 42"),
    ],
)
def test_bad_config_is_named(keys, message):
    with pytest.raises(UserError, match=message):
        make_head(**keys)


def test_wrong_pooler_type_is_named_for_both_heads():
    with pytest.raises(UserError, match="POOLER_TYPE"):
        build_mask_head(tiny_cfg(), ShapeSpec(channels=16, height=14, width=14))
    with pytest.raises(UserError, match="POOLER_TYPE"):
        build_mask_head(tiny_cfg("dct_mask"), SHAPES)


def test_events_are_needed_in_training_only():
    head = make_head("binary_grid").eval()
    with torch.no_grad():
        head(feature_maps(1), [detections(1)])
    assert "patchdct/loss_grid" in run_training(head.train(), [1])[1]
