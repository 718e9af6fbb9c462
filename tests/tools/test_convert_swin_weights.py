import pytest
import torch

from patchdct.backbone.swin_weights import PREFIX, VARIANTS, Variant
from pixelmask.cli import run
from pixelmask.errors import UserError
from tests.support.models import load_tool
from tests.support.swin_reference import TINY, published_shapes, random_state

tool = load_tool("convert_swin_weights")


@pytest.fixture(autouse=True)
def tiny_variant(monkeypatch):
    """As if the tests' small transformer were among the published ones, which take seconds to read and write."""
    monkeypatch.setitem(VARIANTS, "Swin-X", Variant(**{**TINY, "window_size": 7}))


@pytest.fixture(scope="module")
def published():
    return random_state(published_shapes(**TINY, classes=10))


def convert(*args):
    return tool.main(tool.argument_parser().parse_args([str(arg) for arg in args]))


@pytest.fixture(scope="module")
def file(tmp_path_factory, published):
    path = tmp_path_factory.mktemp("swin") / "swin.pth"
    torch.save({"model": published}, path)
    return path


def test_writes_the_backbone_under_a_detectors_names(tmp_path, file, published, capsys):
    output = tmp_path / "weights" / "swin_d2.pth"
    report = convert(file, output)
    written = torch.load(output, weights_only=True)["model"]
    assert list(written) == [PREFIX + name for name in report.loaded]
    assert all(written[PREFIX + name].shape == published[name].shape for name in report.loaded)
    out = capsys.readouterr().out
    for part in ("Swin-X", "loaded", "dropped: ImageNet's classifier", "head.weight", "missing", "norm0.weight"):
        assert part in out
    assert [path.name for path in output.parent.iterdir()] == ["swin_d2.pth"]
    again = convert(output, tmp_path / "again.pth")
    assert again.loaded == report.loaded
    assert not again.dropped


def test_every_name_on_request(tmp_path, file, published, capsys):
    convert(file, tmp_path / "out.pth", "--all")
    out = capsys.readouterr().out
    assert all(name in out for name in published)


def spoil(state):
    state["layers.0.blocks.0.norm1.weight"] = torch.full((8,), torch.inf)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda s: s.pop("layers.3.downsample.norm.bias", s.pop("layers.2.downsample.norm.bias")),
            "1 of the backbone's",
        ),
        (lambda s: s.pop("layers.2.blocks.1.norm1.weight"), r"1 of the backbone's tensors are not in it"),
        (lambda s: [s.pop(n) for n in list(s) if n.startswith("layers.3.")], "incomplete or of no published variant"),
        (spoil, r"norm1\.weight' holds NaN or infinity"),
        (dict.clear, "holds no Swin Transformer in a known form"),
    ],
)
def test_broken_files_are_refused(tmp_path, published, capsys, change, message):
    state = dict(published)
    change(state)
    torch.save({"model": state}, tmp_path / "in.pth")
    with pytest.raises(UserError, match=message):
        convert(tmp_path / "in.pth", tmp_path / "out.pth")
    with pytest.raises(SystemExit) as exit_code:
        run(convert, tmp_path / "in.pth", tmp_path / "out.pth")
    assert exit_code.value.code == 1
    assert str(tmp_path / "in.pth") in capsys.readouterr().err
    assert not (tmp_path / "out.pth").exists()


def test_nothing_is_overwritten_unasked(tmp_path, file):
    output = tmp_path / "out.pth"
    output.write_bytes(b"mine")
    with pytest.raises(UserError, match="exists already; pass --overwrite"):
        convert(file, output)
    assert output.read_bytes() == b"mine"
    convert(file, output, "--overwrite")
    assert output.stat().st_size > 10_000
    with pytest.raises(UserError, match=r"is to end in \.pth"):
        convert(file, tmp_path / "out.bin")
    with pytest.raises(UserError, match="no file"):
        convert("none.pth", tmp_path / "new.pth")
