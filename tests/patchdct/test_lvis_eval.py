"""LVIS's protocol with masks and boundaries: the library, the definition and hand-computed cases as oracles."""

import json

import cv2
import numpy as np
import pytest
from lvis import LVIS, LVISEval, LVISResults
from pycocotools import mask as mask_util

from patchdct.data.lvis_format import COCO_ID_OF_NAME, COCO_NAME_OF_SYNSET, cocofied_file
from patchdct.evaluation.lvis_eval import Truth, evaluate_lvis
from pixelmask.errors import UserError
from tests.pixelmask.test_boundary import by_definition
from tests.pixelmask.test_evaluation import annotate, blob, jitter
from tests.support.models import load_tool

METRICS = ["AP", "AP50", "AP75", "APs", "APm", "APl"]
LVIS_METRICS = [*METRICS, "APr", "APc", "APf"]
SIZE = (100, 100)  # its boundaries are 3 pixels wide
CAR, CAT, DOG = 3, 17, 18
FREQUENCIES = {CAR: "f", CAT: "c", DOG: "r"}


def square(left, top=20, side=40):
    mask = np.zeros(SIZE, bool)
    mask[top : top + side, left : left + side] = True
    return mask


def image(number, size=SIZE, negative=(), incomplete=()):
    return {
        "id": number,
        "height": size[0],
        "width": size[1],
        "coco_url": f"http://images.cocodataset.org/val2017/{number:012d}.jpg",
        "neg_category_ids": list(negative),
        "not_exhaustive_category_ids": list(incomplete),
    }


def lvis_json(images, annotations):
    synsets = {COCO_ID_OF_NAME[name]: synset for synset, name in COCO_NAME_OF_SYNSET.items()}
    categories = [
        {"id": i, "name": f"class {i}", "synset": synsets[i], "frequency": FREQUENCIES[i]} for i in FREQUENCIES
    ]
    annotations = [{**annotation, "id": number} for number, annotation in enumerate(annotations, start=1)]
    return {"images": images, "annotations": annotations, "categories": categories}


def thing(mask, image_id=1, category_id=CAR, **entries):
    return annotate(mask, image_id=image_id, category_id=category_id, **entries)


def found(mask, score, image_id=1, category_id=CAR):
    return thing(mask, image_id, category_id, score=score)


def put(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


@pytest.fixture
def figures(tmp_path):
    """Evaluate results against an LVIS JSON."""

    def evaluate(content, results, task, image_ids=None):
        truth = Truth(put(tmp_path / "truth.json", content))
        return evaluate_lvis(truth, results, task, truth.get_img_ids() if image_ids is None else image_ids)

    return evaluate


def random_case(seed=0, num_images=8):
    rng = np.random.default_rng(seed)
    images, annotations, results = [], [], []
    for number in range(1, num_images + 1):
        size = [(120, 160), (5, 130), (90, 90), (200, 200)][number % 4]
        negative, incomplete = ([c for c in (CAR, CAT, DOG) if rng.random() < 0.4] for _ in range(2))
        images.append(image(number, size, negative, incomplete))
        for _ in range(4):
            mask, category = blob(rng, *size), int(rng.choice([CAR, CAT, DOG]))
            if mask.sum() < 4:
                continue
            annotations.append(thing(mask, number, category))
            results += [found(jitter(rng, mask), rng.random(), number, category)]
            results += [found(blob(rng, *size), rng.random(), number, int(rng.choice([CAR, CAT, DOG])))]
    return lvis_json(images, annotations), results


class ByDefinition(LVISEval):
    """LVIS's evaluation whose IoU is that of Boundary AP, every pair from its definition."""

    def compute_iou(self, img_id, cat_id):
        objects, detections = self._get_gt_dt(img_id, cat_id)
        if not objects or not detections:
            return []
        masks = [
            [mask_util.decode(x["segmentation"]).astype(bool) for x in group]
            for group in (sorted(detections, key=lambda d: -d["score"]), objects)
        ]
        return np.array([[self.overlap(a, b) for b in masks[1]] for a in masks[0]])

    @staticmethod
    def overlap(a, b):
        mask_iou = (a & b).sum() / max((a | b).sum(), 1)
        a, b = by_definition(a), by_definition(b)
        return min(mask_iou, (a & b).sum() / max((a | b).sum(), 1))


@pytest.mark.parametrize("task", ["bbox", "segm", "boundary"])
def test_equals_the_lvis_package(figures, tmp_path, monkeypatch, task):
    content, results = random_case()
    ours = figures(content, results, task)
    monkeypatch.setattr(np, "float", float, raising=False)  # lvis 0.5.3 is older than numpy 1.24
    truth = LVIS(str(tmp_path / "truth.json"))
    drop = "segmentation" if task == "bbox" else "bbox"
    detections = LVISResults(truth, [{k: v for k, v in r.items() if k not in (drop, "area")} for r in results])
    oracle = (ByDefinition if task == "boundary" else LVISEval)(truth, detections, "bbox" if task == "bbox" else "segm")
    oracle.run()
    assert list(ours) == LVIS_METRICS
    assert {metric: -100 if np.isnan(value) else value for metric, value in ours.items()} == {
        metric: 100 * oracle.results[metric] for metric in LVIS_METRICS
    }
    assert all(5 < ours[metric] < 95 for metric in ("AP", "APr", "APc", "APf"))
    assert all(type(value) is float for value in ours.values())


def test_a_square_off_by_one_pixel(figures):
    """Masks: 39 x 40 of 41 x 40 pixels, 0.951. Boundaries, 40^2 - 34^2 each: 39 x 40 - 35 x 34 = 370 of 518, 0.714."""
    content = lvis_json([image(1)], [thing(square(20))])
    results = [found(square(21), 0.9)]
    nan = np.nan
    known = {"segm": (100, 100, 100, nan, 100, nan), "boundary": (50, 100, 0, nan, 50, nan)}
    for task, values in known.items():
        expected = dict(zip(LVIS_METRICS, (*values, nan, nan, values[0]), strict=True))
        assert figures(content, results, task) == pytest.approx(expected, nan_ok=True)


def test_a_square_without_its_interior(figures):
    """Its boundary is perfect, 204 pixels, but its mask IoU is 204 of 400, 0.51, and the smaller counts."""
    ring = by_definition(square(20, side=20))
    metrics = figures(lvis_json([image(1)], [thing(square(20, side=20))]), [found(ring, 0.9)], "boundary")
    assert [metrics[metric] for metric in ("AP", "AP50", "AP75")] == pytest.approx([10, 100, 0])


@pytest.mark.parametrize("task", ["segm", "boundary"])
@pytest.mark.parametrize(
    ("second", "expected"),
    [
        (image(2), 100),  # nobody looked for cars there
        (image(2, negative=[CAR]), 50),  # there is none: a false positive above the true one
        (image(2, negative=[CAR], incomplete=[CAR]), 100),
        (image(2, negative=[CAT]), 100),
    ],
)
def test_annotations_are_federated(figures, second, expected, task):
    content = lvis_json([image(1), second], [thing(square(20))])
    results = [found(square(20), 0.5), found(square(40), 0.9, image_id=2)]
    assert figures(content, results, task)["AP"] == pytest.approx(expected)


def test_unmatched_detections_where_annotation_is_not_exhaustive(figures):
    results = [found(square(20), 0.5), found(square(60), 0.9)]
    assert figures(lvis_json([image(1)], [thing(square(20))]), results, "boundary")["AP"] == pytest.approx(50)
    content = lvis_json([image(1, incomplete=[CAR])], [thing(square(20))])
    assert figures(content, results, "boundary")["AP"] == pytest.approx(100)


@pytest.mark.parametrize(("better", "expected"), [(299, 100 / 300), (300, 0)])
def test_an_image_has_three_hundred_detections(figures, better, expected):
    content = lvis_json([image(1)], [thing(square(20))])
    results = [found(square(60), 0.9)] * better + [found(square(20), 0.5)]
    assert figures(content, results, "boundary")["AP"] == pytest.approx(expected)


def test_only_images_that_both_have(figures):
    content = lvis_json([image(1), image(2)], [thing(square(20)), thing(square(20), image_id=2)])
    results = [found(square(20), 0.9), found(square(20), 0.9, image_id=7)]
    assert figures(content, results, "segm", [1, 7])["AP"] == pytest.approx(100)
    assert figures(content, results, "segm")["AP"] < 60  # nothing is found in image 2
    with pytest.raises(UserError, match="none of the images"):
        figures(content, results, "segm", [7])


def test_nothing_found_or_nothing_true(figures):
    content = lvis_json([image(1)], [thing(square(20))])
    assert all(np.isnan(value) for value in figures(content, [], "boundary").values())
    assert figures(content, [found(square(60), 0.9)], "boundary")["AP"] == 0
    nothing = lvis_json([image(1, negative=[CAR])], [])
    assert all(np.isnan(value) for value in figures(nothing, [found(square(60), 0.9)], "boundary").values())


def test_polygons_that_make_no_mask(figures):
    content = lvis_json([image(1)], [{**thing(square(20)), "segmentation": [[1.0, 2.0, "x"]]}])
    with pytest.raises(UserError, match="annotation 1 has a polygon of 3 coordinates"):
        figures(content, [], "segm")


def shrunk(rle, side=28):
    """The mask after it has passed through side x side pixels in its box, as a box-frame mask does."""
    left, top, width, height = (int(v) for v in mask_util.toBbox(rle))
    pixels = mask_util.decode(rle)
    box = pixels[top : top + height, left : left + width].astype(np.float32)
    small = cv2.resize(box, (side, side), interpolation=cv2.INTER_AREA)
    pixels[top : top + height, left : left + width] = cv2.resize(small, (width, height)) >= 0.5
    return mask_util.encode(pixels)


def test_real_annotations(tmp_path, real_data):
    script = load_tool("../datasets/prepare_lvis_cocofied")
    source = real_data / "lvis/lvis_v0.5_val_100.json"
    script.main([str(source), "--output", str(tmp_path)])
    truth = Truth(cocofied_file(tmp_path / source.name))
    results = [
        {"score": 1.0, **{key: annotation[key] for key in ("image_id", "category_id", "segmentation")}}
        for annotation in truth.anns.values()
    ]
    images = truth.get_img_ids()[:30]
    perfect = {task: evaluate_lvis(truth, results, task, images, METRICS) for task in ("segm", "boundary")}
    assert all(value == pytest.approx(100) for metrics in perfect.values() for value in metrics.values())
    degraded = [{**result, "segmentation": shrunk(result["segmentation"])} for result in results]
    segm, boundary = (evaluate_lvis(truth, degraded, task, images)["AP"] for task in ("segm", "boundary"))
    assert 50 < boundary < segm - 1 < 99
