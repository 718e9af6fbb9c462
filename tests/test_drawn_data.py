"""The data sets that are drawn on first use: their names, files, and folders that are there whole or not at all."""

import multiprocessing
import time

import cv2
import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog

from airm.data.synthetic import draw_pair
from airm.data.synthetic_dataset import SYNTHETIC
from patchdct.data import shapes_dataset
from patchdct.data.shapes import draw_scene
from patchdct.data.shapes_dataset import SHAPES
from pixelmask.errors import UserError
from tests.support.catalogs import root

__all__ = ["root"]


def collection_of(name):
    (collection,) = (c for c in (SHAPES, SYNTHETIC) if c.owns(name))
    return collection


@pytest.mark.parametrize(
    ("name", "spec", "folder"),
    [
        ("shapes_train", ("train", 2000, 256), "train_2000_256px"),
        ("shapes_val", ("val", 200, 256), "val_200_256px"),
        ("shapes_train_600", ("train", 600, 256), "train_600_256px"),
        ("shapes_val_512px", ("val", 200, 512), "val_200_512px"),
        ("shapes_val_100_1024px", ("val", 100, 1024), "val_100_1024px"),
        ("synthetic_refinement_train", ("train", 400, 320, 240, None), "train_400_320x240"),
        ("synthetic_refinement_val", ("val", 40, 320, 240, None), "val_40_320x240"),
        ("synthetic_refinement_train_50", ("train", 50, 320, 240, None), "train_50_320x240"),
        ("synthetic_refinement_val_320", ("val", 320, 320, 240, None), "val_320_320x240"),
        ("synthetic_refinement_val_6000x4000", ("val", 40, 6000, 4000, None), "val_40_6000x4000"),
        ("synthetic_refinement_val_star", ("val", 40, 320, 240, "star"), "val_star_40_320x240"),
        ("synthetic_refinement_train_blob_3_640x480", ("train", 3, 640, 480, "blob"), "train_blob_3_640x480"),
    ],
)
def test_names(name, spec, folder, root):
    collection = collection_of(name)
    assert collection.parse(name) == spec
    assert collection.folder(name) == root / collection.title / folder


SHAPES_GRAMMAR = r"shapes_\{train\|val\}\[_\{images\}\]\[_\{size\}px\]"
PAIRS, PAIRS_GRAMMAR = "synthetic_refinement", r"\[_\{images\}\]\[_\{width\}x\{height\}\]"


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["shapes", "shapes_test", "shapes_val_0", "shapes_val_10_20", "shapes_val_64px_3"], SHAPES_GRAMMAR),
        (["shapes_val_63px", "shapes_val_5000px"], "64 to 4096"),
        (
            [f"synthetic_refinement{end}" for end in ("", "_test", "_val_0", "_val_3_64", "_val_3_64x64_2")],
            PAIRS_GRAMMAR,
        ),
        (["synthetic_refinement_val_63x64", "synthetic_refinement_val_64x6001"], "64 to 6000"),
    ],
)
def test_malformed_names_are_refused_with_the_grammar(names, message, root):
    for name in names:
        with pytest.raises(UserError, match=rf"'{name}'.*{message}"):
            collection_of(name).register(name)
        assert name not in DatasetCatalog.list()
    with pytest.raises(UserError, match=rf"'x'.*{SHAPES_GRAMMAR}"):
        SHAPES.parse("x")
    assert not SYNTHETIC.owns("synthetic_refinements") and not SYNTHETIC.owns("ecssd")


@pytest.mark.parametrize(
    ("name", "evaluator", "draw"),
    [
        ("shapes_val_3_96px", "coco", lambda: draw_scene(2, 2, 96).image),
        ("synthetic_refinement_train_3_96x64", "refinement", lambda: draw_pair(1, 2, 96, 64).image),
        ("synthetic_refinement_val_3_96x64", "refinement", lambda: draw_pair(2, 2, 96, 64).image),
    ],
)
def test_a_registered_data_set_is_made_on_first_use(name, evaluator, draw, root):
    for _ in range(2):
        collection_of(name).register(name)
    assert not list(root.iterdir()) and MetadataCatalog.get(name).evaluator_type == evaluator
    dicts = DatasetCatalog.get(name)
    # JPEG changes pixels a little
    assert np.abs(cv2.imread(dicts[2]["file_name"])[..., ::-1] - draw().astype(float)).mean() < 5
    written = {path: path.stat().st_mtime_ns for path in root.rglob("*") if path.suffix != ".lock"}
    assert len(dicts) == len(DatasetCatalog.get(name)) == 3
    assert {path: path.stat().st_mtime_ns for path in root.rglob("*") if path.suffix != ".lock"} == written


@pytest.mark.parametrize("name", ["shapes_{}_64px", "synthetic_refinement_{}_64x64"])
def test_a_data_set_is_the_beginning_of_a_larger_one(name, root):
    make = collection_of(name.format("val_2")).make
    small, large, other = (make(name.format(part)) for part in ("val_2", "val_4", "train_2"))
    images = [path.relative_to(small) for path in small.rglob("0*")]
    assert len(images) in (2, 6)
    for image in images:
        assert (small / image).read_bytes() == (large / image).read_bytes()
    (first,), (another,) = ([*folder.rglob("000001*.jpg")] for folder in (small, other))
    assert first.read_bytes() != another.read_bytes()


def test_an_interrupted_run_leaves_nothing_that_is_taken_for_a_data_set(root):
    process = multiprocessing.get_context("fork").Process(target=_make, args=["shapes_val_5000_64px"])
    process.start()
    deadline = time.monotonic() + 60
    while not (root / "shapes/val_5000_64px.partial/images/000003.jpg").exists():
        assert process.is_alive() and time.monotonic() < deadline
        time.sleep(0.02)
    process.kill()
    process.join()
    assert not (root / "shapes/val_5000_64px").exists()

    # The same leftovers before a small data set: it is made whole, and they are gone
    (root / "shapes/val_5000_64px.partial").rename(root / "shapes/val_2_64px.partial")
    folder = SHAPES.make("shapes_val_2_64px")
    assert sorted(path.name for path in (folder / "images").iterdir()) == ["000001.jpg", "000002.jpg"]
    assert not (root / "shapes/val_2_64px.partial").exists()


@pytest.mark.parametrize("name", ["shapes_val_1_64px", "synthetic_refinement_val_1_64x64"])
def test_a_data_set_that_is_there_is_read_where_nothing_can_be_written(name, root, monkeypatch):
    """No lock beside it then, as a first use has."""
    folder = collection_of(name).make(name)

    def refuse(path: str) -> None:
        raise PermissionError(13, "Permission denied", f"{path}.lock")

    monkeypatch.setattr("pixelmask.data.drawn.file_lock", refuse)
    assert collection_of(name).make(name) == folder
    with pytest.raises(PermissionError):
        collection_of(name).make(name.replace("_1_", "_2_"))


def test_two_processes_at_once_draw_it_once(root):
    with multiprocessing.get_context("fork").Pool(2) as pool:
        first, second = pool.map(_make, ["shapes_val_8_64px"] * 2)
    assert first == second


def _make(name):
    cv2.setNumThreads(0)  # the parent's threads do not survive a fork
    folder = SHAPES.make(name)
    return folder, (folder / "annotations.json").stat().st_ino


@pytest.mark.parametrize(
    ("name", "version_file", "contents"),
    [
        ("shapes_val_1_64px", "annotations.json", [None, "", "[]", '{"info": {}}', '{"info": {"drawing_ver']),
        ("synthetic_refinement_val_1_64x64", "drawing_version.txt", [None, "x"]),
    ],
)
def test_folders_of_other_drawings_and_of_something_else_are_refused(name, version_file, contents, root, monkeypatch):
    collection = collection_of(name)
    folder = collection.make(name)
    with monkeypatch.context() as patch:
        patch.setattr(collection, "version", collection.version + 6)
        with pytest.raises(UserError, match=rf"{folder} was drawn by version 1 .* version 7: delete this folder"):
            collection.make(name)
    for content in contents:
        (folder / version_file).unlink() if content is None else (folder / version_file).write_text(content)
        with pytest.raises(UserError, match=rf"{folder} is not a data set .*delete this folder"):
            collection.make(name)
    assert folder.exists()


def test_the_command_line_prints_where_the_data_set_is(root, capsys):
    shapes_dataset.main(["shapes_val_1_64px"])
    assert capsys.readouterr().out.strip() == str(root / "shapes/val_1_64px")
    with pytest.raises(UserError):
        shapes_dataset.main(["shapes_val_x"])
