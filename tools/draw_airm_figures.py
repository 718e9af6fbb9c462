#!/usr/bin/env python
"""Draw the figures of AIRM's paper that are made of measurements, and write the numbers behind them.

    python tools/draw_airm_figures.py kernel-sizes output/kernel_*                                            # Fig. 2a
    python tools/draw_airm_figures.py categories output/categor*_*                                            # Fig. 2b
    python tools/draw_airm_figures.py attention photo.jpg mask.png --position 320 200 --weights model.pth     # Fig. 6
    python tools/draw_airm_figures.py parameters ecssd datasets/FSS-1000/bus --weights model.pth              # Fig. 7
    python tools/draw_airm_figures.py coarse-to-fine photo.jpg mask.png --tile-size 512 --weights model.pth

The first two take the OUTPUT_DIRs of evaluated runs, those of configs/airm/figure_2, or a part of them. The others take
a trained AIRM. The last, no figure of the paper, shows what each ratio of the refinement answers. Each writes a
picture, and beside it a JSON file of the same name.
"""

import argparse
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from tqdm import tqdm

from airm import Refiner
from airm.data.dataset_mapper import RefinementDatasetMapper
from airm.figures.drawing import (
    Column,
    draw_categories,
    draw_kernel_sizes,
    draw_maps,
    draw_parameters,
    draw_steps,
    thumbnail,
)
from airm.figures.model import (
    LARGEST_SIDE,
    MAX_SIDE,
    load_dicts,
    position_maps,
    predict_parameters,
    read_samples,
    reduce_parameters,
    refinement_steps,
    score_mask,
    zoom_windows,
)
from airm.figures.runs import category_rows, kernel_size_rows, read_run
from pixelmask.cli import positive, run
from pixelmask.drawing import save_with_numbers
from pixelmask.errors import UserError


def kernel_sizes(args: argparse.Namespace) -> tuple[Figure, Any]:
    rows = kernel_size_rows([read_run(folder) for folder in args.runs], args.dataset)
    return draw_kernel_sizes(rows), rows


def categories(args: argparse.Namespace) -> tuple[Figure, Any]:
    rows = category_rows([read_run(folder) for folder in args.runs])
    return draw_categories(rows), rows


def attention(args: argparse.Namespace) -> tuple[Figure, Any]:
    files = {"file_name": args.image, "coarse_file_name": args.mask, "image_id": args.image}
    sample = RefinementDatasetMapper(is_train=False)(files)
    model = Refiner(args.weights, args.device, args.config).model
    position = tuple(args.position or (sample["width"] // 2, sample["height"] // 2))
    maps = position_maps(model, sample["image"], sample["coarse_mask"], position, args.max_side)
    picture = sample["image"].permute(1, 2, 0).numpy()
    numbers = {
        "image": args.image,
        "mask": args.mask,
        "position": position,
        "cell": maps.cell,
        "attention": None if maps.attention is None else maps.attention.tolist(),
        "affinity": None if maps.affinity is None else maps.affinity.tolist(),
    }
    return draw_maps(picture, sample["coarse_mask"][0].numpy() >= 0.5, position, maps), numbers


def parameters(args: argparse.Namespace) -> tuple[Figure, Any]:
    dicts = [entry for argument in args.data for entry in load_dicts(argument)]
    if args.limit < 1:
        raise UserError(f"--limit is {args.limit}; it is a number of images")
    dicts = dicts[:: -(-len(dicts) // args.limit)]
    model = Refiner(args.weights, args.device, args.config).model
    thumbnails = []

    def watched() -> Any:
        for sample in tqdm(read_samples(dicts), total=len(dicts), unit="image"):
            thumbnails.append(thumbnail(sample["image"].permute(1, 2, 0).numpy()))
            yield sample

    vectors = predict_parameters(model, watched(), args.max_side)
    points, perplexity = reduce_parameters(vectors, args.perplexity, args.seed)
    names = [entry["category"] for entry in dicts]
    placed = [
        {"file": str(entry["file_name"]), "category": entry["category"], "x": x, "y": y}
        for entry, (x, y) in zip(dicts, points.tolist(), strict=True)
    ]
    numbers = {"parameters": vectors.shape[1], "perplexity": perplexity, "seed": args.seed, "points": placed}
    return draw_parameters(points, names, None if args.dots else thumbnails), numbers


def coarse_to_fine(args: argparse.Namespace) -> tuple[Figure, Any]:
    files = {"file_name": args.image, "coarse_file_name": args.mask, "mask_file_name": args.truth}
    sample = RefinementDatasetMapper(is_train=False)({**files, "image_id": args.image})
    refiner = Refiner(args.weights, args.device, args.config, args.tile_size)
    steps = refinement_steps(refiner.model, sample["image"], sample["coarse_mask"], refiner.settings)
    if not steps:
        raise UserError(f"{args.mask}: an empty mask has nothing to refine")
    coarse = sample["coarse_mask"][0].numpy()
    columns = [Column("coarse mask", coarse >= 0.5)]
    for step in steps:
        title = f"{step.size[1]} x {step.size[0]}, {len(step.encoded)} of {step.tiles} tiles"
        columns.append(Column(title, step.mask >= 0.5, step))
    scores: list[dict[str, float | None]] = [{} for _ in columns]
    if args.truth:
        truth = sample["mask"][0].numpy() >= 0.5
        scores = [score_mask(column.mask, truth) for column in columns]
        columns = [c._replace(title=c.title + "\n" + describe(s)) for c, s in zip(columns, scores, strict=True)]
        columns.append(Column("truth\n", truth))
    measured = [
        {"size": step.size, "tiles": step.tiles, "encoded": step.encoded, **score}
        for step, score in zip(steps, scores[1:], strict=True)
    ]
    numbers = {"image": args.image, "mask": args.mask, "coarse": scores[0], "steps": measured}
    zooms = zoom_windows(coarse >= 0.5, steps[-1].mask >= 0.5, args.zoom)
    return draw_steps(sample["image"].permute(1, 2, 0).numpy(), columns, zooms), numbers


def describe(score: dict[str, float | None]) -> str:
    return ", ".join(f"{name} {value:.1f}" for name, value in score.items() if value is not None)


def main(args: argparse.Namespace) -> Any:
    """Draw one figure; return the numbers behind it."""
    figure, numbers = args.draw(args)
    path = args.output or Path("output/figures") / f"{args.figure}.png"
    beside = save_with_numbers(figure, path, numbers)
    print(f"Wrote {path} and {beside}")
    return numbers


def argument_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    figures = parser.add_subparsers(dest="figure", required=True)
    for name, draw in (("kernel-sizes", kernel_sizes), ("categories", categories)):
        of_runs = figures.add_parser(name, help=f"Fig. 2{'a' if draw is kernel_sizes else 'b'}, from runs")
        of_runs.add_argument("runs", nargs="+", metavar="FOLDER", help="OUTPUT_DIR of an evaluated run")
        of_runs.set_defaults(draw=draw)
    figures.choices["kernel-sizes"].add_argument("--dataset", help="test set; default: the first of each run")

    maps = figures.add_parser("attention", help="Fig. 6: attention and affinity maps of one position")
    maps.add_argument("image")
    maps.add_argument("mask", help="coarse mask, of the same size")
    maps.add_argument("--position", type=int, nargs=2, metavar=("X", "Y"), help="in pixels; default: the centre")
    maps.set_defaults(draw=attention)

    points = figures.add_parser("parameters", help="Fig. 7: t-SNE of the parameters that AIRMF predicts")
    points.add_argument("data", nargs="+", help="data sets by name, folders of any layout, or IMAGES:MASKS")
    points.add_argument("--limit", type=positive, default=200, help="images, evenly over all sets (%(default)s)")
    points.add_argument("--perplexity", type=float, default=30.0, help="lowered for few images (%(default)s)")
    points.add_argument("--seed", type=int, default=0)
    points.add_argument("--dots", action="store_true", help="coloured by category, instead of thumbnails")
    points.set_defaults(draw=parameters)

    steps = figures.add_parser("coarse-to-fine", help="what each ratio of the refinement answers, and its tiles")
    steps.add_argument("image")
    steps.add_argument("mask", help="coarse mask, of the same size")
    steps.add_argument("--truth", metavar="FILE", help="true mask: one more column, and IoU and mBA of all others")
    where = "centre in pixels of a part to enlarge below, any number of times; default: where most changes"
    steps.add_argument("--zoom", type=int, nargs=2, action="append", metavar=("X", "Y"), help=where)
    tiles = "side of tiles in pixels, 0 for whole images; default: the config's"
    steps.add_argument("--tile-size", type=int, metavar="N", help=tiles)
    steps.set_defaults(draw=coarse_to_fine)

    for of_model in (maps, points, steps):
        of_model.add_argument("--weights", required=True, metavar="FILE", help="checkpoint of an AIRM")
        of_model.add_argument("--config", metavar="FILE", help="default: the checkpoint's own, or beside it")
        of_model.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    for of_model in (maps, points):
        side = f"larger images are shrunk to this, at most {LARGEST_SIDE} (%(default)s)"
        of_model.add_argument("--max-side", type=positive, default=MAX_SIDE, metavar="PIXELS", help=side)
    for subparser in figures.choices.values():
        subparser.add_argument("--output", type=Path, metavar="FILE", help="default: output/figures/<figure>.png")
    return parser


if __name__ == "__main__":
    run(main, argument_parser().parse_args())
