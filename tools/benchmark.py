#!/usr/bin/env python
"""Measure time and peak memory of whole models and of their mask branches, on the same inputs.

    python tools/benchmark.py --json benchmark.json
    python tools/benchmark.py --device cuda --precision bf16 --config-file a.yaml --config-file b.yaml --instances 100
    python tools/benchmark.py --airm --size 1706 2560 --tile-sizes 0 512 --repeats 3 --warmup 1

Of models that detect instances three parts are measured, of AIRM one:

    model   image to pasted masks, everything included
    branch  feature maps and boxes to masks in the box frame: RoI pooling and mask head
    head    RoI features to masks in the box frame: the mask head as a plain network
    refine  image and coarse mask to refined mask: the whole image (tile size 0), or in tiles of --tile-sizes

Weights are random, so proposals and detections are fixed from outside: the RPN proposes its anchors, unmoved; the box
head runs, and its result is replaced by --instances boxes an image, drawn once for all models. AIRM refines a disc; its
answers are computed, but each ratio starts from the disc, so that only tiles on its edge are encoded at finer ratios.

Every row of the table is measured in a process of its own. Time is the median of --repeats runs after --warmup runs.
Peak memory on CUDA is what torch allocated (max_memory_allocated); on the CPU it is the largest resident set of the
process, with Python, the libraries and the weights in it. The JSON has the time of every run and, beside the peak, its
value before the first run.
"""

import argparse
import platform
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, fields
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import detectron2
import torch
import torchvision
from tqdm import tqdm

from measuring import AIRM_CONFIGS, PARTS, PATCHDCT_CONFIGS, Case, Settings, measure, parts_of
from pixelmask.cli import add_import, add_precision, bounded, import_code, positive, print_table, run
from pixelmask.config import load_cfgs
from pixelmask.errors import UserError
from pixelmask.files import write_json
from reproduction.provenance import commit


def choose_cases(config_files: list[str], args: argparse.Namespace) -> list[Case]:
    """Return the rows to measure, of every config those parts of --parts that its model has.

    Raises:
        UserError: if a config has none of them, or cannot be loaded.
    """
    cfgs = load_cfgs(config_files, [*args.opts, "MODEL.DEVICE", args.device])
    parts_of_config = {name: parts_of(cfg) for name, cfg in zip(config_files, cfgs, strict=True)}
    for name, parts in parts_of_config.items():
        if not set(parts) & set(args.parts):
            raise UserError(f"{name} has none of the --parts {' '.join(args.parts)}; it has {', '.join(parts)}")
    cases = []
    for part in args.parts:
        chosen = [name for name in config_files if part in parts_of_config[name]]
        if part == "refine":
            cases += [Case(name, part, 1, tile_size) for tile_size in args.tile_sizes for name in chosen]
        else:
            cases += [Case(name, part, num_instances) for num_instances in args.instances for name in chosen]
    return cases


def measure_apart(case: Case, settings: Settings, imports: Sequence[str]) -> dict[str, Any]:
    """Run :func:`measuring.measure` in a fresh process that has imported ``imports``.

    Where memory runs out, the row has an ``error``.
    """
    context = get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context, initializer=import_code, initargs=(imports,)) as pool:
        try:
            return pool.submit(measure, case, settings).result()
        except (BrokenProcessPool, torch.cuda.OutOfMemoryError) as e:
            return case.row() | {"error": f"out of memory, probably: {e}"}


def environment(settings: Settings) -> dict[str, Any]:
    """Return what a reader needs to compare these figures with others: versions, device, threads, commit."""
    cuda = settings.device == "cuda"
    return {
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "detectron2": detectron2.__version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "device_name": torch.cuda.get_device_name() if cuda else _cpu_name(),
        "cuda": torch.version.cuda if cuda else None,
        "threads": settings.threads or torch.get_num_threads(),
        "commit": commit(digits=40),
    }


def show(rows: list[dict[str, Any]], title: str) -> None:
    tiles = ["tile_size"] if any("tile_size" in row for row in rows) else []
    formats = {"milliseconds": "{:,.1f}", "images_per_second": "{:,.3f}", "peak_memory_mb": "{:,.0f} MB"}
    lines = []
    for row in rows:
        figures = ["failed"] if "error" in row else [form.format(row[key]) for key, form in formats.items()]
        lines.append([str(row.get(key, "")) for key in ("config", "part", "instances", *tiles)] + figures)
    counts = ["Instances", *(["Tile size"] if tiles else [])]
    print_table(title, ["Config", "Part", *counts, "Milliseconds", "Images/s", "Peak memory"], lines, left=2)


def main(args: argparse.Namespace) -> None:
    import_code(args.imports)
    given = {field.name: getattr(args, field.name) for field in fields(Settings)}
    settings = Settings(**{**given, "size": tuple(args.size), "opts": tuple(args.opts)})
    config_files = (args.config_file or []) + (AIRM_CONFIGS if args.airm else [])
    cases = choose_cases(config_files or PATCHDCT_CONFIGS, args)
    rows = [measure_apart(case, settings, args.imports) for case in tqdm(cases, unit="row")]
    about = environment(settings)
    if args.json:
        write_json(args.json, {**asdict(settings), **about, "rows": rows}, indent=2)
    height, width = settings.size
    title = (
        f"{about['device_name']}, {about['threads']} threads, torch {about['torch']}, {settings.precision}, "
        f"batch {settings.batch_size}, {height} x {width} pixels"
    )
    show(rows, title)
    failed = [row for row in rows if "error" in row]
    if failed:
        errors = [", ".join(f"{key} {value}" for key, value in row.items()).replace(", error", ":") for row in failed]
        raise UserError("\n".join([f"{len(failed)} of {len(rows)} rows could not be measured:", *errors]))


def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def argument_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--config-file", action="append", metavar="FILE", help="may be given several times; else the R50-FPN 1x models")
    add("--airm", action="store_true", help="the four models of AIRM's Table 4, instead of these or with --config-file")
    add("--parts", nargs="+", choices=list(PARTS), default=list(PARTS), help="what to measure; all by default")
    add("--instances", nargs="+", type=positive, default=[20, 100], metavar="N", help="an image; default 20 100")
    tiles = "of AIRM, 0: whole image; default 0 512"
    add("--tile-sizes", nargs="+", type=int, default=[0, 512], metavar="N", help=tiles)
    add("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    add("--size", nargs=2, type=positive, default=[800, 1333], metavar=("HEIGHT", "WIDTH"), help="default 800 1333")
    add("--batch-size", type=positive, default=1, metavar="N", help="default 1")
    add("--repeats", type=positive, default=10, metavar="N", help="default 10")
    add("--warmup", type=bounded(0, 1000), default=2, metavar="N", help="default 2")
    add("--threads", type=bounded(0, 1024), default=0, metavar="N", help="CPU threads; torch's choice by default")
    add_precision(parser)
    add("--channels-last", action="store_true", help="memory format of weights and features")
    add("--compile", action="store_true", help="torch.compile the mask head's layers, or AIRM's encoder")
    add("--json", type=Path, metavar="FILE", help="also write everything to this file")
    add_import(parser)
    add("opts", nargs=argparse.REMAINDER, metavar="KEY VALUE", help="config overrides")
    return parser


if __name__ == "__main__":
    run(main, argument_parser().parse_args())
