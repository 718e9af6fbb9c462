"""AP* beside COCO's metrics, data sets of LVIS's, and files that are absent or malformed."""

import json
import logging
import os
from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import load_coco_json, register_lvis_instances
from detectron2.data.datasets.lvis import get_lvis_instances_meta
from detectron2.structures import Boxes, Instances

from patchdct import trainer
from patchdct.data.lvis_format import COCO_ID_OF_NAME
from patchdct.evaluation import COCOWithLVISEvaluator, LVISInstanceEvaluator
from tests.patchdct.test_lvis_eval import (
    CAR,
    CAT,
    DOG,
    LVIS_METRICS,
    METRICS,
    SIZE,
    image,
    lvis_json,
    put,
    square,
    thing,
)
from tests.support.models import tiny_cfg
from tests.support.training import PATCHDCT, metrics_of, records_of

STARRED = ["lvis_v0.5_segm", "lvis_v0.5_boundary", "lvis_v1_segm", "lvis_v1_boundary"]
COCO_CLASS_OF_CARS = 2


@pytest.fixture
def coco_name(tmp_path):
    """A data set of three images, as Detectron2 registers COCO: a car and a cat in each."""
    images = [{**image(number), "file_name": f"{number}.jpg"} for number in (1, 2, 3)]
    things = [thing(square(20 + 20 * c), n, i, iscrowd=0) for n in (1, 2, 3) for c, i in enumerate((CAR, CAT))]
    content = lvis_json(images, things)
    content["categories"] = [{"id": i, "name": name} for name, i in COCO_ID_OF_NAME.items()]
    path = put(tmp_path / "coco.json", content)
    name = "test_lvis_coco"
    DatasetCatalog.register(name, lambda: load_coco_json(str(path), str(tmp_path), name))
    MetadataCatalog.get(name).set(json_file=str(path), image_root=str(tmp_path), evaluator_type="coco")
    DatasetCatalog.get(name)
    yield name
    DatasetCatalog.remove(name)
    MetadataCatalog.remove(name)


def put_cocofied(root, version="v0.5", content=None):
    content = content or lvis_json([image(1), image(2)], [thing(square(20)), thing(square(20), image_id=2)])
    return put(root / f"lvis/lvis_{version}_val_cocofied.json", content)


def outputs(*masks_of_images, class_id=COCO_CLASS_OF_CARS):
    """Detectron2's outputs for images 1, 2, ...: cars of falling scores."""
    for number, masks in enumerate(masks_of_images, start=1):
        instances = Instances(SIZE)
        instances.pred_masks = torch.from_numpy(np.stack(masks))
        instances.pred_boxes = Boxes(torch.tensor([[0.0, 0, 9, 9]] * len(masks)))
        instances.scores = torch.linspace(0.9, 0.5, len(masks))
        instances.pred_classes = torch.full((len(masks),), class_id)
        yield {"image_id": number}, {"instances": instances}


def evaluate(evaluator, *masks_of_images, **kwargs):
    evaluator.reset()
    for inputs, output in outputs(*masks_of_images, **kwargs):
        evaluator.process([inputs], [output])
    return evaluator.evaluate()


def logged():
    return records_of("patchdct.evaluation.lvis", logging.WARNING)


def test_one_evaluation_has_ap_and_its_starred_forms(coco_name, root):
    for version in ("v0.5", "v1"):
        put_cocofied(root, version)
    with logged() as records:
        # COCO wants the cats too, and image 3
        results = evaluate(COCOWithLVISEvaluator(coco_name), [square(21)], [square(21)], [square(50)])
    assert not records
    assert list(results) == ["bbox", "segm", "boundary", *STARRED]
    for name in STARRED:
        assert list(results[name]) == METRICS
        assert results[name]["AP"] == pytest.approx(100 if "segm" in name else 50)
    assert results["segm"]["AP"] < 40


def test_absent_files_cost_a_sentence_and_nothing_else(coco_name, root):
    with logged() as records:
        results = evaluate(COCOWithLVISEvaluator(coco_name), [square(20)])
    assert list(results) == ["bbox", "segm", "boundary"]
    (record,) = records
    message = record.getMessage()
    for text in ("skipped", "lvis_v0.5_val_cocofied.json", "lvis_v1_val_cocofied.json", "prepare_lvis_cocofied.py"):
        assert text in message
    put_cocofied(root, "v1")
    with logged() as records:
        results = evaluate(COCOWithLVISEvaluator(coco_name), [square(20)])
    assert list(results) == ["bbox", "segm", "boundary", "lvis_v1_segm", "lvis_v1_boundary"]
    (record,) = records
    assert "v0.5" in record.getMessage() and "v1" not in record.getMessage()


def with_entry(key, **entries):
    content = lvis_json([image(1)], [thing(square(20))])
    content[key][0].update(entries)
    return content


def test_ground_truth_of_other_categories_or_images_is_no_crash(coco_name, root):
    full = with_entry("categories", id=1230, name="zucchini")
    full["annotations"] = []
    put_cocofied(root, "v0.5", full)
    put_cocofied(root, "v1", lvis_json([image(99)], [thing(square(20), image_id=99)]))
    with logged() as records:
        results = evaluate(COCOWithLVISEvaluator(coco_name), [square(20)])
    assert list(results) == ["bbox", "segm", "boundary"]
    assert [record.levelno for record in records] == [logging.ERROR] * 2
    assert "category 1230 (zucchini), which is not COCO's" in records[0].getMessage()
    assert "none of the images" in records[1].getMessage()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("", "is not valid JSON"),
        ('{"images": [', "is not valid JSON"),
        ("[]", "it holds a list"),
        ({"images": [], "categories": []}, "it has no 'annotations'"),
        (
            with_entry("images", neg_category_ids=None),
            "image 1 has the neg_category_ids None, not a list of categories' ids",
        ),
        (with_entry("images", not_exhaustive_category_ids=[5]), "not_exhaustive_category_ids that are no category's"),
        (with_entry("images", height=0), "image 1 has the height 0, not a whole number of pixels"),
        (with_entry("images", id="1"), "image 1 has the id '1', not a whole number"),
        (with_entry("categories", frequency=None), "has the frequency None, not one of r, c, f"),
        (with_entry("annotations", image_id=5), "annotation 1 has the image_id 5"),
        (with_entry("annotations", category_id=5), "annotation 1 has the category_id 5"),
        (with_entry("annotations", area=None), "annotation 1 has the area None, not a number"),
        (with_entry("annotations", segmentation=[]), "annotation 1 has no mask"),
        (with_entry("annotations", segmentation={"size": SIZE}), "annotation 1 has a segmentation that is neither"),
        (with_entry("annotations", segmentation={"size": [3, 3], "counts": "09"}), "annotation 1 has the size [3, 3]"),
    ],
)
def test_a_malformed_file_does_not_lose_cocos_metrics(coco_name, root, content, words):
    path = root / "lvis/lvis_v0.5_val_cocofied.json"
    put(path, content)
    put_cocofied(root, "v1")
    with logged() as records:
        results = evaluate(COCOWithLVISEvaluator(coco_name), [square(20)])
    assert list(results) == ["bbox", "segm", "boundary", "lvis_v1_segm", "lvis_v1_boundary"]
    assert results["segm"]["AP"] > 15
    (record,) = records
    assert record.levelno == logging.ERROR and "\n" not in record.getMessage()
    assert str(path) in record.getMessage() and words in record.getMessage()


def test_a_model_of_boxes_alone_or_without_detections(coco_name, root):
    with logged() as records:
        assert list(evaluate(COCOWithLVISEvaluator(coco_name, ["bbox"]), [square(20)])) == ["bbox"]
    assert not records
    put_cocofied(root)
    evaluator = COCOWithLVISEvaluator(coco_name)
    evaluator.reset()
    evaluator.process([{"image_id": 1}], [{"instances": next(outputs([square(0)]))[1]["instances"][:0]}])
    results = evaluator.evaluate()
    assert np.isnan(results["lvis_v0.5_boundary"]["AP"]) and np.isnan(results["segm"]["AP"])


def evaluate_half(rank, name, folder):
    torch.set_num_threads(1)
    store = f"file://{folder}/store"
    torch.distributed.init_process_group("gloo", init_method=store, rank=rank, world_size=2)
    evaluator = COCOWithLVISEvaluator(name, output_dir=str(folder))
    evaluator.reset()
    for inputs, output in list(outputs([square(21)], [square(22)], [square(50)]))[rank::2]:
        evaluator.process([inputs], [output])
    (folder / f"{rank}.json").write_text(json.dumps(evaluator.evaluate()))
    torch.distributed.destroy_process_group()


def test_two_processes_equal_one(coco_name, root):
    put_cocofied(root)
    expected = evaluate(COCOWithLVISEvaluator(coco_name), [square(21)], [square(22)], [square(50)])
    torch.multiprocessing.start_processes(evaluate_half, (coco_name, root), nprocs=2, start_method="fork")
    results = json.loads((root / "0.json").read_text())
    assert list(results) == list(expected)
    assert results["lvis_v0.5_boundary"] == pytest.approx(expected["lvis_v0.5_boundary"], nan_ok=True)
    assert json.loads((root / "1.json").read_text()) == {}


@pytest.fixture
def lvis_name(root):
    """Register an LVIS file as Detectron2 does."""
    names = []

    def register(name, content):
        path = put(root / f"{name}.json", content)
        metadata = get_lvis_instances_meta(name)
        register_lvis_instances(name, metadata, str(path), f"{root}/")
        names.append(name)
        return name

    yield register
    for name in names:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


def test_sets_of_lvis_in_their_own_right(lvis_name, root):
    name = lvis_name("test_v0.5_val_cocofied", lvis_json([image(1)], [thing(square(20))]))
    results = evaluate(LVISInstanceEvaluator(name, output_dir=str(root)), [square(21)])
    assert list(results) == ["bbox", "segm", "boundary"]
    assert [results[task]["AP"] for task in ("segm", "boundary")] == pytest.approx([100, 50])
    (result,) = json.loads((root / "coco_instances_results.json").read_text())
    assert result["category_id"] == CAR
    assert list(evaluate(LVISInstanceEvaluator(name, ["segm"]), [square(21)])) == ["segm"]
    content = lvis_json([image(1)], [thing(square(20), category_id=CAT)])
    name = lvis_name("test_lvis_v1_val", content)
    results = evaluate(LVISInstanceEvaluator(name), [square(20)], class_id=CAT - 1)  # numbered from one
    assert results["segm"]["AP"] == pytest.approx(100)


@pytest.fixture
def pictured(lvis_name, root):
    """Register an LVIS file of two images, which are there, with a square of one category in each."""

    def register(name, category_id=CAR):
        polygon = [[30.0, 30, 80, 30, 80, 80, 30, 80]]
        things = [{**thing(square(20), n, category_id), "segmentation": polygon} for n in (1, 2)]
        (root / "val2017").mkdir(exist_ok=True)
        for number in (1, 2):
            cv2.imwrite(str(root / f"val2017/{number:012d}.jpg"), np.full((*SIZE, 3), 120, np.uint8))
        return lvis_name(name, lvis_json([image(1), image(2)], things))

    return register


def test_a_set_of_lvis_is_evaluated_by_the_trainer(pictured, root):
    cfg = tiny_cfg(num_classes=80)
    cfg.DATASETS.TEST = (pictured("test_lvis_v0.5_val_cocofied"),)
    cfg.OUTPUT_DIR = str(root / "output")
    cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST = 0.0
    os.makedirs(cfg.OUTPUT_DIR)
    trainer.Trainer.prepare_datasets(cfg, train=False)
    trainer.Trainer.test(cfg, trainer.Trainer.build_model(cfg))
    results = metrics_of(root / "output")
    assert list(results) == ["bbox", "segm", "boundary"]
    assert list(results["boundary"]) == LVIS_METRICS


def test_lvis_v1_trains_and_is_evaluated_with_its_1203_categories(pictured, root):
    name = pictured("test_lvis_v1", DOG)
    model = replace(PATCHDCT, config="configs/patchdct/lvis/patchdct_R_50_FPN_1x_lvis_v1.yaml")
    model.run(
        *("MODEL.DEVICE", "cpu", "MODEL.WEIGHTS", "", "MODEL.BACKBONE.NAME", "build_narrow_resnet_fpn_backbone"),
        *("MODEL.RESNETS.NORM", "BN", "DATASETS.TRAIN", (name,), "DATASETS.TEST", (name,), "SOLVER.MAX_ITER", 1),
        *("MODEL.RPN.POST_NMS_TOPK_TEST", 2, "DATALOADER.NUM_WORKERS", 0, "OUTPUT_DIR", root / "output"),
    )
    weights = torch.load(root / "output/model_final.pth")["model"]
    assert weights["roi_heads.mask_head.predictor_bfg.weight"].shape[0] == 3 * 1203
    results = metrics_of(root / "output")
    for task in ("bbox", "segm", "boundary"):
        assert list(results[task]) == LVIS_METRICS
        assert results[task]["APr"] >= 0 and np.isnan([results[task][metric] for metric in ("APc", "APf")]).all()


def test_the_trainer_chooses_the_evaluator(monkeypatch, lvis_name, coco_name):
    calls = []
    for name in ("COCOInstanceEvaluator", "COCOWithLVISEvaluator", "LVISInstanceEvaluator"):
        monkeypatch.setattr(trainer, name, lambda dataset, *_, _name=name, **__: calls.append((dataset, _name)))
    lvis_name("test_v1_val_cocofied", lvis_json([], []))
    names = ["coco_2017_val", "coco_2017_train", coco_name, "lvis_v0.5_val_cocofied", "test_v1_val_cocofied"]
    for name in names:
        trainer.Trainer.build_evaluator(tiny_cfg(), name)
    coco, lvis = "COCOInstanceEvaluator", "LVISInstanceEvaluator"
    assert calls == list(zip(names, ["COCOWithLVISEvaluator", coco, coco, lvis, lvis], strict=True))
