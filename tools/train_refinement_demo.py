#!/usr/bin/env python
"""Train a small AIRM on synthetic data, refine a coarse mask of a large image, and draw what changed.

    python tools/train_refinement_demo.py [--output output/demo_airm] [--size 2560 1706] [KEY VALUE ...]

Needs no GPU and no download: the images are drawn on first use. Training and evaluation are those of ``train_net.py``,
refinement that of ``python -m airm.refine``.
"""

import argparse
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np

from airm import Refiner
from airm.data.synthetic import draw_pair
from airm.data.synthetic_dataset import coarse_mask
from airm.evaluation import intersection_and_union, mean_boundary_accuracy
from airm.figures.side_by_side import side_by_side
from pixelmask.cli import run
from reporting import write_report

CONFIG = Path("configs/airm/small/airm_synthetic.yaml")
SHOWN = ("TEST.EVAL_PERIOD", "100", "VIS_PERIOD", "100")  # curves and pictures of the training itself
TILE_SIZE = 512
SEED = 2026  # of the large image; training and validation have others


def train(output: Path, overrides: list[str]) -> None:
    """Train and evaluate in a process of its own, as a user would."""
    command = [sys.executable, "tools/train_net.py", "--config-file", str(CONFIG), *SHOWN, *overrides]
    status = subprocess.run([*command, "OUTPUT_DIR", str(output)]).returncode
    if status:
        raise SystemExit(status)


def describe(mask: np.ndarray, truth: np.ndarray) -> str:
    """Return IoU and mBA of a mask in percent."""
    intersection, union = intersection_and_union(mask, truth)
    accuracy = mean_boundary_accuracy(mask, truth)
    assert accuracy is not None, "the drawn truth has a boundary"
    return f"IoU {100 * intersection / union:.2f}  mBA {100 * accuracy:.2f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("output/demo_airm"), help="folder for everything made here")
    parser.add_argument("--size", type=int, nargs=2, default=[2560, 1706], metavar=("WIDTH", "HEIGHT"))
    parser.add_argument("overrides", nargs=argparse.REMAINDER, help="KEY VALUE pairs of the config")
    args = parser.parse_args()
    start = time.time()
    train(args.output, args.overrides)
    weights = args.output / "model_final.pth"
    width, height = args.size
    image, truth = draw_pair(SEED, 0, width, height)
    coarse = coarse_mask(truth, np.random.default_rng(SEED))
    refining = time.time()
    refined = Refiner(weights, tile_size=TILE_SIZE).refine(image, coarse, progress=True)
    refining = time.time() - refining
    pictures = args.output / "pictures"
    pictures.mkdir(parents=True, exist_ok=True)
    for name, picture in (
        ("image.jpg", image),
        ("coarse.png", np.uint8(255) * coarse),
        ("refined.png", np.uint8(255) * refined),
        ("truth.png", np.uint8(255) * truth),
        ("side_by_side.jpg", side_by_side(image, coarse, refined)),
    ):
        cv2.imwrite(str(pictures / name), picture[:, :, ::-1] if picture.ndim == 3 else picture)
    report = write_report([args.output], args.output / "report.html")
    minutes = (time.time() - start) / 60
    refine = f"{pictures}/image.jpg {pictures}/coarse.png -o output/refined.png --weights {weights} --side-by-side"
    print(
        f"""
Trained, evaluated and refined in {minutes:.1f} minutes, of which {width} x {height} pixels took {refining:.0f} s:

  before      {describe(coarse, truth)}
  after       {describe(refined, truth)}

  report      {report} (for a browser: tables, curves, and masks to sort and zoom)
  pictures    {pictures}
  metrics     {args.output / "evaluation.json"}
  checkpoint  {weights}

To try next:
  {sys.executable} -m airm.refine {refine}
  {sys.executable} tools/train_net.py --config-file configs/airm/small/airm_ecssd.yaml
  {sys.executable} tools/analyze_model.py --config-file configs/airm/airm_mit_b1.yaml"""
    )


if __name__ == "__main__":
    run(main)
