#!/usr/bin/env python
"""Count the multiply-adds of mask branches for one instance, or of AIRM for one image, and parameters.

    python tools/analyze_model.py
    python tools/analyze_model.py --airm
    python tools/analyze_model.py --config-file a.yaml --config-file b.yaml --json cost.json KEY VALUE

One fused multiply-add counts as one, as fvcore has it; element-wise arithmetic is not counted. Of mask branches two
counts stand side by side. "Every class" is the paper's: the predictors run for all classes, and the inverse DCT, an FFT
in the published code, is not seen by the counter. "Spent here" is what this implementation does: only the predicted
class, and the inverse DCT as matrix products. RoI pooling is in neither.

Of AIRM the whole pass from coarse to fine over one image of --size is counted, attention products included: as the
paper does it, the whole image at once, and in tiles of --tile-size. Tiles are encoded, above the first ratio, where the
edge of the coarse mask is: a disc, whose diameter is 0.7 of the image's shorter side.
"""

import argparse
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode
from detectron2.modeling import build_model

from airm.cost import num_parameters, pass_cost
from measuring import AIRM_CONFIGS, CONFIGS, PATCHDCT_CONFIGS
from patchdct.mask_network import mask_branch_cost
from pixelmask.cli import add_import, import_code, positive, print_table, run
from pixelmask.config import load_cfgs
from pixelmask.files import write_json

DEFAULT_CONFIGS = [
    *PATCHDCT_CONFIGS,
    *(str(CONFIGS / f"patchdct/patchdct_R_50_FPN_1x_{stages}stage_coco.yaml") for stages in (2, 3)),
]


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
    model = build_model(cfg)
    rows = []
    for tile_size in tile_sizes:
        cost = pass_cost(model, size, tile_size)
        about = {"config": config, "height": size[0], "width": size[1], "tile_size": tile_size}
        rows.append({**about, **cost._asdict(), "total": cost.total, "model_parameters": num_parameters(model)})
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
        lines.append([row["config"], how, *counts, tiles, f"{row['model_parameters'] / 1e6:.2f} M"])
    counted = ("Attention", "Encoder,\nrest", "Hyper-\nnetwork", "Query", "Total")
    print_table(
        f"AIRM: multiply-adds for one image of {rows[0]['width']} x {rows[0]['height']}, and parameters",
        ("Config", "Input", *counted, "Tiles", "Parameters"),
        lines,
        caption="Tiles: those encoded at each ratio, of all",
    )


def main(args: argparse.Namespace) -> None:
    import_code(args.imports)
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
    add("--size", nargs=2, type=positive, default=[1706, 2560], metavar=("HEIGHT", "WIDTH"), help="AIRM's image")
    add("--tile-size", type=int, default=512, metavar="N", help="AIRM's tiles; default 512, 0: only the whole image")
    add("--json", type=Path, metavar="FILE", help="also write the tables' rows to this file")
    add_import(parser)
    add("opts", nargs=argparse.REMAINDER, metavar="KEY VALUE", help="config overrides")
    return parser


if __name__ == "__main__":
    run(main, argument_parser().parse_args())
