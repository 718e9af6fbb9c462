#!/usr/bin/env python
"""Measure how good a model's masks are in the true boxes: what its mask head can do, whatever its detector finds.

    python tools/true_boxes.py --config-file configs/patchdct/patchdct_R_50_FPN_1x_coco.yaml --weights model_final.pth
    python tools/true_boxes.py --config-file a.yaml --weights a.pth --json a.json --dataset my_val val.json images/ \\
        DATASETS.TEST "('my_val',)"

Of each set of DATASETS.TEST every object's box and class are given to the mask head as if they had been detected, with
a score of 1. The table has mean mask IoU and mean Boundary IoU over the objects, and mask AP and Boundary AP of these
detections. It serves sets, too, where not every object is annotated, on which a detector has no AP that means anything.
The masks are left in OUTPUT_DIR/true_boxes as the detections of the set.
"""

import argparse
from pathlib import Path
from typing import Any

from detectron2.data import DatasetCatalog

from patchdct.evaluation.true_boxes import quality_in_true_boxes
from patchdct.trainer import Trainer
from pixelmask.checkpoint import load_trained
from pixelmask.cli import add_import, import_code, print_table, run
from pixelmask.config import load_cfg
from pixelmask.files import write_json


def main(args: argparse.Namespace) -> list[dict[str, Any]]:
    import_code(args.imports)
    cfg = load_cfg(args.config_file, [*args.opts, "MODEL.WEIGHTS", args.weights], datasets=args.dataset)
    Trainer.prepare_datasets(cfg, train=False)
    model = Trainer.build_model(cfg).eval()
    load_trained(model, args.weights)
    rows = []
    for name in cfg.DATASETS.TEST:
        evaluator = Trainer.build_evaluator(cfg, name, str(Path(cfg.OUTPUT_DIR) / "true_boxes" / name))
        quality = quality_in_true_boxes(
            model, Trainer.build_test_loader(cfg, name), DatasetCatalog.get(name), evaluator
        )
        rows.append({"config": Path(args.config_file).stem, "weights": args.weights, "dataset": name, **quality})
    print_table(
        f"Masks of {rows[0]['config']} in true boxes, in percent",
        ("Data set", "Objects", "IoU", "Boundary IoU", "AP", "AP_B"),
        ([row["dataset"], f"{row['objects']:,}", *map(_percent, figures_of(row))] for row in rows),
    )
    if args.json:
        write_json(args.json, rows, indent=2)
    return rows


def figures_of(row: dict[str, Any]) -> list[float | None]:
    return [row["IoU"], row["Boundary IoU"], row["AP"].get("segm"), row["AP"].get("boundary")]


def _percent(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def argument_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--config-file", required=True, metavar="FILE", help="of any detector with masks")
    add("--weights", required=True, metavar="FILE", help="its checkpoint")
    names, about = ("NAME", "JSON", "IMAGES"), "register a data set in COCO format; may be given several times"
    add("--dataset", nargs=3, action="append", default=[], metavar=names, help=about)
    add("--json", type=Path, metavar="FILE", help="also write the table's rows to this file")
    add_import(parser)
    add("opts", nargs=argparse.REMAINDER, metavar="KEY VALUE", help="config overrides")
    return parser


if __name__ == "__main__":
    run(main, argument_parser().parse_args())
