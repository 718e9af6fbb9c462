"""The pictures of docs/patchdct.md and of the README, from the command line to the files."""

import functools
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.structures import Instances
from PIL import Image

from patchdct.figures.objects import load_objects
from pixelmask.cli import run
from pixelmask.evaluation.boundary import mask_iou
from tests.support.checkpoints import save_model
from tests.support.models import load_tool, tiny_cfg

DATASET = "shapes_val_2_96px"

pytestmark = pytest.mark.usefixtures("data_root")

tool = load_tool("draw_patchdct_figures")


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> Path:
    return save_model(tiny_cfg(num_classes=8), tmp_path_factory.mktemp("weights"))


def draw(*arguments: object):
    return tool.main(tool.argument_parser().parse_args([str(a) for a in arguments]))


def check_files(picture: Path, numbers: dict, **more: object) -> None:
    with Image.open(picture) as image:
        assert image.width <= 1600 and np.ptp(np.asarray(image)) > 100
    assert json.loads(picture.with_suffix(".json").read_text()) == json.loads(json.dumps({**more, **numbers}))


def test_representation(tmp_path, capsys):
    output = tmp_path / "a.png"
    numbers = draw("representation", "--dataset", DATASET, "--image", 2, "--output", output)
    assert numbers["class"] == load_objects(DATASET, 2).names[0]
    assert [r["vector_dim"] for r in numbers["reconstructions"]] == [10, 50, 100, 300, 1, 3, 6, 12]
    check_files(output, numbers, dataset=DATASET, image=2)
    assert f"Wrote {output} and {tmp_path}/a.json" in capsys.readouterr().out


def test_patches(tmp_path):
    output = tmp_path / "b.jpg"
    numbers = draw("patches", "--dataset", DATASET, "--output", output)
    count = sum(len(load_objects(DATASET, i).masks) for i in (1, 2))
    assert numbers["objects"] == count
    assert [sum(labels.values()) for labels in numbers["patches"].values()] == [count * n for n in (784, 196, 49)]
    check_files(output, numbers, dataset=DATASET, image=1)


class Oracle:
    """A detector that finds all objects but the largest, with the right masks, the smallest first."""

    def __init__(self, cfg, keep_stages):
        self.truth, self.keep_stages = load_objects(DATASET, 1), keep_stages

    def __call__(self, image):
        number = len(self.truth.masks) - 1
        assert number >= 2 and (image == self.truth.image).all()
        instances = Instances(image.shape[:2])
        instances.pred_boxes = self.truth.boxes[list(range(number, 0, -1))]
        instances.pred_masks = torch.from_numpy(self.truth.masks[:0:-1].copy())
        instances.scores = torch.linspace(0.9, 0.5, number)
        if not self.keep_stages:
            return instances
        instances.pred_coarse_masks = torch.ones(number, 1, 14, 14)
        instances.pred_patch_labels = torch.ones(number, 14, 14, dtype=torch.int64)
        return instances


def test_stages_belong_to_their_objects(weights, tmp_path, monkeypatch):
    monkeypatch.setattr(tool, "Predictor", Oracle)
    options = ["--dataset", DATASET, "--weights", weights, "--output", tmp_path / "c.jpg"]
    numbers = draw("stages", *options)
    truth = load_objects(DATASET, 1)
    assert [row["class"] for row in numbers["objects"]] == truth.names[:3]
    assert [row["IoU"]["PatchDCT"] for row in numbers["objects"]] == [None, 1.0, 1.0]
    assert 0 < numbers["objects"][1]["IoU"]["DCT-Mask stage"] < 1
    check_files(tmp_path / "c.jpg", numbers, dataset=DATASET, image=1)
    assert len(draw("stages", *options, "--objects", 2)["objects"]) == 2


def test_teaser_has_what_the_refiner_makes(weights, airm_weights, tmp_path, monkeypatch):
    monkeypatch.setattr(tool, "Predictor", Oracle)
    for name, options in (("Refiner", {"guard": None}), ("InstanceRefiner", {"min_side": 0, "min_area": 0})):
        monkeypatch.setattr(tool, name, functools.partial(getattr(tool, name), **options))  # whose masks do change
    options = ["--dataset", DATASET, "--weights", weights, "--refiner", airm_weights, "--output", tmp_path / "d.jpg"]
    numbers = draw("teaser", *options)
    truth = load_objects(DATASET, 1)
    refine = tool.InstanceRefiner(tool.Refiner(airm_weights)).refine
    for i, row in enumerate(numbers["objects"]):
        assert list(row["IoU"]) == ["DCT-Mask stage", "PatchDCT", "PatchDCT + AIRM"]
        left, top, right, bottom = row["window"]
        box = truth.boxes.tensor[i].tolist()
        assert right - left == bottom - top == round(0.5 * max(box[2] - box[0], box[3] - box[1]))
        if i:
            window = slice(top, bottom), slice(left, right)
            (refined,) = refine(truth.image, truth.masks[i : i + 1])
            assert row["IoU"]["PatchDCT + AIRM"] == pytest.approx(mask_iou(refined[window], truth.masks[i][window]))
    check_files(tmp_path / "d.jpg", numbers, dataset=DATASET, image=1)


def test_a_model_that_finds_nothing(weights, airm_weights, tmp_path):
    options = ["--dataset", DATASET, "--weights", weights, "--output", tmp_path / "e.jpg"]
    options += ["MODEL.ROI_HEADS.SCORE_THRESH_TEST", 0.99]
    for numbers in (draw("stages", *options), draw("teaser", "--refiner", airm_weights, *options)):
        assert all(iou is None for row in numbers["objects"] for iou in row["IoU"].values())
    check_files(tmp_path / "e.jpg", numbers, dataset=DATASET, image=1)


def test_influence(tmp_path):
    numbers = draw("influence", "--dataset", DATASET, "--output", tmp_path / "f.png")
    whole, patch = numbers["vectors"]
    assert whole["moved"] > 0.99 * 112**2 and 0 < patch["moved"] <= 64 and patch["flipped"] < whole["flipped"]
    check_files(tmp_path / "f.png", numbers, dataset=DATASET, image=1)


def test_models_side_by_side(weights, tmp_path, monkeypatch):
    monkeypatch.setattr(tool, "Predictor", Oracle)
    other = tmp_path / "dct_mask" / "model.pth"
    other.parent.mkdir()
    (other.parent / "config.yaml").write_text((weights.parent / "config.yaml").read_text())
    numbers = draw("models", "--weights", weights, other, "--dataset", DATASET, "--output", tmp_path / "g.jpg")
    names = (weights.parent.name, "dct_mask")
    assert [row["IoU"] for row in numbers["objects"]] == [dict.fromkeys(names, iou) for iou in (None, 1.0, 1.0)]
    check_files(tmp_path / "g.jpg", numbers, dataset=DATASET, image=1)


class Piercing(Oracle):
    """A detector that pierces the mask of the second object; in the second image it finds nothing."""

    def __call__(self, image):
        instances = super().__call__(self.truth.image)
        mask = instances.pred_masks[-1]
        mask[tuple(mask.nonzero()[::5].T)] = False
        return instances if (image == self.truth.image).all() else instances[[]]


def test_failures_are_the_masks_in_most_pieces(weights, tmp_path, monkeypatch, fails):
    monkeypatch.setattr(tool, "Predictor", Piercing)
    options = ["--dataset", DATASET, "--weights", weights, "--output", tmp_path / "h.jpg"]
    numbers = draw("failures", *options, "--objects", 2)
    first, second = numbers["objects"]
    assert first["class"] == load_objects(DATASET, 1).names[1] and first["pieces_beyond_truth"] > 1
    assert second["pieces_beyond_truth"] == 0 and second["IoU"]["PatchDCT"] == 1 > first["IoU"]["PatchDCT"]
    check_files(tmp_path / "h.jpg", numbers, dataset=DATASET)
    monkeypatch.setattr(Piercing, "__call__", lambda self, image: Oracle.__call__(self, self.truth.image)[[]])
    with fails("none of the objects"):
        run(tool.main, tool.argument_parser().parse_args(["failures", *map(str, options)]))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["representation", "--dataset", "nowhere"], "no data set 'nowhere'"),
        (["patches", "--dataset", DATASET, "--output", "a.gif"], "a.gif: a figure is written as one of .jpg"),
        (["stages", "--dataset", DATASET, "--weights", "gone/model.pth"], "no config file gone/config.yaml"),
        (["teaser", "--dataset", DATASET, "--weights", "a.pth", "--refiner", "gone.pth"], "no weights gone.pth"),
        (
            ["stages", "--dataset", DATASET, "--image", "3", "--weights", "a.pth"],
            "image 3 of shapes_val_2_96px: it has 2",
        ),
    ],
)
def test_bad_input_ends_in_one_message(arguments, message, fails):
    with fails(message):
        run(tool.main, tool.argument_parser().parse_args(arguments))
