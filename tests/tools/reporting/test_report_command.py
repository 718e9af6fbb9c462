"""Reports of runs that tools/train_net.py really made, and what it says where there is none to make."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from pycocotools import mask as mask_util

from airm.evaluation import intersection_and_union
from pixelmask.cli import run
from pixelmask.images import read_mask
from tests.support.models import load_tool
from tests.support.training import AIRM, PATCHDCT
from tests.tools.reporting.browser import drawn_card, texts

TINY_DETECTIONS = 5  # a random model finds as many as it may, some with empty masks
VAL, AIRM_VAL = PATCHDCT.test_set, AIRM.test_set

tool = load_tool("report")


@pytest.fixture
def instances(trained_patchdct, data_root) -> Path:
    return trained_patchdct


@pytest.fixture
def refinement(trained_airm, data_root) -> Path:
    return trained_airm


def make(*arguments: Any) -> None:
    run(tool.main, tool.argument_parser().parse_args([str(argument) for argument in arguments]))


def blocks(page: Path) -> dict[str, Any]:
    """The data that a page carries, by the ids of its elements."""
    found = re.findall(r'<script type="application/json" id="([\w-]+)">(.*?)</script>', page.read_text(), re.DOTALL)
    return {name: json.loads(text) for name, text in found}


def copy(run: Path, folder: Path) -> Path:
    """A copy of a run without its checkpoints."""
    return Path(shutil.copytree(run, folder, ignore=shutil.ignore_patterns("*.pth", "last_checkpoint")))


def test_report_of_detections(instances, tmp_path, clean):
    page = tmp_path / "report.html"
    weak = copy(instances, tmp_path / "weak")
    results = weak / "inference" / VAL / "coco_instances_results.json"
    detections = json.loads(results.read_text())
    kept = [d for d in detections if d["image_id"] != 1]
    assert len(kept) < len(detections)
    results.write_text(json.dumps(kept))
    make(instances, weak, "--names", "all", "weak", "--min-score", 0, "--max-images", 4, "--output", page)
    data = blocks(page)
    items = data["data"]["items"]
    assert [item["name"] for item in items] == ["000001.jpg", "000002.jpg", "000004.jpg", "000005.jpg"]
    assert data["data"]["curves"]["loss"]["total_loss"][0] and data["data"]["curves"]["accuracy"]["segm/AP"][0]
    (view,) = data["item-0"]
    of_first = [d["segmentation"] for d in detections if d["image_id"] == 1]
    assert len(view["layers"]["run0"]) == np.count_nonzero(mask_util.area(of_first)) and not view["layers"]["run1"]
    assert items[0]["disagreements"] == {"0-1": 1.0} and items[1]["disagreements"] == {"0-1": 0.0}
    clean.get(page.as_uri())
    drawn_card(clean)
    assert len(texts(clean, "#cards > li")) == 4


def test_patch_labels_come_from_the_checkpoint(instances, tmp_path):
    page = tmp_path / "report.html"
    make(instances, "--patch-labels", "--min-score", 0, "--max-images", 2, "--output", page)
    (view,) = blocks(page)["item-1"]
    grids, masks = view["patches"]["run0"], view["layers"]["run0"]
    assert len(grids) == TINY_DETECTIONS >= len(masks) > 0
    assert {len(grid["labels"]) for grid in grids} == {14 * 14} and set(grids[0]["labels"]) <= set("012")


def test_detections_that_were_not_kept_are_made_again(instances, tmp_path):
    """As after an evaluation on Cityscapes."""
    lost = Path(shutil.copytree(instances, tmp_path / "lost"))
    shutil.rmtree(lost / "inference")
    page = tmp_path / "report.html"
    make(instances, lost, "--min-score", 0, "--max-images", 2, "--output", page)
    data = blocks(page)
    assert data["item-0"][0]["layers"]["run0"] == data["item-0"][0]["layers"]["run1"]
    assert [item["disagreements"]["0-1"] for item in data["data"]["items"]] == [0.0, 0.0]


def test_report_of_refinement(refinement, tmp_path, clean):
    page = tmp_path / "report.html"
    lost = Path(shutil.copytree(refinement, tmp_path / "lost"))
    (lost / "inference" / AIRM_VAL / "refined_masks.json").unlink()
    make(refinement, lost, "--image-size", 64, "--output", page)
    data = blocks(page)
    first = data["data"]["items"][0]
    assert first["disagreements"] == {"0-1": 0.0}, "the checkpoint refines again what the evaluation kept"
    whole = data["item-0"][0]
    assert set(whole["layers"]) == {"truth", "coarse", "run0", "run1"} and whole["width"] == 64
    clean.get(page.as_uri())
    drawn_card(clean)
    panels = texts(clean, "#cards > li:first-child figcaption")
    assert panels == ["Truth", "Coarse mask", f"A: {refinement.name}", "B: lost", "Difference of A and B"]
    assert clean.execute_script("return document.getElementById('class').offsetParent") is None


def test_kept_masks_are_those_that_were_evaluated(refinement):
    folder = refinement / "inference" / AIRM_VAL
    entries = json.loads((folder / "refined_masks.json").read_text())
    assert [entry["image_id"] for entry in entries] == [f"{i:06d}" for i in range(1, 6)]
    inside, union = 0, 0
    for entry in entries:
        truth = read_mask(str(entry["file"]).replace("_im.jpg", "_gt.png"))
        i, u = intersection_and_union(mask_util.decode(entry["segmentation"]).astype(bool), truth)
        inside, union = inside + i, union + u
    metrics = json.loads((folder / "results.json").read_text())["refinement"]
    assert 100 * inside / union == pytest.approx(metrics["refined_IoU"])


def test_tables_alone_need_no_data(instances, tmp_path, monkeypatch):
    monkeypatch.delattr("reporting.page.InstanceGallery")
    page = tmp_path / "report.html"
    make(instances, "--max-images", 0, "--output", page)
    assert blocks(page)["data"]["items"] == [] and "Boundary AP on" in page.read_text()


def test_bad_input_ends_in_one_message(instances, refinement, tmp_path, fails):
    page = tmp_path / "report.html"
    with fails("finished evaluation"):
        make(tmp_path, "--output", page)
    with fails("not of both"):
        make(instances, refinement, "--output", page)
    other = copy(instances, tmp_path / "mask_rcnn")
    config = (other / "config.yaml").read_text().replace("MaskRCNNPatchDCTHead", "MaskRCNNConvUpsampleHead")
    (other / "config.yaml").write_text(config)
    with fails("none of the runs is of PatchDCT"):
        make(other, "--patch-labels", "--output", page)
    with fails("AIRM"):
        make(refinement, "--patch-labels", "--output", page)
    bare = copy(instances, tmp_path / "bare")
    shutil.rmtree(bare / "inference")
    with fails("bare", "MODEL.WEIGHTS"):
        make(bare, "--output", page)
    assert not page.exists() and not list(tmp_path.glob("*.part*"))
    page.write_text("mine")
    with fails("--overwrite"):
        make(instances, "--output", page)
    assert page.read_text() == "mine"


def test_an_image_that_cannot_be_read_is_named(instances, tmp_path, monkeypatch, fails):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path / "data"))  # the others are not to be damaged
    for catalog in (DatasetCatalog, MetadataCatalog):
        monkeypatch.setattr(catalog, "data", {name: entry for name, entry in catalog.data.items() if name != VAL})
    make(instances, "--max-images", 1, "--output", tmp_path / "report.html")
    (Path(MetadataCatalog.get(VAL).image_root) / "000001.jpg").write_bytes(b"no image")
    with fails("000001.jpg"):
        make(instances, "--output", tmp_path / "other.html")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data", "report.html"]


def test_a_changed_data_set_is_noticed(refinement, tmp_path, fails):
    changed = copy(refinement, tmp_path / "changed")
    file = changed / "inference" / AIRM_VAL / "refined_masks.json"
    file.write_text(json.dumps(json.loads(file.read_text())[1:]))
    with fails("000001"):
        make(changed, "--output", tmp_path / "report.html")
