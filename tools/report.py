#!/usr/bin/env python
"""Make one HTML page of finished evaluations: tables, curves, and a gallery of their masks beside the truth.

    python tools/report.py output/patchdct_R_50_FPN_1x_coco --output report.html
    python tools/report.py output/a output/b --names "Mask R-CNN" PatchDCT --patch-labels --output report.html

RUN is the OUTPUT_DIR of a training or an ``--eval-only`` of tools/train_net.py, of instances or of refinement. All
of one page have a data set in common, which has to be where it was. The page is a file of its own: open it in any
browser of today, without a server or the net.

The gallery shows the masks that an evaluation kept (coco_instances_results.json, refined_masks.json). Where it kept
none, and for --patch-labels, the run's checkpoint is run on the gallery's images.
"""

import argparse
from pathlib import Path

from detectron2.utils.logger import setup_logger

from pixelmask.cli import add_import, bounded, import_code, run
from pixelmask.errors import UserError
from reporting import write_report


def main(args: argparse.Namespace) -> None:
    import_code(args.imports)
    for package in ("detectron2", "fvcore", "patchdct", "reporting"):
        setup_logger(name=package)
    if args.output.is_dir():
        raise UserError(f"--output {args.output} is a folder; name a file in it, as report.html")
    if args.output.exists() and not args.overwrite:
        raise UserError(f"{args.output} exists; choose another --output, or add --overwrite")
    names = ("names", "data_set", "max_images", "image_size", "min_score", "patch_labels")
    path = write_report(args.runs, args.output, **{name: getattr(args, name) for name in names})
    print(f"Wrote {path} ({path.stat().st_size / 1e6:.1f} MB)")


def argument_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", metavar="RUN", help="OUTPUT_DIR of a finished evaluation")
    parser.add_argument("--output", type=Path, required=True, metavar="FILE.html", help="the page to write")
    parser.add_argument("--names", nargs="+", default=[], metavar="NAME", help="what to call the runs")
    parser.add_argument("--data-set", default="", metavar="NAME", help="of the gallery, if there are several")
    parser.add_argument(
        "--max-images", type=bounded(0, 100_000), default=100, help="in the gallery, spread over the data set; 0: none"
    )
    parser.add_argument("--image-size", type=bounded(16, 16384), default=640, help="longest side in pixels; 640")
    parser.add_argument("--min-score", type=float, default=0.5, help="detections below it are not shown; 0.5")
    parser.add_argument("--patch-labels", action="store_true", help="run PatchDCT models for the labels of patches")
    parser.add_argument("--overwrite", action="store_true", help="replace the page if it exists")
    add_import(parser)
    return parser


if __name__ == "__main__":
    run(main, argument_parser().parse_args())
