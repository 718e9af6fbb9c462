"""The rows of Tables 5 to 13 that are options of PatchDCT's refinement, or another refinement."""

import pytest
import torch
from detectron2.modeling import build_mask_head, build_roi_heads
from detectron2.utils.events import EventStorage
from torch.nn import functional as F

from patchdct import BinaryGridBranch, PatchDCTBranch, PatchPrediction, TwoStageDCTBranch
from patchdct.patches import split_into_patches
from pixelmask.errors import UserError
from tests.patchdct.test_mask_head import SHAPES, assert_finite_gradients, make_head, run_training
from tests.support.models import detections, feature_maps, proposals, tiny_cfg

SMALL = {"conv_dim": 8, "hidden_features": 8, "num_classes": 4}
OPTIONS = {
    "two classes": {"PATCH_CLASSES": 2},
    "all patches": {"PATCH_CLASSES": 1},
    "no regressor": {"PATCH_REGRESSOR": False},
    "two classes, no regressor": {"PATCH_CLASSES": 2, "PATCH_REGRESSOR": False},
}


def small_branch(kind=PatchDCTBranch, **kwargs):
    torch.manual_seed(0)
    return kind(8, 8, **SMALL, **kwargs)


def draw_inputs(fine_resolution: int = 42):
    classes = torch.tensor([0, 3, 1])
    return torch.randn(3, 8, 14, 14), torch.randn(3, 8, fine_resolution, fine_resolution), classes


def patches_of(masks):
    return split_into_patches(masks, 8)


def test_patches_that_are_not_mixed_keep_their_mask_with_two_classes():
    branch = small_branch(patch_classes=2, patch_threshold=0.0)
    coarse, (stage,) = branch.predict(*draw_inputs())
    assert stage.logits.shape == (3, 196, 2)
    mixed = stage.logits.argmax(-1) == 1
    assert 0 < mixed.sum() < mixed.numel()
    refined, before = (patches_of(x) for x in (branch.stage_masks(stage, final=True), branch.codec.decode(coarse)))
    torch.testing.assert_close(refined[~mixed], before[~mixed])
    torch.testing.assert_close(refined[mixed], branch.patch_codec.decode(stage.vectors)[mixed])


def test_all_patches_are_regressed_without_a_classifier():
    branch = small_branch(patch_classes=1)
    _, (stage,) = branch.predict(*draw_inputs())
    assert stage.logits is None and not any("predictor_bfg" in name for name in branch.state_dict())
    torch.testing.assert_close(patches_of(branch.stage_masks(stage, True)), branch.patch_codec.decode(stage.vectors))


def test_mixed_patches_keep_their_mask_without_a_regressor():
    branch = small_branch(patch_regressor=False, patch_threshold=1.0)
    torch.nn.init.normal_(branch.predictor_bfg.weight)
    torch.nn.init.zeros_(branch.predictor_bfg.bias)
    coarse, (stage,) = branch.predict(*draw_inputs())
    assert stage.vectors is None and not any("predictor1" in name for name in branch.state_dict())
    labels = stage.logits.argmax(-1)
    assert {0, 1, 2} == set(labels.unique().tolist())
    refined, before = (patches_of(x) for x in (branch.stage_masks(stage, final=True), branch.codec.decode(coarse)))
    torch.testing.assert_close(refined[labels == 1], before[labels == 1])
    assert (refined[labels == 0] == 0).all() and (refined[labels == 2] == 1).all()


def test_the_next_module_keeps_what_the_last_one_left():
    """Where no patch is mixed, two classes leave the mask of the DCT-Mask stage through all modules."""
    branch = small_branch(patch_classes=2, num_refinements=3)
    torch.nn.init.zeros_(branch.predictor_bfg.weight)
    branch.predictor_bfg.bias.data = torch.tensor([1.0, 0.0]).repeat(4)
    coarse, stages = branch.predict(*draw_inputs())
    torch.testing.assert_close(branch.stage_masks(stages[-1], True), branch.codec.decode(coarse))


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("counts", [[2, 1], [0, 2], [0]])
def test_options_train_and_infer(options, counts):
    head = make_head(**options)
    losses, logged = run_training(head, counts)
    parts = {"patchdct/loss_dct", "patchdct/loss_patch_cls", "patchdct/loss_patch_dct"}
    if options.get("PATCH_CLASSES") == 1:
        parts.remove("patchdct/loss_patch_cls")
    if not options.get("PATCH_REGRESSOR", True):
        parts.remove("patchdct/loss_patch_dct")
    assert set(logged) == parts
    assert losses["loss_mask"].item() == pytest.approx(sum(logged.values()), rel=1e-5)
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
    counts = patches_of(masks).sum((2, 3))
    mixed = (counts > 0) & (counts < 64)
    head = make_head(PATCH_CLASSES=2)
    sure = torch.stack([~mixed, mixed], -1) * 20.0
    head_losses = head.stage_losses(PatchPrediction(sure, None), head.make_targets(masks))
    assert head_losses["patch_cls"] < 1e-6, "labels are mixed or not"
    head = make_head(PATCH_CLASSES=1)
    errors = torch.where(mixed, 2.0, 50.0)[..., None]
    vectors = head.patch_codec.encode(patches_of(masks)) + errors
    (loss,) = head.stage_losses(PatchPrediction(None, vectors), head.make_targets(masks)).values()
    assert loss == pytest.approx(errors.mean().item(), rel=1e-4), "all patches count"


@pytest.mark.parametrize(
    ("sizes", "patches"),
    [
        ({"patch_size": 4}, 28**2),
        ({"patch_size": 16}, 7**2),
        ({"fine_resolution": 28}, 14**2),
        ({"fine_resolution": 56}, 14**2),
        ({"fine_resolution": 40}, 14**2),
        ({"mask_size": 128, "assembled_size": 64}, 8**2),
    ],
)
def test_sizes_of_tables_11_and_12(sizes, patches):
    branch = small_branch(**sizes)
    _, (stage,) = branch.predict(*draw_inputs(sizes.get("fine_resolution", 42)))
    assert stage.logits.shape == (3, patches, 3)
    side = sizes.get("assembled_size", 112)
    assert branch.stage_masks(stage, final=True).shape == (3, side, side)


def test_each_patch_sees_its_own_part_of_the_fine_feature():
    """A change of the fine feature at one place changes the scores of the patches around that place alone."""
    for sizes in ({"patch_size": 4}, {"patch_size": 16}, {"fine_resolution": 28}, {"fine_resolution": 56}):
        branch = small_branch(**sizes)
        fine_size, side = sizes.get("fine_resolution", 42), branch.patches_per_side
        masks, fine = torch.zeros(1, fine_size, fine_size), torch.randn(1, 8, fine_size, fine_size)
        y, x = fine_size // 4, 3 * fine_size // 4
        changed = fine.clone()
        changed[:, :, y, x] += 5
        scores = [branch.refine(masks, f, torch.tensor([0])).logits for f in (fine, changed)]
        touched = (scores[0] != scores[1]).any(-1).reshape(side, side).nonzero() + 0.5
        center = torch.tensor([y + 0.5, x + 0.5]) / fine_size * side
        assert len(touched) and (touched - center).abs().max() <= 1.5 + 4 * side / fine_size


def test_two_stage_dct_is_the_literal_network():
    branch = small_branch(TwoStageDCTBranch, num_refinements=2)
    x, fine, classes = draw_inputs()
    coarse, stages = branch.predict(x, fine, classes)
    masks = branch.codec.decode(coarse)
    for vectors in stages:
        small = F.interpolate(masks[:, None], size=(42, 42), mode="nearest")
        y = F.relu(F.conv2d(small, branch.reshape.weight, branch.reshape.bias, padding=1)) + fine
        for conv in branch.fusion:
            y = F.relu(F.conv2d(y, conv.weight, conv.bias, padding=1))
        y = F.relu(F.conv2d(y, branch.downsample[0].weight, branch.downsample[0].bias, stride=3))
        y = F.relu(F.conv2d(y, branch.downsample[1].weight, branch.downsample[1].bias, padding=1)).flatten(1)
        for layer in branch.refined_predictor:
            y = layer(y)
        torch.testing.assert_close(vectors, y)
        assert vectors.shape == (3, 300)
        masks = branch.codec.decode(vectors)
    torch.testing.assert_close(branch.infer(x, fine, classes), masks)


@pytest.mark.parametrize("num_classes", [1, 4])
def test_binary_grid_is_the_literal_network(num_classes):
    torch.manual_seed(0)
    branch = BinaryGridBranch(8, 8, **{**SMALL, "num_classes": num_classes})
    x, fine, classes = draw_inputs(56)
    classes = classes % num_classes
    coarse, (logits,) = branch.predict(x, fine, classes)
    y = F.interpolate(branch.codec.decode(coarse)[:, None], size=(56, 56), mode="nearest")
    y = branch.fusion(F.relu(F.conv2d(y, branch.reshape.weight, branch.reshape.bias, padding=1)) + fine)
    y = F.relu(F.conv_transpose2d(y, branch.upsample.weight, branch.upsample.bias, stride=2))
    every = F.conv2d(y, branch.grid_predictor.weight, branch.grid_predictor.bias)
    torch.testing.assert_close(logits, every[torch.arange(3), classes], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(branch.infer(x, fine, classes), logits.sigmoid())


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
    targets = built.make_targets(truth)
    perfect = built.refined_codec.encode(truth) if head == "two_stage_dct" else (truth.float() - 0.5) * 60
    assert list(built.stage_losses(perfect, targets).values())[0] < 1e-6


@pytest.mark.parametrize("head", ["two_stage_dct", "binary_grid"])
def test_published_roi_heads_take_every_refinement(head):
    cfg = tiny_cfg(head, POOLER_TYPE="ROIAlignV2")
    cfg.MODEL.ROI_HEADS.NAME = "PatchDCTROIHeads"
    assert build_roi_heads(cfg, SHAPES).mask_pooler is None


def test_a_grid_that_does_not_fit_is_named():
    cfg = tiny_cfg("binary_grid", FINE_FEATURES_RESOLUTION=42)
    with pytest.raises(UserError, match="FINE_FEATURES_RESOLUTION 42"):
        build_mask_head(cfg, SHAPES)


@pytest.mark.parametrize("kind", [PatchDCTBranch, TwoStageDCTBranch, BinaryGridBranch])
def test_torch_compile_traces_every_refinement(kind):
    options = {"patch_classes": 2} if kind is PatchDCTBranch else {}
    branch = small_branch(kind, num_refinements=2, **options).eval()
    inputs = draw_inputs(56 if kind is BinaryGridBranch else 42)
    compiled = torch.compile(branch.infer, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(*inputs), branch.infer(*inputs))


def test_events_are_needed_in_training_only():
    head = make_head("binary_grid").eval()
    with torch.no_grad():
        head(feature_maps(1), [detections(1)])
    with EventStorage() as storage:
        head.train()(feature_maps(1), [proposals(1)])
        assert "patchdct/loss_grid" in storage.latest()
