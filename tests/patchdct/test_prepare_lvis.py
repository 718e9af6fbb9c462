"""The script that makes cocofied LVIS files: what it keeps, maps, reports and refuses."""

import json
import runpy
import sys

import pytest
from detectron2.data.datasets.builtin_meta import COCO_CATEGORIES
from detectron2.data.datasets.lvis import load_lvis_json

from patchdct.data.lvis_format import COCO_ID_OF_NAME, COCO_NAME_OF_SYNSET, read_cocofied
from pixelmask.errors import UserError
from tests.patchdct.test_lvis_eval import put
from tests.support.models import load_tool

SCRIPT = "datasets/prepare_lvis_cocofied.py"
PERSON, CAR, COW = 1, 3, 21
POLYGON = [[1.0, 1, 9, 1, 9, 9, 1, 9]]


@pytest.fixture(scope="module")
def script():
    return load_tool("../datasets/prepare_lvis_cocofied")


pytestmark = pytest.mark.usefixtures("root")


def category(number, name, synset, frequency="f"):
    return {"id": number, "name": name, "synset": synset, "frequency": frequency, "instance_count": 9, "image_count": 9}


def image(number, negative=(), incomplete=(), **names):
    lists = {"neg_category_ids": list(negative), "not_exhaustive_category_ids": list(incomplete)}
    return {"id": number, "height": 10, "width": 10, **lists, **names}


def url(number, split="val2017"):
    return {"coco_url": f"http://images.cocodataset.org/{split}/{number:012d}.jpg"}


def annotations(*pairs):
    """Annotations of (image, category) pairs."""
    return [
        {"id": n, "image_id": i, "category_id": c, "area": 64.0, "bbox": [1, 1, 8, 8], "segmentation": POLYGON}
        for n, (i, c) in enumerate(pairs, start=1)
    ]


CATEGORIES = [
    category(5, "antenna", "antenna.n.01"),
    category(7, "cow", "beef.n.01", "c"),
    category(9, "baby", "person.n.01"),
    category(11, "cab_(taxi)", "cab.n.03"),
    category(13, "car_(automobile)", "car.n.01"),
]


def lvis_json(version="v0.5"):
    """Two images of val2017, one of train2017: as v0.5 has them, with a file_name, or as v1, without."""
    names = [url(1), url(2), url(3, "train2017")]
    if version == "v0.5":
        names = [{**name, "file_name": f"COCO_val2014_{n:012d}.jpg"} for n, name in enumerate(names, start=1)]
    images = [image(1, [7, 5], [9], **names[0]), image(2, [13, 11], [5], **names[1]), image(3, [7], [], **names[2])]
    return {
        "info": {"version": version},
        "licenses": [],
        "images": images,
        "annotations": annotations((1, 9), (1, 9), (1, 13), (1, 11), (2, 5), (2, 9), (3, 13)),
        "categories": CATEGORIES,
    }


def load(path):
    return json.loads(path.read_text())


def test_the_table_names_each_coco_category_once():
    names = [entry["name"] for entry in COCO_CATEGORIES if entry["isthing"]]
    assert sorted(COCO_NAME_OF_SYNSET.values()) == sorted(names)
    assert list(COCO_ID_OF_NAME) == names
    assert (COCO_ID_OF_NAME["person"], COCO_ID_OF_NAME["cow"], COCO_ID_OF_NAME["toothbrush"]) == (PERSON, COW, 90)


@pytest.mark.parametrize("version", ["v0.5", "v1"])
def test_what_is_kept_and_how_it_is_called(script, root, capsys, version):
    source = put(root / f"lvis/lvis_{version}_val.json", lvis_json(version))
    assert script.main([]) == 0
    content = load(root / f"lvis/lvis_{version}_val_cocofied.json")
    keys = ("id", "name", "frequency", "instance_count", "image_count")
    expected = [(PERSON, "person", "f", 3, 2), (CAR, "car", "f", 1, 1), (COW, "cow", "c", 0, 0)]
    assert [tuple(entry[key] for key in keys) for entry in content["categories"]] == expected
    keys = ("id", "neg_category_ids", "not_exhaustive_category_ids")
    expected = [(1, [COW], [PERSON]), (2, [CAR], [])]
    assert [tuple(entry[key] for key in keys) for entry in content["images"]] == expected
    kept = [(1, PERSON), (1, PERSON), (1, CAR), (2, PERSON)]
    assert [(entry["image_id"], entry["category_id"]) for entry in content["annotations"]] == kept
    assert content["annotations"][2]["segmentation"] == POLYGON
    assert content["info"] == {"version": version}
    report = capsys.readouterr().out
    for text in ("2 images (1 dropped)", "4 instances (3 dropped)", "3 categories", "LVIS lacks: bicycle, motorcycle"):
        assert text in report
    assert report.rstrip().endswith("without instances: cow")
    assert load(source) == lvis_json(version)
    made = source.with_name(f"lvis_{version}_val_cocofied.json")
    assert sorted(source.parent.iterdir()) == [source, made]
    # Detectron2 reads it, and finds its images
    first, _ = load_lvis_json(str(made), "coco/", "test_prepare_cocofied")
    assert first["file_name"] == "coco/val2017/000000000001.jpg"
    assert [entry["category_id"] for entry in first["annotations"]] == [0, 0, 2]


def test_a_training_file_keeps_the_training_images(script, root):
    put(root / "lvis/lvis_v1_train.json", lvis_json("v1"))
    script.main([])
    content = load(root / "lvis/lvis_v1_train_cocofied.json")
    assert [entry["id"] for entry in content["images"]] == [3]
    assert [entry["category_id"] for entry in content["annotations"]] == [CAR]


def test_categories_of_one_synset_are_merged(script):
    bull, cow = category(1, "bull", "beef.n.01", "r"), category(2, "cow", "beef.n.01", "c")
    images = [image(1, [2], **url(1)), image(2, [1, 2, 3], **url(2)), image(3, [], [2, 1], **url(3))]
    source = {"images": images, "categories": [bull, cow, category(3, "car", "car.n.01")]}
    content, report = script.cocofy({**source, "annotations": annotations((1, 1), (3, 2), (3, 1))}, "val2017")
    cow, car = content["categories"][1], content["categories"][0]
    assert (cow["id"], cow["frequency"], cow["instance_count"], cow["image_count"]) == (COW, "c", 3, 2)
    assert (car["id"], car["instance_count"]) == (CAR, 0)
    # There is a bull in image 1, so that it is not one without cows
    assert [entry["neg_category_ids"] for entry in content["images"]] == [[], [CAR, COW], []]
    assert [entry["not_exhaustive_category_ids"] for entry in content["images"]] == [[], [], [COW]]
    assert [entry["category_id"] for entry in content["annotations"]] == [COW] * 3
    assert report.empty == ["car"]


def test_images_by_a_coco_file(script, root):
    content = lvis_json("v0.5")
    for entry in content["images"]:
        del entry["coco_url"]
    source = put(root / "lvis_v0.5_val.json", content)
    with pytest.raises(UserError, match="image 1 has no coco_url .* --coco-annotations"):
        script.main([str(source)])
    coco = put(root / "instances_val2017.json", {"images": [{"id": 2}, {"id": 77}]})
    script.main([str(source), "--coco-annotations", str(coco), "--output", str(root / "made")])
    (made,) = load(root / "made/lvis_v0.5_val_cocofied.json")["images"]
    assert (made["id"], made["coco_url"]) == (2, "http://images.cocodataset.org/val2017/000000000002.jpg")
    assert made["file_name"] == "COCO_val2014_000000000002.jpg"


@pytest.mark.parametrize("text", ["", "[]", '{"images": 3}', '{"images": [{}]}'])
def test_a_coco_file_that_is_none(script, root, text):
    source = put(root / "lvis_v0.5_val.json", lvis_json())
    coco = root / "coco.json"
    coco.write_text(text)
    with pytest.raises(UserError, match="coco.json is not (a COCO annotation file|valid JSON)"):
        script.main([str(source), "--coco-annotations", str(coco)])
    with pytest.raises(UserError, match="cannot read .*absent.json"):
        script.main([str(source), "--coco-annotations", str(root / "absent.json")])


def test_what_is_refused(script, root, capsys):
    with pytest.raises(UserError, match=r"no LVIS file .* in .*lvis; where to get them: datasets/README.md"):
        script.main([])
    with pytest.raises(UserError, match="cannot read .*absent_val.json"):
        script.main([str(root / "absent_val.json")])
    with pytest.raises(UserError, match="mine.json is not named as LVIS names"):
        script.main([str(put(root / "mine.json", lvis_json()))])
    content = lvis_json()
    content["images"] = content["images"][2:]
    content["annotations"] = annotations((3, 13))
    with pytest.raises(UserError, match="has no images of COCO's val2017"):
        script.main([str(put(root / "lvis_v1_val.json", content))])
    with pytest.raises(UserError, match="is not an LVIS annotation file: it has no 'annotations'"):
        script.main([str(put(root / "lvis_v1_val.json", {"images": [], "categories": []}))])
    with pytest.raises(SystemExit):
        script.main(["--coco-annotations", "x.json"])
    assert "wants the LVIS files" in capsys.readouterr().err
    assert not list(root.rglob("*cocofied*"))


def test_check(script, root, capsys):
    assert script.main(["--check"]) == 1
    assert capsys.readouterr().out.count("absent ") == 4
    source = put(root / "lvis/lvis_v1_val.json", lvis_json("v1"))
    script.main([])
    capsys.readouterr()
    assert script.main(["--check"]) == 0
    out = capsys.readouterr().out
    assert out.count("absent ") == 3
    made = root / "lvis/lvis_v1_val_cocofied.json"
    assert f"ok     {made}: 2 images, 4 instances" in out
    assert script.main(["--check", str(made), str(source)]) == 1  # LVIS's own categories
    assert "category 5 (antenna), which is not COCO's" in capsys.readouterr().out
    made.write_text(made.read_text()[:-5])
    assert script.main(["--check"]) == 1
    assert f"wrong  {made} is not valid JSON" in capsys.readouterr().out
    assert script.main(["--check", str(root / "absent.json")]) == 1


def test_the_command_says_what_is_wrong_in_a_line(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [SCRIPT])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(SCRIPT, run_name="__main__")
    assert ended.value.code == 1
    assert capsys.readouterr().err.startswith("error: no LVIS file")


def test_real_annotations(script, root, capsys, real_data):
    source = real_data / "lvis/lvis_v0.5_val_100.json"
    script.main([str(source), "--output", str(root)])
    report = capsys.readouterr().out
    for text in ("100 images (0 dropped)", "435 instances (542 dropped)", "78 categories; LVIS lacks: hot dog, oven;"):
        assert text in report
    made = root / "lvis_v0.5_val_100_cocofied.json"
    assert script.main(["--check", str(made)]) == 0
    content, original = read_cocofied(made), load(source)
    synsets = {entry["id"]: entry["synset"] for entry in original["categories"]}
    expected = [
        (entry["id"], COCO_ID_OF_NAME[COCO_NAME_OF_SYNSET[synsets[entry["category_id"]]]], entry["segmentation"])
        for entry in original["annotations"]
        if synsets[entry["category_id"]] in COCO_NAME_OF_SYNSET
    ]
    assert [(entry["id"], entry["category_id"], entry["segmentation"]) for entry in content["annotations"]] == expected
