import contextlib
import io
import json
import logging
import zipfile

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import load_coco_json
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from patchdct.trainer import Trainer
from pixelmask.config import load_cfg
from pixelmask.errors import UserError
from pixelmask.evaluation import COCOInstanceEvaluator
from pixelmask.evaluation.submission import write_submission
from tests.pixelmask.test_evaluation import evaluate, make_detections, make_truth


@pytest.fixture
def unannotated(tmp_path):
    """A test set as COCO publishes it, registered, and the truth that only the server has."""
    truth = make_truth(num_images=5)
    info = {key: value for key, value in truth.items() if key != "annotations"}
    json_file = tmp_path / "image_info_test-dev2017.json"
    json_file.write_text(json.dumps(info))
    name = "test_submission"
    DatasetCatalog.register(name, lambda: load_coco_json(str(json_file), str(tmp_path), name))
    MetadataCatalog.get(name).set(json_file=str(json_file), image_root=str(tmp_path), evaluator_type="coco")
    DatasetCatalog.get(name)
    yield name, truth, str(json_file)
    DatasetCatalog.remove(name)
    MetadataCatalog.remove(name)


def read(path):
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None
        (name,) = archive.namelist()
        assert name == f"{path.stem}.json"
        return json.loads(archive.read(name))


def server(truth, results):
    """What COCO's API makes of a submission."""
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = truth
        coco.createIndex()
        detections = coco.loadRes(results)
        evaluation = COCOeval(coco, detections, "segm")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return detections, evaluation.stats


def test_evaluating_a_test_set_makes_the_file(unannotated, tmp_path, caplog):
    name, truth, json_file = unannotated
    outputs = make_detections(truth)
    evaluator = COCOInstanceEvaluator(name, output_dir=str(tmp_path / "out"), submission_name="patchdct_R_101")
    with caplog.at_level(logging.INFO, logger="pixelmask"):
        assert evaluate(evaluator, outputs) == {}
    (path,) = (tmp_path / "out").glob("*.zip")
    assert path.name == "detections_test-dev2017_patchdct_R_101_results.zip"
    entries = read(path)
    everything = json.loads((tmp_path / "out" / "coco_instances_results.json").read_text())
    keys = ("image_id", "category_id", "segmentation", "score")
    assert entries == [{key: result[key] for key in keys} for result in everything]
    assert all(tuple(entry) == keys and isinstance(entry["segmentation"]["counts"], str) for entry in entries)
    message = caplog.messages[-1]
    assert f"{json_file} has no annotations, so no AP is computed here: {path} ({len(entries)} detections" in message
    assert "not processed" not in caplog.text
    detections, stats = server(truth, entries)
    assert stats[0] > 0.1
    for image_id, instances in outputs.items():
        areas = [a["area"] for a in detections.loadAnns(detections.getAnnIds(image_id))]
        assert sorted(areas) == sorted(instances.pred_masks.sum((1, 2)).tolist())


def test_the_method_is_named_after_the_output_folder(unannotated):
    cfg = load_cfg("configs/patchdct/test_dev/patchdct_R_101_FPN_3x_test_dev.yaml")
    evaluator = Trainer.build_evaluator(cfg, unannotated[0])
    assert evaluator._submission_name == "patchdct_R_101_FPN_3x_test_dev"


def result(**changes):
    mask = {"size": [120, 160], "counts": "PP1"}
    return {"image_id": 100, "category_id": 3, "bbox": [0, 0, 1, 1], "segmentation": mask, "score": 0.5, **changes}


def write(tmp_path, results, processed=(100, 99), json_file="image_info_test-dev2017.json", name="m"):
    dataset = {
        "images": [{"id": 100, "height": 120, "width": 160}, {"id": 99, "height": 60, "width": 80}],
        "categories": [{"id": 3, "name": "a"}],
    }
    return write_submission(results, dataset, processed, json_file, name, str(tmp_path / "out"))


def test_detections_without_masks_have_boxes_and_the_file_its_name(tmp_path):
    assert write(tmp_path, [], name="R 101/50").name == "detections_test-dev2017_R-101-50_results.zip"
    assert write(tmp_path, [], json_file="a/my_test.json").name == "detections_my_test_m_results.zip"
    boxes = [{key: value for key, value in result().items() if key != "segmentation"}]
    assert read(write(tmp_path, boxes)) == [{"image_id": 100, "category_id": 3, "bbox": [0, 0, 1, 1], "score": 0.5}]


def test_images_without_detections_are_no_fault_but_missing_ones_are(tmp_path, caplog):
    with caplog.at_level(logging.WARNING, logger="pixelmask"):
        assert read(write(tmp_path, [])) == []
        assert len(read(write(tmp_path, [result(), result()]))) == 2
    assert not caplog.messages
    write(tmp_path, [result()], processed=[100])
    assert "1 of the 2 images of image_info_test-dev2017.json were not processed" in caplog.text


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image_id": 5}, "image_id 5, .* is it of another data set"),
        ({"category_id": 0}, "category_id 0; .* has the categories 3"),
        ({"image_id": 99}, r"image 99 has the size \[120, 160\] .* but its image is \[60, 80\] in image_info"),
    ],
)
def test_results_of_another_set_are_refused(tmp_path, changes, message):
    with pytest.raises(UserError, match=message):
        write(tmp_path, [result(), result(**changes)])
    assert not (tmp_path / "out").exists()


def test_an_earlier_file_survives_a_failure(tmp_path):
    path = write(tmp_path, [result()])
    before = path.read_bytes()
    with pytest.raises(TypeError):
        write(tmp_path, [result(score=object())])
    assert path.read_bytes() == before
    assert [p.name for p in path.parent.iterdir()] == [path.name]
