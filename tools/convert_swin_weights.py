#!/usr/bin/env python
"""Check pretrained Swin Transformer weights, and write them under the names of a detector's backbone.

    python tools/convert_swin_weights.py swin_base_patch4_window7_224_22k.pth weights/swin_base_22k_d2.pth

Takes what Swin's authors publish, with or without Detectron2's prefix backbone.bottom_up., and detectors with a Swin
backbone under the published names, of which the backbone is written. MODEL.WEIGHTS takes all of them as they are; this
tells beforehand which variant a file holds, whether it is complete, and what becomes of each of its tensors.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

import torch
from rich import box
from rich.console import Console
from rich.table import Table

from patchdct.backbone.swin import SwinTransformer
from patchdct.backbone.swin_weights import PREFIX, VARIANTS, ConversionReport, Variant, fit, read_swin
from pixelmask.checkpoint.files import by_name, check_tensors, read_torch
from pixelmask.cli import run
from pixelmask.errors import UserError
from pixelmask.files import whole_or_not_at_all


def read(path: Path) -> dict[str, Any]:
    """Read a file's tensors by name; raises :class:`UserError` if it cannot be."""
    if not path.is_file():
        raise UserError(f"no file {path}; give the weights that were downloaded (tools/README.md says where)")
    content = by_name(str(path), read_torch(str(path)))
    return by_name(str(path), content.get("model", content))


def parts_of(variant: Variant) -> dict[str, torch.Tensor]:
    """Return the tensors that a backbone consists of, without values."""
    with torch.device("meta"):
        return SwinTransformer(**variant._asdict()).state_dict()


def as_table(report: ConversionReport, every_name: bool) -> Table:
    groups: dict[str, list[str]] = {"loaded": report.loaded}
    for name, why in report.dropped.items():
        groups.setdefault(f"dropped: {why}", []).append(name)
    groups["missing"] = report.missing
    groups["of another shape"] = [f"{name} {theirs}, not {ours}" for name, theirs, ours in report.other_shape]
    table = Table("", "tensors", "" if every_name else "some of them", title=str(report.found), box=box.SIMPLE_HEAD)
    for title, names in groups.items():
        table.add_row(title, str(len(names)), "\n".join(names) if every_name else ", ".join(names[:2]))
    return table


def main(args: argparse.Namespace) -> ConversionReport:
    if args.output.suffix != ".pth":
        raise UserError(f"{args.output} is to end in .pth")
    if args.output.exists() and not args.overwrite:
        raise UserError(f"{args.output} exists already; pass --overwrite to replace it")
    weights = read_swin(read(args.input))
    if weights is None:
        raise UserError(f"{args.input} holds no Swin Transformer in a known form")
    check_tensors(str(args.input), weights.tensors)
    variant = Variant.of(weights.tensors)
    if variant._replace(window_size=7) not in VARIANTS.values():
        raise UserError(f"{args.input} is incomplete or of no published variant: {variant}")
    tensors, report = fit(weights.tensors, parts_of(variant))
    # A pipe or file has no width of its own
    Console(width=None if sys.stdout.isatty() else 120).print(as_table(report, args.all))
    if report.problem:
        raise UserError(f"{args.input} cannot be used: {report.problem}")
    with whole_or_not_at_all(args.output) as temporary:
        torch.save({"model": {PREFIX + name: tensors[name].clone() for name in report.loaded}}, temporary)
    print(f"{args.output} is for MODEL.WEIGHTS")
    return report


def argument_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("input", type=Path, metavar="INPUT", help="file with pretrained weights")
    parser.add_argument("output", type=Path, metavar="OUTPUT.pth", help="file to write")
    parser.add_argument("--all", action="store_true", help="name every tensor, not some of each kind")
    parser.add_argument("--overwrite", action="store_true", help="replace OUTPUT.pth if it is there")
    return parser


if __name__ == "__main__":
    run(main, argument_parser().parse_args())
