#!/usr/bin/env python
"""Time Boundary AP, and compare it with the published code on the same detections.

    python tools/benchmark_boundary_ap.py datasets/coco/annotations/instances_val2017.json --detections 20000
    python tools/benchmark_boundary_ap.py instances_val2017.json --peer boundary-iou-api

Detections are drawn from the annotations, with scores: each a true mask that is moved by some pixels, of another class
now and then. --peer is a checkout of https://github.com/bowenc0221/boundary-iou-api, whose own code is run on them; it
uses all cores, so that seconds are CPU seconds of all processes. Both read the same files, and the AP of both is shown.
"""

import argparse
import contextlib
import os
import resource
import sys
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from faster_coco_eval import COCO
from pycocotools import mask as mask_util

from pixelmask.cli import positive, print_table, run
from pixelmask.errors import UserError
from pixelmask.evaluation.boundary import DILATION_RATIO
from pixelmask.evaluation.coco import BoundaryEval
from pixelmask.files import read_json, write_json
from pixelmask.rle import to_rle


def draw_detections(truth: dict[str, Any], number: int, rng: np.random.Generator) -> list[dict[str, Any]]:
    """Return COCO results: masks of the annotations, in turn, moved by up to 8 pixels in both directions."""
    sizes = {image["id"]: (image["height"], image["width"]) for image in truth["images"]}
    annotations = [a for a in truth["annotations"] if not a.get("iscrowd")]
    classes = [category["id"] for category in truth["categories"]]
    results = []
    for annotation in (annotations[k % len(annotations)] for k in range(number)):
        mask = mask_util.decode(to_rle(annotation["segmentation"], *sizes[annotation["image_id"]]))
        moved = mask_util.encode(np.asfortranarray(np.roll(mask, rng.integers(-8, 9, 2), (0, 1))))
        other = rng.random() < 0.1
        results.append(
            {
                "image_id": annotation["image_id"],
                "category_id": int(rng.choice(classes)) if other else annotation["category_id"],
                "segmentation": {**moved, "counts": moved["counts"].decode()},
                "score": float(rng.random()),
            }
        )
    return results


def evaluate(truth: Path, results: Path) -> float:
    """Return Boundary AP as this project's evaluators do."""
    coco = COCO(str(truth))
    evaluation = BoundaryEval(
        coco, coco.loadRes(str(results)), "boundary", print_function=str, boundary_dilation_ratio=DILATION_RATIO
    )
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    return float(evaluation.all_stats[0])


def evaluate_by_peer(truth: Path, results: Path) -> float:
    """Return Boundary AP by the published code, which has to be importable."""
    from boundary_iou.coco_instance_api.coco import COCO as PeerCOCO
    from boundary_iou.coco_instance_api.cocoeval import COCOeval as PeerCOCOeval

    coco = PeerCOCO(str(truth), get_boundary=True)
    evaluation = PeerCOCOeval(coco, coco.loadRes(str(results)), "boundary")
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    return float(evaluation.stats[0])


def measure(call: Callable[[Path, Path], float], *files: Path) -> tuple[float, float]:
    """Return what it returns, and the CPU seconds of it and of the processes that it starts."""
    before = cpu_seconds()
    with Path(os.devnull).open("w") as nowhere, contextlib.redirect_stdout(nowhere), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ap = call(*files)
    return ap, cpu_seconds() - before


def cpu_seconds() -> float:
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in used)


def main(args: argparse.Namespace) -> None:
    truth = read_json(args.annotations)
    methods = {"pixelmask": evaluate}
    if args.peer is not None:
        if not (args.peer / "boundary_iou").is_dir():
            raise UserError(f"--peer {args.peer} has no folder boundary_iou; give a checkout of boundary-iou-api")
        sys.path.insert(0, str(args.peer))
        methods["boundary-iou-api"] = evaluate_by_peer
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "results.json")
        write_json(path, draw_detections(truth, args.detections, np.random.default_rng(0)))
        measured = {name: measure(call, args.annotations, path) for name, call in methods.items()}
    rows = [[name, f"{100 * ap:.4f}", f"{seconds:.1f}"] for name, (ap, seconds) in measured.items()]
    print_table(f"{args.detections:,} detections", ["code", "Boundary AP, %", "CPU seconds"], rows)


def argument_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("annotations", type=Path, metavar="ANNOTATIONS", help="ground truth in COCO format")
    add("--detections", type=positive, default=20000, metavar="N", help="default 20000")
    add("--peer", type=Path, metavar="CHECKOUT", help="of boundary-iou-api")
    return parser


if __name__ == "__main__":
    run(main, argument_parser().parse_args())
