import logging

import numpy as np
import pytest
import torch
from detectron2.modeling import build_model

from patchdct.backbone.swin import SwinTransformer
from patchdct.backbone.swin_weights import PREFIX, VARIANTS, Variant, fit, read_swin, relative_position_index
from pixelmask.checkpoint.checkpointer import SafeCheckpointer
from pixelmask.errors import UserError
from tests.patchdct.test_swin import tiny_swin_cfg
from tests.support.swin_reference import SWIN_B, TINY, position_index, published_shapes, random_state

BUFFERS = ("relative_position_index", "attn_mask")


def published(**sizes):
    return random_state(published_shapes(**{**TINY, "classes": 7, **sizes}))


def expected_names(shapes):
    """Names of the published file that a detector has."""
    return [n for n in shapes if not n.endswith(BUFFERS) and not n.startswith(("norm.", "head."))]


def on_meta(shapes):
    return {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}


def backbone(**options):
    """A Swin-B without values; ``options`` change it."""
    with torch.device("meta"):
        return SwinTransformer(**{**SWIN_B, **options})


def adapt(model, state):
    """What a detector's checkpointer asks its backbone to make of a file."""
    return model.adapt_checkpoint(state, PREFIX)


@pytest.fixture
def detector():
    torch.manual_seed(0)
    return build_model(tiny_swin_cfg())


def load(model, path):
    checkpointer = SafeCheckpointer(model)
    checkpointer.load(str(path))
    return checkpointer.load_report


@pytest.mark.parametrize("prefix", ["", PREFIX])
def test_every_name_of_swin_b(prefix):
    shapes, model = published_shapes(**SWIN_B), backbone()
    state = on_meta({prefix + name: shape for name, shape in shapes.items()})
    weights = read_swin(state)
    assert weights is not None
    tensors, report = fit(weights, model.state_dict())
    dropped = report.weights.dropped
    assert weights.variant == report.wanted == VARIANTS["Swin-B"]
    assert list(tensors) == report.loaded == expected_names(shapes)
    assert report.missing == [f"norm{i}.{kind}" for i in range(4) for kind in ("weight", "bias")]
    assert set(dropped) == set(shapes) - set(report.loaded)
    assert dropped["head.weight"] == "ImageNet's classifier"
    assert dropped["norm.bias"].startswith("the classifier's norm")
    assert dropped["layers.2.blocks.17.attn.relative_position_index"] == "computed by the model"
    assert dropped["layers.2.blocks.17.attn_mask"] == "computed by the model"
    assert not report.other_shape and not report.unexpected
    assert report.problem is None
    assert str(report) == (
        "Swin-B (EMBED_DIM 128, DEPTHS [2, 2, 18, 2], NUM_HEADS [4, 8, 16, 32], WINDOW_SIZE 7): 325 tensors loaded, "
        f"{len(dropped)} dropped, 8 missing, 0 unexpected, 0 of another shape"
    )
    assert list(adapt(model, state)) == [PREFIX + name for name in report.loaded]


def test_position_index_is_that_of_the_model_and_of_its_definition():
    with torch.device("cpu"):
        block = SwinTransformer(**TINY).layers[0].blocks[0]
    assert torch.equal(relative_position_index(3).flatten(), block.attn.relative_position_index)
    assert torch.equal(relative_position_index(4), position_index(4))


@pytest.mark.parametrize("form", ["published", "prefix", "bare", "wrapped", "numpy", "half"])
def test_a_detector_loads_the_file_as_it_is(tmp_path, detector, form, caplog):
    state = published()
    before = {name: value.clone() for name, value in detector.state_dict().items()}
    content = {
        "published": {"model": state},
        "prefix": {"model": {PREFIX + name: value for name, value in state.items()}},
        "bare": state,
        "wrapped": {"model": {"module.backbone." + name: value for name, value in state.items()}, "optimizer": {}},
        "numpy": {"model": {name: value.numpy() for name, value in state.items()}},
        "half": {"model": {name: v.half() if v.is_floating_point() else v for name, v in state.items()}},
    }[form]
    torch.save(content, tmp_path / "swin.pth")
    with caplog.at_level(logging.INFO, logger="pixelmask.checkpoint.pretrained"):
        report = load(detector, tmp_path / "swin.pth")
    names = expected_names(state)
    assert f"NUM_HEADS [1, 2, 4, 8], WINDOW_SIZE 3): {len(names)} tensors loaded, " in caplog.text
    assert report.matched == [PREFIX + name for name in names]
    assert not report.unexpected
    assert not report.other_shape
    own = detector.state_dict()
    for name in names:
        tolerance = {"atol": 1e-2, "rtol": 1e-2} if form == "half" else {"atol": 0, "rtol": 0}
        torch.testing.assert_close(own[PREFIX + name], state[name], **tolerance)
    for name in set(own) - set(report.matched):
        assert torch.equal(own[name], before[name]), name


@pytest.mark.parametrize("prefix", ["", "module."])
def test_checkpoints_of_detectors_are_taken_whole(tmp_path, detector, prefix):
    """Those of the authors also hold buffers that are computed here."""
    trained = {name: torch.randn_like(value) for name, value in detector.state_dict().items()}
    index = {f"{PREFIX}layers.0.blocks.{i}.attn.relative_position_index": position_index(3) for i in (0, 1)}
    torch.save({"model": {prefix + name: v for name, v in (trained | index).items()}}, tmp_path / "model.pth")
    report = load(detector, tmp_path / "model.pth")
    assert len(report.matched) == len(trained)
    assert not report.missing + report.unexpected
    for name, value in detector.state_dict().items():
        assert torch.equal(value, trained[name])


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        (VARIANTS["Swin-T"]._asdict(), r"weights of Swin-T \(EMBED_DIM 96, .* backbone is Swin-B \(.*MODEL\.SWINT"),
        (VARIANTS["Swin-L"]._asdict(), r"weights of Swin-L \(.* backbone is Swin-B \("),
        ({**SWIN_B, "window_size": 12}, r"weights of Swin-B .*WINDOW_SIZE 12\), but .* Swin-B .*WINDOW_SIZE 7\)"),
    ],
)
def test_another_variant_is_refused(sizes, message):
    with pytest.raises(UserError, match=message):
        adapt(backbone(), on_meta(published_shapes(**sizes)))


def test_window_12_and_fewer_stages_load_where_the_model_has_them():
    state = on_meta(published_shapes(**{**SWIN_B, "window_size": 12}))
    assert Variant.of(state).window_size == 12
    assert len(adapt(backbone(window_size=12), state)) == 325
    model = backbone(out_features=["stage2", "stage3"])
    adapted = adapt(model, on_meta(published_shapes(**SWIN_B)))
    own = {PREFIX + name for name in model.state_dict()}
    assert set(adapted) < own
    assert own - set(adapted) == {f"{PREFIX}norm{i}.{kind}" for i in (0, 1) for kind in ("weight", "bias")}
    resnet = {"stem.conv1.weight": np.ones((64, 3, 7, 7))}
    assert adapt(backbone(), resnet) is resnet


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda s: s.pop("layers.1.blocks.1.mlp.fc2.bias"),
            r"1 of .* not in it, layers\.1\.blocks\.1\.mlp\.fc2\.bias first",
        ),
        (
            lambda s: s.update({"patch_embed.norm.bias": torch.ones(9)}),
            r"patch_embed\.norm\.bias has shape \(9,\), the .* \(8,\)",
        ),
        (lambda s: s.update(absolute_pos_embed=torch.ones(1, 9, 8)), "absolute position embedding"),
        (lambda s: s["layers.0.blocks.0.attn.relative_position_index"].t_(), "relative positions in another order"),
        (lambda s: s["norm.weight"].fill_(torch.nan), None),  # not used
        (lambda s: s["layers.0.blocks.0.norm1.bias"].fill_(torch.nan), r"norm1\.bias' holds NaN"),
    ],
)
def test_files_that_cannot_be_used(tmp_path, detector, change, message):
    state = published()
    change(state)
    torch.save({"model": state}, tmp_path / "swin.pth")
    before = {name: value.clone() for name, value in detector.state_dict().items()}
    if message is None:
        load(detector, tmp_path / "swin.pth")
        return
    with pytest.raises(UserError, match=message) as error:
        load(detector, tmp_path / "swin.pth")
    assert "swin.pth" in str(error.value)
    assert all(torch.equal(value, before[name]) for name, value in detector.state_dict().items())
