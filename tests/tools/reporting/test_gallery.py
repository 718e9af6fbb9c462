import base64
import io

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as mask_util

from pixelmask.errors import UserError
from reporting.gallery import Instance, PatchGrid, Picture, encode_mask


def decode(encoded: dict, shape: tuple[int, int]) -> np.ndarray:
    """What the page's script makes of a mask."""
    left, top, width, height = encoded["box"]
    runs = list(base64.b64decode(encoded["runs"]))
    pixels = np.repeat(np.arange(len(runs)) % 2, runs).astype(bool)
    assert (np.flatnonzero(pixels)).size and len(pixels) == width * height
    mask = np.zeros(shape, bool)
    mask[top : top + height, left : left + width] = pixels.reshape(height, width)
    return mask


def test_masks_survive_encoding():
    masks = [np.random.default_rng(0).random((150, 700)) < share for share in (0.001, 0.03, 0.5, 0.999)]
    long_runs = np.eye(3, 511, dtype=bool) | (np.arange(511) == 510)
    for mask in (*masks, np.ones((40, 600), bool), np.eye(600, dtype=bool), long_runs):
        encoded = encode_mask(np.ascontiguousarray(mask))
        assert encoded is not None
        assert np.array_equal(decode(encoded, mask.shape), mask)
    assert encode_mask(np.zeros((5, 6), bool)) is None


def layer(mask: np.ndarray) -> list[Instance]:
    return [Instance(mask_util.encode(np.asfortranarray(mask, dtype=np.uint8)), 1, 0.87654)]


def picture_of(file: str, layers: dict) -> Picture:
    grid = PatchGrid((100, 40, 300, 200), np.array([[0, 1], [2, 2]]))
    return Picture("x", file, layers, {}, {}, patches={"run0": [grid]})


def test_a_small_image_is_kept_as_it_is(tmp_path):
    file = tmp_path / "x.png"
    Image.new("RGB", (50, 40), (200, 10, 10)).save(file)
    mask = np.zeros((40, 50), bool)
    mask[5:9, 7:30] = True
    (view,) = picture_of(str(file), {"truth": layer(mask), "run0": layer(mask)}).views(640)
    assert (view["width"], view["height"]) == (50, 40)
    assert view["layers"]["truth"][0]["box"] == [7, 5, 23, 4]
    assert view["layers"]["run0"][0]["score"] == 0.8765
    kind, data = view["image"].split(",")
    assert kind == "data:image/webp;base64"
    image = np.asarray(Image.open(io.BytesIO(base64.b64decode(data))))
    assert image.shape == (40, 50, 3) and np.abs(image[20, 20].astype(int) - [200, 10, 10]).max() < 12


def test_a_large_image_is_reduced_and_has_its_largest_difference_at_full_size(tmp_path):
    file = tmp_path / "x.png"
    Image.new("RGB", (800, 400)).save(file)
    a, b = np.zeros((2, 400, 800), bool)
    a[100:300, 200:400] = b[100:300, 200:400] = True
    b[100:140, 400:440] = True
    whole, part = picture_of(str(file), {"truth": layer(a), "run0": layer(a), "run1": layer(b)}).views(200)
    assert (whole["width"], whole["height"]) == (200, 100)
    assert whole["layers"]["run0"][0]["box"] == [50, 25, 50, 50]
    assert whole["patches"]["run0"] == [{"box": [25.0, 10.0, 75.0, 50.0], "side": 2, "labels": "0122"}]
    assert (part["width"], part["height"]) == (100, 100)
    left, top = (int(n) for n in part["label"].split("pixel ")[1].split(", not")[0].split(", "))
    assert left <= 400 and left + 100 >= 440 and top <= 100 and top + 100 >= 140
    of_a, of_b = (decode(part["layers"][f"run{i}"][0], (100, 100)).sum() for i in (0, 1))
    assert of_b - of_a == 1600


def test_one_run_differs_from_the_truth(tmp_path):
    file = tmp_path / "x.png"
    Image.new("RGB", (800, 400)).save(file)
    a, b = np.zeros((2, 400, 800), bool)
    b[10:20, 700:710] = True
    _, part = picture_of(str(file), {"truth": layer(a), "run0": layer(b)}).views(200)
    assert part["layers"]["truth"] == []
    assert decode(part["layers"]["run0"][0], (100, 100)).sum() == 100


def test_an_image_that_cannot_be_read_is_named(tmp_path):
    file = tmp_path / "broken.jpg"
    file.write_text("no image")
    with pytest.raises(UserError, match="broken.jpg"):
        picture_of(str(file), {"truth": []}).views(100)
