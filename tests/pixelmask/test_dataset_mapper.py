import gc
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.data import build_detection_test_loader, build_detection_train_loader
from detectron2.structures import BoxMode
from PIL import Image, ImageFile

from pixelmask.config import get_cfg
from pixelmask.data.mapper import CheckedDatasetMapper, ImageError
from pixelmask.errors import UserError


@pytest.fixture
def cfg():
    cfg = get_cfg()
    cfg.MODEL.MASK_ON = True
    cfg.INPUT.MIN_SIZE_TRAIN = (40,)
    return cfg


def record(folder, suffix="png", **kwargs):
    """A data set dict with a real image of noise, 60 x 40 pixels."""
    path = folder / f"image.{suffix}"
    noise = np.random.default_rng(0).integers(0, 255, (40, 60, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path)
    square = [5.0, 5.0, 30.0, 5.0, 30.0, 30.0, 5.0, 30.0]
    annotation = {"bbox": [5, 5, 25, 25], "bbox_mode": BoxMode.XYWH_ABS, "category_id": 0, "segmentation": [square]}
    return {"file_name": str(path), "image_id": 1, "height": 40, "width": 60, "annotations": [annotation], **kwargs}


def test_what_others_draw_in_between_changes_nothing_and_nothing_of_theirs(cfg, tmp_path):
    cfg.INPUT.MIN_SIZE_TRAIN = tuple(range(30, 60))
    dataset_dict = record(tmp_path)

    def draw(mapper, drawn_by_others):
        np.random.seed(0)
        images = []
        for _ in range(5):
            images.append(mapper(dataset_dict)["image"])
            theirs = np.random.random(drawn_by_others)
        return images, theirs

    (alone, _), (between, theirs) = (draw(CheckedDatasetMapper(cfg, True), n) for n in (0, 3))
    assert len({image.shape for image in alone}) > 1
    assert all(a.shape == b.shape and torch.equal(a, b) for a, b in zip(alone, between, strict=True))
    np.random.seed(0)
    assert np.array_equal(theirs, np.random.random(15)[-3:])


def remove(path):
    path.unlink()


def truncate(path):
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


def empty(path):
    path.write_bytes(b"")


def text(path):
    path.write_text("404 not found")


def corrupt(path):
    content = bytearray(path.read_bytes())
    content[40:400] = bytes(360)
    path.write_bytes(bytes(content))


@pytest.mark.parametrize("is_train", [True, False])
def test_good_images_pass(cfg, tmp_path, is_train):
    dataset_dict = record(tmp_path)
    result = CheckedDatasetMapper(cfg, is_train)(dataset_dict)
    assert result["image"].shape[0] == 3
    assert ("instances" in result) == is_train
    assert "annotations" in dataset_dict  # left as it was


@pytest.mark.parametrize("is_train", [True, False])
@pytest.mark.parametrize("suffix", ["png", "jpg"])
@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (remove, "no image {}; check the image folder"),
        (truncate, "cannot read image {}: .*truncated"),
        (empty, "cannot read image {}: cannot identify"),
        (text, "cannot read image {}: cannot identify"),
    ],
)
def test_bad_images_are_named(cfg, tmp_path, damage, message, suffix, is_train):
    dataset_dict = record(tmp_path, suffix)
    damage(Path(dataset_dict["file_name"]))
    assert not ImageFile.LOAD_TRUNCATED_IMAGES
    with pytest.raises(ImageError, match=message.format(dataset_dict["file_name"])):
        CheckedDatasetMapper(cfg, is_train)(dataset_dict)
    corrupted = record(tmp_path)
    corrupt(Path(corrupted["file_name"]))
    with pytest.raises(ImageError, match=f"cannot read image {corrupted['file_name']}"):
        CheckedDatasetMapper(cfg, is_train)(corrupted)


@pytest.mark.parametrize("is_train", [True, False])
def test_another_size_than_annotated(cfg, tmp_path, is_train):
    dataset_dict = record(tmp_path, height=60, width=40)
    with pytest.raises(ImageError, match=r"image \S+image\.png is 60 x 40 pixels, but its annotations say 40 x 60"):
        CheckedDatasetMapper(cfg, is_train)(dataset_dict)


@pytest.mark.parametrize("is_train", [True, False])
def test_an_image_that_resizing_leaves_nothing_of(cfg, tmp_path, is_train):
    dataset_dict = record(tmp_path, height=1, width=5000)
    Image.new("RGB", (5000, 1)).save(dataset_dict["file_name"])
    with pytest.raises(ImageError, match=r"image \S+image\.png cannot be used: .* must be > 0"):
        CheckedDatasetMapper(cfg, is_train)(dataset_dict)


def test_other_errors_stay_what_they_are(cfg, tmp_path):
    dataset_dict = record(tmp_path)
    del dataset_dict["annotations"][0]["bbox"]
    with pytest.raises(KeyError, match="bbox"):
        CheckedDatasetMapper(cfg, True)(dataset_dict)


def failure(loader):
    """Class and message of the error that a loader raises. The error itself would keep its workers alive."""
    try:
        next(iter(loader))
    except UserError as e:
        return type(e), str(e)
    finally:
        gc.collect()


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("is_train", [True, False])
def test_message_comes_clean_out_of_a_worker(cfg, tmp_path, monkeypatch, workers, is_train):
    monkeypatch.setattr(torch.utils.data._utils, "MP_STATUS_CHECK_INTERVAL", 0.1)  # seconds until a worker is ended
    dataset_dict = record(tmp_path)
    truncate(Path(dataset_dict["file_name"]))
    mapper = CheckedDatasetMapper(cfg, is_train)
    if is_train:
        loader = build_detection_train_loader([dataset_dict], mapper=mapper, total_batch_size=1, num_workers=workers)
    else:
        loader = build_detection_test_loader([dataset_dict], mapper=mapper, num_workers=workers)
    error, message = failure(loader)
    assert error is ImageError
    assert message.startswith(f"cannot read image {dataset_dict['file_name']}: ")
    assert message.endswith("take it out of its data set")
    assert "\n" not in message


def test_error_can_be_pickled():
    error = pickle.loads(pickle.dumps(ImageError("no image a.png")))
    assert type(error) is ImageError
    assert str(error) == "no image a.png"
