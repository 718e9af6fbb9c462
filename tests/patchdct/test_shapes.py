"""The synthetic data set: what is drawn, how hard its outlines are, and its files."""

import io
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
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

from patchdct.data import shapes, shapes_dataset
from patchdct.data.shapes import SHAPES_CLASSES, Scene, draw_scene
from patchdct.data.shapes_dataset import SHAPES, make_shapes, parse_shapes_name, register_shapes
from pixelmask.errors import UserError
from tests.pixelmask.test_boundary import by_definition

ROOT = Path(__file__).resolve().parents[2]


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

    def keep(outline: shapes.Outline, window: shapes.Window) -> np.ndarray:
        whole.append(coverage_of(outline, window) >= 0.5)
        return coverage_of(outline, window)

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


@pytest.mark.parametrize(
    ("name", "spec"),
    [
        ("shapes_train", ("train", 2000, 256)),
        ("shapes_val", ("val", 200, 256)),
        ("shapes_train_600", ("train", 600, 256)),
        ("shapes_val_512px", ("val", 200, 512)),
        ("shapes_val_100_1024px", ("val", 100, 1024)),
    ],
)
def test_names(name: str, spec: tuple[str, int, int]) -> None:
    assert parse_shapes_name(name) == spec


@pytest.mark.parametrize(
    "name", ["shapes", "shapes_test", "shapes_val_0", "shapes_val_10_20", "shapes_val_64px_3", "x"]
)
def test_malformed_names_are_refused_with_the_grammar(name: str) -> None:
    with pytest.raises(UserError, match=rf"'{name}'.*shapes_\{{train\|val\}}\[_\{{images\}}\]\[_\{{size\}}px\]"):
        register_shapes(name)
    assert name not in DatasetCatalog.list()
    for size in ("63px", "5000px"):
        with pytest.raises(UserError, match="64 to 4096"):
            register_shapes(f"shapes_val_{size}")


def test_a_registered_data_set_is_made_on_first_use(root: Path) -> None:
    register_shapes("shapes_val_6_128px")
    register_shapes("shapes_val_6_128px")
    assert not list(root.iterdir())
    metadata = MetadataCatalog.get("shapes_val_6_128px")
    assert metadata.thing_classes == list(SHAPES_CLASSES) and metadata.evaluator_type == "coco"

    dicts = DatasetCatalog.get("shapes_val_6_128px")
    assert [d["image_id"] for d in dicts] == [1, 2, 3, 4, 5, 6]
    assert Path(metadata.json_file).is_file() and Path(dicts[0]["file_name"]).parent == Path(metadata.image_root)
    expected = draw_scene(2, 0, 128)
    assert [a["category_id"] for a in dicts[0]["annotations"]] == expected.classes.tolist()
    # JPEG changes pixels a little.
    assert np.abs(cv2.imread(dicts[0]["file_name"])[..., ::-1] - expected.image.astype(float)).mean() < 4

    written = {path: path.stat().st_mtime_ns for path in root.rglob("*") if path.suffix != ".lock"}
    assert len(DatasetCatalog.get("shapes_val_6_128px")) == 6
    assert {path: path.stat().st_mtime_ns for path in root.rglob("*") if path.suffix != ".lock"} == written


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


def test_a_data_set_is_the_beginning_of_a_larger_one_and_shared_by_its_names(root: Path) -> None:
    small, large = make_shapes("shapes_val_2_64px"), make_shapes("shapes_val_4_64px")
    for path in (small / "images").iterdir():
        assert path.read_bytes() == (large / "images" / path.name).read_bytes()
    first, second = (json.loads((folder / "annotations.json").read_text()) for folder in (small, large))
    assert second["annotations"][: len(first["annotations"])] == first["annotations"]
    other = make_shapes("shapes_train_2_64px")
    assert (small / "images/000001.jpg").read_bytes() != (other / "images/000001.jpg").read_bytes()
    assert SHAPES.folder("shapes_val") == SHAPES.folder("shapes_val_200_256px")
    assert SHAPES.folder("shapes_val").is_relative_to(root / "shapes")


def test_an_interrupted_run_leaves_nothing_that_is_taken_for_a_data_set(root: Path) -> None:
    command = [sys.executable, "-m", "patchdct.data.shapes_dataset", "shapes_val_5000_64px"]
    partial = root / "shapes/val_5000_64px.partial/images/000003.jpg"
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 60
        while not partial.exists() and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.02)
        assert partial.exists()
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    assert not (root / "shapes/val_5000_64px").exists()

    # The same leftovers before a small data set: it is made whole, and they are gone.
    (root / "shapes/val_5000_64px.partial").rename(root / "shapes/val_2_64px.partial")
    folder = make_shapes("shapes_val_2_64px")
    assert sorted(path.name for path in (folder / "images").iterdir()) == ["000001.jpg", "000002.jpg"]
    assert not (root / "shapes/val_2_64px.partial").exists()


def test_two_processes_at_once_draw_it_once(root: Path) -> None:
    with multiprocessing.get_context("fork").Pool(2) as pool:
        folders = pool.map(_make_and_stat, ["shapes_val_8_64px"] * 2)
    assert folders[0] == folders[1]


def _make_and_stat(name: str) -> tuple[Path, int]:
    cv2.setNumThreads(0)  # the parent's threads do not survive a fork
    folder = make_shapes(name)
    return folder, (folder / "annotations.json").stat().st_ino


def test_data_of_another_drawing_version_are_refused(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = make_shapes("shapes_val_1_64px")
    monkeypatch.setattr(SHAPES, "version", shapes.DRAWING_VERSION + 1)
    with pytest.raises(UserError, match="delete this folder") as refusal:
        make_shapes("shapes_val_1_64px")
    assert str(folder) in str(refusal.value) and folder.exists()


@pytest.mark.parametrize("content", [None, "", "[]", '{"info": {}}', '{"info": {"drawing_ver'])
def test_a_folder_that_holds_something_else_is_refused(root: Path, content: str | None) -> None:
    folder = root / "shapes/val_1_64px"
    folder.mkdir(parents=True)
    if content is not None:
        (folder / "annotations.json").write_text(content)
    with pytest.raises(UserError, match=r"val_1_64px .*delete this folder"):
        make_shapes("shapes_val_1_64px")


def test_the_command_line_prints_where_the_data_set_is(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shapes_dataset.main(["shapes_val_1_64px"])
    assert capsys.readouterr().out.strip() == str(root / "shapes/val_1_64px")
    with pytest.raises(UserError):
        shapes_dataset.main(["shapes_val_x"])
