"""The branches: PatchDCT with its options of Tables 6 to 12, DCT-Mask, and the refinements of Table 5."""

from dataclasses import fields

import pytest
import torch
from torch.nn import functional as F

from patchdct import (
    BinaryGridBranch,
    DCTMaskBranch,
    MaskBranchSizes,
    PatchDCTBranch,
    PatchLabel,
    PatchPrediction,
    TwoStageDCTBranch,
)
from patchdct.patches import assemble_patches, split_into_patches
from pixelmask.errors import UserError

SIZES = {field.name for field in fields(MaskBranchSizes)}


def small_branch(kind=PatchDCTBranch, **options):
    """A branch of 8 channels everywhere; ``options`` are of the sizes or of the branch's own."""
    torch.manual_seed(0)
    channels = dict.fromkeys(("in_channels", "fine_channels", "conv_dim", "hidden_features"), 8)
    sizes = MaskBranchSizes(**{**channels, "num_classes": 4, **{k: v for k, v in options.items() if k in SIZES}})
    return kind(sizes, **{k: v for k, v in options.items() if k not in SIZES})


def draw_inputs(fine_resolution: int = 42):
    return torch.randn(3, 8, 14, 14), torch.randn(3, 8, fine_resolution, fine_resolution), torch.tensor([0, 3, 1])


def patches_of(masks):
    return split_into_patches(masks, 8)


def published_shapes(classes: int, n: int, hidden: int = 1024, dim: int = 300) -> dict[str, tuple[int, ...]]:
    layers = {f"mask_fcn{i}": (256, 256, 3, 3) for i in range(1, 5)} | {
        "predictor.0": (hidden, 256 * 14 * 14),
        "predictor.2": (hidden, hidden),
        "predictor.4": (dim, hidden),
        "reshape": (256, 1, 3, 3),
        "fusion.0": (256, 256, 3, 3),
        "fusion.1": (256, 256, 3, 3),
        "downsample.0": (hidden, 256, 3, 3),
        "downsample.1": (hidden, hidden, 3, 3),
        "predictor1": (classes * n, hidden, 1, 1),
        "predictor_bfg": (classes * 3, hidden, 1, 1),
    }
    return {f"{name}.{kind}": s for name, w in layers.items() for kind, s in (("weight", w), ("bias", w[:1]))}


def test_published_parameter_names_and_shapes():
    with torch.device("meta"):
        branches = [PatchDCTBranch(MaskBranchSizes(num_refinements=n)) for n in (1, 2, 3)]
        branch = DCTMaskBranch(MaskBranchSizes(num_classes=1))
    for patchdct in branches:
        assert {k: tuple(v.shape) for k, v in patchdct.state_dict().items()} == published_shapes(80, 6)
    assert {k: tuple(v.shape) for k, v in branch.state_dict().items() if k.endswith("weight")} == {
        **{f"mask_fcn{i}.weight": (256, 256, 3, 3) for i in range(1, 5)},
        "predictor_fc1.weight": (1024, 256 * 14 * 14),
        "predictor_fc2.weight": (1024, 1024),
        "predictor_fc3.weight": (300, 1024),
    }


def convolve(layer, x, **options):
    return F.relu(F.conv2d(x, layer.weight, layer.bias, **options))


def literal_fusion(branch, mask: torch.Tensor, fine: torch.Tensor) -> torch.Tensor:
    """What every refinement begins with, of a whole mask."""
    x = F.interpolate(mask[:, None], size=fine.shape[-2:], mode="nearest")
    x = convolve(branch.reshape, x, padding=1) + fine
    for conv in branch.fusion:
        x = convolve(conv, x, padding=1)
    return x


def literal_downsampling(branch, x: torch.Tensor) -> torch.Tensor:
    return convolve(branch.downsample[1], convolve(branch.downsample[0], x, stride=3), padding=1)


@pytest.mark.parametrize("num_refinements", [1, 2, 3])
@pytest.mark.parametrize("num_classes", [1, 4])
def test_shortcuts_equal_the_literal_network(num_refinements, num_classes):
    """The paper's drawing: every class is predicted, then each instance's is picked."""
    branch = small_branch(num_refinements=num_refinements, num_classes=num_classes)
    x, fine = torch.randn(5, 8, 14, 14), torch.randn(5, 8, 42, 42)
    classes = torch.tensor([0, 3, 1, 1, 2]) % num_classes
    coarse, stages = branch.predict(x, fine, classes)
    mask = branch.codec.decode(coarse)
    for stage in stages:
        y = literal_downsampling(branch, literal_fusion(branch, mask, fine))
        every = (layer(y).unflatten(1, (num_classes, -1)) for layer in (branch.predictor_bfg, branch.predictor1))
        logits, vectors = (t[torch.arange(5), classes].flatten(2).transpose(1, 2) for t in every)
        torch.testing.assert_close(stage.logits, logits, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(stage.vectors, vectors, atol=1e-5, rtol=1e-4)
        # The next module's input: background 0, foreground a first element of the patch size alone, mixed its vector
        labels = logits.argmax(-1, keepdim=True)
        full = torch.zeros_like(vectors)
        full[..., 0] = 8
        vectors = torch.where(labels == 1, vectors, torch.where(labels == 2, full, torch.zeros_like(full)))
        mask = assemble_patches(branch.patch_codec.decode(vectors))
    assert len(stages) == num_refinements


def test_two_stage_dct_is_the_literal_network():
    branch = small_branch(TwoStageDCTBranch, num_refinements=2)
    x, fine, classes = draw_inputs()
    coarse, stages = branch.predict(x, fine, classes)
    masks = branch.codec.decode(coarse)
    for vectors in stages:
        y = literal_downsampling(branch, literal_fusion(branch, masks, fine)).flatten(1)
        torch.testing.assert_close(vectors, branch.refined_predictor(y))
        assert vectors.shape == (3, 300)
        masks = branch.codec.decode(vectors)
    torch.testing.assert_close(branch.infer(x, fine, classes), masks)


@pytest.mark.parametrize("num_classes", [1, 4])
def test_binary_grid_is_the_literal_network(num_classes):
    branch = small_branch(BinaryGridBranch, fine_resolution=56, num_classes=num_classes)
    x, fine, classes = draw_inputs(56)
    classes = classes % num_classes
    coarse, (logits,) = branch.predict(x, fine, classes)
    y = literal_fusion(branch, branch.codec.decode(coarse), fine)
    y = F.relu(F.conv_transpose2d(y, branch.upsample.weight, branch.upsample.bias, stride=2))
    every = F.conv2d(y, branch.grid_predictor.weight, branch.grid_predictor.bias)
    torch.testing.assert_close(logits, every[torch.arange(3), classes], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(branch.infer(x, fine, classes), logits.sigmoid())


def test_assembled_patches_follow_their_labels():
    vectors = torch.zeros(1, 196, 6)
    vectors[..., 0] = 4
    labels = torch.zeros(1, 196, dtype=torch.int64)
    labels[0, 1] = PatchLabel.MIXED
    labels[0, 14] = PatchLabel.FOREGROUND
    mask = small_branch().assemble(PatchPrediction(torch.zeros(1, 196, 3), vectors), labels)[0]
    expected = torch.zeros(112, 112)
    expected[:8, 8:16] = 0.5
    expected[8:16, :8] = 1
    torch.testing.assert_close(mask, expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    ("probs", "label"),
    [
        ((0.10, 0.80, 0.10), PatchLabel.MIXED),
        ((0.35, 0.60, 0.05), PatchLabel.BACKGROUND),  # beats the larger mixed probability
        ((0.05, 0.60, 0.35), PatchLabel.FOREGROUND),
        ((0.31, 0.32, 0.37), PatchLabel.FOREGROUND),  # both above the threshold: the larger wins
        ((0.37, 0.32, 0.31), PatchLabel.BACKGROUND),
        ((0.29, 0.42, 0.29), PatchLabel.MIXED),
    ],
)
def test_threshold_prefers_uniform_patches(probs, label):
    logits = torch.tensor(probs).log().reshape(1, 1, 3)
    assert small_branch().final_labels(logits).item() == label
    logits = torch.randn(2, 196, 3)  # a threshold of one leaves the argmax
    assert torch.equal(small_branch(patch_threshold=1.0).final_labels(logits), logits.argmax(-1))


def test_gradients_reach_the_coarse_stage_through_the_decoded_mask():
    branch = small_branch()
    branch.predict(*draw_inputs())[1][0].logits.sum().backward()
    assert branch.predictor[4].weight.grad.abs().sum() > 0


def test_class_specific_dct_mask_picks_the_class():
    branch = small_branch(DCTMaskBranch, num_classes=3, vector_dim=10)
    x = torch.randn(2, 8, 14, 14)
    every = [branch.predict(x, torch.full((2,), c)) for c in range(3)]
    mixed = branch.predict(x, torch.tensor([2, 0]))
    torch.testing.assert_close(mixed, torch.stack([every[2][0], every[0][1]]))


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


@pytest.mark.parametrize(
    "sizes", [{"patch_size": 4}, {"patch_size": 16}, {"fine_resolution": 28}, {"fine_resolution": 56}]
)
def test_each_patch_sees_its_own_part_of_the_fine_feature(sizes):
    """A change of the fine feature at one place changes the scores of the patches around that place alone."""
    branch = small_branch(**sizes)
    size, side = branch.sizes.fine_resolution, branch.patches_per_side
    masks, fine = torch.zeros(1, size, size), torch.randn(1, 8, size, size)
    y, x = size // 4, 3 * size // 4
    changed = fine.clone()
    changed[:, :, y, x] += 5
    scores = [branch.refine(masks, f, torch.tensor([0])).logits for f in (fine, changed)]
    touched = (scores[0] != scores[1]).any(-1).reshape(side, side).nonzero() + 0.5
    center = torch.tensor([y + 0.5, x + 0.5]) / size * side
    assert len(touched) and (touched - center).abs().max() <= 1.5 + 4 * side / size


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"patch_size": 9}, "PATCH_SIZE 9"),
        ({"patch_classes": 4}, "PATCH_CLASSES 4"),
        ({"patch_classes": 1, "patch_regressor": False}, "PATCH_REGRESSOR False"),
        ({"kind": BinaryGridBranch, "fine_resolution": 42}, "FINE_FEATURES_RESOLUTION 42"),
    ],
)
def test_sizes_that_do_not_fit_are_named(sizes, message):
    with pytest.raises(UserError, match=message):
        small_branch(**sizes)


@pytest.mark.parametrize("precision", ["autocast", "channels_last"])
def test_other_precisions_and_layouts_stay_close(precision):
    branch = small_branch(num_refinements=2).eval()
    inputs = draw_inputs()
    expected, _ = branch.predict(*inputs)
    if precision == "autocast":
        with torch.autocast("cpu", torch.bfloat16):
            vectors, stages = branch.predict(*inputs)
    else:
        branch = branch.to(memory_format=torch.channels_last)
        inputs = tuple(x.to(memory_format=torch.channels_last) if x.dim() == 4 else x for x in inputs)
        vectors, stages = branch.predict(*inputs)
    assert torch.isfinite(stages[-1].logits).all()
    torch.testing.assert_close(vectors.float(), expected, atol=0.02 if precision == "autocast" else 1e-5, rtol=0.02)


@pytest.mark.parametrize(
    "options",
    [{}, {"patch_classes": 2}, {"kind": TwoStageDCTBranch}, {"kind": BinaryGridBranch, "fine_resolution": 56}],
)
def test_torch_compile_gives_the_same(options):
    branch = small_branch(num_refinements=2, **options).eval()
    inputs = draw_inputs(branch.sizes.fine_resolution)
    # The eager backend traces the whole graph, and fails on a graph break, without needing a C++ compiler
    compiled = torch.compile(branch.predict, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(*inputs), branch.predict(*inputs))
    torch.testing.assert_close(branch.infer(*inputs), branch.stage_masks(compiled(*inputs)[1][-1], final=True))
