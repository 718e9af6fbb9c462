import contextlib
import copy
import io
import json
import re

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import load_coco_json
from detectron2.evaluation import COCOEvaluator
from detectron2.structures import Boxes, Instances
from pycocotools import mask as mask_util
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from pixelmask.evaluation import COCOInstanceEvaluator
from tests.pixelmask.test_boundary import by_definition
from tests.support.training import records_of

METRICS = ["AP", "AP50", "AP75", "APs", "APm", "APl"]
CATEGORY_IDS = [3, 7, 20]
# One is not higher than twice its boundary's width, one has a width of 1.5 pixels before rounding
SIZES = [(120, 160), (160, 120), (5, 130), (45, 60), (200, 200), (90, 90)]


def blob(rng, height, width):
    """An ellipse somewhere in the image, with a hole now and then."""
    y, x = np.ogrid[:height, :width]
    center = rng.random(2) * (height, width)
    axes = (0.05 + 0.3 * rng.random(2)) * (height, width) + 1
    distance = ((y - center[0]) / axes[0]) ** 2 + ((x - center[1]) / axes[1]) ** 2
    return (distance <= 1) & ((distance > 0.1) | (rng.random() < 0.7))


def jitter(rng, mask):
    shifted = np.roll(mask, rng.integers(-1, 2, 2), axis=(0, 1))
    shifted[rng.random(mask.shape) < 0.0005] = False
    return shifted


def annotate(mask, **entries):
    rle = mask_util.encode(np.asfortranarray(mask, dtype=np.uint8))
    box = [float(v) for v in mask_util.toBbox(rle)]
    area = float(mask_util.area(rle))
    rle["counts"] = rle["counts"].decode()
    return {"segmentation": rle, "bbox": box, "area": area, "iscrowd": 0, **entries}


def make_truth(seed=0, num_images=12):
    """A COCO JSON of random masks, with a crowd region in every fourth image."""
    rng = np.random.default_rng(seed)
    images, annotations = [], []
    for index in range(num_images):
        height, width = SIZES[index % len(SIZES)]
        images.append({"id": 100 - index, "file_name": f"{index}.png", "height": height, "width": width})
        for number in range(5):
            mask = blob(rng, height, width)
            if mask.sum() < 4:
                continue
            crowd = int(index % 4 == 1 and number == 0)
            annotations.append(
                annotate(mask, image_id=100 - index, category_id=CATEGORY_IDS[number % 3], iscrowd=crowd)
            )
            annotations[-1]["id"] = len(annotations)
    categories = [{"id": i, "name": f"class {i}"} for i in CATEGORY_IDS]
    return {"images": images, "annotations": annotations, "categories": categories}


def make_detections(truth, seed=0, masks=True):
    """Detectron2's outputs by image id: jittered ground truth and some blobs; none in the last image."""
    rng = np.random.default_rng(seed)
    outputs = {}
    for index, image in enumerate(truth["images"]):
        found, classes = [], []
        for annotation in truth["annotations"]:
            if annotation["image_id"] == image["id"] and index < len(truth["images"]) - 1:
                found += [jitter(rng, mask_util.decode(annotation["segmentation"]).astype(bool))]
                found += [blob(rng, image["height"], image["width"])]
                classes += [CATEGORY_IDS.index(annotation["category_id"])] * 2
        instances = Instances((image["height"], image["width"]))
        rles = [mask_util.encode(np.asfortranarray(mask, dtype=np.uint8)) for mask in found]
        boxes = np.array([mask_util.toBbox(rle) for rle in rles]).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        instances.pred_boxes = Boxes(torch.tensor(boxes, dtype=torch.float32))
        instances.scores = torch.from_numpy(rng.random(len(found)))
        instances.pred_classes = torch.tensor(classes, dtype=torch.int64)
        if masks:
            shape = (0, image["height"], image["width"])
            instances.pred_masks = torch.from_numpy(np.stack(found)) if found else torch.zeros(shape, dtype=torch.bool)
        outputs[image["id"]] = instances
    return outputs


@pytest.fixture
def register(tmp_path):
    """Register a COCO JSON as Detectron2 does, and give its name."""
    names = []

    def registered(truth, classes=True):
        name = f"test_evaluation_{len(names)}"
        json_file = tmp_path / f"{name}.json"
        json_file.write_text(json.dumps(truth))
        DatasetCatalog.register(name, lambda: load_coco_json(str(json_file), str(tmp_path), name))
        names.append(name)
        MetadataCatalog.get(name).set(json_file=str(json_file), image_root=str(tmp_path), evaluator_type="coco")
        if classes:
            DatasetCatalog.get(name)  # fills in the classes
        return name

    yield registered
    for name in names:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


def evaluate(evaluator, outputs, **kwargs):
    evaluator.reset()
    for image_id, instances in outputs.items():
        evaluator.process([{"image_id": image_id}], [{"instances": instances}])
    with contextlib.redirect_stdout(io.StringIO()):
        return evaluator.evaluate(**kwargs)


def assert_same(results, expected):
    assert list(results) == list(expected)
    for task, metrics in expected.items():
        assert results[task] == pytest.approx(metrics, rel=1e-9, nan_ok=True)


def logged():
    """Records of Detectron2's evaluator, which this one logs as."""
    return records_of("detectron2.evaluation.coco_evaluation")


def messages_of(records):
    return [record.getMessage() for record in records]


def summary(records, task):
    """The twelve numbers of COCO's summary, as printed."""
    text = next(message for message in messages_of(records) if message.startswith(f"Summary of {task}"))
    return re.findall(r"= (-?\d\.\d{3})", text)[:12]


class BoundaryReference(COCOeval):
    """pycocotools' evaluation with the IoU of Boundary AP, mask by mask from its definition."""

    def computeIoU(self, imgId, catId):
        ious = super().computeIoU(imgId, catId)
        if len(ious) == 0:
            return ious
        truths = self._gts[imgId, catId]
        detections = sorted(self._dts[imgId, catId], key=lambda d: -d["score"])
        for j, truth in enumerate(truths):
            for i, detection in enumerate(detections):
                if not truth["iscrowd"]:
                    a, b = (by_definition(mask_util.decode(x["segmentation"])) for x in (truth, detection))
                    ious[i, j] = min(ious[i, j], (a & b).sum() / max((a | b).sum(), 1))
        return ious


def reference(truth, results, evaluation, task):
    """pycocotools' numbers for results in COCO format, a mask's area being its own."""
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = copy.deepcopy(truth)
        coco.createIndex()
        drop = "segmentation" if task == "bbox" else "bbox"
        detections = coco.loadRes([{k: v for k, v in result.items() if k != drop} for result in results])
        reference = evaluation(coco, detections, task)
        reference.evaluate()
        reference.accumulate()
        reference.summarize()
    return reference.stats


def as_metrics(stats):
    return [100 * value if value >= 0 else float("nan") for value in stats[:6]]


def test_equals_detectron2_and_pycocotools(register, tmp_path):
    truth = make_truth()
    outputs = make_detections(truth)
    name = register(truth)
    with logged() as records:
        ours = evaluate(COCOInstanceEvaluator(name, output_dir=str(tmp_path)), outputs)
    theirs = evaluate(COCOEvaluator(name, ("bbox", "segm"), use_fast_impl=False), outputs)
    assert list(ours) == ["bbox", "segm", "boundary"]
    assert list(ours["segm"]) == [*METRICS, *(f"AP-class {i}" for i in CATEGORY_IDS)]
    results = json.loads((tmp_path / "coco_instances_results.json").read_text())
    assert_same({task: ours[task] for task in theirs}, theirs)
    for task in ("bbox", "segm"):
        assert 10 < ours[task]["AP"] < 90
        assert summary(records, task) == [f"{value:.3f}" for value in reference(truth, results, COCOeval, task)]
    assert any(message.startswith("Evaluation results for boundary:") for message in messages_of(records))


def test_boundary_ap_follows_the_definition(register, tmp_path):
    truth = make_truth(seed=1)
    ours = evaluate(COCOInstanceEvaluator(register(truth), output_dir=str(tmp_path)), make_detections(truth, seed=1))
    results = json.loads((tmp_path / "coco_instances_results.json").read_text())
    expected = reference(truth, results, BoundaryReference, "segm")
    assert [ours["boundary"][metric] for metric in METRICS] == pytest.approx(as_metrics(expected), nan_ok=True)
    assert 10 < ours["boundary"]["AP"] < ours["segm"]["AP"] - 5


@pytest.mark.parametrize("task", ["segm", "bbox"])
def test_official_numbers(register, task, real_data):
    root = real_data / "coco_eval"
    truth = json.loads((root / "instances_val2014_100.json").read_text())
    results = json.loads((root / f"instances_val2014_fake{task}100_results.json").read_text())
    name = register(truth)
    contiguous = MetadataCatalog.get(name).thing_dataset_id_to_contiguous_id
    evaluator = COCOInstanceEvaluator(name, [task])
    evaluator.reset()
    evaluator._predictions = [
        {"image_id": result["image_id"], "instances": [{**result, "category_id": contiguous[result["category_id"]]}]}
        for result in results
    ]
    with logged() as records:
        metrics = evaluator.evaluate()[task]
    stats = reference(truth, results, COCOeval, task)
    assert [metrics[metric] for metric in METRICS] == pytest.approx(as_metrics(stats), rel=1e-9)
    published = (root / "val2014_fake_eval_res.txt").read_text().partition(f"type={task}")[2]
    assert summary(records, task) == re.findall(r"= (\d\.\d{3})", published)[:12]


def test_no_detections_or_annotations_at_all(register, tmp_path):
    truth = make_truth(num_images=2)
    empty = {image_id: instances[:0] for image_id, instances in make_detections(truth).items()}
    with logged() as records:
        results = evaluate(COCOInstanceEvaluator(register(truth), output_dir=str(tmp_path)), empty)
    assert list(results) == ["bbox", "segm", "boundary"]
    assert all(np.isnan(results[task][metric]) for task in results for metric in METRICS)
    assert "No predictions from the model!" in messages_of(records)
    assert json.loads((tmp_path / "coco_instances_results.json").read_text()) == []
    outputs = make_detections(truth)
    results = evaluate(COCOInstanceEvaluator(register({**truth, "annotations": []})), outputs)
    assert all(np.isnan(results[task][metric]) for task in ("bbox", "segm", "boundary") for metric in METRICS)


def test_ground_truth_or_model_without_masks(register):
    truth = make_truth(num_images=4)
    assert list(evaluate(COCOInstanceEvaluator(register(truth)), make_detections(truth, masks=False))) == ["bbox"]
    outputs = make_detections(truth)
    del truth["annotations"][1]["segmentation"]
    with logged() as records:
        assert list(evaluate(COCOInstanceEvaluator(register(truth)), outputs)) == ["bbox"]
    assert any(message.startswith("1 of ") and "have no mask" in message for message in messages_of(records))


def test_ground_truth_of_a_test_set(register, tmp_path):
    truth = make_truth(num_images=3)
    outputs = make_detections(truth)
    del truth["annotations"]
    with logged() as records:
        assert evaluate(COCOInstanceEvaluator(register(truth), output_dir=str(tmp_path)), outputs) == {}
    assert "Annotations are not available for evaluation." in messages_of(records)
    results = json.loads((tmp_path / "coco_instances_results.json").read_text())
    assert {result["category_id"] for result in results} == set(CATEGORY_IDS)


def test_ids_and_missing_entries_do_not_matter(register):
    truth = make_truth()
    outputs = make_detections(truth)
    expected = evaluate(COCOInstanceEvaluator(register(truth)), outputs)
    plain = copy.deepcopy(truth)
    for annotation in plain["annotations"]:
        annotation["id"] -= 1
        del annotation["area"]
        if not annotation["iscrowd"]:
            del annotation["iscrowd"]
    assert_same(evaluate(COCOInstanceEvaluator(register(plain)), outputs), expected)
    # Detectron2's conversion of Cityscapes has file names for image ids
    for entry in plain["images"]:
        entry["id"] = f"image {entry['id']}"
    for annotation in plain["annotations"]:
        annotation["image_id"] = f"image {annotation['image_id']}"
    named = {f"image {image_id}": instances for image_id, instances in outputs.items()}
    assert_same(evaluate(COCOInstanceEvaluator(register(plain)), named), expected)


def test_images_can_be_chosen(register):
    truth = make_truth()
    outputs = make_detections(truth)
    chosen = [image["id"] for image in truth["images"][:6]]
    part = {**truth, "images": truth["images"][:6]}
    part["annotations"] = [a for a in truth["annotations"] if a["image_id"] in chosen]
    expected = evaluate(COCOInstanceEvaluator(register(part)), {i: outputs[i] for i in chosen})
    assert_same(evaluate(COCOInstanceEvaluator(register(truth)), outputs, img_ids=chosen), expected)


def test_detections_in_a_crowd_region_are_ignored(register):
    truth = make_truth(num_images=1)
    region, thing, inside = np.zeros((3, *SIZES[0]), bool)
    region[:40, :60] = thing[60:110, 60:120] = inside[5:15, 5:15] = True
    common = {"image_id": 100, "category_id": CATEGORY_IDS[0]}
    truth["annotations"] = [annotate(region, **common, id=1, iscrowd=1), annotate(thing, **common, id=2)]
    instances = Instances(SIZES[0])
    instances.pred_boxes = Boxes(torch.tensor([[5.0, 5, 15, 15], [60, 60, 120, 110]]))
    instances.scores = torch.tensor([0.9, 0.5])
    instances.pred_classes = torch.tensor([0, 0])
    instances.pred_masks = torch.from_numpy(np.stack([inside, thing]))
    results = evaluate(COCOInstanceEvaluator(register(truth)), {100: instances})
    expected = {"bbox": 100, "segm": 100, "boundary": 100}
    assert {task: metrics["AP"] for task, metrics in results.items()} == pytest.approx(expected)


def test_unknown_task(register):
    with pytest.raises(ValueError, match="keypoints"):
        COCOInstanceEvaluator(register(make_truth(num_images=1)), ["keypoints"])


def evaluate_half(rank, name, folder):
    torch.set_num_threads(1)
    store = f"file://{folder}/store"
    torch.distributed.init_process_group("gloo", init_method=store, rank=rank, world_size=2)
    outputs = make_detections(make_truth())
    half = {image_id: outputs[image_id] for image_id in list(outputs)[rank::2]}
    results = evaluate(COCOInstanceEvaluator(name, output_dir=str(folder)), half)
    (folder / f"{rank}.json").write_text(json.dumps(results))
    torch.distributed.destroy_process_group()


def test_two_processes_equal_one(register, tmp_path):
    truth = make_truth()
    name = register(truth)
    expected = evaluate(COCOInstanceEvaluator(name), make_detections(truth))
    torch.multiprocessing.start_processes(evaluate_half, (name, tmp_path), nprocs=2, start_method="fork")
    assert_same(json.loads((tmp_path / "0.json").read_text()), expected)
    assert json.loads((tmp_path / "1.json").read_text()) == {}
