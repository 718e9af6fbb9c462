import pytest
import torch
from torch.nn import functional as F

from patchdct import PatchDCTBranch, PatchLabel, PatchPrediction
from patchdct.mask_branch import DCTMaskBranch
from patchdct.patches import assemble_patches
from pixelmask.errors import UserError


def small_branch(**kwargs) -> PatchDCTBranch:
    torch.manual_seed(0)
    defaults = {"conv_dim": 8, "hidden_features": 8, "num_classes": 4}
    return PatchDCTBranch(8, 8, **{**defaults, **kwargs})


def published_shapes(classes: int, n: int, hidden: int = 1024, dim: int = 300) -> dict[str, tuple[int, ...]]:
    shapes = {}
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
    for name, shape in layers.items():
        shapes |= {f"{name}.weight": shape, f"{name}.bias": shape[:1]}
    return shapes


@pytest.mark.parametrize("num_refinements", [1, 2, 3])
def test_published_parameter_names_and_shapes(num_refinements):
    with torch.device("meta"):
        branch = PatchDCTBranch(256, 256, num_refinements=num_refinements)
    assert {k: tuple(v.shape) for k, v in branch.state_dict().items()} == published_shapes(80, 6)


def test_published_names_and_shapes_of_dct_mask():
    with torch.device("meta"):
        names = {k: tuple(v.shape) for k, v in DCTMaskBranch(256).state_dict().items()}
    assert {k: v for k, v in names.items() if k.endswith("weight")} == {
        **{f"mask_fcn{i}.weight": (256, 256, 3, 3) for i in range(1, 5)},
        "predictor_fc1.weight": (1024, 256 * 14 * 14),
        "predictor_fc2.weight": (1024, 1024),
        "predictor_fc3.weight": (300, 1024),
    }


def literal_refinement(branch: PatchDCTBranch, mask: torch.Tensor, fine: torch.Tensor, classes: torch.Tensor):
    """One PatchDCT module as the paper draws it: every class is predicted, then each instance's is picked."""
    mask = F.interpolate(mask[:, None], size=fine.shape[-2:], mode="nearest")
    x = F.relu(F.conv2d(mask, branch.reshape.weight, branch.reshape.bias, padding=1)) + fine
    for conv in branch.fusion:
        x = F.relu(F.conv2d(x, conv.weight, conv.bias, padding=1))
    x = F.relu(F.conv2d(x, branch.downsample[0].weight, branch.downsample[0].bias, stride=3))
    x = F.relu(F.conv2d(x, branch.downsample[1].weight, branch.downsample[1].bias, padding=1))
    index = torch.arange(len(classes))
    every_logits = branch.predictor_bfg(x).unflatten(1, (branch.num_classes, 3))
    every_vectors = branch.predictor1(x).unflatten(1, (branch.num_classes, -1))
    return [t[index, classes].flatten(2).transpose(1, 2) for t in (every_logits, every_vectors)]


@pytest.mark.parametrize("num_refinements", [1, 2, 3])
@pytest.mark.parametrize("num_classes", [1, 4])
def test_shortcuts_equal_the_literal_network(num_refinements, num_classes):
    branch = small_branch(num_refinements=num_refinements, num_classes=num_classes)
    x, fine = torch.randn(5, 8, 14, 14), torch.randn(5, 8, 42, 42)
    classes = torch.tensor([0, 3, 1, 1, 2]) % num_classes
    coarse, stages = branch.predict(x, fine, classes)
    mask = branch.codec.decode(coarse)
    for stage in stages:
        logits, vectors = literal_refinement(branch, mask, fine, classes)
        torch.testing.assert_close(stage.logits, logits, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(stage.vectors, vectors, atol=1e-5, rtol=1e-4)
        # The next module's input: background 0, foreground a first element of the patch size alone, mixed its vector
        labels = logits.argmax(-1, keepdim=True)
        full = torch.zeros_like(vectors)
        full[..., 0] = 8
        vectors = torch.where(labels == 1, vectors, torch.where(labels == 2, full, torch.zeros_like(full)))
        mask = assemble_patches(branch.patch_codec.decode(vectors))
    assert len(stages) == num_refinements


def test_assembled_patches_follow_their_labels():
    branch = small_branch()
    vectors = torch.zeros(1, 196, 6)
    vectors[..., 0] = 4
    labels = torch.zeros(1, 196, dtype=torch.int64)
    labels[0, 1] = PatchLabel.MIXED
    labels[0, 14] = PatchLabel.FOREGROUND
    mask = branch.assemble(PatchPrediction(torch.zeros(1, 196, 3), vectors), labels)[0]
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


def test_a_threshold_of_one_leaves_the_argmax():
    logits = torch.randn(2, 196, 3)
    assert torch.equal(small_branch(patch_threshold=1.0).final_labels(logits), logits.argmax(-1))


def test_gradients_reach_the_coarse_stage_through_the_decoded_mask():
    branch = small_branch()
    _, stages = branch.predict(torch.randn(2, 8, 14, 14), torch.randn(2, 8, 42, 42), torch.tensor([0, 1]))
    stages[0].logits.sum().backward()
    assert branch.predictor[4].weight.grad.abs().sum() > 0


def test_class_specific_dct_mask_picks_the_class():
    branch = DCTMaskBranch(8, conv_dim=8, hidden_features=8, num_classes=3, vector_dim=10)
    x = torch.randn(2, 8, 14, 14)
    every = [branch.predict(x, torch.full((2,), c)) for c in range(3)]
    mixed = branch.predict(x, torch.tensor([2, 0]))
    torch.testing.assert_close(mixed, torch.stack([every[2][0], every[0][1]]))


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"patch_size": 9}, "PATCH_SIZE 9"),
        ({"patch_classes": 4}, "PATCH_CLASSES 4"),
        ({"patch_classes": 1, "patch_regressor": False}, "PATCH_REGRESSOR False"),
    ],
)
def test_sizes_that_do_not_fit_are_named(sizes, message):
    with pytest.raises(UserError, match=message):
        small_branch(**sizes)


@pytest.mark.parametrize("precision", ["autocast", "channels_last"])
def test_other_precisions_and_layouts_stay_close(precision):
    branch = small_branch(num_refinements=2).eval()
    inputs = torch.randn(3, 8, 14, 14), torch.randn(3, 8, 42, 42), torch.tensor([0, 1, 3])
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


def test_torch_compile_gives_the_same():
    branch = small_branch(num_refinements=2).eval()
    inputs = torch.randn(3, 8, 14, 14), torch.randn(3, 8, 42, 42), torch.tensor([0, 1, 3])
    # The eager backend traces the whole graph, and fails on a graph break, without needing a C++ compiler
    compiled = torch.compile(branch.predict, fullgraph=True, backend="eager")
    for got, expected in zip(compiled(*inputs)[1], branch.predict(*inputs)[1], strict=True):
        torch.testing.assert_close(got.vectors, expected.vectors)
