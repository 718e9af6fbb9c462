"""Refine the coarse masks of images, with the weights that come with the project or others.

    python -m airm.refine --example                  # a photo that is here already, and a rough outline
    python -m airm.refine photo.jpg mask.png --side-by-side
    python -m airm.refine photos masks -o refined --weights model_final.pth
    python -m airm.refine "photos/*.jpg" "masks/*.png" -o refined --tile-size 512

Images and masks are files, folders, or glob patterns in quotes. Those of folders and patterns are matched by their
names without extension: x.jpg and x.png, or x_im.jpg and x_seg.png; results go into a folder, as x.png. A file that
cannot be used is left out; all of these are named at the end, with exit status 1. What is done is kept in
progress.jsonl: --resume goes on after an interruption. torchrun deals the images out to processes and machines:

    torchrun --standalone --nproc_per_node=2 -m airm.refine photos masks -o refined
"""

import argparse
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.utils import comm

from pixelmask.cli import add_precision
from pixelmask.engine.launch import launch_shards
from pixelmask.errors import UserError
from pixelmask.images import read_picture, write_picture
from pixelmask.progress import Item, Progress, check_output, identify

from ..figures.side_by_side import side_by_side
from ..guard import GUARD
from ..refiner import Refiner
from .example import write_example
from .files import Job, match_files, plan_jobs

# Options that make the results what they are
DECISIVE = ("tile_size", "max_memory", "min_confidence", "resolution", "precision", "soft")


def process(job: Job, refiner: Refiner, soft: bool, progress: bool) -> None:
    """Refine one mask and write what the job asks for.

    Raises:
        UserError: if a file cannot be read or written, or mask and image do not fit together.
    """
    refined, change = refiner.refine(job.image, job.mask, soft=True, return_change=True, progress=progress)
    hard = refined >= 0.5
    if job.change is not None:
        write_picture(job.change, (np.round(change * 127) + 128).astype(np.uint8))
    if job.picture is not None:
        write_picture(job.picture, side_by_side(read_picture(job.image), refined - change >= 0.5, hard))
    write_picture(job.refined, (np.round(refined * 255) if soft else hard * 255).astype(np.uint8))


def refine_folder(jobs: dict[str, Job], refiner: Refiner, args: argparse.Namespace) -> list[str]:
    """Do all jobs, given by name, or go on with them; return a sentence for each that failed."""
    items = {name: Item((job.image, job.mask), job.written) for name, job in jobs.items()}
    options = {name: getattr(args, name) for name in DECISIVE} | {"guard": repr(args.guard)}

    def work(name: str) -> dict[str, Any]:
        process(jobs[name], refiner, args.soft, progress=False)
        return {}

    with Progress(args.output, {**options, **identify(refiner.cfg, refiner.weights)}, items, args.resume) as progress:
        failures = progress.run(work, "mask")
        if comm.is_main_process() and not failures:
            progress.remove()
    return failures


def take_example(args: argparse.Namespace) -> None:
    """Make the options those of the example, with all that belongs to it in one folder."""
    folder = args.output or Path("output/example")
    args.image, args.mask = map(str, write_example(folder))
    args.output, args.side_by_side = folder / "refined.png", folder / "side_by_side.jpg"


def main(args: argparse.Namespace) -> None:
    if args.example == bool(args.image):
        raise UserError("nothing to refine: give `IMAGE MASK` or, without these, `--example`")
    if args.example:
        take_example(args)
    if args.mask is None:
        raise UserError("no mask to refine: give image and mask, `IMAGE MASK`")
    matches, faults = match_files(args.image, args.mask)
    single = Path(args.image).is_file() and Path(args.mask).is_file()
    args.output = args.output or Path(f"{Path(args.image).stem}_refined.png" if single else "refined")
    limits = args.tile_size, args.max_memory, args.min_confidence, args.guard, args.resolution
    jobs = plan_jobs(matches, single, args.output, args.change, args.side_by_side)
    written = sorted(path for job in jobs.values() for path in job.written)
    check_output(None if single else args.output, written, args.resume, args.overwrite)
    refiner = Refiner(args.weights, args.device, args.config, *limits, args.precision, args.compile)
    failures = []
    if not single:
        failures = refine_folder(jobs, refiner, args)
    elif comm.is_main_process():
        process(jobs[matches[0].name], refiner, args.soft, progress=True)
    if not comm.is_main_process():
        return
    sys.stdout.write(f"{len(jobs) - len(failures)} refined masks are in {args.output}\n")
    if args.example:
        sys.stdout.write(
            f"Outline, refined mask and what changed, side by side: {args.side_by_side}\n\n"
            "Next, a photo and a rough mask of your own:\n"
            f"  {sys.executable} -m airm.refine YOUR_PHOTO.jpg YOUR_MASK.png --side-by-side\n"
        )
    if failures + faults:
        raise UserError("\n".join([f"{len(failures + faults)} files could not be used:", *faults, *failures]))


def argument_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m airm.refine", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("image", metavar="IMAGE", nargs="?", help="image, folder of images, or glob pattern")
    add("mask", metavar="MASK", nargs="?", help="its coarse mask, of the same size; folder or glob pattern likewise")
    add("--example", action="store_true", help="refine a rough outline of a photo that a package here brings along")
    output = "refined mask; of several, their folder; default: IMAGE_refined.png or refined, here"
    add("-o", "--output", type=Path, metavar="PATH", help=output)
    weights = "checkpoint of an AIRM, or folder of its training; default: the one that comes with the project"
    add("--weights", metavar="PATH", help=weights)
    add("--config", metavar="FILE", help="of the model; default: the checkpoint's own, or config.yaml beside it")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    add("--device", default=device, help="cpu or cuda; default: cuda where there is one")
    tiles = "side of tiles in pixels, 0 for whole images, as in the paper; default: the config's, or 512"
    add("--tile-size", type=int, metavar="N", help=tiles)
    add("--max-memory", type=float, metavar="GIB", help="memory to take beyond the loaded model's, by smaller tiles")
    add("--min-confidence", type=float, metavar="C", help="keep the coarse mask where |2 p - 1| < C, from 0 to 1")
    every = "take every refinement, however far it goes and unsure it is"
    add("--no-guard", dest="guard", action="store_const", const=None, default=GUARD, help=every)
    grid = "masks were made of N x N cells in their boxes, by which the guard knows what is far; default: of pixels"
    add("--resolution", type=int, metavar="N", help=grid)
    add_precision(parser)
    add("--compile", action="store_true", help="torch.compile the network: for many images, with a compiler")
    add("--soft", action="store_true", help="write probabilities, 0 to 255, instead of 0 and 255")
    change = "also write refined minus coarse mask: 128 for no change, 255 for added, 1 for removed"
    add("--change", nargs="?", type=Path, const=True, default=False, metavar="PATH", help=change)
    picture = "also write a picture of coarse mask, refined mask and change"
    add("--side-by-side", nargs="?", type=Path, const=True, default=False, metavar="PATH", help=picture)
    add("--resume", action="store_true", help="go on with an interrupted run on several images")
    add("--overwrite", action="store_true", help="replace files that are there")
    return parser


if __name__ == "__main__":
    launch_shards(main, argument_parser().parse_args())
