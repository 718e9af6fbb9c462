#!/usr/bin/env python
"""Count the multiply-adds of mask branches for one instance, or of AIRM for one image, and parameters.

    python tools/analyze_model.py
    python tools/analyze_model.py --airm
    python tools/analyze_model.py --real refine/composites
    python tools/analyze_model.py --adaptation ecssd --weights model_final.pth
    python tools/analyze_model.py --config-file a.yaml --config-file b.yaml --json cost.json KEY VALUE

One fused multiply-add counts as one, as fvcore has it; element-wise arithmetic is not counted. Of mask branches two
counts stand side by side. "Every class" is the paper's: the predictors run for all classes, and the inverse DCT, an FFT
in the published code, is not seen by the counter. "Spent here" is what this implementation does: only the predicted
class, and the inverse DCT as matrix products. RoI pooling is in neither.

Of AIRM the whole pass from coarse to fine over one image of --size is counted, attention products included: as the
paper does it, the whole image at once, and in tiles of --tile-size. Tiles are encoded and asked, above the first ratio,
where the edge of the coarse mask is: a disc, whose diameter is 0.7 of the image's shorter side. Beside it stand the
paper's figures, and what they are nearest to for a ResNet: one pass at full resolution, the mapping as printed.

--real counts what trained weights really spend: each image of a set is refined, whole and in tiles, and what is encoded
and asked depends on the network's own answers. Without --weights they are those that come with the project.

--adaptation tells how much the weights that AIRMF predicts depend on the image: IoU and mBA of a set that is refined
with each image's own weights, and with their mean over the set. SIRMF's change is 0.
"""

import argparse
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode

from airm import Refiner
from airm.cost import num_parameters, pass_cost, single_pass_cost
from airm.evaluation.adaptation import measure_adaptation
from airm.figures.model import load_dicts, read_samples
from measuring import AIRM_CONFIGS, CONFIGS, PATCHDCT_CONFIGS
from patchdct.mask_network import mask_branch_cost
from pixelmask.cli import add_import, bounded, import_code, positive, print_table, run
from pixelmask.config import load_cfgs
from pixelmask.engine.build import build_model
from pixelmask.errors import UserError
from pixelmask.files import write_json
from reproduction.tables import load_tables

DEFAULT_CONFIGS = [
    *PATCHDCT_CONFIGS,
    *(str(CONFIGS / f"patchdct/patchdct_R_50_FPN_1x_{stages}stage_coco.yaml") for stages in (2, 3)),
]

PAPERS_SIZE = (1706, 2560)


def analyze_mask_branch(config: str, cfg: CfgNode) -> dict[str, Any]:
    """Return a row of the table: the config, its head and classes, and the fields of MaskBranchCost."""
    cost = mask_branch_cost(build_model(cfg))
    head = cfg.MODEL.ROI_MASK_HEAD
    return {
        "config": config,
        "head": head.NAME,
        "classes": 1 if head.CLS_AGNOSTIC_MASK else cfg.MODEL.ROI_HEADS.NUM_CLASSES,
        **cost._asdict(),
    }


def analyze_airm(config: str, cfg: CfgNode, size: tuple[int, int], tile_sizes: Iterable[int]) -> list[dict[str, Any]]:
    """Return a row for each tile size: the config, its input, the fields of PassCost and their total, parameters."""
    model, single, paper = build_model(cfg), None, {}
    if size == PAPERS_SIZE:
        single, table = single_pass_cost(model, size), load_tables().table("airm-4")
        rows_of_config = (row.paper for row in table.rows if Path(row.config).stem == config)
        paper = {c.name: text for printed in rows_of_config for c, text in zip(table.columns, printed, strict=True)}
    rows = []
    for tile_size in tile_sizes:
        cost = pass_cost(model, size, tile_size)
        about = {"config": config, "height": size[0], "width": size[1], "tile_size": tile_size}
        counts = {**cost._asdict(), "total": cost.total, "single_pass": single}
        rows.append({**about, **counts, "model_parameters": num_parameters(model), "paper": paper})
    return rows


def show_mask_branches(rows: list[dict[str, Any]]) -> None:
    lines = []
    for row in rows:
        counts = [f"{row[key] / 1e9:.1f} G ({row[key] / 1e6:,.0f} M)" for key in ("every_class", "spent")]
        parameters = [f"{row[key] / 1e6:.1f} M" for key in ("parameters", "model_parameters")]
        lines.append([row["config"], *counts, *parameters])
    print_table(
        "Mask branch: multiply-adds for one instance, and parameters",
        ("Config", "Every class\n(as in the paper)", "Spent here", "Parameters,\nmask branch", "Parameters,\nmodel"),
        lines,
        caption="RoI pooling and element-wise arithmetic are not counted",
    )


def show_airm(rows: list[dict[str, Any]]) -> None:
    lines = []
    for row in rows:
        counts = [f"{row[key] / 1e9:,.1f} G" for key in ("attention", "encoder", "hypernetwork", "query", "total")]
        tiles = " ".join(f"{encoded}/{total}" for encoded, total in row["tiles"])
        how = f"tiles of {row['tile_size']}" if row["tile_size"] else "whole"
        single = f"{row['single_pass'] / 1e9:,.1f} G" if row["single_pass"] else ""
        paper = f"{int(row['paper']['FLOPs(G)']):,} G\n{row['paper']['Params(M)']} M" if row["paper"] else ""
        lines.append([row["config"], how, *counts, tiles, single, f"{row['model_parameters'] / 1e6:.2f} M", paper])
    counted = ("Attention", "Encoder,\nrest", "Hyper-\nnetwork", "Query", "Total")
    print_table(
        f"AIRM: multiply-adds for one image of {rows[0]['width']} x {rows[0]['height']}, and parameters",
        ("Config", "Input", *counted, "Tiles", "One pass,\nas printed", "Parameters", "Paper"),
        lines,
        caption="Tiles: those encoded at each ratio, of all. Parameters: without the affinity's, which is of training",
    )


def show_adaptation(data: str, weights: str) -> dict[str, Any]:
    """Print and return IoU and mBA of a data set, refined with own and with mean weights."""
    dicts = [entry for entry in load_dicts(data) if entry.get("mask_file_name")]
    if not dicts:
        raise UserError(f"{data} has no true masks to measure against")
    scores = measure_adaptation(Refiner(weights).model, lambda: read_samples(dicts))
    names = {"own": "each image's own", "mean": "mean of the set", "change": "change"}
    lines = [
        [names[row], *("" if v is None else f"{v:.2f}" for v in of_row.values())] for row, of_row in scores.items()
    ]
    print_table(f"{data}, {len(dicts)} images refined, in percent", ("Weights of the mapping", "IoU", "mBA"), lines)
    return {"weights": weights, "data": data, "images": len(dicts), **scores}


def show_real(data: str, weights: str | None, tile_size: int) -> list[dict[str, Any]]:
    """Print and return the multiply-adds of refining each image of a set, whole and in tiles."""
    model, rows = Refiner(weights).model, []
    for sample in read_samples(load_dicts(data)):
        size, mask = tuple(sample["image"].shape[1:]), sample["coarse_mask"][None]
        for tiles in dict.fromkeys((0, tile_size)):
            cost = pass_cost(model, size, tiles, mask, image=sample["image"])
            about = {"image": sample["image_id"], "height": size[0], "width": size[1], "tile_size": tiles}
            rows.append({**about, **cost._asdict(), "total": cost.total})
    lines = []
    for row in rows:
        counts = [f"{row[key] / 1e9:,.1f} G" for key in ("attention", "encoder", "query", "total")]
        encoded = " ".join(f"{some}/{total}" for some, total in row["tiles"])
        how = f"tiles of {row['tile_size']}" if row["tile_size"] else "whole"
        lines.append([str(row["image"]), f"{row['width']} x {row['height']}", how, *counts, encoded])
    heads = ("Image", "Size", "Input", "Attention", "Encoder,\nrest", "Query", "Total", "Tiles")
    print_table(f"{data}: multiply-adds of real runs", heads, lines, left=3)
    return rows


def main(args: argparse.Namespace) -> None:
    import_code(args.imports)
    if args.real:
        rows = show_real(args.real, args.weights, args.tile_size)
        if args.json:
            write_json(args.json, rows, indent=2)
        return
    if bool(args.adaptation) != bool(args.weights):
        raise UserError("--adaptation SET and --weights FILE go together")
    if args.adaptation:
        scores = show_adaptation(args.adaptation, args.weights)
        if args.json:
            write_json(args.json, [scores], indent=2)
        return
    mask_branches, airm = [], []
    config_files = (args.config_file or []) + (AIRM_CONFIGS if args.airm else []) or DEFAULT_CONFIGS
    cfgs = load_cfgs(config_files, [*args.opts, "MODEL.DEVICE", "cpu"])
    for config_file, cfg in zip(config_files, cfgs, strict=True):
        config = Path(config_file).stem
        if cfg.MODEL.META_ARCHITECTURE == "AIRM":
            # Both are the same if no tiles are asked for
            airm += analyze_airm(config, cfg, tuple(args.size), dict.fromkeys((0, args.tile_size)))
        else:
            mask_branches.append(analyze_mask_branch(config, cfg))
    for rows, show in ((mask_branches, show_mask_branches), (airm, show_airm)):
        if rows:
            show(rows)
    if args.json:
        write_json(args.json, mask_branches + airm, indent=2)


def argument_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--config-file", action="append", metavar="FILE", help="may be given several times; else PatchDCT's R50 models")
    add("--airm", action="store_true", help="the four models of AIRM's Table 4, instead of these or with --config-file")
    add("--size", nargs=2, type=positive, default=list(PAPERS_SIZE), metavar=("HEIGHT", "WIDTH"), help="AIRM's image")
    add(
        "--tile-size",
        type=bounded(0, 16384),
        default=512,
        metavar="N",
        help="AIRM's tiles; default 512, 0: only the whole image",
    )
    add("--adaptation", metavar="SET", help="a data set by name, a folder of any layout, or IMAGES:MASKS")
    add("--real", metavar="SET", help="likewise, whose images are refined to count what that takes")
    add("--weights", metavar="FILE", help="checkpoint of the AIRM that is measured")
    add("--json", type=Path, metavar="FILE", help="also write the tables' rows to this file")
    add_import(parser)
    add("opts", nargs=argparse.REMAINDER, metavar="KEY VALUE", help="config overrides")
    return parser


if __name__ == "__main__":
    run(main, argument_parser().parse_args())
