import json
import multiprocessing
import os
from pathlib import Path

import numpy as np
import pytest
from cityscapesscripts.helpers.labels import labels
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import BitMasks, PolygonMasks
from PIL import Image
from pycocotools import mask as mask_util
from scipy.ndimage import binary_fill_holes

from patchdct.data import cityscapes
from patchdct.data.cityscapes import CITYSCAPES_CLASSES, annotation_file, outlines, register_cityscapes
from patchdct.data.prepare import prepare_datasets
from pixelmask.config import get_cfg, load_cfg
from pixelmask.data.mapper import CheckedDatasetMapper
from pixelmask.errors import UserError
from tests.support.cityscapes_tree import CAR, NAME, PERSON, RIDER, TRAILER, paint, write_frame, write_tree

VAL, TRAIN = f"{NAME}val", f"{NAME}train"


def load(name=VAL, polygons=False):
    register_cityscapes(name, polygons)
    return DatasetCatalog.get(name)


def config(train=(), test=(VAL,), **changes):
    cfg = get_cfg()
    cfg.MODEL.META_ARCHITECTURE = "GeneralizedRCNN"
    cfg.MODEL.MASK_ON = True
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = 8
    cfg.INPUT.MASK_FORMAT = changes.get("mask_format", "bitmask")
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = train, test
    return cfg


def json_file(root, form="rle") -> Path:
    return root / "cityscapes" / f"instances_{form}_val.json"


def test_classes_are_those_that_cityscapes_evaluates():
    official = {x.name: x.id for x in labels if x.hasInstances and not x.ignoreInEval}
    assert official == CITYSCAPES_CLASSES
    assert list(CITYSCAPES_CLASSES) == MetadataCatalog.get(VAL).thing_classes, "Detectron2's order"


def test_masks_are_the_pixels_of_each_instance(root):
    scenes = write_tree(root)
    records = load()
    assert [Path(r["file_name"]).name for r in records] == [
        f"{city}_000000_{i:06d}_leftImg8bit.png" for i, city in enumerate(["aachen", "aachen", "bochum"])
    ]
    for ids, record in zip(scenes, records, strict=True):
        assert (record["height"], record["width"]) == ids.shape
        assert Path(record["file_name"]).is_file()
        found = {}
        for annotation in record["annotations"]:
            mask = mask_util.decode(annotation["segmentation"]).astype(bool)
            (value,) = np.unique(ids[mask])
            assert np.array_equal(mask, ids == value)
            rows, columns = np.nonzero(mask)
            box = [columns.min(), rows.min(), np.ptp(columns) + 1, np.ptp(rows) + 1]
            assert annotation["bbox"] == pytest.approx(box)
            found[int(value)] = (annotation["category_id"], annotation["iscrowd"])
        present = set(np.unique(ids).tolist())
        expected = {CAR: (2, 1), RIDER * 1000 + 2: (1, 0)}
        expected |= {CAR * 1000 + n: (2, 0) for n in (0, 1, 9)} | {PERSON * 1000 + n: (0, 0) for n in (0, 1)}
        assert found == {value: entry for value, entry in expected.items() if value in present}
        assert TRAILER * 1000 in present, "of a label that is not evaluated"


def test_names_are_detectron2s_with_their_metadata(root):
    write_tree(root)
    write_tree(root, "train", 1)
    for name in (VAL, TRAIN, VAL):
        register_cityscapes(name)
    metadata = MetadataCatalog.get(VAL)
    assert metadata.evaluator_type == "cityscapes_instance"
    assert metadata.gt_dir == str(root / "cityscapes/gtFine/val")
    assert len(DatasetCatalog.get(TRAIN)) == 1
    image = DatasetCatalog.get(VAL)[0]["file_name"]
    annotation = annotation_file(image, metadata.gt_dir)
    assert annotation == root / "cityscapes/gtFine/val/aachen/aachen_000000_000000_gtFine_instanceIds.png"


def test_root_may_change_between_registrations(root, monkeypatch):
    write_tree(root / "a", frames=1)
    write_tree(root / "b", frames=2)
    for folder, count in (("a", 1), ("b", 2)):
        monkeypatch.setenv("DETECTRON2_DATASETS", str(root / folder))
        assert len(load()) == count
        assert folder in MetadataCatalog.get(VAL).image_dir


def test_masks_are_kept_until_an_annotation_changes(root, monkeypatch):
    write_tree(root)
    before = load()
    content = json_file(root).read_bytes()
    monkeypatch.setattr(cityscapes, "read_instance_ids", None)  # cannot be called
    assert load() == before
    monkeypatch.undo()
    monkeypatch.setenv("DETECTRON2_DATASETS", str(root))
    write_frame(root, "val", "aachen/aachen_000000_000000", paint(np.zeros((64, 128), np.uint16), 1, 2, 3, 4, 33000))
    annotations = load()[0]["annotations"]
    assert [(a["category_id"], a["bbox"]) for a in annotations] == [(7, [2, 1, 4, 3])]
    assert json_file(root).read_bytes() != content
    left = {path.name for path in json_file(root).parent.iterdir()} - {"leftImg8bit", "gtFine"}
    assert left == {"instances_rle_val.json", "instances_rle_val.json.lock"}


@pytest.mark.parametrize("damage", ["", "{", "[]", '{"info": {}}'])
def test_damaged_json_is_made_anew(root, damage):
    write_tree(root)
    before = load()
    json_file(root).write_text(damage)
    assert load() == before
    assert json.loads(json_file(root).read_text())["categories"][0]["name"] == "person"


@pytest.fixture
def cache(monkeypatch, tmp_path_factory):
    """Where masks are kept if the data set's folder cannot be written, which this says it cannot."""
    cache = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("FVCORE_CACHE", str(cache))
    access = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path).name != "cityscapes" and access(path, mode))
    return cache


def test_folder_that_cannot_be_written(root, cache):
    write_tree(root)
    assert len(load()) == 3
    assert not json_file(root).exists()
    assert len(list(cache.rglob("instances_rle_val.json"))) == 1


def count_frames(name, root):
    os.environ["DETECTRON2_DATASETS"] = str(root)
    return len(load(name))


def test_processes_that_ask_at_once(root):
    write_tree(root)
    with multiprocessing.get_context("fork").Pool(2) as pool:
        assert pool.starmap(count_frames, [(VAL, root)] * 4) == [3] * 4


def test_several_processes_read_like_one(root, monkeypatch):
    write_tree(root, frames=5)
    alone = load()
    json_file(root).unlink()
    monkeypatch.setattr(cityscapes, "_IMAGES_PER_WORKER", 2)
    assert load() == alone


def test_training_samples_have_exact_masks_and_no_groups(root):
    scenes = write_tree(root, "train")
    cfg = load_cfg("configs/patchdct/cityscapes/patchdct_R_50_FPN_cityscapes.yaml", ["INPUT.CROP.ENABLED", "False"])
    record = load(TRAIN)[0]
    mapper = CheckedDatasetMapper(cfg, is_train=True, augmentations=[])
    instances = mapper(record)["instances"]
    values = [v for v in np.unique(scenes[0]) if v >= 1000 and v // 1000 != TRAILER]
    assert len(instances) == len(values)
    masks = {int(np.unique(scenes[0][m.numpy()])[0]): m.numpy() for m in instances.gt_masks.tensor}
    assert sorted(masks) == values
    assert all(np.array_equal(mask, scenes[0] == value) for value, mask in masks.items())


def test_unpublished_size_is_said(root, caplog):
    write_tree(root)
    with caplog.at_level("WARNING", logger="patchdct"):
        load()
    assert f"{VAL} has 3 images here, not 500" in caplog.text


def test_folders_that_are_missing_or_empty(root):
    with pytest.raises(UserError, match=f"{VAL} needs {root}/cityscapes/.*DETECTRON2_DATASETS is {root}"):
        prepare_datasets(config(), train=False)
    for kind in ("leftImg8bit", "gtFine"):
        (root / "cityscapes" / kind / "val").mkdir(parents=True)
    with pytest.raises(UserError, match=r"no image <city>/\*_leftImg8bit.png in \S*leftImg8bit/val"):
        prepare_datasets(config(), train=False)


@pytest.mark.parametrize(("kind", "alone"), [("gtFine", "leftImg8bit"), ("leftImg8bit", "gtFine_instanceIds")])
def test_files_without_partner_are_counted_and_named(root, kind, alone):
    write_tree(root)
    for path in sorted((root / "cityscapes" / kind / "val").glob("*/*.png"))[1:]:
        path.unlink()
    with pytest.raises(UserError, match=rf"2 of 3 files \*_{alone}.png.*first is aachen/aachen_000000_000001_{alone}"):
        prepare_datasets(config(), train=False)


@pytest.mark.parametrize("workers", [0, 2])
def test_unreadable_annotation(root, monkeypatch, workers):
    write_tree(root, frames=4)
    path = root / "cityscapes/gtFine/val/bochum/bochum_000000_000003_gtFine_instanceIds.png"
    path.write_bytes(path.read_bytes()[:200])
    monkeypatch.setattr(cityscapes, "_IMAGES_PER_WORKER", 2 if workers else 20)
    with pytest.raises(UserError, match=rf"^cannot read annotation {path}: .*gtFine_trainvaltest.zip$"):
        load()
    assert not json_file(root).exists()


def test_annotation_that_is_a_photograph(root):
    write_tree(root)
    path = root / "cityscapes/gtFine/val/bochum/bochum_000000_000002_gtFine_instanceIds.png"
    Image.new("RGB", (8, 8)).save(path)
    with pytest.raises(UserError, match=f"{path} does not hold instance ids"):
        load()


def test_class_count_that_does_not_fit(root):
    write_tree(root)
    cfg = config()
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = 80
    with pytest.raises(UserError, match=f"{VAL} has 8 classes.*NUM_CLASSES 8"):
        prepare_datasets(cfg, train=False)


def test_polygons_are_the_masks_without_holes(root):
    write_tree(root)
    found = ([a for record in load(polygons=polygons) for a in record["annotations"]] for polygons in (False, True))
    for exact, outlined in zip(*found, strict=True):
        mask = mask_util.decode(exact["segmentation"])
        drawn = mask_util.decode(mask_util.merge(mask_util.frPyObjects(outlined["segmentation"], *mask.shape)))
        assert np.array_equal(drawn, binary_fill_holes(mask))
        assert {**outlined, "segmentation": None} == {**exact, "segmentation": None}
    assert json_file(root).exists() and json_file(root, "polygon").exists()


def test_outlines_follow_the_edges_of_pixels():
    mask = np.zeros((9, 12), bool)
    mask[2:5, 3:7] = True
    mask[3, 4] = False  # a hole
    mask[7, 10] = True
    found = [np.reshape(polygon, (-1, 2)).tolist() for polygon in outlines(mask)]
    corners = [[[10, 7], [10, 8], [11, 8], [11, 7]], [[3, 2], [3, 5], [7, 5], [7, 2]]]
    assert sorted(map(sorted, found)) == sorted(map(sorted, corners))
    mask[2:5, 5] = False  # a slit of one pixel
    assert len(outlines(mask)) == 3


def test_training_sets_have_the_masks_that_the_config_asks_for(root):
    """As the authors' configs, of which one asks for polygons."""
    write_tree(root)
    write_tree(root, "train")
    for form, kind, masks in (("polygon", list, PolygonMasks), ("bitmask", dict, BitMasks)):
        cfg = config(train=(TRAIN,), mask_format=form)
        prepare_datasets(cfg)
        for name, expected in ((TRAIN, kind), (VAL, dict)):
            records = DatasetCatalog.get(name)
            assert all(isinstance(a["segmentation"], expected) for r in records for a in r["annotations"])
        sample = CheckedDatasetMapper(cfg, is_train=True, augmentations=[])(DatasetCatalog.get(TRAIN)[0])
        assert isinstance(sample["instances"].gt_masks, masks) and len(sample["instances"])


def test_real_frame(root, monkeypatch, cache, real_data):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(real_data))
    (record,) = load()
    gt_dir = MetadataCatalog.get(VAL).gt_dir
    ids = np.array(Image.open(annotation_file(record["file_name"], gt_dir)))
    values = [value for value in np.unique(ids) if value >= 24000]
    assert [a["category_id"] for a in record["annotations"]] == [{24: 0, 26: 2}[value // 1000] for value in values]
    for value, annotation in zip(values, record["annotations"], strict=True):
        assert np.array_equal(mask_util.decode(annotation["segmentation"]), ids == value)
