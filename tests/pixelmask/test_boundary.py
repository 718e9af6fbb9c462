import json

import numpy as np
import pytest
from faster_coco_eval.core import mask as library
from pycocotools import mask as mask_util
from pycocotools.coco import COCO
from scipy.ndimage import binary_erosion

from pixelmask.evaluation.boundary import boundary_iou, boundary_width, mask_to_boundary, rle_to_boundary


def by_definition(mask, dilation_ratio=0.02):
    """Mask minus its erosion, in SciPy's words."""
    height, width = mask.shape
    times = max(1, round(dilation_ratio * (height**2 + width**2) ** 0.5))
    eroded = binary_erosion(np.pad(mask.astype(bool), 1), np.ones((3, 3)), iterations=times)
    return mask.astype(bool) & ~eroded[1:-1, 1:-1]


def random_mask(rng, height, width):
    """A union of rectangles with some pixels taken out."""
    mask = np.zeros((height, width), bool)
    for _ in range(rng.integers(1, 4)):
        top, bottom = np.sort(rng.integers(0, height + 1, 2))
        left, right = np.sort(rng.integers(0, width + 1, 2))
        mask[top:bottom, left:right] = True
    mask[rng.random(mask.shape) < 0.002] = False
    return mask


def encode(mask):
    return mask_util.encode(np.asfortranarray(mask, dtype=np.uint8))


def square(top, left, side, size=100):
    mask = np.zeros((size, size), bool)
    mask[top : top + side, left : left + side] = True
    return mask


def test_width_by_hand():
    assert boundary_width(480, 640) == 16  # 0.02 * 800
    assert boundary_width(100, 100) == 3  # 2.83
    assert boundary_width(2, 2) == 1
    # 1.5 and 7.5 to the even number above, 2.5 to the one below
    assert [boundary_width(*size) for size in ((45, 60), (225, 300), (75, 100))] == [2, 8, 2]
    assert boundary_width(480, 640, dilation_ratio=0.005) == 4


@pytest.mark.parametrize(
    ("mask", "pixels"),
    [
        pytest.param(square(40, 40, 20), 20**2 - 14**2, id="inside"),
        pytest.param(square(0, 0, 20), 20**2 - 14**2, id="cut off by two borders"),
        pytest.param(square(0, 0, 100), 100**2 - 94**2, id="whole image"),
        pytest.param(square(40, 40, 6), 6**2, id="too thin"),
        pytest.param(square(40, 40, 7), 7**2 - 1, id="one pixel is left"),
        pytest.param(square(40, 40, 1), 1, id="one pixel"),
        pytest.param(square(30, 30, 40) & ~square(45, 45, 10), 40**2 - 34**2 + 16**2 - 10**2, id="hole"),
        pytest.param(square(0, 0, 0), 0, id="empty"),
    ],
)
def test_boundary_of_drawn_squares(mask, pixels):
    boundary = mask_to_boundary(mask)
    assert boundary.dtype == bool
    assert boundary.sum() == pixels
    assert not (boundary & ~mask).any()
    np.testing.assert_array_equal(mask_to_boundary(mask.astype(np.uint8) * 255), boundary)
    assert mask_util.area(rle_to_boundary(encode(mask))) == pixels


def test_iou_by_hand():
    mask = square(30, 30, 40)
    shifted = square(30, 31, 40)
    assert boundary_iou(mask, mask) == 1
    # Rings 40 wide outside and 34 inside: of 40 x 39 shared pixels, the two holes together take 34 x 35
    assert boundary_iou(mask, shifted) == pytest.approx(370 / (2 * (40**2 - 34**2) - 370))
    # The boundary is the same, the mask is not: the minimum is the mask's
    hollow = mask & ~square(33, 33, 34)
    assert boundary_iou(mask, hollow) == pytest.approx((40**2 - 34**2) / 40**2)
    assert boundary_iou(mask, square(0, 0, 10)) == 0
    assert boundary_iou(mask & False, mask & False) == 0


@pytest.mark.parametrize(
    "size", [(60, 80), (81, 60), (1, 50), (50, 1), (2, 90), (12, 300), (300, 12), (45, 60), (225, 300), (20, 20)]
)
def test_masks_and_rles_follow_the_definition(size):
    rng = np.random.default_rng(0)
    for _ in range(20):
        mask = random_mask(rng, *size)
        expected = by_definition(mask)
        np.testing.assert_array_equal(mask_to_boundary(mask), expected)
        np.testing.assert_array_equal(mask_util.decode(rle_to_boundary(encode(mask))), expected)


def test_library_agrees_on_ordinary_sizes():
    rng = np.random.default_rng(1)
    for _ in range(60):
        rle = encode(random_mask(rng, *rng.integers(40, 160, 2)))
        assert library.rleToBoundary(rle)["counts"] == rle_to_boundary(rle)["counts"]


def test_library_agrees_on_real_masks(real_data):
    json_file = real_data / "coco/annotations/instances_val2017.json"
    coco = COCO()
    coco.dataset = json.loads(json_file.read_text())
    coco.createIndex()
    annotations = [a for a in coco.dataset["annotations"] if not a["iscrowd"]][:200]
    assert len(annotations) == 200
    for annotation in annotations:
        rle = coco.annToRLE(annotation)
        ours = rle_to_boundary(rle)
        assert library.rleToBoundary(rle)["counts"] == ours["counts"]
        np.testing.assert_array_equal(mask_util.decode(ours), mask_to_boundary(mask_util.decode(rle)))
