"""The script that checks refinement sets and splits them: what it finds, what it prints, its exit status."""

import runpy
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from airm.data.datasets import BuiltInSet, CustomSet
from pixelmask.errors import UserError
from tests.support.models import load_tool

SCRIPT = "datasets/prepare_refinement.py"


@pytest.fixture(scope="module")
def script():
    return load_tool("prepare_refinement", "datasets")


pytestmark = pytest.mark.usefixtures("root")


def put_pairs(folder: Path, count: int, images: str = "images", masks: str = "masks") -> Path:
    (folder / images).mkdir(parents=True)
    (folder / masks).mkdir(parents=True, exist_ok=True)
    for i in range(count):
        Image.new("RGB", (8, 6)).save(folder / images / f"{i:02d}.jpg")
        Image.new("L", (8, 6)).save(folder / masks / f"{i:02d}.png")
    return folder


def test_sound_folders_of_every_layout_and_none(script, root, capsys):
    assert script.main(["--check"]) == 1  # there is nothing to check
    (root / "empty").mkdir()
    assert script.main(["--check", str(root / "empty")]) == 1
    assert "no images at all" in capsys.readouterr().out
    two, flat = put_pairs(root / "two", 3), put_pairs(root / "flat", 2, "a", "a")
    named = put_pairs(root / "named", 1, "im", "gt")
    assert script.main(["--check", str(two), str(flat), f"{named}/im:{named}/gt", "--workers", "1"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines == [
        f"ok     {two}: 3 pairs in {two}/images and {two}/masks",
        f"ok     {flat}: 2 pairs in {flat} (images and masks side by side)",
        f"ok     {named}/im:{named}/gt: 1 pairs in {named}/im and {named}/gt",
    ]


@pytest.mark.parametrize("workers", ["1", "2"])
def test_every_fault_is_named(script, root, capsys, workers):
    folder = put_pairs(root / "mine", 20)
    (folder / "images/extra.jpg").touch()
    (folder / "masks/alone.png").touch()
    (folder / "masks/03.png").write_bytes(b"")
    (folder / "images/05.jpg").write_bytes(b"no image")
    Image.new("L", (6, 8)).save(folder / "masks/19.png")
    assert script.main(["--check", str(folder), "--workers", workers]) == 1
    title, *faults = capsys.readouterr().out.replace(f"{folder}/", "").splitlines()
    assert title == f"wrong  {folder}: 20 pairs in images and masks"
    assert [fault.strip() for fault in faults] == [
        "masks/alone.png has no image",
        "images/extra.jpg has no mask",
        "masks/03.png is empty (0 bytes)",
        "cannot read image images/05.jpg: cannot identify image file 'images/05.jpg'",
        "masks/19.png has 6 x 8 pixels, its image 19.jpg has 8 x 6",
    ]
    assert script.main(["--check", str(folder), "--workers", "1", "--limit", "2"]) == 1
    assert capsys.readouterr().out.endswith("... and 3 more; --limit 5 prints them all\n")


def test_known_sets_are_compared_with_their_published_number(script, root, capsys, monkeypatch):
    put_pairs(root / "ECSSD", 4, "images", "ground_truth_mask")
    assert script.main(["--check", "ecssd"]) == 1
    assert capsys.readouterr().out.splitlines() == [
        f"wrong  ecssd: 4 pairs of 1,000 in {root}/ECSSD/images and {root}/ECSSD/ground_truth_mask",
        "         996 pairs fewer than published",
    ]
    monkeypatch.setitem(script.BUILT_IN, "ecssd", BuiltInSet("ecssd", "ECSSD", 4))
    assert script.main(["--check"]) == 0  # of all sets, those that are not there are only listed
    sound, absent = capsys.readouterr().out.splitlines()
    assert sound.startswith("ok     ecssd: 4 pairs of 4 in")
    assert absent.startswith("absent msra10k, duts_tr, ") and absent.endswith(
        f"voc_relabelled_pspnet: no folders in {root}; their layout: datasets/README.md"
    )
    assert script.main(["--check", "ecssd", "duts_te"]) == 1
    assert f"{root}/DUTS-TE, which does not exist" in capsys.readouterr().out


@pytest.mark.parametrize("argument", ["nowhere", "images:nowhere", ":images", "images:", "images:masks:nowhere.txt"])
def test_what_is_neither_a_name_nor_a_folder(argument, script, root, monkeypatch):
    put_pairs(root, 1)
    monkeypatch.chdir(root)
    with pytest.raises(UserError, match="neither a folder nor a data set; known are msra10k, "):
        script.main(["--check", argument])


def test_split_gives_lists_that_a_config_takes_as_printed(script, root, capsys):
    folder = put_pairs(root / "with, comma", 11)
    arguments = ["--split", f"{folder}/images", f"{folder}/masks", "--every", "4", "--output", str(root / "lists")]
    assert script.main(arguments) == 0
    assert (root / "lists/val.txt").read_text() == "03\n07\n"
    assert (root / "lists/train.txt").read_text().split() == ["00", "01", "02", "04", "05", "06", "08", "09", "10"]
    printed = capsys.readouterr().out
    assert printed.startswith("# 9 pairs to train on, 2 held out\n")
    train, val = yaml.safe_load(printed)["DATASETS"]["REFINEMENT"]
    assert [entry["image_id"] for entry in CustomSet(*val)()] == ["03", "07"]
    assert len(CustomSet(*train)()) == 9
    script.main(arguments)  # the same again changes nothing
    with pytest.raises(UserError, match=r"train.txt exists, with other content"):
        script.main([*arguments, "--every", "5"])
    assert (root / "lists/val.txt").read_text() == "03\n07\n"


@pytest.mark.parametrize(
    ("folders", "every", "message"),
    [
        (["images", "masks"], "1", "--every 1 would leave nothing"),
        (["images", "masks"], "4", "3 pairs, too few to hold out every 4th"),
        (["images", "masks", "more"], "2", "not 3 folders"),
        (["images"], "2", "00.jpg has no mask.*--check"),
        (["images", "nowhere"], "2", "nowhere' is neither a folder"),
    ],
)
def test_splits_that_cannot_be(folders, every, message, script, root):
    put_pairs(root, 3)
    arguments = ["--split", *(str(root / folder) for folder in folders), "--every", every]
    with pytest.raises(UserError, match=message):
        script.main([*arguments, "--output", str(root / "lists")])
    assert not (root / "lists").exists()


def test_as_a_command(script, root, capsys, monkeypatch):
    folder = put_pairs(root / "mine", 3)
    for checked, status in ((folder, 0), (folder, 1), ("nowhere", 1)):
        monkeypatch.setattr(sys, "argv", [SCRIPT, "--check", str(checked)])
        with pytest.raises(SystemExit) as stop:
            runpy.run_path(SCRIPT, run_name="__main__")
        assert stop.value.code == status
        (folder / "masks/02.png").unlink(missing_ok=True)
    output = capsys.readouterr()
    assert f"{folder}/images/02.jpg has no mask" in output.out
    assert output.err.startswith("error: 'nowhere' is neither")
    for wrong, status in (["--help"], 0), (["--split", "images"], 2):
        with pytest.raises(SystemExit) as stop:
            script.main(wrong)
        assert stop.value.code == status
    output = capsys.readouterr()
    assert "python datasets/prepare_refinement.py --check ecssd big_deeplabv3plus" in output.out
    assert "--output DIR" in output.err


def test_real_data(script, root, capsys, real_data):
    real = real_data / "refine"
    assert script.main(["--check", str(real / "ecssd"), str(real / "composites")]) == 0
    output = capsys.readouterr().out
    assert ": 800 pairs in " in output and ": 6 pairs in " in output
    assert script.main(["--split", str(real / "ecssd"), "--output", str(root / "lists")]) == 0
    held_out = (root / "lists/val.txt").read_text().split()
    assert len(held_out) == 80 and len((root / "lists/train.txt").read_text().split()) == 720
    damaged = root / "damaged"
    shutil.copytree(real / "composites", damaged)
    (damaged / "sample2_seg.png").write_bytes((real / "composites/sample2_seg.png").read_bytes()[:-2000])
    (damaged / "sample4_gt.png").unlink()
    assert script.main(["--check", str(damaged)]) == 1
    output = capsys.readouterr().out
    assert "sample4_im.jpg has no mask (_gt)" in output
    assert f"cannot read mask {damaged}/sample2_seg.png: " in output


def test_statistics_of_perturbed_crops(script, root, capsys, monkeypatch):
    folder = put_pairs(root / "mine", 2)
    monkeypatch.setattr(script, "CROPS", 6)
    with pytest.raises(UserError, match="both foreground and background"):
        script.main(["--statistics", str(folder)])  # all masks are empty
    for path in (folder / "masks").glob("*.png"):
        Image.fromarray(np.pad(np.full((150, 150), 255, np.uint8), 60)).save(path)
    assert script.main(["--statistics", str(folder)]) == 0
    title, regions, contour = (line.split() for line in capsys.readouterr().out.splitlines())
    assert title[:3] == ["6", "crops", "IoU"] and (regions[0], contour[0]) == ("regions", "contour")
    assert 0.8 <= float(regions[1]) <= 1 and 0 <= float(regions[2].rstrip("%")) <= 100
    assert float(contour[1]) > float(regions[1])
    with pytest.raises(UserError, match="neither a folder nor a data set"):
        script.main(["--statistics", "nothing"])
