import copy
import json
import os
from pathlib import Path

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import load_coco_json, register_coco_instances
from PIL import Image

from pixelmask.config import get_cfg
from pixelmask.data import coco_format
from pixelmask.data.coco_format import check_datasets, register_coco_format, register_from_config
from pixelmask.errors import UserError

SQUARE = [2.0, 2.0, 12.0, 2.0, 12.0, 12.0, 2.0, 12.0]
CROWD = {"size": [30, 20], "counts": [0, 600]}
COCO = {
    "images": [
        {"id": 7, "file_name": "a.png", "height": 20, "width": 30},
        {"id": 3, "file_name": "deep/b.png", "height": 30, "width": 20},
    ],
    "annotations": [
        {"id": 1, "image_id": 7, "category_id": 90, "bbox": [2, 2, 10, 10], "segmentation": [SQUARE], "iscrowd": 0},
        {"id": 2, "image_id": 3, "category_id": 4, "bbox": [2, 2, 0, 0], "segmentation": [SQUARE, SQUARE], "area": 9.5},
        {"id": 5, "image_id": 3, "category_id": 4, "bbox": [0, 0, 20, 30], "segmentation": CROWD, "iscrowd": 1},
    ],
    "categories": [{"id": 90, "name": "tree"}, {"id": 4, "name": "car"}],
}


@pytest.fixture
def folder(tmp_path):
    """A folder with the images of COCO above; data sets registered meanwhile are forgotten afterwards."""
    known = set(DatasetCatalog)
    (tmp_path / "images/deep").mkdir(parents=True)
    for image in COCO["images"]:
        Image.new("RGB", (image["width"], image["height"])).save(tmp_path / "images" / image["file_name"])
    yield tmp_path
    for name in set(DatasetCatalog) - known:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


def write(folder, content, name="own"):
    """Write a JSON and give it, with the image folder, as an entry of DATASETS.COCO_FORMAT."""
    path = folder / f"{name}.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return [name, str(path), str(folder / "images")]


def config(*entries, train=("own",), test=("own",), num_classes=2):
    cfg = get_cfg()
    cfg.DATASETS.COCO_FORMAT = [list(entry) for entry in entries]
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = train, test
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = num_classes
    cfg.MODEL.MASK_ON = True
    return cfg


def changed(*keys, value=None):
    """A copy of COCO with one entry set, or left out where the value is None."""
    content = copy.deepcopy(COCO)
    *path, last = keys
    entry = content
    for key in path:
        entry = entry[key]
    if value is None:
        del entry[last]
    else:
        entry[last] = value
    return content


def test_a_checked_data_set_loads_as_detectron2_loads_it(folder):
    entry = write(folder, COCO)
    check_datasets(config(entry))
    assert MetadataCatalog.get("own").thing_classes == ["car", "tree"]  # before it is loaded
    dicts = DatasetCatalog.get("own")
    assert dicts == load_coco_json(entry[1], entry[2], "own")
    assert [record["image_id"] for record in dicts] == [3, 7]
    assert [len(record["annotations"]) for record in dicts] == [2, 1]
    assert MetadataCatalog.get("own").thing_dataset_id_to_contiguous_id == {4: 0, 90: 1}
    assert MetadataCatalog.get("own").evaluator_type == "coco"


def test_registration_is_idempotent_and_lazy(folder, monkeypatch):
    monkeypatch.setenv("MY_DATA", str(folder))
    entry = ["own", "$MY_DATA/none.json", "~/none"]
    register_from_config(config(entry, entry))
    register_coco_format(*entry)
    assert MetadataCatalog.get("own").json_file == f"{folder}/none.json"
    assert MetadataCatalog.get("own").image_root == os.path.expanduser("~/none")
    with pytest.raises(UserError, match=rf"data set own is {folder}/none\.json already, and cannot be other\.json"):
        register_coco_format("own", "other.json", "~/none")
    with pytest.raises(UserError, match="coco_2017_val is .*instances_val2017"):
        register_coco_format("coco_2017_val", "other.json", "images")


@pytest.mark.parametrize("entry", ["own", ["own", "own.json"], ["own", "own.json", 3]])
def test_malformed_entry_of_the_config(entry):
    cfg = get_cfg()
    cfg.DATASETS.COCO_FORMAT = [entry]
    with pytest.raises(UserError, match=r"DATASETS\.COCO_FORMAT wants \[name, JSON file, image folder\]"):
        register_from_config(cfg)


def test_missing_files(folder):
    name, json_file, images = write(folder, COCO)
    with pytest.raises(
        UserError, match=r"no annotation file \S+/none\.json; correct its path in DATASETS\.COCO_FORMAT"
    ):
        check_datasets(config(["own", str(folder / "none.json"), images]))
    with pytest.raises(UserError, match=r"no image folder \S+/none; correct its path in DATASETS\.COCO_FORMAT"):
        check_datasets(config(["other", json_file, str(folder / "none")], train=("other",), test=("other",)))
    (folder / "images/deep/b.png").unlink()
    with pytest.raises(UserError, match=r"1 of 2 images that \S+own\.json lists .* the first is deep/b\.png"):
        check_datasets(config(["third", json_file, images], train=("third",), test=("third",)))


def test_images_are_looked_for_evenly_in_large_sets(folder, monkeypatch):
    monkeypatch.setattr(coco_format, "MAX_IMAGES_LOOKED_FOR", 4)
    images = [{"id": i, "file_name": f"{i}.png", "height": 1, "width": 1} for i in range(10)]
    entry = write(folder, {"images": images, "annotations": [], "categories": COCO["categories"]})
    with pytest.raises(UserError, match="4 of 4 images"):
        check_datasets(config(entry), train=False)
    for i in (0, 3, 6, 9):
        Image.new("RGB", (1, 1)).save(folder / f"images/{i}.png")
    check_datasets(config(entry), train=False)


ANNOTATION = ("annotations", 0)
MASK = (*ANNOTATION, "segmentation")


# Without COCO's bounds, 10,000 points of such a way take 3.5 GB
ZIGZAG = [x for i in range(2000) for x in (300, i / 10, -300, i / 10)]
LARGE = {"id": 3, "file_name": "deep/b.png", "height": 60_000, "width": 60_000}


def rle(counts):
    return {"size": [20, 30], "counts": counts}


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        ("images: none", "is not valid JSON: .* line 1"),
        (json.dumps(COCO)[:300], "is not valid JSON"),
        ([{"image_id": 1, "score": 0.5}], "it holds a list"),
        (changed("images"), "it has no 'images'"),
        (changed("categories"), "it has no 'categories'"),
        (changed("annotations", value={"a": 1}), r"it has the annotations \{'a': 1\}, not a list of objects"),
        (changed("images", value=[]), r"it has the images \[\], not a list of objects, of at least one"),
        (changed("categories", value=[]), r"it has the categories \[\], not a list of objects, of at least one"),
        (changed("images", 0, "id", value=3), "the id 3 comes twice in its 'images'"),
        (changed("images", 0, "id", value="3"), "image 3 has the id '3', not a whole number"),
        (changed("categories", 0, "id", value=4), "the id 4 comes twice in its 'categories'"),
        (changed(*ANNOTATION, "id", value=5), "the id 5 comes twice in its 'annotations'"),
        (changed(*ANNOTATION, "id"), "entry 0 of its 'annotations' has no id"),
        (changed("images", 0, "file_name"), "image 7 has no file_name"),
        (changed("images", 0, "width"), "image 7 has no width"),
        (changed("categories", 1, "name"), "category 4 has no name"),
        (changed(*ANNOTATION, "image_id", value=8), "annotation 1 has the image_id 8, which is no image's"),
        (changed(*ANNOTATION, "category_id", value=1), "annotation 1 has the category_id 1, which is no category's"),
        (changed(*ANNOTATION, "ignore", value=1), "annotation 1 is marked 'ignore'"),
        (changed(*ANNOTATION, "bbox"), "annotation 1 has no bbox"),
        (changed(*ANNOTATION, "bbox", value=[1, 2, 3]), "annotation 1 has the bbox .*, not four numbers"),
        (changed(*ANNOTATION, "bbox", value=[1, 2, 3, float("nan")]), "annotation 1 has the bbox .*nan"),
        (changed(*MASK, value=[SQUARE, SQUARE[:4]]), "annotation 1 has a polygon of 4 coord"),
        (changed(*MASK, value=[SQUARE[:7]]), "annotation 1 has a polygon of 7 coordinates, not"),
        (changed(*MASK, value=SQUARE), "annotation 1 has a segmentation that is not a list of p"),
        (changed(*MASK, value=[["a"] * 6]), "annotation 1 has a polygon whose coord"),
        (changed(*MASK, value="x"), "annotation 1 has a segmentation that is neither"),
        (changed(*MASK, value={"size": [30, 20], "counts": "x"}), r"annotation 1 .* size .*\[20, 30\]"),
        (changed(*MASK, value=rle("o" * 3_000_000)), "annotation 1 has counts that are neither"),
        (changed(*MASK, value=rle([5, 5])), "annotation 1 has runs of 10 pixels; its image has 600"),
        (changed(*MASK, value=rle([0] * 5000 + [600])), "annotation 1 has 5001 runs, which is more than"),
        (changed(*MASK, value=[[*SQUARE, 1e9, 5]]), "annotation 1 has a polygon whose .* of at most 300 pixels"),
        (changed(*MASK, value=[[float("inf")] * 6]), "annotation 1 has a polygon whose .* of at most 300 pixels"),
        (changed(*MASK, value=[ZIGZAG]), "annotation 1 has outlines of 2,400,000 pixels, more than the 2,097,152"),
        (changed(*MASK, value=[ZIGZAG[:4000], ZIGZAG[4000:]]), "annotation 1 has outlines of 2,400,000 pixels"),
        (changed("images", 1, value=LARGE), "image 3 has 60000 x 60000 pixels, more than the 178,956,970 that are"),
        (json.dumps(changed("images", 0, "height", value=0.5)).replace("0.5", "1e400"), "image 7 has the height inf"),
        (changed("images", 0, "height", value=20.0), r"image 7 has the height 20\.0, not a whole number of pixels"),
        (changed("images", 0, "id", value=2**64), "the id 18446744073709551616, not"),
        (changed("images", 0, "id", value=True), "image True has the id True, not a whole number"),
        (changed("images", 0, "file_name", value="a\0.png"), "image 7 has the file_name .*, not the path of a file"),
        (changed("categories", 0, "name", value="car"), "two of its 'categories' have the name 'car'"),
        (changed(*ANNOTATION, "image_id", value=[7]), r"annotation 1 has the image_id \[7\], not a whole number"),
        (changed(*ANNOTATION, "iscrowd", value="no"), "annotation 1 has the iscrowd 'no', not 0 or 1"),
        (changed(*ANNOTATION, "area", value={}), r"annotation 1 has the area \{\}, not a number"),
        (changed(*ANNOTATION, "keypoints", value=7), "annotation 1 has the keypoints 7, not"),
        (changed(*ANNOTATION, value=7), "entry 0 of its 'annotations' is 7, not an object"),
        ("[" * 100_000, "is not valid JSON: .*recursion"),
        ('{"images": ' + "9" * 5000 + "}", "is not valid JSON: .*digits"),
    ],
)
def test_faults_of_a_json(folder, content, fault):
    entry = write(folder, content)
    with pytest.raises(UserError, match=fault) as error:
        check_datasets(config(entry))
    assert entry[1] in str(error.value)
    with pytest.raises(UserError, match=fault):
        DatasetCatalog.get("own")


def test_annotations_that_cannot_be_trained_on(folder):
    def check(content, name, **kwargs):
        check_datasets(config(write(folder, content, name), train=(name,), test=(name,)), **kwargs)

    for number, content in enumerate((changed("annotations"), changed("annotations", value=COCO["annotations"][2:]))):
        check(content, f"test_{number}", train=False)
        with pytest.raises(UserError, match=rf"test_{number}\.json has no annotations to train on"):
            check(content, f"test_{number}")
    boxes = changed(*MASK)
    check(boxes, "boxes", train=False)
    with pytest.raises(UserError, match=r"annotation 1 has no mask.*MODEL\.MASK_ON"):
        check(boxes, "boxes")
    rle = config(write(folder, changed(*MASK, value={"size": [20, 30], "counts": [9, 591]})))
    with pytest.raises(UserError, match=r"annotation 1 has an RLE mask; set INPUT\.MASK_FORMAT bitmask"):
        check_datasets(rle)
    rle.INPUT.MASK_FORMAT = "bitmask"
    check_datasets(rle)


def test_class_counts(folder):
    entry = write(folder, COCO)
    message = (
        r"data set own has 2 classes, but MODEL\.ROI_HEADS\.NUM_CLASSES is 80; set MODEL\.ROI_HEADS\.NUM_CLASSES 2"
    )
    with pytest.raises(UserError, match=message):
        check_datasets(config(entry, num_classes=80))
    other = config(entry, num_classes=80)
    other.MODEL.META_ARCHITECTURE = "AIRM"
    check_datasets(other)
    second = write(folder, changed("categories", 0, "name", value="bush"), "second")
    with pytest.raises(UserError, match=r"data sets own and second of DATASETS\.TRAIN have different classes"):
        check_datasets(config(entry, second, train=("own", "second")))
    message = r"second of DATASETS\.TEST has other classes than own .*class 1 is 'bush' there and 'tree' here"
    with pytest.raises(UserError, match=message):
        check_datasets(config(entry, second, test=("own", "second")))
    check_datasets(config(entry, second, test=("second",)), train=False)


def test_unknown_names_and_empty_lists(folder):
    with pytest.raises(
        UserError, match=r"coco_2017_vall of DATASETS\.TEST .* did you mean coco_2017_val .*COCO_FORMAT"
    ):
        check_datasets(config(test=("coco_2017_vall",)), train=False)
    with pytest.raises(UserError, match=r"qqq of DATASETS\.TRAIN is not registered\. To register"):
        check_datasets(config(train=("qqq",), test=()))
    with pytest.raises(UserError, match=r"DATASETS\.TRAIN is empty"):
        check_datasets(config(train=()))
    with pytest.raises(UserError, match=r"DATASETS\.TEST is empty"):
        check_datasets(config(test=()), train=False)
    entry = write(folder, COCO)
    check_datasets(config(entry, train=("no such set",)), train=False)


@pytest.mark.parametrize("root", [None, "/somewhere"])
def test_detectron2s_own_sets_without_files(monkeypatch, root):
    if root:
        monkeypatch.setenv("DETECTRON2_DATASETS", root)
    else:
        monkeypatch.delenv("DETECTRON2_DATASETS", raising=False)
    missing = "/none/instances_val2017.json"
    monkeypatch.setitem(vars(MetadataCatalog.get("coco_2017_val")), "json_file", missing)
    found = "DETECTRON2_DATASETS is /somewhere" if root else "DETECTRON2_DATASETS is not set"
    with pytest.raises(UserError, match=rf"coco_2017_val needs {missing}, which does not exist; {found}"):
        check_datasets(config(test=("coco_2017_val",), num_classes=80), train=False)


def test_a_broken_json_of_detectron2s_own_kind_is_diagnosed_on_loading(folder):
    _, json_file, images = write(folder, json.dumps(COCO)[:300])
    register_coco_instances("builtin", {}, json_file, images)
    cfg = config(train=("builtin",), test=("builtin",))
    for _ in range(2):
        check_datasets(cfg)
    with pytest.raises(UserError, match=r"own\.json is not valid JSON"):
        DatasetCatalog.get("builtin")
    Path(json_file).write_text(json.dumps(COCO))
    assert len(DatasetCatalog.get("builtin")) == 2


def test_real_coco_is_found_good(real_data):
    root = real_data / "coco"
    for split in ("train", "val"):
        json_file = str(root / f"annotations/instances_{split}2017.json")
        summary = coco_format.check_coco_file(json_file, str(root / f"{split}2017"))
        assert len(summary.classes) == 80
        assert summary.rle is None
        assert summary.maskless is None
