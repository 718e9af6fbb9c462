"""Masks from files of every kind: what is foreground, which grey values stay, and which message a bad file has."""

import numpy as np
import pytest
from PIL import Image

from pixelmask.errors import UserError
from pixelmask.images import read_mask, read_soft_mask

GREY = np.array([[0, 1, 127], [128, 254, 255]], np.uint8)
FOREGROUND = [[False, False, False], [True, True, True]]
BINARY = GREY >= 128


@pytest.fixture
def save(tmp_path):
    def write(image, suffix="png", **kwargs):
        if isinstance(image, np.ndarray):
            image = Image.fromarray(image)
        image.save(tmp_path / f"mask.{suffix}", **kwargs)
        return tmp_path / f"mask.{suffix}"

    return write


@pytest.mark.parametrize("suffix", ["png", "bmp", "tif"])
def test_grey_is_cut_at_half_and_kept_when_soft(save, suffix):
    path = save(GREY, suffix)
    assert read_mask(path).dtype == bool and read_mask(str(path)).tolist() == FOREGROUND
    soft = read_soft_mask(path)
    assert soft.dtype == np.float32
    np.testing.assert_allclose(soft, [[0, 1 / 255, 127 / 255], [128 / 255, 254 / 255, 1]], atol=1e-6)


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_sixteen_bits(save, suffix):
    path = save(np.array([[0, 255, 32767], [32768, 65534, 65535]], np.uint16), suffix)
    assert read_mask(path).tolist() == FOREGROUND
    np.testing.assert_allclose(read_soft_mask(path)[0], [0, 255 / 65535, 32767 / 65535], atol=1e-6)


def test_one_bit_and_empty_and_full_masks(save):
    path = save(Image.fromarray(GREY).point(lambda value: 255 * (value >= 128), "1"))
    assert Image.open(path).mode == "1"
    assert read_mask(path).tolist() == FOREGROUND and read_soft_mask(path).tolist() == BINARY.astype(float).tolist()
    assert not read_mask(save(np.zeros((3, 4), np.uint8))).any()
    assert read_mask(save(np.full((3, 4), 255, np.uint8))).all()
    assert read_mask(save(np.ones((3, 4), np.uint8))).all()
    assert read_mask(save(GREY.astype(np.uint16))).tolist() == FOREGROUND
    assert read_mask(save(GREY.astype(np.int32), "tif")).tolist() == FOREGROUND


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_zeros_and_ones_are_background_and_foreground(save, dtype):
    path = save(BINARY.astype(dtype))
    assert read_mask(path).tolist() == FOREGROUND and read_soft_mask(path).max() == 1


@pytest.mark.parametrize("color", [(255, 255, 255), (255, 0, 0), (0, 0, 255), (128, 0, 0)])
def test_bright_colors_on_black_are_foreground(save, color):
    assert read_mask(save(BINARY[..., None] * np.array(color, np.uint8))).tolist() == FOREGROUND


def test_grey_values_in_rgb_and_in_jpeg(save):
    np.testing.assert_allclose(read_soft_mask(save(np.stack([GREY] * 3, -1))), GREY / 255, atol=1e-6)
    mask = np.zeros((64, 64), np.uint8)
    mask[16:48, 16:48] = 255
    for image in (mask, np.stack([mask] * 3, -1)):
        assert np.array_equal(read_mask(save(image, "jpg", quality=90)), mask > 0)


def test_what_is_transparent_is_background(save):
    white = np.full((2, 3), 255, np.uint8)
    opaque = save(np.dstack([GREY, GREY, GREY, white]))
    assert read_mask(opaque).tolist() == FOREGROUND
    cut_out = save(np.dstack([white, white, white, GREY]))
    assert read_mask(cut_out).tolist() == FOREGROUND
    assert read_mask(save(np.dstack([white, GREY]))).tolist() == FOREGROUND  # mode LA


def test_palettes_hold_labels_or_greys(save):
    labels = Image.fromarray(np.array([[0, 255, 0], [1, 15, 200]], np.uint8), "P")
    palette = np.zeros((256, 3), np.uint8)
    palette[[1, 15, 200, 255]] = (128, 0, 0), (192, 128, 128), (0, 0, 9), (224, 224, 192)  # some as PASCAL VOC's
    labels.putpalette(palette.tobytes())
    assert read_mask(save(labels)).tolist() == FOREGROUND
    indices = Image.fromarray(np.array([[2, 2, 1], [0, 0, 0]], np.uint8), "P")
    indices.putpalette([255, 255, 255, 100, 100, 100, 0, 0, 0])
    path = save(indices)
    assert Image.open(path).mode == "P"
    np.testing.assert_allclose(read_soft_mask(path), [[0, 0, 100 / 255], [1, 1, 1]], atol=1e-6)


def test_floats(save):
    path = save(np.array([[0, 0.25, 0.49], [0.5, 0.75, 1]], np.float32), "tif")
    assert read_mask(path).tolist() == FOREGROUND
    assert read_soft_mask(path).tolist() == pytest.approx(np.array([[0, 0.25, 0.49], [0.5, 0.75, 1]], np.float32))


@pytest.mark.parametrize("value", [70000.0, np.nan])
def test_values_out_of_any_range_are_named(save, value):
    path = save(np.full((2, 2), value, np.float32), "tif")
    with pytest.raises(UserError, match=rf"cannot read mask {path}: its largest value is (70000|nan)"):
        read_mask(path)


def test_masks_are_turned_upright(save):
    image = Image.fromarray(GREY)
    exif = image.getexif()
    exif[0x0112] = 3  # upside down
    assert read_mask(save(image, exif=exif)).tolist() == [[True] * 3, [False] * 3]


@pytest.mark.parametrize("read", [read_mask, read_soft_mask])
def test_bad_files_are_named(tmp_path, read):
    noise = np.random.default_rng(0).integers(0, 255, (40, 60), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "whole.png")
    (tmp_path / "truncated.png").write_bytes((tmp_path / "whole.png").read_bytes()[:900])
    (tmp_path / "empty.png").touch()
    (tmp_path / "text.png").write_text("404 not found")
    for name in ("truncated", "empty", "text", "missing"):
        with pytest.raises(UserError, match=f"cannot read mask {tmp_path / name}.png: ") as e:
            read(tmp_path / f"{name}.png")
        assert "\n" not in str(e.value)
