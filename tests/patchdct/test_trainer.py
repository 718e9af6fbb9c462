"""What the trainer of detectors evaluates beside box, mask and Boundary AP."""

import inspect
import json
import sys
from types import ModuleType

import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.engine import DefaultTrainer
from detectron2.evaluation import COCOEvaluator, DatasetEvaluators
from detectron2.modeling import GeneralizedRCNNWithTTA
from PIL import Image

from patchdct.trainer import Trainer
from pixelmask.config import load_cfg
from pixelmask.errors import UserError
from pixelmask.files import read_json
from tests.support.models import tiny_cfg, untrained
from tests.support.training import PATCHDCT, metrics_of

GROUPS = ["bbox", "segm", "boundary"]


def detections(folder):
    return read_json(folder / PATCHDCT.test_set / "coco_instances_results.json")


@pytest.mark.slow
def test_test_time_augmentation(trained_patchdct, data_root, tmp_path):
    """With the one size of the test and no flips, it finds what the model finds."""
    weights, augmentation = trained_patchdct / "model_final.pth", ("TEST.AUG.ENABLED", "True")
    one_size = (*augmentation, "TEST.AUG.MIN_SIZES", "(96,)", "TEST.AUG.FLIP", "False")
    results = PATCHDCT.evaluate(tmp_path / "same", weights, *one_size)
    assert list(results) == [*GROUPS, *(f"{group}_TTA" for group in GROUPS)]
    found, expected = (detections(tmp_path / "same" / folder) for folder in ("inference_TTA", "inference"))
    assert [d["score"] for d in found] == pytest.approx([d["score"] for d in expected], abs=1e-5)
    assert sum(d["segmentation"] == e["segmentation"] for d, e in zip(found, expected, strict=True)) > len(found) / 2
    two_sets = f"('{PATCHDCT.test_set}', 'shapes_val_2_96px')"
    results = PATCHDCT.evaluate(
        tmp_path / "flipped", weights, *one_size, "TEST.AUG.FLIP", "True", "DATASETS.TEST", two_sets
    )
    assert all(set(metrics) == {*GROUPS, *(f"{group}_TTA" for group in GROUPS)} for metrics in results.values())
    assert len(results) == 2 and detections(tmp_path / "flipped" / "inference_TTA") != found
    assert metrics_of(trained_patchdct).keys() == set(GROUPS)


@pytest.mark.parametrize("head", ["mask_rcnn", "dct_mask", "two_stage_dct"])
def test_baselines_are_augmented(head):
    cfg = tiny_cfg(head)
    cfg.TEST.AUG.MIN_SIZES = (64, 96)
    model = GeneralizedRCNNWithTTA(cfg, untrained(cfg).eval())
    image = torch.randint(0, 255, (3, 96, 128), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        (output,) = model([{"image": image, "height": 96, "width": 128}])
    assert output["instances"].pred_masks.shape == (5, 96, 128)


def test_what_cannot_be_augmented_is_told_before_it_starts():
    for key, value in (("META_ARCHITECTURE", "PanopticFPN"), ("KEYPOINT_ON", True)):
        cfg = tiny_cfg()
        cfg.TEST.AUG.ENABLED = True
        cfg.MODEL[key] = value
        with pytest.raises(UserError, match="TEST.AUG.ENABLED True is for"):
            Trainer.prepare_datasets(cfg, train=True)


def test_evaluators_are_built_as_stock_code_builds_them(data_root, tmp_path):
    cfg = load_cfg(PATCHDCT.config, [*PATCHDCT.opts, "OUTPUT_DIR", str(tmp_path)])
    Trainer.prepare_datasets(cfg, train=False)
    stock = list(inspect.signature(DefaultTrainer.build_evaluator).parameters)
    assert list(inspect.signature(Trainer.build_evaluator).parameters)[: len(stock)] == stock
    for folder in (None, str(tmp_path / "inference_TTA")):
        evaluator = Trainer.build_evaluator(cfg, PATCHDCT.test_set, output_folder=folder)
        assert isinstance(evaluator, COCOEvaluator)
        assert evaluator._output_dir == (folder or str(tmp_path / "inference" / PATCHDCT.test_set))


@pytest.fixture
def panoptic_set(tmp_path):
    """The name of a panoptic data set of one image, its ground truth in COCO's files."""
    name = f"panoptic_{tmp_path.name}"
    categories = [{"id": 7, "name": "thing", "isthing": 1}, {"id": 9, "name": "stuff", "isthing": 0}]
    content = {"images": [{"id": 1, "file_name": "1.jpg", "height": 96, "width": 96}], "categories": categories}
    box = {"bbox": [10, 10, 30, 30], "area": 900, "iscrowd": 0, "segmentation": [[10, 10, 40, 10, 40, 40, 10, 40]]}
    instances = [{"id": 1, "image_id": 1, "category_id": 7, **box}]
    for file, annotations in (("instances.json", instances), ("panoptic.json", [])):
        (tmp_path / file).write_text(json.dumps({**content, "annotations": annotations}))
    (tmp_path / "truth").mkdir()
    Image.new("RGB", (96, 96)).save(tmp_path / "1.jpg")
    MetadataCatalog.get(name).set(
        evaluator_type="coco_panoptic_seg",
        json_file=str(tmp_path / "instances.json"),
        image_root=str(tmp_path),
        panoptic_json=str(tmp_path / "panoptic.json"),
        panoptic_root=str(tmp_path / "truth"),
        thing_classes=["thing"],
        thing_dataset_id_to_contiguous_id={7: 0},
        stuff_dataset_id_to_contiguous_id={9: 1},
    )
    DatasetCatalog.register(name, lambda: [{"file_name": str(tmp_path / "1.jpg"), "image_id": 1}])
    yield name
    DatasetCatalog.remove(name)
    MetadataCatalog.remove(name)


@pytest.fixture
def panopticapi(monkeypatch):
    """A stand-in for panopticapi, which is in no package index; the files that its evaluation was given."""
    given = []

    def pq_compute(*files, **folders):
        given.append((*files, *folders.values()))
        return {group: {"pq": 0.25, "sq": 0.5, "rq": 0.5, "n": 1} for group in ("All", "Things", "Stuff")}

    for name, member in (("", None), (".utils", lambda ids: ids[..., None].repeat(3, -1).astype("uint8"))):
        module = ModuleType(f"panopticapi{name}")
        module.__spec__ = inspect.importlib.machinery.ModuleSpec(module.__name__, None)
        module.id2rgb = member
        monkeypatch.setitem(sys.modules, module.__name__, module)
    evaluation = ModuleType("panopticapi.evaluation")
    evaluation.pq_compute = pq_compute
    monkeypatch.setitem(sys.modules, "panopticapi.evaluation", evaluation)
    return given


def panoptic_cfg(tmp_path):
    cfg = tiny_cfg(num_classes=1)
    cfg.MODEL.META_ARCHITECTURE = "PanopticFPN"
    cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES = 2
    cfg.MODEL.SEM_SEG_HEAD.CONVS_DIM = 32
    cfg.OUTPUT_DIR = str(tmp_path)
    return cfg


def test_panoptic_quality_stands_beside_ap(panoptic_set, panopticapi, tmp_path):
    cfg = panoptic_cfg(tmp_path)
    evaluator = Trainer.build_evaluator(cfg, panoptic_set)
    assert isinstance(evaluator, DatasetEvaluators)
    evaluator.reset()
    sample = {"file_name": "1.jpg", "image_id": 1, "image": torch.zeros(3, 96, 96), "height": 96, "width": 96}
    with torch.no_grad():
        evaluator.process([sample], untrained(cfg).eval()([sample]))
    results = evaluator.evaluate()
    assert results["panoptic_seg"]["PQ"] == 25 and {"bbox", "segm", "boundary"} < set(results)
    assert panopticapi[0][0] == str(tmp_path / "panoptic.json")


@pytest.mark.parametrize("architecture", ["PanopticFPN", "GeneralizedRCNN"])
def test_missing_panoptic_quality_has_its_reason(panoptic_set, architecture, tmp_path, caplog, monkeypatch):
    monkeypatch.setitem(sys.modules, "panopticapi", None)
    cfg = panoptic_cfg(tmp_path)
    cfg.MODEL.META_ARCHITECTURE = architecture
    with caplog.at_level("WARNING", logger="patchdct"):
        evaluator = Trainer.build_evaluator(cfg, panoptic_set)
    assert isinstance(evaluator, COCOEvaluator)
    reason = "needs panopticapi: pip install" if architecture == "PanopticFPN" else "GeneralizedRCNN segments instances"
    assert f"No panoptic quality (PQ) on {panoptic_set}, AP alone: " in caplog.text and reason in caplog.text
