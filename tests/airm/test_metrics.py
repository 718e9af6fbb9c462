import os
from pathlib import Path

import cv2
import numpy as np
import pytest

from airm.evaluation.metrics import (
    binarize,
    boundary_radii,
    intersection_and_union,
    mean_boundary_accuracies,
    mean_boundary_accuracy,
)


def rectangle(height: int, width: int, top: int, left: int, rows: int, columns: int) -> np.ndarray:
    mask = np.zeros((height, width), bool)
    mask[top : top + rows, left : left + columns] = True
    return mask


def plain_mba(prediction: np.ndarray, truth: np.ndarray) -> float:
    """The definition word for word, on the whole image."""
    height, width = truth.shape
    largest = (height + width) / 300
    accuracies = []
    for k in range(5):
        radius = 1 + int((largest - 1) / 5 * k)
        kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * radius + 1, 2 * radius + 1))
        gradient = cv2.morphologyEx(truth.astype(np.uint8), cv2.MORPH_GRADIENT, kernel) > 0
        accuracies.append((prediction == truth)[gradient].mean())
    return float(np.mean(accuracies))


@pytest.mark.parametrize(
    ("mask", "inside"),
    [
        (np.array([0, 1], bool), [False, True]),
        (np.array([0, 127, 128, 255], np.uint8), [False, False, True, True]),
        (np.array([0, np.nextafter(np.float32(0.5), 0), 0.5, 1], np.float32), [False, False, True, True]),
        (np.array([0.0, 0.5, 1.004], np.float16), [False, True, True]),
    ],
    ids=["bool", "uint8", "float32", "rounding in half precision"],
)
def test_half_of_the_range_is_inside(mask, inside):
    assert binarize(mask).tolist() == inside


def test_8_bits_and_their_soft_mask_agree():
    levels = np.arange(256, dtype=np.uint8)
    assert (binarize(levels) == binarize(levels.astype(np.float32) / 255)).all()


@pytest.mark.parametrize("bad", [np.nan, 255.0, -3.0])
def test_soft_masks_outside_their_range(bad):
    with pytest.raises(ValueError, match="NaN" if np.isnan(bad) else "outside"):
        binarize(np.array([[0.2, bad]], np.float32))


def test_other_types_are_refused():
    with pytest.raises(TypeError, match="int64"):
        binarize(np.array([[0, 1]], np.int64))


def test_intersection_and_union_of_shifted_squares():
    a, b = rectangle(20, 30, 2, 3, 10, 10), rectangle(20, 30, 4, 6, 10, 10)
    assert intersection_and_union(a, b) == (8 * 7, 100 + 100 - 56)
    assert intersection_and_union(a, ~a) == (0, 600)
    assert intersection_and_union(a & ~a, a & ~a) == (0, 0)
    assert intersection_and_union(a.astype(np.uint8) * 200, b.astype(np.float32)) == (56, 144)


@pytest.mark.parametrize(
    ("size", "radii"),
    [
        ((1, 1), [1, 1, 1, 1, 1]),  # max_r = 1/150
        ((300, 300), [1, 1, 1, 1, 1]),  # max_r = 2: steps of 0.2
        ((600, 600), [1, 1, 2, 2, 3]),  # max_r = 4: steps of 0.6
        ((1706, 2560), [1, 3, 6, 8, 11]),  # max_r = 14.22: steps of 2.644
        ((4000, 6000), [1, 7, 13, 20, 26]),  # max_r = 33.33: steps of 6.467
    ],
)
def test_radii(size, radii):
    assert boundary_radii(*size) == radii


def test_square_shifted_by_one_pixel():
    """600 x 600, radii 1, 1, 2, 2, 3; a square of side 100, predicted one column too far right.

    OpenCV's ellipses have these half-widths in their rows, from the middle one outwards:
    radius 1: 1, 0; radius 2: 2, 2, 0; radius 3: 3, 3, 2, 0.
    """
    truth, prediction = rectangle(600, 600, 200, 200, 100, 100), rectangle(600, 600, 200, 201, 100, 100)
    # Inside, all pixels less than r from the sides; outside, strips r wide along the sides, and of a pixel i rows and
    # j columns (i, j >= 1) away from a corner those with j <= the widest half-width of row i or further.
    inside = [100**2 - (100 - 2 * r) ** 2 for r in (1, 2, 3)]
    outside = [4 * 100 * 1 + 4 * 0, 4 * 100 * 2 + 4 * 2, 4 * 100 * 3 + 4 * (3 + 2)]
    assert [i + o for i, o in zip(inside, outside, strict=True)] == [796, 1592, 2384]
    # Wrong are the square's first column, and the column behind its last: 200 pixels, in every region
    expected = (2 * (1 - 200 / 796) + 2 * (1 - 200 / 1592) + (1 - 200 / 2384)) / 5
    assert mean_boundary_accuracy(prediction, truth) == pytest.approx(expected, abs=1e-12)
    # An error far from the boundary does not count
    prediction[250, 250] = False
    prediction[0, :] = True
    assert mean_boundary_accuracy(prediction, truth) == pytest.approx(expected, abs=1e-12)


def test_smallest_disc():
    """A disc of 5 pixels: near its boundary are its four arms and the eight pixels two steps from the middle."""
    y, x = np.mgrid[-6:7, -6:7]
    truth = x**2 + y**2 <= 1
    assert mean_boundary_accuracy((x == 0) & (y == 0), truth) == pytest.approx(8 / 12)
    assert mean_boundary_accuracy(x**2 + y**2 <= 2, truth) == pytest.approx(8 / 12)  # 4 of the 8 are wrong
    assert mean_boundary_accuracy(x**2 + y**2 <= 4, truth) == pytest.approx(4 / 12)  # all 8 are


def test_right_and_wrong_everywhere():
    truth = rectangle(400, 900, 0, 100, 200, 300)
    assert mean_boundary_accuracy(truth, truth) == 1
    assert mean_boundary_accuracy(~truth, truth) == 0


@pytest.mark.parametrize("size", [(1, 1), (1, 7), (64, 48), (900, 900)])
@pytest.mark.parametrize("value", [False, True])
def test_truth_without_boundary_has_no_accuracy(size, value):
    truth = np.full(size, value)
    assert mean_boundary_accuracy(truth, truth) is None
    assert mean_boundary_accuracies([truth, ~truth], truth) is None


def test_tiny_images():
    assert mean_boundary_accuracy(np.array([[True, True]]), np.array([[True, False]])) == 0.5
    # The fourth pixel is diagonal to the only one inside, and adjacent to no other value
    assert mean_boundary_accuracy(np.zeros((2, 2), bool), np.array([[1, 0], [0, 0]], bool)) == pytest.approx(2 / 3)
    assert mean_boundary_accuracy(np.ones((3, 1), bool), np.array([[1], [1], [0]], bool)) == 0.5


def blobs(height: int, width: int, blur: float, share: float, rng: np.random.Generator) -> np.ndarray:
    noise = cv2.GaussianBlur(rng.random((height, width)).astype(np.float32), (0, 0), blur)
    return noise > np.quantile(noise, 1 - share)


@pytest.mark.parametrize("share", [0.001, 0.03, 0.5, 0.97])
@pytest.mark.parametrize(("height", "width"), [(40, 31), (333, 1200), (1000, 800), (3, 2000)])
def test_box_gives_the_same_as_the_whole_image(height, width, share):
    rng = np.random.default_rng(7)
    truth = blobs(height, width, 6, share, rng)
    truth[0, -2:] = False, True  # some boundary in any case
    window = np.zeros_like(truth)  # keeps the blobs in a part, at the image's corner
    window[: height * 2 // 3, width // 3 :] = True
    for masked in (truth & window, truth | ~window):
        prediction = masked ^ blobs(height, width, 2, 0.1, rng)
        assert mean_boundary_accuracy(prediction, masked) == pytest.approx(plain_mba(prediction, masked), abs=1e-12)


def test_several_predictions_and_strided_views():
    rng = np.random.default_rng(8)
    truth = blobs(500, 700, 8, 0.2, rng)[:, ::-1]
    predictions = [truth ^ blobs(500, 700, 2, share, rng) for share in (0.02, 0.2)]
    together = mean_boundary_accuracies(predictions, truth)
    assert together == [mean_boundary_accuracy(p, truth) for p in predictions]
    assert together == pytest.approx([plain_mba(p, truth.copy()) for p in predictions], abs=1e-12)


@pytest.mark.parametrize("measure", [intersection_and_union, mean_boundary_accuracy])
def test_shapes_that_differ(measure):
    with pytest.raises(ValueError, match=r"\(4, 5\) and \(5, 4\)"):
        measure(np.ones((4, 5), bool), np.eye(5, 4, dtype=bool))


@pytest.mark.skipif("REAL_DATA_ROOT" not in os.environ, reason="REAL_DATA_ROOT names no folder of real data")
def test_real_masks_give_the_same_as_the_whole_image():
    folder = Path(os.environ["REAL_DATA_ROOT"]) / "refine" / "composites"
    pairs = [(path, path.with_name(path.name.replace("_gt", "_seg"))) for path in sorted(folder.glob("*_gt.png"))]
    assert pairs
    for truth_path, coarse_path in pairs[:3]:
        truth, coarse = (cv2.imread(str(path), cv2.IMREAD_GRAYSCALE) for path in (truth_path, coarse_path))
        value = mean_boundary_accuracy(coarse, truth)
        assert value == pytest.approx(plain_mba(coarse >= 128, truth >= 128), abs=1e-12)
        assert 0.3 < value < 0.95
