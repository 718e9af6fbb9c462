"""The synthetic refinement data: what is drawn, how thin it is, its coarse masks and its files."""

import tracemalloc
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from detectron2.data import DatasetCatalog

from airm.data import synthetic
from airm.data.synthetic import Pair, draw_pair
from airm.data.synthetic_dataset import coarse_mask, register_synthetic
from airm.data.synthetic_outlines import BODIES, _body


@pytest.fixture(scope="module")
def pairs() -> list[Pair]:
    return [draw_pair(3, index, 320, 240) for index in range(16)]


def mask_iou(first: np.ndarray, second: np.ndarray) -> float:
    return (first & second).sum() / (first | second).sum()


def opened(mask: np.ndarray, width: int) -> np.ndarray:
    """The parts of a mask that a disc of that diameter fits into."""
    disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (width, width))
    return cv2.morphologyEx(mask.astype(np.uint8), cv2.MORPH_OPEN, disc).astype(bool)


def layers_of(index: int) -> list[synthetic._Layer]:
    return synthetic._scene(np.random.default_rng([3, index]), 320, 240)[1]


# ---------------------------------------------------------------- drawing


def test_a_pair_depends_on_its_arguments_alone(pairs: list[Pair]) -> None:
    again = draw_pair(3, 7, 320, 240)
    np.testing.assert_array_equal(again.image, pairs[7].image)
    np.testing.assert_array_equal(again.mask, pairs[7].mask)
    for other in (draw_pair(4, 7, 320, 240), pairs[8]):
        assert (other.mask != again.mask).any() and (other.image != again.image).any()


@pytest.mark.parametrize(("width", "height"), [(64, 64), (97, 131), (600, 64), (64, 500)])
def test_pairs_are_well_formed_at_any_size(width: int, height: int) -> None:
    for index in range(4):
        image, mask = draw_pair(5, index, width, height)
        assert image.shape == (height, width, 3) and image.dtype == np.uint8
        assert mask.shape == (height, width) and mask.dtype == bool
        assert 0.1 < mask.mean() < 0.6


def test_the_object_covers_a_tenth_to_a_half(pairs: list[Pair]) -> None:
    shares = [pair.mask.mean() for pair in pairs]
    assert 0.1 < min(shares) < 0.25 and 0.3 < max(shares) < 0.5


def test_masks_are_where_the_object_is_painted(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a white object on black, the mask is what is brighter than half."""
    for index in range(4):
        material = layers_of(index)[-1].material

        def paint(other: Any, _: Any, window: synthetic.Window, white: bytes = material.waves.data) -> np.ndarray:
            shape = window[0].stop - window[0].start, window[1].stop - window[1].start, 3
            return np.full(shape, other.waves.data == white, np.float32)

        monkeypatch.setattr(synthetic, "_paint", paint)
        image, mask = draw_pair(3, index, 320, 240)
        np.testing.assert_array_equal(image[..., 0] >= 128, mask)
        assert ((image > 0) & (image < 255)).any(), "edges are not anti-aliased"


def test_strips_leave_no_seams(pairs: list[Pair], monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawn in strips of 16 rows, edges differ by a sixteenth of coverage in a few pixels, by OpenCV's rounding."""
    monkeypatch.setattr(synthetic, "STRIP_PIXELS", 1)
    for index in range(4):
        image, mask = draw_pair(3, index, 320, 240)
        assert (mask != pairs[index].mask).sum() <= 1
        difference = np.abs(image.astype(int) - pairs[index].image)
        assert difference.max() <= 32 and (difference > 1).mean() < 5e-4


@pytest.mark.parametrize("index", range(3))
def test_the_same_object_is_drawn_at_every_resolution(index: int, pairs: list[Pair]) -> None:
    large = draw_pair(3, index, 1280, 960).mask
    small = cv2.resize(large.astype(np.float32), (320, 240), interpolation=cv2.INTER_AREA) >= 0.5
    assert mask_iou(small, pairs[index].mask) > 0.8


def test_strokes_are_thin_at_every_resolution() -> None:
    """Thinner than 1% of the longer side there is something in each object; at 1600 pixels it is finer than at 320."""
    for index in range(2):
        shares = []
        for width in (320, 1600):
            mask = draw_pair(3, index, width, width * 3 // 4).mask
            thin = mask & ~opened(mask, max(4, width // 100))
            shares.append(thin.sum() / mask.sum())
        assert shares[0] > 0.01 and shares[1] > 0.005
    finest = mask & ~opened(mask, 4)
    assert finest.any()


def test_colours_change_at_the_outline(pairs: list[Pair]) -> None:
    """Close to the outline, the mean colours of the two sides differ clearly, nearly everywhere."""
    clear = []
    for image, mask in pairs:
        edge = cv2.morphologyEx(mask.astype(np.uint8), cv2.MORPH_GRADIENT, np.ones((3, 3), np.uint8)).astype(bool)
        means = []
        for side in (mask, ~mask):
            weight = cv2.blur(side.astype(np.float32), (7, 7))[..., None]
            means.append(cv2.blur(image * side[..., None].astype(np.float32), (7, 7)) / np.maximum(weight, 1e-3))
        clear.append((np.linalg.norm(means[0] - means[1], axis=2)[edge] > 40).mean())
    assert np.mean(clear) > 0.95 and min(clear) > 0.8


def test_the_background_has_the_objects_colours_too_but_not_next_to_it(pairs: list[Pair]) -> None:
    images_with_echoes = 0
    window = slice(0, 240), slice(0, 320)
    for index, pair in enumerate(pairs[:12]):
        *clutter, body = layers_of(index)
        echoes = [layer for layer in clutter if np.array_equal(layer.material.colours, body.material.colours)]
        near = cv2.dilate(pair.mask.astype(np.uint8), np.ones((5, 5), np.uint8)).astype(bool)
        covered = [synthetic.rasterise(layer.outline, window) > 0 for layer in echoes]
        assert not any((echo & near).any() for echo in covered)
        images_with_echoes += any(echo.sum() > 200 for echo in covered)
    assert images_with_echoes > 3


def test_large_images_need_little_memory_beyond_themselves() -> None:
    tracemalloc.start()
    pair = draw_pair(3, 0, 2400, 1600)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < pair.image.nbytes + pair.mask.nbytes + 60 * 2**20


def test_the_kind_of_body_can_be_chosen() -> None:
    rng = np.random.default_rng
    bodies = {kind: [_body(rng(seed), kind) for seed in range(8)] for kind in BODIES}
    # A castle has walls at two heights alone, a star's edges are straight between them, a polygon's teeth are few
    assert all(len(np.unique(radius.round(6))) == 2 for radius in bodies["castle"])
    assert all(len(np.unique(radius.round(6))) > 50 for kind in ("blob", "polygon", "star") for radius in bodies[kind])
    jumps = {kind: np.mean([np.abs(np.diff(radius, 2)).max() for radius in bodies[kind]]) for kind in BODIES}
    assert jumps["blob"] < jumps["polygon"] < jumps["castle"] and jumps["blob"] < jumps["star"] < jumps["castle"]
    drawn = [_body(rng(seed)) for seed in range(8)]
    assert all(any((radius == bodies[kind][seed]).all() for kind in BODIES) for seed, radius in enumerate(drawn))
    plain, star, castle = (draw_pair(3, 1, 96, 72, body) for body in (None, "star", "castle"))
    assert (star.mask != castle.mask).any() and (plain.mask == draw_pair(3, 1, 96, 72).mask).all()


# ---------------------------------------------------------------- coarse masks


def test_coarse_masks_are_near_the_truth_and_lack_its_thin_parts(pairs: list[Pair]) -> None:
    ious, kept, parts = [], [], []
    for index, (_, mask) in enumerate(pairs):
        coarse = coarse_mask(mask, np.random.default_rng(index))
        assert coarse.shape == mask.shape and coarse.dtype == bool
        ious.append(mask_iou(coarse, mask))
        thin = mask & ~opened(mask, 5)
        kept.append((coarse & thin).sum() / thin.sum())
        parts.append(cv2.connectedComponents(coarse.astype(np.uint8))[0] - 1)
    assert min(ious) > 0.7 and max(ious) < 0.93 and 0.78 < np.mean(ious) < 0.88
    assert np.mean(kept) < 0.5
    assert np.median(parts) <= 5
    first, again, other = (coarse_mask(pairs[0].mask, np.random.default_rng(seed)) for seed in (0, 0, 1))
    assert (first == again).all() and (first != other).any()


@pytest.mark.parametrize("shape", [(1, 1), (7, 90), (33, 20), (300, 41)])
def test_coarse_masks_of_nothing_and_of_everything(shape: tuple[int, int]) -> None:
    rng = np.random.default_rng(0)
    assert not coarse_mask(np.zeros(shape, bool), rng).any()
    assert coarse_mask(np.ones(shape, bool), rng).all()


def test_a_line_has_no_coarse_mask_and_a_square_keeps_its_place() -> None:
    mask = np.zeros((400, 400), bool)
    mask[200, :] = True  # a tenth of its cells, which are 10 pixels large
    assert coarse_mask(mask, np.random.default_rng(0))[200].mean() < 0.1
    mask[100:300, 100:300] = True
    coarse = coarse_mask(mask, np.random.default_rng(0))
    assert coarse[110:290, 110:290].all() and not coarse[:90].any() and not coarse[:, 310:].any()


# ---------------------------------------------------------------- files


def test_a_training_set_lies_side_by_side(root: Path) -> None:
    register_synthetic("synthetic_refinement_train_2_96x64")
    dicts = DatasetCatalog.get("synthetic_refinement_train_2_96x64")
    folder = root / "synthetic_refinement/train_2_96x64"
    assert dicts == [
        {"file_name": str(folder / f"{i}.jpg"), "mask_file_name": str(folder / f"{i}.png"), "image_id": i}
        for i in ("000001", "000002")
    ]
    expected = draw_pair(1, 1, 96, 64).mask * 255
    np.testing.assert_array_equal(cv2.imread(dicts[1]["mask_file_name"], cv2.IMREAD_UNCHANGED), expected)


def test_a_validation_set_has_the_layout_of_big(root: Path) -> None:
    name = "synthetic_refinement_val_2_96x64"
    register_synthetic(name)
    dicts = DatasetCatalog.get(name)
    assert [entry["image_id"] for entry in dicts] == ["000001", "000002"]
    for index, entry in enumerate(dicts):
        names = [Path(entry[key]).name for key in ("file_name", "mask_file_name", "coarse_file_name")]
        assert names == [f"{entry['image_id']}{end}" for end in ("_im.jpg", "_gt.png", "_seg.png")]
        truth = cv2.imread(entry["mask_file_name"], cv2.IMREAD_UNCHANGED) > 0
        np.testing.assert_array_equal(truth, draw_pair(2, index, 96, 64).mask)
        coarse = cv2.imread(entry["coarse_file_name"], cv2.IMREAD_UNCHANGED)
        assert set(np.unique(coarse)) == {0, 255} and 0.6 < mask_iou(coarse > 0, truth) < 1
