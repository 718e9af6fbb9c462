"""The synthetic data set: what is drawn, how hard its outlines are, and its files."""

import io
import json
from contextlib import redirect_stdout
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.layers import paste_masks_in_image
from detectron2.structures import BitMasks
from pycocotools.coco import COCO

from patchdct.data import shapes
from patchdct.data.shapes import SHAPES_CLASSES, Scene, draw_scene
from patchdct.data.shapes_dataset import make_shapes, register_shapes
from tests.pixelmask.test_boundary import by_definition


@pytest.fixture(scope="module")
def scenes() -> list[Scene]:
    return [draw_scene(3, index, 256) for index in range(40)]


# ---------------------------------------------------------------- drawing


def test_a_scene_depends_on_its_arguments_alone(scenes: list[Scene]) -> None:
    again = draw_scene(3, 7, 256)
    for field in Scene._fields:
        np.testing.assert_array_equal(getattr(again, field), getattr(scenes[7], field))
    assert (draw_scene(4, 7, 256).image != again.image).any()
    assert (draw_scene(3, 8, 256).image != again.image).any()


@pytest.mark.parametrize("size", [64, 97, 256])
def test_scenes_are_well_formed(size: int) -> None:
    for index in range(10):
        image, masks, classes = draw_scene(5, index, size)
        assert image.shape == (size, size, 3) and image.dtype == np.uint8
        assert masks.shape == (len(classes), size, size) and masks.dtype == bool
        assert 1 <= len(masks) <= shapes.MAX_OBJECTS
        assert masks.any(axis=(1, 2)).all()
        assert set(classes.tolist()) <= set(range(len(SHAPES_CLASSES)))


def test_all_classes_occur_and_masks_are_where_the_objects_are_painted(scenes: list[Scene]) -> None:
    """Objects are saturated, the ground is not: colour alone gives the masks back."""
    assert {int(label) for scene in scenes for label in scene.classes} == set(range(len(SHAPES_CLASSES)))
    counts = [len(scene.masks) for scene in scenes]
    assert max(counts) == 5 and np.mean(np.array(counts) >= 2) > 0.9
    for scene in scenes[:10]:
        foreground = scene.masks.any(axis=0)
        saturation = cv2.cvtColor(scene.image, cv2.COLOR_RGB2HSV)[..., 1] > 90
        assert (saturation == foreground).mean() > 0.99


def test_visible_masks_are_disjoint_though_objects_overlap(scenes, monkeypatch):
    assert all(scene.masks.sum(axis=0).max() == 1 for scene in scenes)
    whole: list[np.ndarray] = []
    coverage_of = shapes.rasterise

    def keep(outline: shapes.Parts, window: shapes.Window) -> np.ndarray:
        coverage = coverage_of(outline, window)
        whole.append(coverage >= 0.5)
        return coverage

    monkeypatch.setattr(shapes, "rasterise", keep)
    hidden = []
    for index in range(len(scenes)):
        whole.clear()
        masks = draw_scene(3, index, 256).masks
        if len(whole) == len(masks):  # nothing was dropped
            hidden += [1 - mask.sum() / full.sum() for mask, full in zip(masks, whole, strict=True)]
    assert np.mean(np.array(hidden) > 0.05) > 0.15, "too few objects are occluded"
    assert max(hidden) <= 1 - shapes.MIN_VISIBLE


@pytest.mark.parametrize("index", range(4))
def test_the_same_scene_is_drawn_at_every_size(index: int) -> None:
    small, large = draw_scene(3, index, 128), draw_scene(3, index, 1024)
    np.testing.assert_array_equal(small.classes, large.classes)
    for mask, detailed in zip(small.masks, large.masks, strict=True):
        coarse = cv2.resize(detailed.astype(np.float32), (128, 128), interpolation=cv2.INTER_AREA) >= 0.5
        assert mask_iou(mask, coarse) > 0.8


def test_larger_images_have_finer_waves_in_the_same_outlines() -> None:
    circle = shapes.circle(0, 0, 1)
    at_256, at_1024 = (shapes.bend(circle, np.random.default_rng(0), 2 / side) for side in (110, 440))
    added = np.linalg.norm(at_1024 - at_256, axis=1) * 220  # in pixels of the larger image
    assert 1 < added.max() < 10


# ---------------------------------------------------------------- difficulty


def mask_iou(first: np.ndarray, second: np.ndarray) -> float:
    return (first & second).sum() / (first | second).sum()


def ious_through_the_box_frame(scenes: list[Scene], resolution: int) -> tuple[float, float]:
    """Mean mask IoU and mean Boundary IoU of true masks after a round trip through resolution x resolution pixels."""
    ious = []
    for scene in scenes:
        truth = BitMasks(torch.from_numpy(scene.masks))
        boxes = truth.get_bounding_boxes().tensor.float()
        cropped = truth.crop_and_resize(boxes, resolution).float()
        pasted = paste_masks_in_image(cropped, boxes, scene.masks.shape[1:], threshold=0.5).numpy()
        for mask, other in zip(scene.masks, pasted, strict=True):
            whole = mask_iou(mask, other)
            ious.append((whole, min(whole, mask_iou(by_definition(mask), by_definition(other)))))
    mean = np.mean(ious, axis=0)
    return float(mean[0]), float(mean[1])


def test_boundary_iou_tells_masks_of_28_from_those_of_112_pixels(scenes: list[Scene]) -> None:
    low, low_boundary = ious_through_the_box_frame(scenes, 28)
    high, high_boundary = ious_through_the_box_frame(scenes, 112)
    assert high_boundary - low_boundary > 0.1
    assert high_boundary - low_boundary > 1.3 * (high - low)
    assert low > 0.85 and high_boundary > 0.97


# ---------------------------------------------------------------- files


def test_annotations_are_coco(root: Path) -> None:
    folder = make_shapes("shapes_train_5_128px")
    with redirect_stdout(io.StringIO()):
        coco = COCO(folder / "annotations.json")
    assert [c["name"] for c in coco.loadCats(sorted(coco.getCatIds()))] == list(SHAPES_CLASSES)
    assert sorted(coco.getCatIds()) == list(range(1, len(SHAPES_CLASSES) + 1))
    assert sorted(coco.getAnnIds()) == list(range(1, len(coco.anns) + 1))
    for image_id, image in coco.imgs.items():
        assert cv2.imread(folder / "images" / image["file_name"]).shape == (image["height"], image["width"], 3)
        annotations = coco.loadAnns(coco.getAnnIds(image_id))
        scene = draw_scene(1, image_id - 1, 128)
        np.testing.assert_array_equal([coco.annToMask(a) for a in annotations], scene.masks)
        for annotation, mask in zip(annotations, scene.masks, strict=True):
            rows, columns = np.nonzero(mask)
            corner = columns.min(), rows.min()
            assert annotation["bbox"] == [*corner, columns.max() + 1 - corner[0], rows.max() + 1 - corner[1]]
            assert annotation["area"] == mask.sum() and annotation["iscrowd"] == 0


def test_annotations_and_their_images_are_the_beginning_of_those_of_a_larger_set(root: Path) -> None:
    folders = make_shapes("shapes_val_2_64px"), make_shapes("shapes_val_4_64px")
    first, second = (json.loads((folder / "annotations.json").read_text()) for folder in folders)
    assert second["annotations"][: len(first["annotations"])] == first["annotations"]
    register_shapes("shapes_val_2_64px")
    metadata, dicts = MetadataCatalog.get("shapes_val_2_64px"), DatasetCatalog.get("shapes_val_2_64px")
    assert metadata.thing_classes == list(SHAPES_CLASSES) and [d["image_id"] for d in dicts] == [1, 2]
    assert Path(metadata.json_file).is_file() and Path(dicts[0]["file_name"]).parent == Path(metadata.image_root)
    assert [a["category_id"] for a in dicts[0]["annotations"]] == draw_scene(2, 0, 64).classes.tolist()
