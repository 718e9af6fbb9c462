"""The demos, small: what they leave and what they say."""

import sys

import cv2
import numpy as np
import pytest

from tests.support.models import load_tool
from tests.support.training import AIRM, PATCHDCT, run_train_net
from tests.tools.reporting.test_report_command import blocks

OPTIONS = {"patchdct": ["--pictures", "2", *PATCHDCT.opts], "airm": ["--size", "200", "130", *AIRM.opts]}
IMAGES = {"patchdct": 6, "airm": 5}
PICTURES = {
    "patchdct": {"000001.png", "000002.png"},
    "airm": {"image.jpg", "side_by_side.jpg", "coarse.png", "refined.png", "truth.png"},
}


def run_here(command: list[str]) -> int:
    assert command[:2] == [sys.executable, "tools/train_net.py"]
    run_train_net(command[2:])
    return 0


@pytest.mark.slow
@pytest.mark.parametrize("model", ["patchdct", "airm"])
def test_demo_leaves_a_report_and_pictures_and_tells_the_figures(model, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path / "datasets"))
    tool, output = load_tool("train_demo"), tmp_path / "demo"
    if model == "patchdct":  # one of the two is enough to show that the command of another process is right
        monkeypatch.setattr(tool, "run_tool", run_here)
    tool.main(tool.argument_parser().parse_args(["--model", model, "--output", str(output), *OPTIONS[model]]))
    printed = capsys.readouterr().out
    assert f"report      {output / 'report.html'}" in printed
    assert len(blocks(output / "report.html")["data"]["items"]) == IMAGES[model]
    pictures = {path.name: cv2.imread(str(path), cv2.IMREAD_UNCHANGED) for path in (output / "pictures").iterdir()}
    assert pictures.keys() == PICTURES[model] and all(picture is not None for picture in pictures.values())
    if model == "patchdct":
        assert "boundary AP" in printed and "shapes_val_6_96px" in printed
        return
    assert "200 x 130 pixels" in printed and printed.count("IoU") == 2 and printed.count("mBA") == 2
    truth, coarse = pictures["truth.png"], pictures["coarse.png"]
    assert truth.shape == (130, 200) and set(np.unique(truth)) == {0, 255}
    iou = 100 * ((truth > 0) & (coarse > 0)).sum() / ((truth > 0) | (coarse > 0)).sum()
    assert f"before      IoU {iou:.2f}" in printed
