"""The guard on masks worked out by hand: each threshold on and off; and how often a mask's resolution is found."""

from dataclasses import fields, replace

import numpy as np
import pytest

from airm.data.coarse_masks import make_coarse_mask, through_box
from airm.guard import GUARD, Guard, find_resolution, guard_mask
from pixelmask.images import read_mask
from tests.support.models import disc

SIDE = 100
NOTHING = Guard(**{field.name: None for field in fields(Guard)})


def square(top: int = 30, bottom: int = 70, left: int = 30, right: int = 70) -> np.ndarray:
    mask = np.zeros((SIDE, SIDE), bool)
    mask[top:bottom, left:right] = True
    return mask


COARSE = square()  # 40 pixels wide; a native mask has cells of 2.5 pixels


def refuse(coarse: np.ndarray, refined: np.ndarray, resolution: int = 0, **thresholds: float) -> str:
    mask, refusal, _ = guard_mask(coarse, refined.astype(np.float32), replace(NOTHING, **thresholds), resolution)
    np.testing.assert_array_equal(mask, coarse if refusal else refined.astype(np.float32))
    return refusal


def test_without_thresholds_everything_is_taken():
    refined = np.random.default_rng(0).random((SIDE, SIDE), np.float32)
    mask, refusal, kept = guard_mask(COARSE, refined, NOTHING)
    assert mask is refined and not refusal and not kept


# Two cells, of 5 pixels each where the object has 8; the row along the contour is row 0
@pytest.mark.parametrize("resolution, rows", [(8, 10), (28, 2), (400, 0), (0, 5)])
def test_pixels_out_of_reach_keep_the_coarse_mask(resolution, rows):
    refined = np.where(square(top=10), 0.9, 0.2).astype(np.float32)  # 20 rows more
    mask, refusal, kept = guard_mask(COARSE, refined, replace(NOTHING, reach=2.0), resolution)
    top = 30 - 1 - rows
    np.testing.assert_array_equal(mask >= 0.5, square(top=top))
    assert not refusal and kept == 40 * (top - 10)
    assert mask[5, 50] == 0 and mask[top, 50] == mask[69, 50] == np.float32(0.9)  # probabilities within, else coarse
    assert mask[50, 50] == 1


def test_a_mask_without_contour_is_kept_within_reach():
    full = np.ones((SIDE, SIDE), bool)
    mask, refusal, kept = guard_mask(full, np.full((SIDE, SIDE), 0.1, np.float32), GUARD)
    np.testing.assert_array_equal(mask, full)
    assert not refusal and kept == SIDE**2
    refusal = guard_mask(full, np.full((SIDE, SIDE), 0.1, np.float32), replace(GUARD, reach=None)).refusal
    assert refusal == "shrunk"


def test_area():
    half, more = square(top=50), square(bottom=95)  # 0.5 and 1.625 of the area
    assert refuse(COARSE, half, shrink=0.51) == "shrunk" and not refuse(COARSE, half, shrink=0.5, growth=1.0)
    assert refuse(COARSE, more, growth=1.62) == "grown" and not refuse(COARSE, more, growth=1.63, shrink=1.0)
    assert refuse(COARSE, np.zeros_like(COARSE), shrink=0.1) == "shrunk"


def test_overlap_asked_for_goes_with_the_resolution():
    moved = square(left=38, right=78)  # IoU 2 / 3; of 16 cells at least 0.6, of 28 at least 0.7
    for resolution, refusal in ((0, ""), (16, ""), (28, "elsewhere"), (112, "elsewhere"), (4, "")):
        assert refuse(COARSE, moved, resolution, overlap=1.6) == refusal
    assert not refuse(COARSE, moved, 28, overlap=1.8)
    # No grid is finer than the pixels: 112 cells in 40 pixels ask for 1 - 1.6 / sqrt(40) = 0.75
    nearer = square(left=35, right=75)  # 0.78
    assert not refuse(COARSE, nearer, 112, overlap=1.6)
    large = np.kron(COARSE, np.ones((3, 3))).astype(bool)
    assert refuse(large, np.kron(nearer, np.ones((3, 3))).astype(bool), 112, overlap=1.6) == "elsewhere"


def test_certainty_is_that_along_both_contours():
    unsure = np.where(COARSE, 0.7, 0.3)  # |2 p - 1| is 0.4
    assert refuse(COARSE, unsure, certainty=0.41) == "uncertain" and not refuse(COARSE, unsure, certainty=0.39)
    assert not refuse(COARSE, np.where(square(25, 75, 25, 75), COARSE, 0.49), certainty=0.99)  # but far away
    moved = np.where(square(top=40), 1.0, 0.0)
    assert not refuse(COARSE, moved, certainty=0.99)
    for row in (39, 30):  # at the new contour, at the old one
        blurred = moved.copy()
        blurred[row, 30:70] = 0.49
        assert refuse(COARSE, blurred, certainty=0.99) == "uncertain"


def test_soft_masks_and_empty_ones():
    soft = np.where(COARSE, 0.6, 0.25).astype(np.float32)
    mask, refusal, _ = guard_mask(soft, np.zeros((SIDE, SIDE), np.float32))
    np.testing.assert_array_equal(mask, soft)
    assert refusal == "shrunk"
    refined = COARSE.astype(np.float32)
    assert guard_mask(soft * 0.5, refined) == (refined, "", 0)


def test_resolution_of_a_mask():
    comb = square(10, 90, 10, 90)
    comb[10:50, 11:90:4] = comb[10:50, 12:90:4] = False  # teeth of two pixels
    assert find_resolution(comb) == 0
    assert find_resolution(through_box(comb, 28)) == 28
    tiny = disc(SIDE, SIDE, (50, 50), 6).numpy()
    assert find_resolution(tiny) == 28  # as all that is smaller than the grid
    full = np.ones((SIDE, SIDE), bool)
    assert find_resolution(full) == 28


def test_resolution_of_real_masks(real_data):
    """Of half of those that have been through the grid; and of few whose errors are no grid's."""
    paths = sorted((real_data / "refine/ecssd/ground_truth_mask").glob("*.png"))[::20]
    masks = [read_mask(path) for path in paths]
    share = {}
    for kind in ("box_28", "regions"):
        coarse = [make_coarse_mask(mask, kind, np.random.default_rng(k)) for k, mask in enumerate(masks)]
        share[kind] = np.mean([find_resolution(mask) == 28 for mask in coarse])
    assert share["box_28"] > 0.4 and share["regions"] < 0.2
