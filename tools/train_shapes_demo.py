#!/usr/bin/env python
"""Train a small PatchDCT model on synthetic shapes, evaluate it, and draw its masks beside the truth.

    python tools/train_shapes_demo.py [--output output/demo] [--pictures 8] [KEY VALUE ...]

Needs no GPU and no download: the images are drawn on first use. Training and evaluation are those of ``train_net.py``.
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

import cv2
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.detection_utils import annotations_to_instances
from tqdm import tqdm

from patchdct.data.prepare import prepare_datasets
from patchdct.figures.panels import compare_panels
from patchdct.predictor import Predictor
from pixelmask.cli import run
from pixelmask.config import load_cfg
from pixelmask.images import read_picture
from reporting import write_report

CONFIG = Path("configs/patchdct/shapes/patchdct_shapes.yaml")
SHOWN = ("TEST.EVAL_PERIOD", "100", "VIS_PERIOD", "100")  # curves and pictures of the training itself
REPORTED = 24  # images in the report


def train(output: Path, overrides: list[str]) -> None:
    """Train and evaluate in a process of its own, as a user would."""
    command = [sys.executable, "tools/train_net.py", "--config-file", str(CONFIG), *SHOWN, *overrides]
    command += ["OUTPUT_DIR", str(output)]
    status = subprocess.run(command).returncode
    if status:
        raise SystemExit(status)


def draw_pictures(cfg: CfgNode, folder: Path, count: int) -> None:
    """Write side-by-side pictures of held-out images: truth, DCT-Mask stage, PatchDCT, patch labels."""
    name = cfg.DATASETS.TEST[0]
    prepare_datasets(cfg, train=False)
    records = DatasetCatalog.get(name)[:count]
    predictor = Predictor(cfg, keep_stages=True)
    folder.mkdir(parents=True, exist_ok=True)
    for record in tqdm(records, desc="drawing masks", unit="image"):
        image = read_picture(record["file_name"])
        truth = annotations_to_instances(record["annotations"], image.shape[:2], "bitmask").gt_masks.tensor.numpy()
        panels = compare_panels(image, truth, predictor(image), MetadataCatalog.get(name).thing_classes)
        cv2.imwrite(str(folder / f"{Path(record['file_name']).stem}.png"), panels[:, :, ::-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("output/demo"), help="folder for everything made here")
    parser.add_argument("--pictures", type=int, default=8, help="number of held-out images to draw")
    parser.add_argument("overrides", nargs=argparse.REMAINDER, help="KEY VALUE pairs of the config")
    args = parser.parse_args()
    start = time.time()
    train(args.output, args.overrides)
    weights = args.output / "model_final.pth"
    cfg = load_cfg(str(CONFIG), [*args.overrides, "MODEL.WEIGHTS", str(weights)])
    draw_pictures(cfg, args.output / "pictures", args.pictures)
    report = write_report([args.output], args.output / "report.html", max_images=REPORTED, patch_labels=True)
    metrics = args.output / "evaluation.json"
    results = json.loads(metrics.read_text())
    scores = ", ".join(f"{task} AP {results[task]['AP']:.1f}" for task in ("bbox", "segm", "boundary"))
    print(
        f"""
Trained, evaluated and drawn in {(time.time() - start) / 60:.1f} minutes: {scores} on {cfg.DATASETS.TEST[0]}.

  report      {report} (for a browser: tables, curves, and masks to sort and zoom)
  pictures    {args.output / "pictures"}
  metrics     {metrics}
  checkpoint  {weights}

To try next:
  {sys.executable} tools/train_net.py --config-file {CONFIG} --eval-only MODEL.WEIGHTS {weights}
  {sys.executable} tools/demo.py --config-file {CONFIG} --weights {weights} --input YOUR_IMAGE.jpg --output output/masks
  {sys.executable} tools/train_net.py --config-file configs/patchdct/shapes/dct_mask_shapes.yaml
  {sys.executable} -m pixelmask.doctor"""
    )


if __name__ == "__main__":
    run(main)
