"""Instances refined in crops: what is shown to the network, what comes back, and what stays exactly as it was."""

import copy
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.structures import Boxes, Instances
from pycocotools import mask as mask_util
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from airm.evaluation.metrics import mean_boundary_accuracy
from airm.guard import GUARD, Guard
from airm.instances.crops import InstanceRefiner, RefinedPredictor, find_window
from airm.instances.evaluation import compare_instances
from airm.instances.work import read_truth
from airm.refiner import Refiner
from pixelmask.data.coco_file import CocoFile, check_results
from pixelmask.errors import UserError
from pixelmask.rle import decode, encode
from tests.support.models import disc

H, W = 150, 180
IMAGE = np.random.default_rng(0).integers(0, 255, (H, W, 3), np.uint8)


class FakeRefiner:
    """Stands for a Refiner: ``change`` is what becomes of a crop's mask; keeps the crops that it saw."""

    max_memory = resolution = None

    def __init__(self, change=lambda mask: mask, guard: Guard | None = None):
        self.change, self.guard, self.crops = change, guard, []

    def refine_unguarded(self, pixels, coarse):
        assert coarse.dtype == np.float32 and coarse.shape == (1, *pixels.shape[:2])
        self.crops.append(pixels)
        return self.change(coarse[0]).astype(np.float32)[None]


def in_crops(change=lambda mask: mask, guard: Guard | None = None, **options) -> InstanceRefiner:
    """By default without guard, and all masks at their own size."""
    options = {"min_side": 0, "min_area": 0, **options}
    return InstanceRefiner(FakeRefiner(change, guard), batch_size=1, **options)


@pytest.fixture(scope="module")
def refiner(weights) -> Refiner:
    return Refiner(weights, guard=None)


def result(mask: np.ndarray, **fields) -> dict:
    return {"image_id": 3, "category_id": 1, "score": 0.5, "segmentation": encode(mask), **fields}


def several() -> list[dict]:
    """Results of all kinds: discs, at the border, in two parts, odd RLE, empty, full, and fields of one's own."""
    parts = disc(H, W, (20, 20), 9).numpy() | disc(H, W, (150, 120), 14).numpy()
    odd = encode(np.ones((H, W), bool))
    odd["counts"] += "0"  # a run of no pixels, which an encoder of today would leave out
    return [
        result(disc(H, W, (60, 70), 20).numpy(), score=0.25, id="a", bbox=[1, 2, 3, 4], note={"own": [1]}),
        result(disc(H, W, (0, H), 25).numpy(), score=0.75),
        result(parts, score=0.5),
        result(np.zeros((H, W), bool), score=0.1),
        result(np.ones((H, W), bool), score=0.9),
        {**result(parts), "segmentation": odd},
    ]


def test_a_refinement_that_changes_nothing_returns_identical_results():
    results = several()
    before = copy.deepcopy(results)
    outcome = in_crops().refine_results(IMAGE, results)
    assert json.dumps(outcome.results) == json.dumps(before) == json.dumps(results)
    assert (outcome.refined, outcome.changed, outcome.emptied, outcome.faults) == (5, 0, 0, [])
    # But polygons become RLE
    (answer,) = in_crops().refine_results(IMAGE, [{"segmentation": [[40, 30, 80, 30, 80, 70, 40, 70]]}]).results
    assert decode(answer["segmentation"])[30:70, 40:80].all() and decode(answer["segmentation"]).sum() == 1600


def test_changes_come_back_at_their_places():
    outcome = in_crops(lambda mask: np.pad(mask, 1)[2:, 1:-1]).refine_results(IMAGE, several())  # one pixel up
    for old, new in zip(several(), outcome.results, strict=True):
        mask = decode(old["segmentation"])
        up = np.vstack([mask[1:], np.zeros_like(mask[:1])])
        np.testing.assert_array_equal(decode(new["segmentation"]), up)
        assert {**old, "segmentation": None} == {**new, "segmentation": None}
        assert isinstance(new["segmentation"]["counts"], str)
    assert outcome.changed == 5


def test_masks_that_are_or_would_become_empty_stay():
    results = several()
    outcome = in_crops(lambda mask: mask * 0.499).refine_results(IMAGE, results)
    assert outcome.results == results and (outcome.refined, outcome.emptied, outcome.changed) == (5, 5, 0)

    results = [
        {**result(np.zeros((H, W), bool)), "segmentation": {"size": [H, W], "counts": counts}}
        for counts in ([H * W, 0], [0, 0, H * W], [7, 0, H * W - 7])
    ]
    outcome = in_crops().refine_results(IMAGE, results)
    assert outcome.refined == 0 and not any(decode(r["segmentation"]).any() for r in outcome.results)


def test_what_is_left_alone():
    results = several()
    results[0]["iscrowd"] = 1
    results[2]["segmentation"] = {"size": [W, H], "counts": "0"}  # not of this image
    outcome = in_crops(lambda mask: 1 - mask).refine_results(IMAGE, results, min_score=0.5)
    changed = [k for k, (old, new) in enumerate(zip(results, outcome.results, strict=True)) if old != new]
    # A crowd region, a mask that cannot be used, one that is empty, and low scores; full ones would be empty
    assert changed == [1] and outcome.refined == 3 and outcome.emptied == 2
    assert outcome.faults == [f"mask 3 of 6 has the size {[W, H]} (height, width), but its image is {[H, W]}"]


@pytest.mark.parametrize(
    "box, margin, expected",
    [
        ((60, 70, 20, 10), 0.2, (slice(27, 123), slice(22, 118))),  # 32 around; 74 and 84 become 96
        ((60, 70, 20, 10), 2.5, (slice(11, 139), slice(6, 134))),  # 50 around; 110 and 120 become 128
        ((0, 0, 20, 10), 0.2, (slice(0, 64), slice(0, 64))),  # at a corner
        ((170, 140, 10, 10), 0.0, (slice(86, 150), slice(116, 180))),
        ((0, 0, W, H), 0.2, (slice(0, H), slice(0, W))),
        ((30, 0, 80, 150), 0.2, (slice(0, 150), slice(0, 160))),
    ],
)
def test_windows(box, margin, expected):
    assert find_window(box, (H, W), margin) == expected


def test_crops_show_the_image_around_the_instance():
    refiner = in_crops(margin=0.2)
    refiner.refine_results(IMAGE, [result(disc(H, W, (69.5, 74.5), 10).numpy())])
    (crop,) = refiner.refiner.crops
    np.testing.assert_array_equal(crop, IMAGE[27:123, 22:118])


def test_batch_size_does_not_matter(refiner, monkeypatch):
    sizes = []

    def counted(images, masks):
        sizes.append(len(masks))
        return Refiner.refine_batch(refiner, images, masks)

    monkeypatch.setattr(refiner, "refine_batch", counted)
    masks = torch.stack([disc(H, W, (60 + 7 * k, 70), 15) for k in range(4)] + [disc(H, W, (20, 20), 9)]).numpy()
    # Crops of 96 pixels, and one of 64; enlarged to 192 by 2 and by 3, all have one size
    for options, expected in (({"min_side": 0, "min_area": 0}, [3]), ({"min_side": 190, "min_area": 200}, [3, 2])):
        sizes.clear()
        alone = InstanceRefiner(refiner, batch_size=1, **options).refine(IMAGE, masks)
        assert not sizes
        together = InstanceRefiner(refiner, batch_size=3, **options).refine(IMAGE, masks)
        assert sizes == expected
        assert (alone != together).mean() < 1e-3 and all((a != b).any() for a, b in zip(alone, masks, strict=True))


@pytest.mark.parametrize("min_side, factor", [(96, 1), (97, 2), (250, 3), (480, 5)])
def test_small_crops_are_enlarged_and_come_back(min_side, factor):
    mask = np.random.default_rng(0).random((H, W)) < 0.5  # single pixels and holes in a disc
    mask &= disc(H, W, (69.5, 74.5), 10).numpy()
    refiner = in_crops(min_side=min_side)
    np.testing.assert_array_equal(refiner.refine(IMAGE, mask[None])[0], mask)
    (crop,) = refiner.refiner.crops
    assert crop.shape == (96 * factor, 96 * factor, 3)
    squares = crop.reshape(96, factor, 96, factor, 3).mean((1, 3))
    assert np.corrcoef(squares.ravel(), IMAGE[27:123, 22:118].ravel())[0, 1] > 0.9
    up = in_crops(lambda mask: np.roll(mask, -factor, axis=0), min_side=min_side).refine(IMAGE, mask[None])[0]
    np.testing.assert_array_equal(up, np.roll(mask, -1, axis=0))


def test_small_masks_are_left_alone():
    masks = np.stack([disc(H, W, (60, 70), radius).numpy() for radius in (4, 5)])
    areas = masks.sum((1, 2))
    assert areas[0] < areas[1] == 81
    refiner = in_crops(lambda mask: 1 - mask, min_area=81)
    changed = (refiner.refine(IMAGE, masks) != masks).any((1, 2))
    outcome = refiner.refine_results(IMAGE, [result(mask) for mask in masks])
    assert changed.tolist() == [False, True] and (outcome.refined, outcome.changed) == (1, 1)


def test_refused_refinements_are_counted_and_masks_stay():
    masks = np.stack([disc(H, W, (60, 70), radius).numpy() for radius in (12, 20)])

    def change(mask):  # of the small one nine pixels are left; the large one loses a row and gains a far pixel
        small = mask.sum() < 1000
        rows, cols = np.nonzero(mask)
        changed = mask.copy()
        if small:
            changed[:] = 0
            changed[rows.mean().astype(int) + np.arange(3)[:, None] - 1, cols.mean().astype(int) + np.arange(3) - 1] = 1
        else:
            changed[rows.min()] = 0
            changed[1, 1] = 1
        return changed

    expected = masks.copy()
    expected[1, 50] = False
    for guard, unguarded in ((GUARD, False), (None, True)):
        refiner = in_crops(change, guard)
        outcome = refiner.refine_results(IMAGE, [result(mask) for mask in masks])
        assert (outcome.refused, outcome.changed) == ((0, 2) if unguarded else (1, 1))
        refined = np.stack([decode(r["segmentation"]) for r in outcome.results])
        np.testing.assert_array_equal(refiner.refine(IMAGE, masks), refined)
        if unguarded:
            assert refined[0].sum() == 9 and refined[1].sum() == expected[1].sum() + 1
        else:
            np.testing.assert_array_equal(refined, expected)


def test_memory_of_batches_is_bounded(refiner, monkeypatch):
    many = InstanceRefiner(refiner, batch_size=1000)
    padded = (96 + 64) ** 2
    monkeypatch.setattr(refiner, "settings", replace(refiner.settings, tile_size=0))
    assert many._count_at_once((96, 96)) == 2**20 // padded
    monkeypatch.setattr(refiner, "settings", replace(refiner.settings, tile_size=320))
    assert many._count_at_once((96, 96)) == 320**2 // padded
    assert many._count_at_once((96, 288)) == 1  # it would be tiled
    monkeypatch.setattr(refiner, "max_memory", 0.0625)
    few = many._count_at_once((96, 96))
    assert 1 <= few < 320**2 // padded
    monkeypatch.setattr(refiner, "max_memory", 0.001)
    assert many._count_at_once((96, 96)) == 1


def test_behind_a_detector(refiner):
    found = Instances((H, W))
    found.pred_boxes = Boxes(torch.rand(3, 4))
    found.scores = torch.tensor([0.9, 0.8, 0.7])
    found.pred_classes = torch.tensor([2, 0, 1])
    found.pred_masks = torch.stack([disc(H, W, (60, 70), 15), disc(H, W, (30, 30), 10), torch.zeros(H, W).bool()])
    before = found.pred_masks.clone()
    in_crops = InstanceRefiner(refiner, min_side=0, min_area=0)
    refined = RefinedPredictor(lambda image: found, in_crops)(IMAGE)
    assert refined.pred_masks.dtype == torch.bool and torch.equal(found.pred_masks, before)
    assert not torch.equal(refined.pred_masks[:2], before[:2]) and not refined.pred_masks[2].any()
    for field in ("scores", "pred_classes"):
        assert torch.equal(refined.get(field), found.get(field))
    assert refined.pred_boxes is found.pred_boxes
    results = [result(mask.numpy()) for mask in before]
    as_results = in_crops.refine_results(IMAGE, results).results
    np.testing.assert_array_equal([decode(r["segmentation"]) for r in as_results], refined.pred_masks)
    none = RefinedPredictor(lambda image: found[:0], in_crops)(IMAGE)
    assert none.pred_masks.shape == (0, H, W)


def test_values_out_of_range(refiner):
    for name, value in (("margin", -1), ("batch_size", 0), ("min_side", -1), ("min_area", -1)):
        with pytest.raises(UserError, match=f"{name} is {value}"):
            InstanceRefiner(refiner, **{name: value})
    for masks in (np.zeros((1, H, W)), np.zeros((H, W), bool), np.zeros((1, W, H), bool)):
        with pytest.raises(UserError, match=f"boolean array of \\(N, {H}, {W}\\)"):
            InstanceRefiner(refiner).refine(IMAGE, masks)


@pytest.fixture
def truth(tmp_path) -> CocoFile:
    """Two discs of different classes and a crowd region."""
    annotations = []
    for k, (category, crowd, *circle) in enumerate(
        [(4, 0, (50, 60), 30), (9, 0, (130, 90), 20), (4, 1, (10, 10), 9)], 1
    ):
        rle = encode(disc(H, W, *circle).numpy())
        measures = {"bbox": mask_util.toBbox(rle).tolist(), "area": float(mask_util.area(rle)), "segmentation": rle}
        annotations.append({"id": k, "image_id": 3, "category_id": category, "iscrowd": crowd, **measures})
    content = {
        "images": [{"id": 3, "file_name": "3.jpg", "height": H, "width": W}],
        "categories": [{"id": 9, "name": "b"}, {"id": 4, "name": "a"}],
        "annotations": annotations,
    }
    path = tmp_path / "truth.json"
    path.write_text(json.dumps(content))
    return CocoFile(str(path), content)


def test_evaluation_before_and_after(truth):
    discs = [disc(H, W, (50, 60), 30).numpy(), disc(H, W, (130, 90), 20).numpy()]
    shifted = [disc(H, W, (56, 60), 30).numpy(), disc(H, W, (137, 90), 20).numpy()]
    rest = [result(disc(H, W, (50, 60), 29).numpy(), category_id=4, score=0.3)]  # second best of its object
    before = [result(m, category_id=c, image_id="3") for m, c in zip(shifted, (4, 9), strict=True)] + rest
    after = [result(m, category_id=c, image_id="3") for m, c in zip(discs, (4, 9), strict=True)] + rest
    evaluation = compare_instances(truth, before, after)
    assert evaluation["pairs"] == 2
    assert [evaluation["after"][kind]["AP"] for kind in ("segm", "boundary")] == pytest.approx([100, 100])
    assert evaluation["after"]["IoU"] == evaluation["after"]["mBA"] == 100
    ious = [(a & b).sum() / (a | b).sum() for a, b in zip(discs, shifted, strict=True)]
    assert evaluation["before"]["IoU"] == pytest.approx(100 * np.mean(ious))
    mba = [mean_boundary_accuracy(a, b) for a, b in zip(shifted, discs, strict=True)]
    assert evaluation["before"]["mBA"] == pytest.approx(100 * np.mean(mba))
    # AP as pycocotools has it
    coco = COCO(truth.path)
    official = COCOeval(coco, coco.loadRes([{**r, "image_id": 3} for r in before]), "segm")
    official.evaluate()
    official.accumulate()
    official.summarize()
    assert evaluation["before"]["segm"]["AP"] == pytest.approx(100 * official.stats[0])
    assert 0 < evaluation["before"]["segm"]["AP"] < 100
    assert set(evaluation["before"]["segm"]) >= {"AP-a", "AP-b"}


@pytest.mark.parametrize(
    "change, words",
    [
        ({"segmentation": [[1, 2, 3, 4]]}, "annotation 2 has a polygon .* of at least 3 points"),
        ({"segmentation": {"size": [H, W + 1], "counts": [H * (W + 1)]}}, "annotation 2 has the size"),
        ({"segmentation": []}, "annotation 2 has no mask"),
        ({"image_id": "3"}, "annotation 2 has the image_id '3', which is no image's"),
        ({"category_id": None}, "annotation 2 has no category_id"),
        ({"id": None}, "entry 1 of its 'annotations' has no id"),
    ],
)
def test_ground_truth_that_cannot_be_used(truth, change, words):
    content = truth.content
    assert read_again(truth) == truth
    content["annotations"][1] = {k: v for k, v in {**content["annotations"][1], **change}.items() if v is not None}
    with pytest.raises(UserError, match=words):
        read_again(truth)
    del content["annotations"]
    assert read_again(truth) == truth


def test_ground_truth_with_ids_of_two_kinds(truth):
    truth.content["categories"].append({"id": "x", "name": "x"})
    with pytest.raises(UserError, match="its 'categories' have numbers and texts as ids; make all of them numbers"):
        read_again(truth)


def test_ground_truth_needs_names_of_categories(truth):
    del truth.content["categories"][0]["name"]
    with pytest.raises(UserError, match="category . has no name"):
        read_again(truth)
    del truth.content["categories"]
    with pytest.raises(UserError, match="it has no 'categories'"):
        read_again(truth)


def read_again(truth):
    Path(truth.path).write_text(json.dumps(truth.content))
    return read_truth(truth.path)


def test_results_of_other_annotations(truth):
    good = result(np.ones((H, W), bool), category_id=4)
    check_results([good, {**good, "image_id": "3"}], truth, "r.json")
    for bad, words in (
        ({**good, "image_id": 5}, "r.json: result 1 has the image_id 5, which is none of the 1 images"),
        ({**good, "category_id": 0}, "r.json: result 1 has the category_id 0; .* has the categories 4, 9"),
        ({k: v for k, v in good.items() if k != "score"}, "r.json: result 1 has no score"),
    ):
        with pytest.raises(UserError, match=words):
            check_results([good, bad], truth, "r.json")


def test_real_results_of_pycocotools_keep_everything(real_data):
    """pycocotools' fake detections of COCO val2014, whose images are not needed when nothing changes."""
    results = json.loads((real_data / "coco_eval/instances_val2014_fakesegm100_results.json").read_text())
    groups: dict[int, list[dict]] = {}
    for entry in results:
        groups.setdefault(entry["image_id"], []).append(entry)
    for entries in list(groups.values())[:20]:
        image = np.zeros((*entries[0]["segmentation"]["size"], 3), np.uint8)
        outcome = in_crops().refine_results(image, entries)
        assert outcome.results == entries and not outcome.faults and not outcome.changed
