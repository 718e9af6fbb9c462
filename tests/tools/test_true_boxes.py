"""Masks in the true boxes: hand-worked overlaps of a model that fills its boxes, and the tool on a trained one."""

import json
from types import SimpleNamespace

import pytest
import torch
from detectron2.modeling import GeneralizedRCNN
from detectron2.structures import BoxMode, Instances

from patchdct.evaluation.true_boxes import masks_in_true_boxes, quality_in_true_boxes
from pixelmask.cli import run
from pixelmask.errors import UserError
from pixelmask.evaluation.boundary import boundary_iou
from tests.support.models import load_tool

SIZE = 80


class FillsItsBoxes(GeneralizedRCNN):
    """Detects the boxes that it is given, each mask its whole box, in an image that was twice as large to it."""

    def __init__(self):
        torch.nn.Module.__init__(self)
        self.roi_heads = SimpleNamespace(mask_on=True)
        self.given: list[Instances] = []

    device = torch.device("cpu")

    def inference(self, batched_inputs, detected_instances=None, do_postprocess=True):
        assert not torch.is_grad_enabled()
        self.given += detected_instances
        outputs = []
        for instances in detected_instances:
            corners = (instances.pred_boxes.tensor / 2).long()
            kept = (corners[:, 2:] > corners[:, :2]).all(1)
            masks = torch.zeros(len(corners), SIZE, SIZE, dtype=torch.bool)
            for mask, (x0, y0, x1, y1) in zip(masks, corners.tolist(), strict=True):
                mask[y0:y1, x0:x1] = True
            outputs.append(
                {"instances": Instances((SIZE, SIZE), pred_masks=masks[kept], objects=instances.objects[kept])}
            )
        return outputs


class NoEvaluator:
    """Counts what it is given."""

    masks = 0

    def reset(self):
        self.masks = 0

    def process(self, inputs, outputs):
        self.masks += sum(len(output["instances"]) for output in outputs)

    def evaluate(self):
        return {"bbox": {"AP": 100.0}, "segm": {"AP": 50.0}, "boundary": {"AP": 25.0}}


def annotation(box: list[float], polygon: list[float], **fields) -> dict:
    x, y, w, h = box
    return {"bbox": [x, y, w, h], "bbox_mode": BoxMode.XYWH_ABS, "category_id": 1, "segmentation": [polygon], **fields}


def rectangle(x: float, y: float, w: float, h: float) -> list[float]:
    return [x, y, x + w, y, x + w, y + h, x, y + h]


WHOLE = annotation([10, 10, 40, 20], rectangle(10, 10, 40, 20), iscrowd=0)
HALF = annotation([20, 40, 40, 30], rectangle(20, 40, 20, 30))  # its box is twice as wide as it is
FLAT = annotation([5, 5, 0, 10], rectangle(5, 5, 1, 10), iscrowd=0)
CROWD = annotation([0, 0, 80, 80], rectangle(0, 0, 80, 80), iscrowd=1)
INPUT = {"image_id": 7, "image": torch.zeros(3, 2 * SIZE, 2 * SIZE), "height": SIZE, "width": SIZE}


def test_boxes_are_given_in_the_size_of_the_network():
    model = FillsItsBoxes()
    (output,) = masks_in_true_boxes(model, [INPUT], [[WHOLE, FLAT, HALF]])
    (given,) = model.given
    assert given.image_size == (2 * SIZE, 2 * SIZE) and given.scores.tolist() == [1, 1, 1]
    assert given.pred_boxes.tensor[0].tolist() == [20, 20, 100, 60] and given.pred_classes.tolist() == [1, 1, 1]
    assert output.objects.tolist() == [0, 2]


def test_overlaps_are_means_over_the_objects():
    """IoU 1, 1/2, and 0 of the object without a box; the crowd region does not count."""
    evaluator = NoEvaluator()
    records = [{"image_id": 7, "annotations": [WHOLE, CROWD, HALF, FLAT]}, {"image_id": 8, "annotations": []}]
    loader = [[INPUT], [{**INPUT, "image_id": 8}]]
    quality = quality_in_true_boxes(FillsItsBoxes(), loader, records, evaluator)
    half, box = torch.zeros(2, SIZE, SIZE, dtype=torch.bool).numpy()
    half[40:70, 20:40] = box[40:70, 20:60] = True
    assert quality["objects"] == 3 and evaluator.masks == 2
    assert quality["IoU"] == pytest.approx(50) and quality["AP"] == {"segm": 50.0, "boundary": 25.0}
    assert quality["Boundary IoU"] == pytest.approx(100 * (1 + boundary_iou(half, box)) / 3)


def test_what_has_no_masks_is_named():
    with pytest.raises(UserError, match="no objects with masks"):
        quality_in_true_boxes(FillsItsBoxes(), [[INPUT]], [{"image_id": 7, "annotations": [CROWD]}], NoEvaluator())
    with pytest.raises(UserError, match="Linear has no masks in given boxes"):
        quality_in_true_boxes(torch.nn.Linear(1, 1), [], [], NoEvaluator())


def test_tool_measures_every_test_set(trained_patchdct, data_root, tmp_path, capsys):
    tool = load_tool("true_boxes")
    weights, path = trained_patchdct / "model_final.pth", tmp_path / "quality.json"
    drawn = data_root / "shapes" / "val_6_96px"
    options = ["--config-file", trained_patchdct / "config.yaml", "--weights", weights, "--json", path]
    options += ["--dataset", "mine", drawn / "annotations.json", drawn / "images"]
    opts = ["DATASETS.TEST", "('shapes_val_6_96px','mine')", "OUTPUT_DIR", tmp_path]
    rows = run(tool.main, tool.argument_parser().parse_args(list(map(str, [*options, *opts]))))
    assert rows == json.loads(path.read_text()) and [row["dataset"] for row in rows] == ["shapes_val_6_96px", "mine"]
    first, second = ({k: v for k, v in row.items() if k != "dataset"} for row in rows)
    assert first == second and 0 < first["Boundary IoU"] <= first["IoU"] < 100
    truth = json.loads((drawn / "annotations.json").read_text())
    detections = json.loads((tmp_path / "true_boxes" / "mine" / "coco_instances_results.json").read_text())
    assert first["objects"] == len(truth["annotations"]) == len(detections)
    for found, true in zip(detections, truth["annotations"], strict=True):
        assert found["bbox"] == pytest.approx(true["bbox"], abs=1e-3) and found["category_id"] == true["category_id"]
    assert "Boundary IoU" in capsys.readouterr().out
