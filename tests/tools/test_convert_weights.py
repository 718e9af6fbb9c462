"""The converter of published weights, for each form in which they are published."""

import sys
from typing import NamedTuple

import pytest
import torch

from airm import Refiner
from airm.backbone import weights as mit_weights
from patchdct.backbone import swin_weights
from pixelmask.cli import run
from pixelmask.errors import UserError
from tests.support import mit_reference, swin_reference
from tests.support.models import load_tool, tiny_airm_cfg

tool = load_tool("convert_weights")


@pytest.fixture(autouse=True)
def tiny_variants(monkeypatch):
    """As if the tests' small transformers were among the published ones, which take seconds to read and write."""
    swin = swin_weights.Variant(**{**swin_reference.TINY, "window_size": 7})
    monkeypatch.setitem(swin_weights.VARIANTS, "Swin-X", swin)
    monkeypatch.setitem(mit_weights.VARIANTS, "mit_x", mit_weights.Variant(*map(tuple, mit_reference.TINY)))


class Form(NamedTuple):
    content: dict
    expected: dict
    """Shapes of what is written."""
    shown: tuple


def swin() -> Form:
    state = swin_reference.random_state(swin_reference.published_shapes(**swin_reference.TINY, classes=10))
    left_out = ("relative_position_index", "attn_mask")
    kept = [n for n in state if not n.endswith(left_out) and not n.startswith(("norm.", "head."))]
    expected = {swin_weights.PREFIX + name: tuple(state[name].shape) for name in kept}
    shown = ("Swin-X", "loaded", "dropped: ImageNet's classifier", "head.weight", "missing", "norm0.weight")
    return Form({"model": state}, expected, shown)


def mit(shapes=mit_reference.published_shapes) -> Form:
    published = mit_reference.published_shapes(*mit_reference.TINY)
    expected = {name: tuple(shape) for name, shape in published.items() if not name.startswith("head.")}
    shown = ("mit_x", "loaded", "dropped: not the encoder's", "missing")
    return Form(mit_reference.random_state(shapes(*mit_reference.TINY)), expected, shown)


def hugging_face() -> Form:
    return mit(mit_reference.hugging_face_shapes)


FORMS = {"swin": swin, "mit": mit, "hugging face": hugging_face}


def convert(*args):
    return tool.main(tool.argument_parser().parse_args([str(arg) for arg in args]))


@pytest.fixture(params=FORMS)
def form(request):
    return FORMS[request.param]()


@pytest.fixture
def file(tmp_path, form):
    path = tmp_path / "in" / "weights.bin"
    path.parent.mkdir()
    torch.save(form.content, path)
    return path


def test_writes_what_the_backbone_takes_and_every_name_on_request(tmp_path, form, file, capsys):
    output = tmp_path / "weights" / "out.pth"
    report = convert(file, output)
    written = torch.load(output, weights_only=True)["model"]
    assert {name: tuple(value.shape) for name, value in written.items()} == form.expected
    out = capsys.readouterr().out
    assert all(part in out for part in form.shown)
    assert [path.name for path in output.parent.iterdir()] == ["out.pth"]
    again = convert(output, tmp_path / "again.pth")
    assert sorted(again.loaded) == sorted(report.loaded)
    assert not again.weights.dropped
    rewritten = torch.load(tmp_path / "again.pth", weights_only=True)["model"]
    assert all(torch.equal(rewritten[name], value) for name, value in written.items())
    convert(file, tmp_path / "all.pth", "--all")
    out = capsys.readouterr().out
    assert all(name.removeprefix(swin_weights.PREFIX) in out for name in form.expected)
    assert "head.weight" in out or "classifier.weight" in out


def drop(*names):
    return lambda state: [state.pop(name) for name in names]


def drop_stage(state):
    for name in [name for name in state if name.startswith("layers.3.")]:
        del state[name]


def spoil(name):
    return lambda state: state.update({name: torch.full_like(state[name], torch.inf)})


@pytest.mark.parametrize(
    ("make", "change", "message"),
    [
        (swin, drop("layers.2.downsample.norm.bias"), "1 of the backbone's tensors are not in it"),
        (swin, drop("layers.2.blocks.1.norm1.weight"), "1 of the backbone's tensors are not in it"),
        (swin, drop_stage, "incomplete or of no published variant"),
        (swin, spoil("layers.0.blocks.0.norm1.weight"), r"norm1\.weight' holds NaN or infinity"),
        (swin, dict.clear, "holds no Swin or Mix Transformer in a known form"),
        (
            hugging_face,
            drop("segformer.encoder.block.1.0.mlp.dense2.bias"),
            r"1 of the backbone's tensors are not in it, block2\.0\.mlp\.fc2\.bias first",
        ),
        (
            hugging_face,
            drop("segformer.encoder.patch_embeddings.2.proj.weight"),
            r"is incomplete or of no published variant: .*EMBED_DIMS \[8, 16\]",
        ),
        (hugging_face, spoil("segformer.encoder.layer_norm.3.bias"), r"its 'norm4\.bias' holds NaN or infinity"),
    ],
)
def test_broken_files_are_refused(tmp_path, fails, make, change, message):
    content = make().content
    change(content.get("model", content))
    torch.save(content, tmp_path / "in.pth")
    with pytest.raises(UserError, match=message):
        convert(tmp_path / "in.pth", tmp_path / "out.pth")
    with fails(str(tmp_path / "in.pth")):
        run(convert, tmp_path / "in.pth", tmp_path / "out.pth")
    assert not (tmp_path / "out.pth").exists()


def test_nothing_is_overwritten_unasked(tmp_path, file):
    output = tmp_path / "out.pth"
    output.write_bytes(b"mine")
    with pytest.raises(UserError, match="exists already; pass --overwrite"):
        convert(file, output)
    assert output.read_bytes() == b"mine"
    convert(file, output, "--overwrite")
    assert torch.load(output, weights_only=True)["model"]
    with pytest.raises(UserError, match=r"is to end in \.pth"):
        convert(file, tmp_path / "out.bin")
    with pytest.raises(UserError, match="no file"):
        convert("none.pth", tmp_path / "new.pth")


def test_safetensors_need_their_package(tmp_path, monkeypatch):
    path = tmp_path / "model.safetensors"
    path.write_bytes(b"\x08\0\0\0\0\0\0\0{}      ")
    monkeypatch.setitem(sys.modules, "safetensors.torch", None)
    with pytest.raises(UserError, match="pip install safetensors; or take the pytorch_model.bin"):
        convert(path, tmp_path / "out.pth")


@pytest.fixture
def trained(airm_weights, tmp_path):
    """A checkpoint as a training leaves it, of a machine with folders of its own, with weights to be rounded."""
    content = torch.load(airm_weights)
    cfg = tiny_airm_cfg()
    cfg.MODEL.DEVICE, cfg.OUTPUT_DIR, cfg.MODEL.WEIGHTS, cfg.MODEL.AIRM.FROZEN_ENCODER = "cuda", *["/home/me"] * 3
    cfg.DATASETS.REFINEMENT = [["mine", "/home/me/pairs"]]
    moved = {n: value + 0.01 if value.is_floating_point() else value for n, value in content["model"].items()}
    state = {"optimizer": {"state": {0: torch.ones(3)}}, "iteration": 99, "model": moved, "config": cfg.dump()}
    torch.save({**content, **state}, tmp_path / "model_final.pth")
    return tmp_path / "model_final.pth"


def test_trained_weights_in_half_precision(trained, tmp_path, capsys):
    convert("--half", trained.parent, tmp_path / "out.pth")
    given, written = torch.load(trained), torch.load(tmp_path / "out.pth", weights_only=True)
    assert written.keys() == {"model", "config", "iteration"}
    assert written["iteration"] == 99 and written["model"].keys() == given["model"].keys()
    for name, value in written["model"].items():
        is_float = given["model"][name].is_floating_point()
        assert value.dtype == (torch.float16 if is_float else torch.int64)
        assert torch.equal(value, given["model"][name].half() if is_float else given["model"][name])
    assert "/home/me" not in written["config"] and "cuda" not in written["config"]
    assert "CROP_SIZE: 64" in written["config"]
    said = capsys.readouterr().out
    floats = [value for value in given["model"].values() if value.is_floating_point()]
    most = max((value.half().float() - value).abs().max().item() for value in floats)
    assert most > 0
    assert f"{(tmp_path / 'out.pth').stat().st_size / 1e6:.2f} MB" in said and f"at most {most:.1e}" in said
    loaded = Refiner(tmp_path / "out.pth").model.state_dict()
    assert all(torch.equal(value, written["model"][name].to(value.dtype)) for name, value in loaded.items())
    with pytest.raises(UserError, match="exists already"):
        convert("--half", trained, tmp_path / "out.pth")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: next(iter(c["model"].values())).fill_(1e6), "holds NaN or infinity"),
        (lambda c: c.pop("config"), "no config for"),
        (lambda c: c.pop("model"), "holds no tensors by name"),
    ],
)
def test_trained_weights_that_cannot_be_handed_on(trained, tmp_path, change, message):
    content = torch.load(trained)
    change(content)
    torch.save(content, trained)
    with pytest.raises(UserError, match=message):
        convert("--half", trained, tmp_path / "out.pth")
    assert not (tmp_path / "out.pth").exists()
