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
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog, detection_utils
from detectron2.modeling import build_model
from tqdm import tqdm

from patchdct.checkpoint import SafeCheckpointer
from patchdct.cli import run
from patchdct.config import load_cfg
from patchdct.data.prepare import prepare_datasets
from patchdct.visualization import compare_panels

CONFIG = Path("configs/patchdct/shapes/patchdct_shapes.yaml")


def train(output: Path, overrides: list[str]) -> None:
    """Train and evaluate in a process of its own, as a user would."""
    command = [
        sys.executable,
        "tools/train_net.py",
        "--config-file",
        str(CONFIG),
        *overrides,
        "OUTPUT_DIR",
        str(output),
    ]
    status = subprocess.run(command).returncode
    if status:
        raise SystemExit(status)


@torch.no_grad()
def draw_pictures(cfg: CfgNode, folder: Path, count: int) -> None:
    """Write side-by-side pictures of held-out images: truth, DCT-Mask stage, PatchDCT, patch labels."""
    model = build_model(cfg).eval()
    SafeCheckpointer(model).load(cfg.MODEL.WEIGHTS)
    model.roi_heads.mask_head.keep_stages = True
    prepare_datasets(cfg, train=False)
    name = cfg.DATASETS.TEST[0]
    folder.mkdir(parents=True, exist_ok=True)
    for record in tqdm(DatasetCatalog.get(name)[:count], desc="drawing masks", unit="image"):
        image = detection_utils.read_image(record["file_name"], "RGB")
        pixels = torch.from_numpy(image[:, :, ::-1].transpose(2, 0, 1).copy())
        instances = model([{"image": pixels, "height": image.shape[0], "width": image.shape[1]}])[0]["instances"]
        truth = detection_utils.annotations_to_instances(record["annotations"], image.shape[:2], "bitmask")
        panels = compare_panels(
            image, truth.gt_masks.tensor.numpy(), instances, MetadataCatalog.get(name).thing_classes
        )
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
    metrics = args.output / "evaluation.json"
    results = json.loads(metrics.read_text())
    scores = ", ".join(f"{task} AP {results[task]['AP']:.1f}" for task in ("bbox", "segm", "boundary"))
    print(
        f"""
Trained, evaluated and drawn in {(time.time() - start) / 60:.1f} minutes: {scores} on {cfg.DATASETS.TEST[0]}.

  pictures    {args.output / "pictures"}
  metrics     {metrics}
  checkpoint  {weights}

To try next:
  {sys.executable} tools/train_net.py --config-file {CONFIG} --eval-only MODEL.WEIGHTS {weights}
  {sys.executable} tools/demo.py --config-file {CONFIG} --weights {weights} --input YOUR_IMAGE.jpg --output output/masks
  {sys.executable} tools/train_net.py --config-file configs/patchdct/shapes/dct_mask_shapes.yaml
  {sys.executable} -m patchdct.doctor"""
    )


if __name__ == "__main__":
    run(main)
