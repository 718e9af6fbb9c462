"""Samples for training and testing: crops that fit together, colours, coarse masks, and messages."""

import time
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.config import CfgNode
from detectron2.data import build_detection_test_loader, build_detection_train_loader
from PIL import Image
from torchvision.transforms.v2 import functional as tv

from airm.data.dataset_mapper import RefinementDatasetMapper, adjust_color, random_crop, resize
from airm.data.perturbation import perturb_mask
from pixelmask.errors import UserError
from tests.support.models import disc

PLAIN = {"flip_prob": 0.0, "color_jitter": (0, 0, 0, 0), "grayscale_prob": 0.0}


@pytest.fixture
def make(tmp_path):
    """A function that writes a picture, its mask (where it is red) and perhaps a coarse mask, and gives their dict."""

    def write(height=150, width=180, center=(100, 80), radius=40, coarse=None):
        mask = disc(height, width, center, radius).numpy()
        y, x = np.mgrid[:height, :width]
        image = np.dstack([mask * 200, x % 256, y % 256]).astype(np.uint8)
        Image.fromarray(image).save(tmp_path / "castle.png")
        Image.fromarray(mask).save(tmp_path / "castle_gt.png")
        names = {"file_name": str(tmp_path / "castle.png"), "mask_file_name": str(tmp_path / "castle_gt.png")}
        if coarse is not None:
            Image.fromarray(coarse).save(tmp_path / "castle_seg.png")
            names["coarse_file_name"] = str(tmp_path / "castle_seg.png")
        return {**names, "image_id": "castle"}

    return write


def iou(sample):
    coarse, truth = sample["coarse_mask"].bool(), sample["mask"].bool()
    return ((coarse & truth).sum() / (coarse | truth).sum()).item()


@pytest.mark.parametrize("size", [(150, 180), (400, 40), (20, 30)])
@pytest.mark.parametrize("crop_size", [64, 96])
def test_training_sample(make, size, crop_size):
    dataset_dict = make(*size, center=(15, 10), radius=9)
    before = dict(dataset_dict)
    sample = RefinementDatasetMapper(True, crop_size=crop_size)(dataset_dict)
    assert dataset_dict == before
    assert sample["image"].dtype == torch.uint8 and sample["image"].shape == (3, crop_size, crop_size)
    for key in ("mask", "coarse_mask"):
        assert sample[key].dtype == torch.float32 and sample[key].shape == (1, crop_size, crop_size)
        assert set(sample[key].unique().tolist()) <= {0.0, 1.0}
    assert (sample["height"], sample["width"]) == (crop_size, crop_size)
    assert sample["image_id"] == "castle" and sample["file_name"] == dataset_dict["file_name"]


@pytest.mark.parametrize("size", [(150, 180), (400, 40), (20, 30), (1, 1)])
@pytest.mark.parametrize("flip", [0.0, 1.0])
def test_image_and_mask_stay_together(make, size, flip):
    mapper = RefinementDatasetMapper(True, crop_size=96, **{**PLAIN, "flip_prob": flip})
    dataset_dict = make(*size, center=(15, 10), radius=9)
    corners = set()
    np.random.seed(0)
    for _ in range(8):
        sample = mapper(dataset_dict)
        assert torch.equal(sample["image"][0] == 200, sample["mask"][0] == 1)
        corners.add(tuple(sample["image"][1:, 0, 0].tolist()))
        if size[1] >= 96:  # columns are numbered in green
            assert (sample["image"][1].int().diff() == (-1 if flip else 1)).all()
    assert len(corners) > 1 or size == (1, 1)


def test_small_pictures_are_reflected():
    image = np.arange(3, dtype=np.uint8)[None, :, None].repeat(3, 2)
    mask = np.array([[True, False, False]])
    cropped_mask, cropped, coarse, nothing = random_crop(9, np.random.default_rng(0), mask, image, ~mask, None)
    rows = cropped[..., 0]
    assert (rows == rows[0]).all() and (abs(np.diff(rows[0].astype(int))) == 1).all()
    assert np.array_equal(cropped_mask, rows == 0) and np.array_equal(coarse, rows != 0)
    assert nothing is None


def test_crops_cross_the_object_where_there_is_one():
    mask = np.zeros((400, 400), bool)
    mask[:150] = True  # 0.58 of all crops of 40 pixels have none of it
    rng = np.random.default_rng(0)
    hits = sum(random_crop(40, rng, mask)[0].any() for _ in range(200))
    assert hits > 190  # one attempt finds it in 83 of 200, ten in 199
    assert not random_crop(40, rng, np.zeros_like(mask))[0].any()


def test_crops_lie_around_the_contour_where_there_is_one():
    mask, contour = np.zeros((300, 400), bool), np.zeros((300, 400), bool)
    mask[100:200, 150:250] = contour[100:200, 150:250] = True
    contour[101:199, 151:249] = False
    rng = np.random.default_rng(0)
    crops = [random_crop(32, rng, mask, contour, at_contour=True) for _ in range(100)]
    assert all(crop.shape == (32, 32) and on_it.any() for crop, on_it in crops)
    assert len({on_it.any(1).argmax() for _, on_it in crops}) > 10  # anywhere in the crop
    assert sum(random_crop(32, rng, mask, contour)[1].any() for _ in range(100)) < 90
    assert random_crop(32, rng, np.ones_like(mask), at_contour=True)[0].all()


@pytest.mark.parametrize("scale", [0.5, 1.0, 1.5])
def test_pictures_are_resized_with_their_masks(scale: float):
    image = np.zeros((60, 80, 3), np.uint8)
    image[10:40, 20:60] = 255
    resized, mask = resize(image, image[..., 0] > 0, scale)
    assert mask.shape == resized.shape[:2] == (60 * scale, 80 * scale)
    assert np.array_equal(mask, resized[..., 0] >= 128)


@pytest.mark.parametrize(("kind", "largest"), [("regions", 0.88), ("contour", 0.89)])
def test_coarse_masks_have_ious_of_the_range(make, kind, largest):
    dataset_dict = make(radius=45)
    mapper = RefinementDatasetMapper(True, crop_size=140, perturbation=kind, iou_range=(0.85, 0.9))
    np.random.seed(0)
    ious = [iou(mapper(dataset_dict)) for _ in range(20)]
    assert 0.85 <= min(ious) < 0.86 and largest < max(ious) < 0.91


@pytest.mark.parametrize("before", [True, False])
def test_masks_are_perturbed_before_or_after_the_crop(make, before):
    """A crop of a third of the side sees a third of the contour, but the errors of the whole mask or of its own."""
    dataset_dict = make(radius=45)
    mapper = RefinementDatasetMapper(True, crop_size=50, iou_range=(0.8, 0.8), perturb_before_crop=before)
    np.random.seed(0)
    crops = [iou(mapper(dataset_dict)) for _ in range(40)]
    assert (np.std(crops) > 0.1) == before


def test_training_starts_where_the_global_generator_is_and_is_then_on_its_own(make):
    dataset_dict = make()
    samples = []
    for seed, drawn_by_others in ((7, 0), (7, 5), (8, 0)):
        np.random.seed(seed)
        mapper = RefinementDatasetMapper(True, crop_size=64)
        samples.append([])
        for _ in range(2):
            samples[-1].append(mapper(dataset_dict))
            np.random.random(drawn_by_others)
    for key in ("image", "mask", "coarse_mask"):
        assert all(torch.equal(a[key], b[key]) for a, b in zip(*samples[:2], strict=True))
    assert not torch.equal(samples[0][0]["image"], samples[0][1]["image"])
    assert not torch.equal(samples[0][0]["image"], samples[2][0]["image"])


def test_testing_keeps_size_colors_and_grey_values(make):
    coarse = (np.arange(150 * 180) % 256).astype(np.uint8).reshape(150, 180)
    dataset_dict = make(coarse=coarse)
    sample = RefinementDatasetMapper(False)(dataset_dict)
    picture = np.asarray(Image.open(dataset_dict["file_name"]))
    assert np.array_equal(sample["image"].permute(1, 2, 0), picture)
    np.testing.assert_allclose(sample["coarse_mask"][0], coarse / 255, atol=1e-6)
    assert np.array_equal(sample["mask"][0], disc(150, 180, (100, 80), 40))
    assert (sample["height"], sample["width"]) == (150, 180)
    del dataset_dict["mask_file_name"]  # not needed
    without = RefinementDatasetMapper(False)(dataset_dict)
    assert "mask" not in without and torch.equal(without["coarse_mask"], sample["coarse_mask"])


def test_coarse_masks_for_testing_depend_on_seed_and_id_alone(make):
    dataset_dict = make()
    first = RefinementDatasetMapper(False, seed=5)(dataset_dict)["coarse_mask"]
    np.random.seed(1)
    mapper = RefinementDatasetMapper(False, seed=5)
    other_id = mapper({**dataset_dict, "image_id": "tower"})["coarse_mask"]
    assert torch.equal(mapper(dataset_dict)["coarse_mask"], first)
    assert not torch.equal(other_id, first)
    assert not torch.equal(RefinementDatasetMapper(False, seed=6)(dataset_dict)["coarse_mask"], first)
    rng = np.random.default_rng([5, 0x4512FC28])  # CRC-32 of "castle"
    truth = disc(150, 180, (100, 80), 40).numpy()
    assert np.array_equal(perturb_mask(truth, rng.uniform(0.8, 1.0), rng, "contour"), first[0].bool())


def natural_image():
    """A smooth picture whose values are so far from 0 and 255 that the changes below do not clip them."""
    y, x = np.mgrid[:40, :50] / 50
    return (255 * np.dstack([0.3 + 0.3 * x, 0.6 - 0.2 * y, 0.35 + 0.2 * x * y])).round().astype(np.uint8)


@pytest.mark.parametrize(
    ("kwargs", "reference"),
    [
        ({}, lambda image: image),
        ({"brightness": 1.3}, lambda image: tv.adjust_brightness(image, 1.3)),
        ({"brightness": 0.7}, lambda image: tv.adjust_brightness(image, 0.7)),
        ({"contrast": 1.3}, lambda image: tv.adjust_contrast(image, 1.3)),
        ({"contrast": 0.0}, lambda image: tv.adjust_contrast(image, 0.0)),
        ({"saturation": 1.3}, lambda image: tv.adjust_saturation(image, 1.3)),
        ({"saturation": 0.0}, lambda image: tv.rgb_to_grayscale(image, 3)),
        (
            {"brightness": 1.2, "contrast": 0.8, "saturation": 0.7},
            lambda image: tv.adjust_saturation(tv.adjust_contrast(tv.adjust_brightness(image, 1.2), 0.8), 0.7),
        ),
    ],
)
def test_colors_agree_with_torchvision(kwargs, reference):
    image = natural_image()
    changed = adjust_color(image, **{"brightness": 1, "contrast": 1, "saturation": 1, "hue": 0, **kwargs})
    expected = 255 * reference(torch.from_numpy(image).permute(2, 0, 1) / 255).permute(1, 2, 0).numpy()
    assert changed.dtype == np.uint8
    assert abs(changed - expected).max() < 0.6


def test_hue_turns_colors_and_keeps_luma_and_greys():
    image = natural_image()
    turned = adjust_color(image, 1, 1, 1, 0.1).astype(int)
    assert abs(turned - image).mean() > 8
    assert abs((turned - image) @ [0.299, 0.587, 0.114]).max() < 1
    grey = np.repeat(np.arange(256, dtype=np.uint8).reshape(16, 16, 1), 3, axis=2)
    assert np.array_equal(adjust_color(grey, 1, 1, 1, 0.3), grey)
    red = adjust_color(np.full((1, 1, 3), (170, 80, 80), np.uint8), 1, 1, 1, 0.08)[0, 0].astype(int)
    reference = tv.adjust_hue(torch.tensor([170, 80, 80], dtype=torch.uint8)[:, None, None], 0.08).flatten().numpy()
    assert reference[1] > reference[2] + 20 and red[1] > red[2] + 20  # towards orange, as torchvision turns
    # Values out of range are clipped
    assert (adjust_color(np.full((4, 4, 3), 200, np.uint8), 2.0, 1, 1, 0) == 255).all()
    assert adjust_color(np.array([[[0, 0, 0], [255, 255, 255]]], np.uint8), 1, 3.0, 1, 0)[0, 0].max() == 0


def test_grayscale_and_jitter_are_drawn(make):
    dataset_dict = make()
    sample = RefinementDatasetMapper(True, crop_size=64, grayscale_prob=1.0)(dataset_dict)
    assert (sample["image"] == sample["image"][:1]).all()
    mapper = RefinementDatasetMapper(True, crop_size=150, **{**PLAIN, "color_jitter": (0.5, 0, 0, 0)})
    means = [mapper(dataset_dict)["image"].float().mean().item() for _ in range(10)]
    assert max(means) > 1.2 * min(means)


def test_from_config():
    keys = {"crop_size": 48, "flip_prob": 0.25, "grayscale_prob": 0.3, "perturb_before_crop": True, "seed": 9}
    keys |= {"coarse_masks": ("contour", "truth"), "color_jitter": (0.1, 0.2, 0.3, 0.4), "iou_range": (0.7, 0.9)}
    keys |= {"scale_range": (0.5, 2.0), "crop_at_contour": True}
    cfg = CfgNode({"INPUT": {"REFINEMENT": {key.upper(): value for key, value in keys.items()}}})
    cfg.INPUT.REFINEMENT.PERTURBATION = "regions"
    cfg.MODEL = CfgNode({"AIRM": {"QUERY_INPUTS": ["colour"]}})
    assert RefinementDatasetMapper(cfg).is_train
    mapper = RefinementDatasetMapper(cfg, is_train=False)
    assert not mapper.is_train and keys.items() <= vars(mapper).items()


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("crop_size", 0),
        ("flip_prob", 1.5),
        ("grayscale_prob", -0.1),
        ("color_jitter", (0.3, 0.3, 0.3)),
        ("color_jitter", (0.3, 0.3, -0.3, 0.1)),
        ("perturbation", "region"),
        ("coarse_masks", ("box",)),
        ("scale_range", (2, 1)),
        ("scale_range", (0, 1)),
        ("iou_range", (0.9, 0.8)),
        ("iou_range", (0.0, 0.8)),
        ("iou_range", (0.8, 1.1)),
        ("iou_range", (0.8,)),
        ("seed", -1),
    ],
)
def test_values_out_of_range_name_their_key(key, value):
    with pytest.raises(UserError, match=rf"INPUT\.REFINEMENT\.{key.upper()} is .*, but has to be"):
        RefinementDatasetMapper(True, **{key: value})


def test_masks_of_another_size_are_named(make, tmp_path):
    dataset_dict = make()
    Image.fromarray(np.zeros((180, 150), np.uint8)).save(dataset_dict["mask_file_name"])
    message = r"image \S+castle\.png is 180 x 150 pixels, but its mask \S+castle_gt\.png is 150 x 180"
    for is_train in (True, False):
        with pytest.raises(UserError, match=message):
            RefinementDatasetMapper(is_train)(dataset_dict)
    dataset_dict = make(coarse=np.zeros((75, 90), np.uint8))
    with pytest.raises(UserError, match=r"castle\.png is 180 x 150 pixels, .*castle_seg\.png is 90 x 75"):
        RefinementDatasetMapper(False)(dataset_dict)


@pytest.mark.parametrize("is_train", [True, False])
def test_missing_and_damaged_files_are_named(make, is_train):
    dataset_dict = make()
    for key, message in (("mask_file_name", "cannot read mask"), ("file_name", "cannot read image")):
        Path(dataset_dict[key]).write_bytes(b"")
        with pytest.raises(UserError, match=f"{message} {dataset_dict[key]}"):
            RefinementDatasetMapper(is_train)(dataset_dict)
    dataset_dict = make()
    del dataset_dict["mask_file_name"]
    with pytest.raises(UserError, match=r"image \S+castle\.png has no mask_file_name"):
        RefinementDatasetMapper(is_train)(dataset_dict)


def test_loaders_of_detectron2(make):
    dataset_dict = make()
    mapper = RefinementDatasetMapper(True, crop_size=64)
    options = {"total_batch_size": 2, "num_workers": 0, "aspect_ratio_grouping": False}
    batch = next(iter(build_detection_train_loader([dataset_dict], mapper=mapper, **options)))
    assert [sample["image"].shape for sample in batch] == [(3, 64, 64)] * 2
    assert not torch.equal(batch[0]["image"], batch[1]["image"])
    ((sample,),) = build_detection_test_loader([dataset_dict], mapper=RefinementDatasetMapper(False), num_workers=0)
    assert sample["image"].shape == (3, 150, 180)


def test_real_pictures(real_data):
    folder = real_data / "refine/ecssd"
    mapper = RefinementDatasetMapper(True)
    np.random.seed(0)
    seconds = []
    for path in sorted((folder / "images").glob("*.jpg"))[::10]:
        truth = folder / "ground_truth_mask" / f"{path.stem}.png"
        start = time.process_time()
        sample = mapper({"file_name": str(path), "mask_file_name": str(truth), "image_id": path.stem})
        seconds.append(time.process_time() - start)
        assert sample["image"].shape == (3, 224, 224) and sample["mask"].any()
        assert iou(sample) >= 0.8
    assert len(seconds) >= 50
    assert np.median(seconds) < 0.02  # 3.5 ms on a free core
