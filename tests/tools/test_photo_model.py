"""The weights that come with the project, and the command that makes them anew, run with a tiny model and data set."""

import contextlib
import re
import runpy
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from airm.data.synthetic import draw_pair
from airm.refiner import PRETRAINED, Refiner
from pixelmask.config import load_cfg
from pixelmask.files import write_json
from pixelmask.rle import encode
from tests.support.training import AIRM

ROOT = Path(__file__).resolve().parents[2]
LARGEST = 10e6  # bytes


def test_the_weights_that_come_with_the_project():
    """Small, whole, in half precision, of no particular machine; what they reach is on their card."""
    assert PRETRAINED.is_file() and PRETRAINED.stat().st_size <= LARGEST
    content = torch.load(PRETRAINED, weights_only=True)
    floats = [value for value in content["model"].values() if value.is_floating_point()]
    assert floats and all(value.dtype == torch.float16 and value.isfinite().all() for value in floats)
    assert not re.search(r"/(tmp|home|work|root)\b", content["config"])
    refiner = Refiner()
    assert {p.dtype for p in refiner.model.parameters()} == {torch.float32}
    image, truth = draw_pair(0, 0, 160, 120)
    refined = refiner.refine(image, truth)
    assert (refined & truth).sum() / (refined | truth).sum() > 0.8
    for page in (PRETRAINED.with_name("README.md"), ROOT / "MODEL_ZOO.md", ROOT / "README.md"):
        assert "TO BE FILLED" not in page.read_text(encoding="utf-8")


def draw_data(folder: Path) -> None:
    """ECSSD of 10 pairs."""
    for number in range(10):
        image, mask = draw_pair(0, number, 96, 72)
        for kind, pixels in (("images", image), ("ground_truth_mask", mask)):
            path = folder / "ECSSD" / kind / f"{number:04d}.{'jpg' if kind == 'images' else 'png'}"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(path)


@pytest.fixture
def workplace(tmp_path, monkeypatch):
    """A folder with drawn data and a config that makes the recipe tiny, in which the commands run."""
    draw_data(tmp_path / "data")
    pairs = "datasets/photo/ecssd"
    sets = [
        [f"ecssd_{part}", f"{pairs}/images", f"{pairs}/ground_truth_mask", f"datasets/photo/{part}.txt"]
        for part in ("train", "val")
    ]
    names = ["DATASETS.TRAIN", "('ecssd_train',)", "DATASETS.TEST", "('ecssd_val',)"]
    refinement = ["DATASETS.REFINEMENT", str(sets)]
    cfg = load_cfg(AIRM.config, [*AIRM.opts, *refinement, *names, "SOLVER.MAX_ITER", "2"])
    (tmp_path / "tiny.yaml").write_text(cfg.dump())
    (tmp_path / "datasets").mkdir()
    shutil.copy(ROOT / "datasets/prepare_refinement.py", tmp_path / "datasets")
    (tmp_path / "tools").symlink_to(ROOT / "tools")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_one_command_makes_them(workplace, monkeypatch, capsys):
    """Make only says the commands; they are run in this process."""
    make = ["make", "-s", "-o", "install", "-f", ROOT / "Makefile", "photo-model", "RUN=echo"]
    settings = ["DATA=data", "CONFIG=tiny.yaml", "PHOTO_WEIGHTS=out.pth", "SEEDS=3 4"]
    commands = subprocess.run([*make, *settings], check=True, capture_output=True, text=True).stdout.splitlines()
    (repeated,) = (command for command in commands if command.endswith("SEED 4 OUTPUT_DIR output/airm_photo_4"))
    commands.remove(repeated)
    assert len(commands) == 3
    for command in commands:
        monkeypatch.setattr(sys, "argv", shlex.split(command))
        with contextlib.suppress(SystemExit):
            runpy.run_path(sys.argv[0], run_name="__main__")
    said = capsys.readouterr().out
    assert "9 pairs to train on, 1 held out" in said
    assert (workplace / "datasets/photo/val.txt").read_text() == "0009\n"
    trained, shipped = torch.load("output/airm_photo_3/model_final.pth"), torch.load("out.pth", weights_only=True)
    assert all(torch.equal(shipped["model"][n], v.half()) for n, v in trained["model"].items() if v.is_floating_point())
    Refiner("out.pth")


def test_instances_are_cut_out_with_what_is_around_them(tmp_path, monkeypatch, capsys):
    """COCO of one image with a large instance, a small one and a crowd."""
    masks = np.zeros((3, 150, 200), bool)
    masks[0, 60:100, 80:120] = masks[1, 10:49, 10:50] = masks[2, 60:140, 10:90] = True
    annotations = [
        {"id": i, "image_id": 7, "category_id": 1, "iscrowd": int(i == 2), "segmentation": encode(mask)}
        for i, mask in enumerate(masks)
    ]
    image = {"id": 7, "file_name": "7.png", "height": 150, "width": 200}
    content = {"images": [image], "annotations": annotations, "categories": [{"id": 1, "name": "thing"}]}
    write_json(tmp_path / "coco.json", content)
    Image.fromarray(np.where(masks[0, ..., None], np.uint8(200), np.uint8([0, 0, 90]))).save(tmp_path / "7.png")
    command = ["prepare_refinement.py", "--instances", "coco.json", ".", "--output", "cut"]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", command)
    with contextlib.suppress(SystemExit):
        runpy.run_path(str(ROOT / "datasets/prepare_refinement.py"), run_name="__main__")
    assert "1 instances of coco.json" in capsys.readouterr().out
    assert sorted(path.name for path in Path("cut").iterdir()) == ["7_0.jpg", "7_0.png"]
    crop, mask = Image.open("cut/7_0.jpg"), np.asarray(Image.open("cut/7_0.png"))
    # 40 pixels and 32 on either side, made a multiple of 32
    assert crop.size == mask.shape[::-1] == (128, 128)
    np.testing.assert_array_equal(mask, np.pad(np.full((40, 40), True), 44))
    assert (np.asarray(crop)[mask] > 150).all() and (np.asarray(crop)[~mask].mean(0) < [20, 20, 99]).all()
