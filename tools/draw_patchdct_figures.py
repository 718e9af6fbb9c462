#!/usr/bin/env python
"""Draw the pictures that explain the PatchDCT head (docs/patchdct.md), and write the numbers in them.

    python tools/draw_patchdct_figures.py representation                      # Eq. 1 and 2: short and long vectors
    python tools/draw_patchdct_figures.py patches                             # patch labels, and how many are mixed
    python tools/draw_patchdct_figures.py stages --weights model_final.pth    # Fig. 2, from stage to stage
    python tools/draw_patchdct_figures.py teaser --weights model_final.pth --refiner airm.pth    # contours, enlarged
    python tools/draw_patchdct_figures.py influence                           # Fig. 1: some elements changed
    python tools/draw_patchdct_figures.py models --weights a/model_final.pth b/model_final.pth   # Fig. 4, 5 and 6
    python tools/draw_patchdct_figures.py failures --weights model_final.pth  # Fig. 7: masks in pieces

All are made of synthetic shapes, which are drawn if missing; --dataset takes any other registered data set with masks.
Objects are not chosen by how well they come out: they are the largest of image --image. Only Fig. 7 looks for those of
the first --images whose masks have the most parts and holes beyond their own. A detection is an object's if its box
overlaps the true box by at least half; of several, that of the best score. Each picture has beside it a JSON file of
the same name with its numbers.
"""

import argparse
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.structures import Instances
from matplotlib.figure import Figure
from tqdm import tqdm

from airm import Refiner
from airm.instances.crops import InstanceRefiner
from patchdct.figures import (
    TrueObjects,
    arrange,
    count_patches,
    count_pieces,
    influences,
    load_objects,
    load_records,
    match_detections,
    object_rows,
    read_objects,
    reconstructions,
    richest_window,
    square_around,
    stage_columns,
)
from patchdct.figures.drawing import Panel, draw_influences, draw_panels, draw_representation, tint_grid
from patchdct.patches import PatchLabel, classify_patches, split_into_patches
from patchdct.predictor import Predictor
from pixelmask.cli import positive, run
from pixelmask.config import load_cfg
from pixelmask.drawing import Window, check_suffix, save_with_numbers
from pixelmask.errors import UserError

ONE_LARGE, MANY_SMALL = "shapes_val_1_1024px", "shapes_val_100"
PATCH_SIZES = (4, 8, 16)  # Table 11
Columns = Mapping[str, Sequence[np.ndarray | None]]
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


def influence(args: argparse.Namespace) -> tuple[Figure, Any]:
    truth = load_objects(args.dataset, args.image)
    found = influences(truth.in_boxes()[0])
    numbers = [
        {
            **{key: getattr(x, key) for key in ("patch_size", "vector_dim")},
            "moved": int((x.change > 0).sum()),
            "flipped": int((x.before != x.after).sum()),
        }
        for x in found
    ]
    return draw_influences(found), {"class": truth.names[0], "vectors": numbers}


def load_predictor(args: argparse.Namespace, weights: str, keep_stages: bool = True) -> Predictor:
    config_file = args.config_file or str(Path(weights).with_name("config.yaml"))
    return Predictor(load_cfg(config_file, [*args.opts, "MODEL.WEIGHTS", weights]), keep_stages)


def find_objects(args: argparse.Namespace) -> tuple[TrueObjects, list[int | None], Instances]:
    """Run the detector; return the truth, the place of each of its largest objects, and the detections of these."""
    truth = load_objects(args.dataset, args.image)
    detections = load_predictor(args, args.weights)(truth.image)
    matches = match_detections(truth.boxes[: args.objects], detections)
    found = sorted({match for match in matches if match is not None})
    return truth, [None if match is None else found.index(match) for match in matches], detections[found]


def draw_objects(truth: TrueObjects, columns: Columns, windows: list[Window] | None = None) -> tuple[Figure, Any]:
    """Draw a row for each of the first objects; the whole of each, if there are no windows."""
    count = len(next(iter(columns.values())))
    rows, numbers = object_rows(truth, windows or [square_around(mask) for mask in truth.masks[:count]], columns)
    return draw_panels(rows)[0], {"objects": numbers}


def stages(args: argparse.Namespace) -> tuple[Figure, Any]:
    truth, places, detections = find_objects(args)
    return draw_objects(truth, arrange(stage_columns(truth.image, detections, with_labels=True), places))


def teaser(args: argparse.Namespace) -> tuple[Figure, Any]:
    refiner = InstanceRefiner(Refiner(args.refiner, tile_size=args.tile_size))
    truth, places, detections = find_objects(args)
    columns = stage_columns(truth.image, detections)
    columns["PatchDCT + AIRM"] = refiner.refine_instances(truth.image, detections).pred_masks.numpy()
    windows = []
    for mask, box in zip(truth.masks[: len(places)], truth.boxes.tensor, strict=False):
        windows.append(richest_window(mask, round(ZOOM * float((box[2:] - box[:2]).max()))))
    return draw_objects(truth, arrange(columns, places), windows)


def models(args: argparse.Namespace) -> tuple[Figure, Any]:
    truth = load_objects(args.dataset, args.image)
    columns: dict[str, list[np.ndarray | None]] = {}
    for weights in args.weights:
        detections = load_predictor(args, weights, keep_stages=False)(truth.image)
        places = match_detections(truth.boxes[: args.objects], detections)
        columns |= arrange({Path(weights).absolute().parent.name: detections.pred_masks.numpy()}, places)
    return draw_objects(truth, columns)


def failures(args: argparse.Namespace) -> tuple[Figure, Any]:
    """Objects whose masks have the most pieces, parts and holes, beyond those of the truth."""
    predictor, worst = load_predictor(args, args.weights), []
    for record in tqdm(load_records(args.dataset)[: args.images], unit="image"):
        truth = read_objects(record, args.dataset)
        detections = predictor(truth.image)
        for i, place in enumerate(match_detections(truth.boxes, detections)):
            if place is not None:
                only = TrueObjects(truth.image, truth.masks[[i]], truth.boxes[[i]], [truth.names[i]])
                pieces = count_pieces(detections.pred_masks[place].numpy()) - count_pieces(truth.masks[i])
                worst.append((pieces, record["image_id"], only, detections[[place]]))
        worst = sorted(worst, key=lambda case: -case[0])[: args.objects]
    if not worst:
        raise UserError(f"none of the objects of {args.dataset} was found in its first {args.images} images")
    rows: list[list[Panel]] = []
    numbers = []
    for pieces, image_id, only, detection in worst:
        columns = arrange(stage_columns(only.image, detection, with_labels=True), [0])
        (row,), (number,) = object_rows(only, [square_around(only.masks[0])], columns)
        rows.append(row if not rows else [panel._replace(title="") for panel in row])
        numbers.append({"image": image_id, "pieces_beyond_truth": pieces, **number})
    return draw_panels(rows)[0], {"objects": numbers}


DRAW: dict[str, tuple[Callable[[argparse.Namespace], tuple[Figure, Any]], str]] = {
    "representation": (representation, "a mask through shorter and longer vectors"),
    "influence": (influence, "Fig. 1: what a change of some elements does"),
    "patches": (patches, "patch labels"),
    "stages": (stages, "from stage to stage"),
    "teaser": (teaser, "contours, enlarged"),
    "models": (models, "Fig. 4, 5 and 6: masks of several models"),
    "failures": (failures, "Fig. 7: masks in pieces"),
}


def main(args: argparse.Namespace) -> Any:
    """Draw one figure; return the numbers behind it."""
    path = args.output or Path("output/figures") / f"patchdct_{args.figure}.jpg"
    check_suffix(path)
    figure, numbers = DRAW[args.figure][0](args)
    about = {"dataset": args.dataset} if args.figure == "failures" else {"dataset": args.dataset, "image": args.image}
    beside = save_with_numbers(figure, path, {**about, **numbers})
    print(f"Wrote {path} and {beside}")
    return numbers


def argument_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    figures = parser.add_subparsers(dest="figure", required=True)
    for name, (_, text) in DRAW.items():
        add = figures.add_parser(name, help=text).add_argument
        default = MANY_SMALL if name in ("patches", "failures") else ONE_LARGE
        add("--dataset", default=default, metavar="NAME", help="with masks; default: %(default)s")
        if name == "failures":
            add(
                "--images",
                type=positive,
                default=20,
                metavar="N",
                help="to look through; default: the first %(default)s",
            )
        else:
            add("--image", type=positive, default=1, metavar="N", help="of the data set, from 1; default: the first")
        add("--output", type=Path, metavar="FILE", help="JPEG or PNG; default: output/figures/patchdct_<figure>.jpg")
        if name == "models":
            add("--weights", required=True, nargs="+", metavar="FILE", help="checkpoints, each in a folder of its name")
            add("--opts", nargs=argparse.REMAINDER, default=[], metavar="KEY VALUE", help="config overrides of all")
        elif name in ("stages", "teaser", "failures"):
            add("--weights", required=True, metavar="FILE", help="checkpoint of a PatchDCT model")
            add("opts", nargs=argparse.REMAINDER, metavar="KEY VALUE", help="config overrides of the detector")
        if name in ("stages", "teaser", "models", "failures"):
            add("--config-file", metavar="FILE", help="default: config.yaml beside the weights")
            add("--objects", type=positive, default=3, metavar="N", help="how many; default: %(default)s")
        if name == "teaser":
            add("--refiner", required=True, metavar="FILE", help="checkpoint of an AIRM")
            add("--tile-size", type=int, metavar="N", help="side in pixels of tiles in large crops; 0 for none")
    return parser


if __name__ == "__main__":
    run(main, argument_parser().parse_args())
