"""The demo of AIRM: a training, and a picture refined before one's eyes."""

import sys

import cv2
import numpy as np
import pytest

from tests.support.models import load_tool
from tests.support.training import AIRM


@pytest.mark.usefixtures("data_root")
def test_demo_trains_refines_and_tells_before_and_after(tmp_path, monkeypatch, capsys):
    demo = load_tool("train_refinement_demo")
    output = tmp_path / "demo"
    monkeypatch.setattr(sys, "argv", ["demo", "--output", str(output), "--size", "200", "130", *AIRM.opts])
    demo.main()
    printed = capsys.readouterr().out
    assert "200 x 130 pixels" in printed and printed.count("IoU") == 2 and printed.count("mBA") == 2
    for name in ("image.jpg", "side_by_side.jpg", "coarse.png", "refined.png", "truth.png"):
        assert cv2.imread(str(output / "pictures" / name)) is not None
    truth, coarse = (cv2.imread(str(output / "pictures" / f"{name}.png"), 0) for name in ("truth", "coarse"))
    assert truth.shape == (130, 200) and set(np.unique(truth)) == {0, 255}
    iou = 100 * ((truth > 0) & (coarse > 0)).sum() / ((truth > 0) | (coarse > 0)).sum()
    assert f"before      IoU {iou:.2f}" in printed
