"""Coarse masks made from the truth: how near they come to the IoU asked for, where they differ, and odd masks."""

import time

import cv2
import numpy as np
import pytest
from PIL import Image

from airm.data.perturbation import perturb_mask
from tests.support.models import disc


def iou(a, b):
    return (a & b).sum() / (a | b).sum()


def scattered():
    """Forty discs, some cut off by the border."""
    rng = np.random.default_rng(5)
    mask = np.zeros((224, 224), np.uint8)
    for _ in range(40):
        cv2.circle(mask, rng.integers(0, 224, 2).tolist(), int(rng.integers(2, 20)), 1, -1)
    return mask.astype(bool)


MASKS = {
    "disc": disc(224, 224, (112, 100), 60).numpy(),
    "ring": (disc(224, 200, (100, 110), 80) & ~disc(224, 200, (100, 110), 35)).numpy(),
    "bar": np.pad(np.ones((8, 190), bool), ((50, 62), (10, 24))),
    "scattered": scattered(),
}


@pytest.mark.parametrize("name", MASKS)
@pytest.mark.parametrize("target", [0.8, 0.9, 0.99])
def test_iou_falls_to_the_target_and_not_below_and_one_gives_a_copy(name, target):
    truth = MASKS[name]
    for seed in range(10):
        coarse = perturb_mask(truth, target, np.random.default_rng(seed))
        assert coarse.dtype == bool and coarse.shape == truth.shape
        assert target <= iou(coarse, truth) <= target + 0.01
    coarse = perturb_mask(truth, 1.0, np.random.default_rng(0))
    assert coarse.dtype == bool and np.array_equal(coarse, truth) and not np.shares_memory(coarse, truth)


def test_it_depends_on_the_generator_alone_and_leaves_its_input():
    truth = MASKS["ring"]
    before = truth.copy()
    first, again, other = (perturb_mask(truth, 0.85, np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert np.array_equal(truth, before)
    assert np.array_equal(first, again)
    assert 0.7 < iou(first, other) < 0.95  # as far from each other as from the truth, or farther
    view = np.pad(MASKS["disc"], 30)[30:-30, 30:-30][:, ::-1]
    first, again = (perturb_mask(mask, 0.9, np.random.default_rng(3)) for mask in (view, view.copy()))
    assert np.array_equal(first, again)


def test_both_kinds_of_error_near_the_boundary():
    truth = MASKS["disc"]
    missing, added = np.zeros_like(truth, int), np.zeros_like(truth, int)
    for seed in range(40):
        coarse = perturb_mask(truth, 0.85, np.random.default_rng(seed))
        missing += truth & ~coarse
        added += coarse & ~truth
    assert 1 / 3 < missing.sum() / added.sum() < 3
    y, x = np.mgrid[:224, :224]
    distance = np.hypot(x - 112, y - 100) - 60  # to the disc's boundary, in pixels
    assert (missing + added)[abs(distance) > 35].sum() == 0
    # Everywhere along the boundary: each of 36 sectors has some of either
    sector = ((np.arctan2(y - 100, x - 112) + np.pi) * 18 / np.pi).astype(int) % 36
    assert (np.bincount(sector.ravel(), missing.ravel()) > 0).all()
    assert (np.bincount(sector.ravel(), added.ravel()) > 0).all()


def test_holes_stay_holes_when_contours_are_simplified():
    for seed in range(10):
        coarse = perturb_mask(MASKS["ring"], 0.97, np.random.default_rng(seed))
        assert not coarse[110, 100]


@pytest.mark.parametrize("shape", [(1, 1), (1, 40), (224, 1), (64, 64)])
@pytest.mark.parametrize("value", [False, True])
def test_empty_and_full_masks_stay(shape, value):
    truth = np.full(shape, value)
    assert np.array_equal(perturb_mask(truth, 0.8, np.random.default_rng(0)), truth)


def test_tiny_and_nearly_full_masks_never_fall_below():
    truths = [np.pad(np.ones((n, n), bool), (at, 40 - n - at)) for n in (1, 2, 3, 5, 9) for at in (0, 20)]
    full = np.ones((224, 224), bool)
    full[100:104, 50] = False
    for truth in (*truths, full):
        for seed in range(20):
            assert iou(perturb_mask(truth, 0.8, np.random.default_rng(seed)), truth) >= 0.8


def test_real_masks(real_data):
    paths = sorted((real_data / "refine/ecssd/ground_truth_mask").glob("*.png"))[::8]
    rng = np.random.default_rng(0)
    errors, seconds = [], []
    for path in paths:
        truth = np.asarray(Image.open(path).convert("L")) >= 128
        target = rng.uniform(0.8, 1)
        start = time.perf_counter()
        coarse = perturb_mask(truth, target, rng)
        seconds.append(time.perf_counter() - start)
        errors.append(iou(coarse, truth) - target)
    assert len(paths) >= 50
    assert min(errors) >= 0 and np.mean(errors) <= 0.02
    assert np.median(seconds) < 0.01  # 0.6 ms on a free core
