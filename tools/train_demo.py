#!/usr/bin/env python
"""Train a small model on synthetic data, evaluate it, and draw what it makes of pictures that it has not seen.

    python tools/train_demo.py [--output output/demo] [--pictures 8] [KEY VALUE ...]
    python tools/train_demo.py --model airm [--output output/demo_airm] [--size 2560 1706] [KEY VALUE ...]

PatchDCT's masks are drawn beside the truth; an AIRM refines a coarse mask of one large image. Needs no GPU and no
download: the data are drawn on first use. Training and evaluation are those of ``train_net.py``, refinement that of
``python -m airm.refine``.
"""

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.detection_utils import annotations_to_instances
from tqdm import tqdm

from airm import Refiner
from airm.data.synthetic import draw_pair
from airm.data.synthetic_dataset import coarse_mask
from airm.figures.model import score_mask
from airm.figures.side_by_side import side_by_side
from patchdct.data.prepare import prepare_datasets
from patchdct.figures.panels import compare_panels
from patchdct.predictor import Predictor
from pixelmask.cli import bounded, run, run_tool
from pixelmask.config import load_cfg
from pixelmask.files import read_json
from pixelmask.images import read_picture, write_picture
from reporting import write_report

SHOWN = ("TEST.EVAL_PERIOD", "100", "VIS_PERIOD", "100")  # curves and pictures of the training itself
TILE_SIZE = 512
SEED = 2026  # of the large image; training and validation have others
TRY = f"{sys.executable} tools"


Outcome: TypeAlias = tuple[str, str, list[str]]
"""What came out of a demo: its last step, the figures, and commands to try next."""


def detect(args: argparse.Namespace, config: Path, weights: Path, folder: Path) -> Outcome:
    """Write side-by-side pictures of held-out images: truth, DCT-Mask stage, PatchDCT, patch labels."""
    cfg = load_cfg(str(config), [*args.overrides, "MODEL.WEIGHTS", str(weights)])
    name = cfg.DATASETS.TEST[0]
    prepare_datasets(cfg, train=False)
    predictor = Predictor(cfg, keep_stages=True)
    for record in tqdm(DatasetCatalog.get(name)[: args.pictures], desc="drawing masks", unit="image"):
        image = read_picture(record["file_name"])
        truth = annotations_to_instances(record["annotations"], image.shape[:2], "bitmask").gt_masks.tensor.numpy()
        panels = compare_panels(image, truth, predictor(image), MetadataCatalog.get(name).thing_classes)
        write_picture(folder / f"{Path(record['file_name']).stem}.png", panels)
    results = read_json(weights.parent / "evaluation.json")
    scores = ", ".join(f"{task} AP {results[task]['AP']:.1f}" for task in ("bbox", "segm", "boundary"))
    commands = [
        f"{TRY}/train_net.py --config-file {config} --eval-only MODEL.WEIGHTS {weights}",
        f"{TRY}/demo.py --config-file {config} --weights {weights} --input YOUR_IMAGE.jpg --output output/masks",
        f"{TRY}/train_net.py --config-file configs/patchdct/shapes/dct_mask_shapes.yaml",
        f"{sys.executable} -m pixelmask.doctor",
    ]
    return "drawn", f": {scores} on {name}.", commands


def refine(args: argparse.Namespace, config: Path, weights: Path, folder: Path) -> Outcome:
    """Refine a coarse mask of a large image in tiles, and write pictures of it."""
    width, height = args.size
    image, truth = draw_pair(SEED, 0, width, height)
    coarse = coarse_mask(truth, np.random.default_rng(SEED))
    start = time.time()
    refined = Refiner(weights, tile_size=TILE_SIZE).refine(image, coarse, progress=True)
    seconds = time.time() - start
    write_picture(folder / "image.jpg", image, quality=95)
    write_picture(folder / "side_by_side.jpg", side_by_side(image, coarse, refined), quality=95)
    for name, mask in (("coarse", coarse), ("refined", refined), ("truth", truth)):
        write_picture(folder / f"{name}.png", np.uint8(255) * mask)
    before, after = (
        "  ".join(f"{name} {value:.2f}" for name, value in score_mask(mask, truth).items())
        for mask in (coarse, refined)
    )
    files = f"{folder}/image.jpg {folder}/coarse.png -o output/refined.png --weights {weights} --side-by-side"
    commands = [
        f"{sys.executable} -m airm.refine {files}",
        f"{TRY}/train_net.py --config-file configs/airm/small/airm_ecssd.yaml",
        f"{TRY}/analyze_model.py --config-file configs/airm/airm_mit_b1.yaml",
    ]
    figures = (
        f", of which {width} x {height} pixels took {seconds:.0f} s:\n\n  before      {before}\n  after       {after}"
    )
    return "refined", figures, commands


# Of each demo the config, what is done with the trained model, the folder, and the options of the report
DEMOS: dict[str, tuple[str, Callable[..., Outcome], str, dict[str, Any]]] = {
    "patchdct": ("patchdct/shapes/patchdct_shapes", detect, "output/demo", {"max_images": 24, "patch_labels": True}),
    "airm": ("airm/small/airm_synthetic", refine, "output/demo_airm", {}),
}


def main(args: argparse.Namespace) -> None:
    start = time.time()
    name, show, folder, options = DEMOS[args.model]
    config, output = Path(f"configs/{name}.yaml"), args.output or Path(folder)
    # In a process of its own, as a user would
    command = [sys.executable, "tools/train_net.py", "--config-file", str(config), *SHOWN, *args.overrides]
    status = run_tool([*command, "OUTPUT_DIR", str(output)])
    if status:
        raise SystemExit(status)
    weights, pictures = output / "model_final.pth", output / "pictures"
    step, figures, commands = show(args, config, weights, pictures)
    report = write_report([output], output / "report.html", **options)
    minutes, lines = (time.time() - start) / 60, "\n  ".join(commands)
    print(
        f"""
Trained, evaluated and {step} in {minutes:.1f} minutes{figures}

  report      {report} (for a browser: tables, curves, and masks to sort and zoom)
  pictures    {pictures}
  metrics     {output / "evaluation.json"}
  checkpoint  {weights}

To try next:
  {lines}"""
    )


def argument_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--model", choices=list(DEMOS), default="patchdct", help="default: %(default)s")
    add("--output", type=Path, help="folder for everything made here; default: output/demo, or output/demo_airm")
    add(
        "--pictures",
        type=bounded(0, 1000),
        default=8,
        metavar="N",
        help="held-out images to draw, of PatchDCT; default 8",
    )
    default = [2560, 1706]
    add(
        "--size",
        type=bounded(64, 16384),
        nargs=2,
        default=default,
        metavar=("WIDTH", "HEIGHT"),
        help="of AIRM's large image",
    )
    add("overrides", nargs=argparse.REMAINDER, metavar="KEY VALUE", help="config overrides")
    return parser


if __name__ == "__main__":
    run(main, argument_parser().parse_args())
