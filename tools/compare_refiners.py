#!/usr/bin/env python
"""Compare methods that refine masks: AIRM, GrabCut, closed-form matting, and any command.

    python tools/compare_refiners.py photos --output out                        # a folder of pairs, in any layout
    python tools/compare_refiners.py images:masks:val.txt --weights airm.pth --kinds box_28 outline --output out
    python tools/compare_refiners.py ecssd --weights small=a.pth large=b.pth --methods airm --output out
    python tools/compare_refiners.py photos --command "mine=python mine.py {image} {mask} {output}" --output out
    python tools/compare_refiners.py --annotations val.json --images val2017 --kinds box_28 --output out
    python tools/compare_refiners.py --annotations val.json --images val2017 --results results.json --output out

DATA is a folder of pairs in any layout, IMAGES:MASKS, either with :LIST behind it (a text file with the image_id of a
pair on each line), or the name of a data set. Coarse masks are "given" where the set has them, and made from the truth:
of every kind unless --kinds says which, the same for all methods, as they depend on kind, --seed and image_id alone.
COCO annotations are cut into instances, each refined in a crop around it as tools/refine_instances.py does; of
--results the masks are refined that they have, and compared with the objects that they are of.

    airm       an AIRM; several with --weights NAME=FILE ...
    grabcut        OpenCV's GrabCut, begun with the coarse mask as probable foreground, all else as probable background
    grabcut_band   the same where what is farther from the coarse contour than 2.5 % of the square root of the area (3
                   pixels at least) is certain
    matting        closed-form matting by pymatting, with a trimap that is unknown in that band
    --command      reads {image} and {mask} and writes {output}, PNG files; it is run without a shell for each mask

The output folder gets

    comparison.md     for each kind and method the means of IoU, mBA and seconds, the share of masks that lost more than
                      0.1 IoU, and the one that lost most; for COCO files also AP and Boundary AP
    comparison.json   the same and the figures of each mask
    worst_KIND.html   a page with the ten masks of a kind that lost most: image, coarse, each method and truth

Seconds are the method's own for a mask, without reading the image. A method that fails on a mask is named at the end,
with exit status 1; all else is done, and "masks" says how many its figures are of.
"""

import argparse
import importlib.util
import os
from collections.abc import Sequence
from pathlib import Path

import cv2
import torch

from airm.data.coarse_masks import KINDS
from comparing.cases import GIVEN, CaseSet, Instances, Pairs
from comparing.comparison import COARSE, Comparison, compare
from comparing.methods import METHODS, Airm, Command, Method
from comparing.output import PAGE, write_comparison
from pixelmask.cli import positive, run
from pixelmask.errors import UserError

AIRM = "airm"
MAX_NAMED = 10


def find_cases(args: argparse.Namespace) -> CaseSet:
    """Return what the command line names; raise UserError if it names nothing, or two things."""
    if (args.data is None) == (args.annotations is None):
        raise UserError("name either DATA, a set of pairs, or --annotations of COCO with --images")
    if args.data is not None:
        return Pairs(args.data, args.limit, args.max_size)
    if args.max_size or not args.images:
        raise UserError("--annotations want --images, and take no --max-size")
    return Instances(args.annotations, args.images, args.results, args.limit)


def make_methods(args: argparse.Namespace) -> list[Method]:
    """Return the methods that the command line names; raise UserError if one cannot be had, or two have one name."""
    wanted = args.methods
    if wanted is None:
        wanted = [name for name in (AIRM, *METHODS) if name != "matting" or importlib.util.find_spec("pymatting")]
    methods: list[Method] = []
    for name in wanted:
        if name == AIRM:
            options = {"device": args.device, "tile_size": args.tile_size}
            named = [_split(text) for text in args.weights or [""]]
            methods += [Airm(label or "AIRM", weights or None, **options) for label, weights in named]
        else:
            methods.append(METHODS[name](args.iterations))
    methods += [Command(text) for text in args.command]
    names = [COARSE, *(method.name for method in methods)]
    if len(set(names)) < len(names) or len(names) == 1:
        raise UserError(f"methods need names of their own, and there has to be one: {', '.join(names)}")
    return methods


def _split(text: str) -> tuple[str, str]:
    """Split NAME=FILE; the name may be missing, and a file's name may have an equals sign."""
    name, _, file = text.partition("=")
    return ("", text) if not file or Path(text).is_file() else (name, file)


def use_threads(number: int) -> None:
    torch.set_num_threads(number)
    cv2.setNumThreads(number)
    os.environ["OMP_NUM_THREADS"] = str(number)  # of commands


def check_output(folder: Path, kinds: Sequence[str], overwrite: bool) -> None:
    """Raise UserError if a file would be replaced unasked."""
    for name in ("comparison.md", "comparison.json", *map(PAGE.format, kinds)):
        if (folder / name).exists() and not overwrite:
            raise UserError(f"{folder / name} exists already; choose another --output, or pass --overwrite")


def main(args: argparse.Namespace) -> Comparison:
    use_threads(args.threads)
    cases = find_cases(args)
    kinds = cases.choose_kinds(args.kinds)
    check_output(args.output, kinds, args.overwrite)
    methods = make_methods(args)
    comparison = compare(cases, kinds, methods, args.seed)
    about = {"data": cases.name, "objects": cases.number, "seed": args.seed, "threads": args.threads}
    print(write_comparison(args.output, comparison, methods, {**about, "max_size": args.max_size}))
    faults = comparison.faults
    if faults:
        more = [f"... and {len(faults) - MAX_NAMED} more, in comparison.json"] if len(faults) > MAX_NAMED else []
        raise UserError("\n".join([f"{len(faults)} masks could not be made:", *faults[:MAX_NAMED], *more]))
    return comparison


def argument_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("data", nargs="?", metavar="DATA", help="folder of pairs, IMAGES:MASKS, either with :LIST, or a set's name")
    add("--annotations", metavar="FILE", help="COCO JSON with masks, in place of DATA")
    add("--images", nargs="+", metavar="PATH", help="of the annotations: files, folders, or glob patterns")
    add("--results", metavar="FILE", help="COCO results of these images, whose masks are the coarse ones")
    add("--output", type=Path, required=True, metavar="FOLDER", help="folder for tables and pages")
    add("--methods", nargs="*", choices=(AIRM, *METHODS), help="default: all, matting where pymatting is installed")
    add("--weights", nargs="+", metavar="[NAME=]FILE", help="checkpoints of AIRM")
    command = "one more method, as the example shows; may be given several times"
    add("--command", action="append", default=[], metavar="NAME=COMMAND", help=command)
    add("--kinds", nargs="+", choices=(GIVEN, *KINDS), help="of coarse masks; default: all that there can be")
    add("--seed", type=int, default=0, metavar="N", help="of coarse masks; default 0")
    add("--limit", type=positive, metavar="N", help="take N images only, spread evenly over all")
    add("--max-size", type=positive, metavar="N", help="shrink images of pairs whose longer side has more pixels")
    add("--iterations", type=positive, default=3, metavar="N", help="of GrabCut; default 3")
    add("--tile-size", type=int, metavar="N", help="of AIRM: side in pixels of tiles in large images; 0 for none")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    add("--device", default=device, help="of AIRM: cpu or cuda; default: cuda where there is one")
    add("--threads", type=positive, default=1, metavar="N", help="of every method on the CPU; default 1")
    add("--overwrite", action="store_true", help="replace files of the output folder")
    return parser


if __name__ == "__main__":
    run(main, argument_parser().parse_args())
