import numpy as np
import pytest
from pycocotools import mask as mask_util

from pixelmask.evaluation.boundary import boundary_iou as dense_boundary_iou
from reporting.matching import boundary_iou, compare, disagreement, find_objects, match
from tests.tools.reporting.drawn import box


def test_the_best_score_takes_the_best_object_and_the_others_what_is_left():
    objects = [box(0, 0, 20, 20), box(0, 0, 20, 30), box(40, 0, 60, 20, label=1)]
    detections = [box(0, 0, 20, 28, 0, 0.9), box(0, 0, 20, 29, 0, 0.8), box(40, 0, 60, 20, 0, 0.7)]
    # The second is nearer to object 1, which is taken; its IoU with object 0 is 400 / 580. The third has another class.
    assert match(detections, objects) == [1, 0, None]


@pytest.mark.parametrize(("right", "expected"), [(20, 0), (19, None)])
def test_an_overlap_of_exactly_one_half_is_enough(right, expected):
    assert match([box(0, 0, right, 10, 0, 0.9)], [box(0, 0, 40, 10)]) == [expected]


def test_nothing_is_matched_to_nothing():
    assert match([], [box(0, 0, 5, 5)]) == []
    assert match([box(0, 0, 5, 5, 0, 0.9)], []) == [None]


def test_boundary_iou_is_that_of_the_evaluation():
    a, b = box(10, 10, 50, 40), box(14, 12, 54, 40)
    dense = dense_boundary_iou(*(mask_util.decode(instance.rle) for instance in (a, b)))
    assert boundary_iou(a, b) == pytest.approx(dense)
    assert 0 < dense < 1


def test_disagreement_counts_pixels():
    assert disagreement(box(0, 0, 10, 10), box(0, 0, 10, 20)) == pytest.approx(0.5)
    assert disagreement(box(0, 0, 0, 0), box(5, 5, 5, 5)) == 0.0
    assert disagreement(box(0, 0, 0, 0), box(5, 5, 9, 9)) == 1.0


def test_what_no_truth_has_is_one_object_for_all_runs_that_see_it():
    truth = [box(0, 0, 20, 20)]
    seen = box(40, 20, 60, 40, 2, 0.6)
    runs = [[box(0, 0, 20, 19, 0, 0.9)], [seen], [box(40, 20, 60, 39, 2, 0.5), box(70, 0, 80, 10, 2, 0.5)]]
    objects = find_objects(truth, runs)
    assert [found.truth is not None for found in objects] == [True, False, False]
    assert [d is not None for d in objects[0].detections] == [True, False, False]
    assert [d is not None for d in objects[1].detections] == [False, True, True]
    assert [d is not None for d in objects[2].detections] == [False, False, True]
    assert objects[1].disagreement(1, 2) == pytest.approx(1 / 20)
    assert objects[1].disagreement(0, 1) == 1.0
    assert objects[0].disagreement(1, 2) is None


def test_figures_of_an_image_are_means_of_its_objects():
    truth = [box(0, 0, 20, 20), box(40, 0, 60, 20)]
    a = [box(0, 0, 20, 20, 0, 0.8), box(70, 40, 80, 60, 1, 0.6)]
    b = [box(0, 0, 20, 10, 0, 0.9)]
    picture = compare("x", "x.png", truth, [a, b], 0.02)
    # Found and missed, with the detection that is none left out; of B half of the first
    half = dense_boundary_iou(*(mask_util.decode(m.rle) for m in (truth[0], b[0])))
    assert picture.values["boundary_iou"] == [pytest.approx(0.5), pytest.approx(half / 2)]
    assert picture.values["score"] == [pytest.approx(0.7), pytest.approx(0.9)]
    # IoU 1/2 of the first object, nobody has the second, A alone the third
    assert picture.disagreements == {"0-1": pytest.approx((0.5 + 1) / 2)}
    assert [mask.object for mask in picture.layers["run0"]] == [0, 2]
    assert picture.summary()["labels"] == [0, 1]


def test_an_image_without_anything():
    picture = compare("x", "x.png", [], [[], []], 0.02)
    assert picture.values == {"score": [None, None], "boundary_iou": [None, None]}
    assert picture.disagreements == {"0-1": 0.0} and picture.objects == []
    assert np.array_equal(list(picture.layers), ["truth", "run0", "run1"])
