#!/usr/bin/env python
"""Draw the pictures that explain the PatchDCT head (docs/patchdct.md), and write the numbers in them.

    python tools/draw_patchdct_figures.py representation                      # Eq. 1 and 2: short and long vectors
    python tools/draw_patchdct_figures.py patches                             # patch labels, and how many are mixed
    python tools/draw_patchdct_figures.py stages --weights model_final.pth    # Fig. 2, from stage to stage
    python tools/draw_patchdct_figures.py teaser --weights model_final.pth --refiner airm.pth    # contours, enlarged

All are made of synthetic shapes, which are drawn if missing; --dataset takes any other registered data set with masks.
Objects are never chosen by how well they come out: they are the largest of image --image. A detection is an object's if
its box overlaps the true box by at least half; of several, that of the best score. Each picture has beside it a JSON
file of the same name with its numbers.
"""

import argparse
from pathlib import Path
from typing import Any

from detectron2.structures import Instances
from matplotlib.figure import Figure
from tqdm import tqdm

from airm import Refiner
from airm.instances.crops import InstanceRefiner
from patchdct.figures import (
    TrueObjects,
    count_patches,
    load_objects,
    load_records,
    match_detections,
    object_rows,
    reconstructions,
    richest_window,
    square_around,
    stage_columns,
)
from patchdct.figures.drawing import Panel, draw_panels, draw_representation, tint_grid
from patchdct.patches import PatchLabel, classify_patches, split_into_patches
from patchdct.predictor import Predictor
from pixelmask.cli import positive, run
from pixelmask.config import load_cfg
from pixelmask.drawing import check_suffix, save_with_numbers

ONE_LARGE, MANY_SMALL = "shapes_val_1_1024px", "shapes_val_100"
PATCH_SIZES = (4, 8, 16)  # Table 11
ZOOM = 0.5  # of the longer side of an object, in the teaser


def representation(args: argparse.Namespace) -> tuple[Figure, Any]:
    truth = load_objects(args.dataset, args.image)
    mask = truth.in_boxes()[0]
    rows = reconstructions(mask)
    numbers = [{k: v for k, v in r._asdict().items() if k != "mask"} for row in rows for r in row]
    return draw_representation(mask.numpy(), rows), {"class": truth.names[0], "reconstructions": numbers}


def patches(args: argparse.Namespace) -> tuple[Figure, Any]:
    records = load_records(args.dataset)
    num_objects, counts = count_patches(tqdm(records, desc="counting patches", unit="image"), PATCH_SIZES)
    mask = load_objects(args.dataset, args.image).in_boxes()[:1]
    panels = []
    for size, count in counts.items():
        labels = classify_patches(split_into_patches(mask, size)).unflatten(1, (mask.shape[1] // size,) * 2)
        share = 100 * float(count[PatchLabel.MIXED]) / max(int(count.sum()), 1)
        title = f"{size} x {size}: {100 * float((labels == PatchLabel.MIXED).float().mean()):.0f} % mixed"
        picture = tint_grid(mask[0].numpy(), labels[0].numpy())
        panels.append(Panel(picture, title, f"{share:.1f} % mixed of all {num_objects:,} objects"))
    names = [label.name.lower() for label in sorted(PatchLabel)]
    by_size = {size: dict(zip(names, count.tolist(), strict=True)) for size, count in counts.items()}
    return draw_panels([panels], side=3.2)[0], {"objects": num_objects, "patches": by_size}


def find_objects(args: argparse.Namespace) -> tuple[TrueObjects, list[int | None], Instances]:
    """Run the detector; return the truth, the place of each of its largest objects, and the detections of these."""
    truth = load_objects(args.dataset, args.image)
    config_file = args.config_file or str(Path(args.weights).with_name("config.yaml"))
    predictor = Predictor(load_cfg(config_file, [*args.opts, "MODEL.WEIGHTS", args.weights]), keep_stages=True)
    detections = predictor(truth.image)
    matches = match_detections(truth.boxes[: args.objects], detections)
    found = sorted({match for match in matches if match is not None})
    return truth, [None if match is None else found.index(match) for match in matches], detections[found]


def stages(args: argparse.Namespace) -> tuple[Figure, Any]:
    truth, places, detections = find_objects(args)
    columns = stage_columns(truth.image, detections, with_labels=True)
    windows = [square_around(mask) for mask in truth.masks[: len(places)]]
    rows, numbers = object_rows(truth, windows, places, columns)
    return draw_panels(rows)[0], {"objects": numbers}


def teaser(args: argparse.Namespace) -> tuple[Figure, Any]:
    refiner = InstanceRefiner(Refiner(args.refiner, tile_size=args.tile_size))
    truth, places, detections = find_objects(args)
    columns = stage_columns(truth.image, detections)
    columns["PatchDCT + AIRM"] = refiner.refine_instances(truth.image, detections).pred_masks.numpy()
    windows = []
    for mask, box in zip(truth.masks[: len(places)], truth.boxes.tensor, strict=False):
        windows.append(richest_window(mask, round(ZOOM * float((box[2:] - box[:2]).max()))))
    rows, numbers = object_rows(truth, windows, places, columns)
    return draw_panels(rows)[0], {"objects": numbers}


DRAW = {"representation": representation, "patches": patches, "stages": stages, "teaser": teaser}


def main(args: argparse.Namespace) -> Any:
    """Draw one figure; return the numbers behind it."""
    path = args.output or Path("output/figures") / f"patchdct_{args.figure}.jpg"
    check_suffix(path)
    figure, numbers = DRAW[args.figure](args)
    beside = save_with_numbers(figure, path, {"dataset": args.dataset, "image": args.image, **numbers})
    print(f"Wrote {path} and {beside}")
    return numbers


def argument_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    figures = parser.add_subparsers(dest="figure", required=True)
    helps = ("a mask through shorter and longer vectors", "patch labels", "from stage to stage", "contours, enlarged")
    for name, text in zip(DRAW, helps, strict=True):
        add = figures.add_parser(name, help=text).add_argument
        default = MANY_SMALL if name == "patches" else ONE_LARGE
        add("--dataset", default=default, metavar="NAME", help="with masks; default: %(default)s")
        add("--image", type=positive, default=1, metavar="N", help="of the data set, from 1; default: the first")
        add("--output", type=Path, metavar="FILE", help="JPEG or PNG; default: output/figures/patchdct_<figure>.jpg")
        if name in ("stages", "teaser"):
            add("--weights", required=True, metavar="FILE", help="checkpoint of a PatchDCT model")
            add("--config-file", metavar="FILE", help="default: config.yaml beside the weights")
            add("--objects", type=positive, default=3, metavar="N", help="the largest; default: %(default)s")
        if name == "teaser":
            add("--refiner", required=True, metavar="FILE", help="checkpoint of an AIRM")
            add("--tile-size", type=int, metavar="N", help="side in pixels of tiles in large crops; 0 for none")
        if name in ("stages", "teaser"):
            add("opts", nargs=argparse.REMAINDER, metavar="KEY VALUE", help="config overrides of the detector")
    return parser


if __name__ == "__main__":
    run(main, argument_parser().parse_args())
