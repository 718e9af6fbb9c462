#!/usr/bin/env python
"""Count the multiply-adds of mask branches for one instance, and their parameters.

    python tools/analyze_model.py
    python tools/analyze_model.py --config-file a.yaml --config-file b.yaml --json cost.json KEY VALUE

One fused multiply-add counts as one, as fvcore has it. Two counts stand side by side. "Every class" is the paper's: the
predictors run for all classes, and the inverse DCT, an FFT in the published code, is not seen by the counter. "Spent
here" is what this implementation does: only the predicted class, and the inverse DCT as matrix products. RoI pooling
and element-wise arithmetic are in neither.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from detectron2.modeling import build_model
from rich import box
from rich.console import Console
from rich.table import Table

from patchdct.analysis import mask_branch_cost
from patchdct.cli import run
from patchdct.config import load_cfg

CONFIGS = Path(__file__).resolve().parents[1] / "configs" / "patchdct"
DEFAULT_CONFIGS = [
    str(CONFIGS / f"{name}.yaml")
    for name in (
        "mask_rcnn_R_50_FPN_1x_coco",
        "dct_mask_R_50_FPN_1x_coco",
        "patchdct_R_50_FPN_1x_coco",
        "patchdct_R_50_FPN_1x_2stage_coco",
        "patchdct_R_50_FPN_1x_3stage_coco",
    )
]


def analyze(config_file: str, opts: list[str]) -> dict[str, Any]:
    """Return a row of the table: the config, its head and classes, and the fields of MaskBranchCost."""
    cfg = load_cfg(config_file, [*opts, "MODEL.DEVICE", "cpu"])
    cost = mask_branch_cost(build_model(cfg))
    head = cfg.MODEL.ROI_MASK_HEAD
    return {
        "config": Path(config_file).stem,
        "head": head.NAME,
        "classes": 1 if head.CLS_AGNOSTIC_MASK else cfg.MODEL.ROI_HEADS.NUM_CLASSES,
        **cost._asdict(),
    }


def make_table(rows: list[dict[str, Any]]) -> Table:
    table = Table(
        title="Mask branch: multiply-adds for one instance, and parameters",
        caption="RoI pooling and element-wise arithmetic are not counted",
        box=box.SIMPLE_HEAD,
    )
    table.add_column("Config", overflow="fold")
    for name in ("Every class\n(as in the paper)", "Spent here", "Parameters,\nmask branch", "Parameters,\nmodel"):
        table.add_column(name, justify="right", overflow="fold")
    for row in rows:
        counts = [f"{row[key] / 1e9:.1f} G ({row[key] / 1e6:,.0f} M)" for key in ("every_class", "spent")]
        parameters = [f"{row[key] / 1e6:.1f} M" for key in ("parameters", "model_parameters")]
        table.add_row(row["config"], *counts, *parameters)
    return table


def main(args: argparse.Namespace) -> None:
    rows = [analyze(config_file, args.opts) for config_file in args.config_file or DEFAULT_CONFIGS]
    # A pipe or file has no width of its own
    Console(width=None if sys.stdout.isatty() else 120).print(make_table(rows))
    if args.json:
        args.json.write_text(json.dumps(rows, indent=2) + "\n")


def argument_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--config-file", action="append", metavar="FILE", help="may be given several times; else the R50 models of COCO"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the table's rows to this file")
    parser.add_argument("opts", nargs=argparse.REMAINDER, metavar="KEY VALUE", help="config overrides")
    return parser


if __name__ == "__main__":
    run(main, argument_parser().parse_args())
