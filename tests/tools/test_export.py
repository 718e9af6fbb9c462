"""tools/export.py: what it writes, what it says of it, and what it refuses."""

import pytest
import torch
from detectron2.modeling import build_model

from pixelmask.cli import run
from pixelmask.config import load_cfg
from pixelmask.export import ExportedFile
from tests.support.models import load_tool, tiny_cfg

PLAIN_CNN = """
_BASE_: "{}/configs/airm/figure_2/kernel_3_sirmf.yaml"
MODEL:
  PLAIN_CNN: {{CHANNELS: 8, NUM_LAYERS: 2}}
"""


@pytest.fixture(scope="module")
def tool():
    return load_tool("export")


@pytest.fixture(scope="module")
def mask_rcnn(tmp_path_factory):
    """Options that name a Mask R-CNN and its weights."""
    folder = tmp_path_factory.mktemp("mask_rcnn")
    (folder / "config.yaml").write_text(tiny_cfg("mask_rcnn").dump())
    return save_model(folder)


@pytest.fixture(scope="module")
def refiner(tmp_path_factory, request):
    """Options that name an AIRM and its weights."""
    folder = tmp_path_factory.mktemp("refiner")
    (folder / "config.yaml").write_text(PLAIN_CNN.format(request.config.rootpath))
    return save_model(folder)


def save_model(folder):
    config, weights = str(folder / "config.yaml"), str(folder / "model_final.pth")
    torch.manual_seed(0)
    torch.save({"model": build_model(load_cfg(config, ["MODEL.DEVICE", "cpu"])).state_dict()}, weights)
    return ["--config-file", config, "--weights", weights]


def export(tool, *options):
    return run(tool.main, tool.argument_parser().parse_args(list(map(str, options))))


def test_mask_branch_as_onnx(tool, mask_rcnn, tmp_path, capsys):
    path = tmp_path / "new" / "mask.onnx"
    assert export(tool, *mask_rcnn, "--output", path) < 1e-4
    text = capsys.readouterr().out
    assert f"{path}: mask-branch, 0.0 MB, masks differ from the model's by at most" in text
    assert [p.name for p in path.parent.iterdir()] == ["mask.onnx"]
    classes, features = torch.tensor([0, 2, 1, 1]), torch.rand(4, 16, 14, 14)
    assert ExportedFile(path)(classes, features).shape == (4, 28, 28)


def test_mask_branch_of_fixed_number_as_pt2(tool, mask_rcnn, tmp_path):
    path = tmp_path / "mask.pt2"
    assert export(tool, *mask_rcnn, "--output", path, "--instances", 1, "--part", "mask-branch") < 1e-4
    assert ExportedFile(path)(torch.tensor([2]), torch.rand(1, 16, 14, 14)).shape == (1, 28, 28)


def test_refiner_of_fixed_size(tool, refiner, tmp_path, capsys):
    path = tmp_path / "refiner.pt2"
    assert export(tool, *refiner, "--output", path, "--height", 64, "--width", 96) < 1e-4
    assert "refiner, " in capsys.readouterr().out
    assert ExportedFile(path)(torch.rand(1, 3, 64, 96), torch.rand(1, 1, 64, 96)).shape == (1, 1, 64, 96)


def test_refiner_of_any_size_with_queries(tool, refiner, tmp_path):
    path = tmp_path / "refiner.onnx"
    assert export(tool, *refiner, "--output", path, "--dynamic", "--queries") < 1e-4
    image, mask = torch.rand(1, 3, 80, 64), torch.rand(1, 1, 80, 64)
    assert ExportedFile(path)(image, mask, torch.rand(7), torch.rand(5)).shape == (1, 1, 7, 5)


def test_nothing_is_overwritten_unasked(tool, mask_rcnn, tmp_path, capsys, fails):
    path = tmp_path / "mask.pt2"
    path.write_text("old")
    with fails(f"{path} exists; give another name, or --overwrite"):
        export(tool, *mask_rcnn, "--output", path)
    assert path.read_text() == "old"
    export(tool, *mask_rcnn, "--output", path, "--overwrite", "--no-check")
    assert "mask-branch, 0.1 MB, not checked" in capsys.readouterr().out
    assert ExportedFile(path).metadata["part"] == "mask-branch"


def test_a_file_that_answers_otherwise_is_not_kept(tool, mask_rcnn, tmp_path, fails, monkeypatch):
    monkeypatch.setattr(tool, "check_mask_branch", lambda *args: float("nan"))
    with fails("is not written: its masks would differ from the model's by nan"):
        export(tool, *mask_rcnn, "--output", tmp_path / "mask.pt2")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("model", "options", "parts"),
    [
        (
            "mask_rcnn",
            ["--part", "detector"],
            ["whole detectors are not exported: ", "non-maximum suppression", "deployment.html"],
        ),
        (
            "mask_rcnn",
            ["--part", "refiner"],
            ["config.yaml is of GeneralizedRCNN, which has no refiner, but a mask-branch"],
        ),
        ("mask_rcnn", ["--dynamic", "--queries"], ["--queries are of the refiner"]),
        ("mask_rcnn", ["--height", "64"], ["--height, --width and --queries are of the refiner"]),
        ("mask_rcnn", ["--dynamic", "--instances", "3"], ["is either that of --instances, or --dynamic"]),
        ("mask_rcnn", ["--output", "mask.pth"], ["mask.pth has no known format; its name ends in .pt2 ", " or .onnx"]),
        ("mask_rcnn", ["--weights", "absent.pth"], ["no checkpoint absent.pth"]),
        ("refiner", [], ["the size of the refiner's images is either --height N --width N, or --dynamic"]),
        ("refiner", ["--height", "64"], ["either --height N --width N"]),
        ("refiner", ["--height", "64", "--width", "64", "--dynamic"], ["either --height N --width N"]),
        ("refiner", ["--height", "64", "--width", "100"], ["multiples of 16 and at least 32 pixels, not 64 x 100"]),
        ("refiner", ["--dynamic", "--instances", "2"], ["--instances is of the mask branch"]),
        (
            "refiner",
            ["--dynamic", "--part", "mask-branch"],
            ["config.yaml is of AIRM, which has no mask-branch, but a refiner"],
        ),
    ],
)
def test_what_cannot_be_exported(tool, request, tmp_path, fails, model, options, parts):
    with fails(*parts):
        export(tool, *request.getfixturevalue(model), "--output", tmp_path / "model.pt2", *options)
    assert not list(tmp_path.iterdir())
