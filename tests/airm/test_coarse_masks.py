import numpy as np
import pytest

from airm.data.coarse_masks import KINDS, make_coarse_mask, through_box


def ellipse(height: int, width: int) -> np.ndarray:
    y, x = np.mgrid[:height, :width]
    return ((y - height / 2) / (0.35 * height)) ** 2 + ((x - width / 2) / (0.3 * width)) ** 2 < 1


def iou(a: np.ndarray, b: np.ndarray) -> float:
    return (a & b).sum() / (a | b).sum()


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_damages_the_mask_and_leaves_the_truth_alone(kind: str):
    truth = ellipse(240, 320)
    before = truth.copy()
    coarse = [make_coarse_mask(truth, kind, np.random.default_rng(seed)) for seed in (0, 0, 1)]
    assert (truth == before).all()
    assert all(c.dtype == bool and c.shape == truth.shape and c is not truth for c in coarse)
    assert (coarse[0] == coarse[1]).all()
    if kind == "truth":
        assert (coarse[0] == truth).all()
    else:
        assert (coarse[0] != coarse[2]).any()
        assert all(0.78 < iou(c, truth) < 1 for c in coarse)


def test_a_finer_grid_keeps_more():
    truth = ellipse(240, 320)
    ious = [iou(through_box(truth, cells), truth) for cells in (7, 28, 112)]
    assert 0.8 < ious[0] < ious[1] < ious[2] < 1


def test_a_grid_as_fine_as_the_box_keeps_all():
    truth = np.zeros((60, 60), bool)
    truth[10:38, 20:48] = ellipse(28, 28)
    truth[10, 20] = truth[37, 47] = True
    assert (through_box(truth, 28) == truth).all()


@pytest.mark.parametrize("kind", KINDS)
def test_what_has_no_inside_is_left(kind: str):
    empty, dot = np.zeros((40, 50), bool), np.zeros((40, 50), bool)
    dot[20, 30] = True
    rng = np.random.default_rng(0)
    assert not make_coarse_mask(empty, kind, rng).any()
    assert make_coarse_mask(dot, kind, rng).any()
