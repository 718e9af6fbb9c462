#!/usr/bin/env python
"""Check pretrained Mix Transformer weights, and write them under their published names.

    python tools/convert_mit_weights.py pytorch_model.bin weights/mit_b1.pth

Takes what SegFormer's authors publish (mit_b*.pth), Hugging Face's nvidia/mit-b* (pytorch_model.bin, and
model.safetensors where the safetensors package is installed), and whole SegFormers in either form. AIRM loads all of
them as they are, but for .safetensors; this tells beforehand which variant a file holds and whether it is complete.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

import torch
from rich import box
from rich.console import Console
from rich.table import Table

from airm.backbone.mix_transformer import MixTransformer
from airm.backbone.weights import RGB, VARIANTS, ConversionReport, Variant, fit, read_mix_transformer, unwrap
from pixelmask.checkpoint.files import by_name, check_tensors, read_torch
from pixelmask.cli import run
from pixelmask.errors import UserError
from pixelmask.files import whole_or_not_at_all


def read(path: Path) -> dict[str, Any]:
    """Read a file's tensors by name; raises :class:`UserError` if it cannot be."""
    if not path.is_file():
        raise UserError(f"no file {path}; give the weights that were downloaded (tools/README.md says where)")
    if path.suffix != ".safetensors":
        return unwrap(by_name(str(path), read_torch(str(path))))
    try:
        from safetensors.torch import load_file
    except ImportError:
        raise UserError(f"to read {path}, pip install safetensors; or take the pytorch_model.bin beside it") from None
    try:
        return load_file(path)
    except Exception as e:  # whatever a damaged file makes the library raise
        raise UserError(f"cannot read {path}: {e}") from None


def parts_of(variant: Variant) -> dict[str, torch.Tensor]:
    """Return the tensors that a published encoder consists of, with random values."""
    return MixTransformer(RGB, *variant, (1, 2, 5, 8), (8, 4, 2, 1), (4, 2, 2, 2)).state_dict()


def as_table(report: ConversionReport) -> Table:
    table = Table("", "tensors", "the first of them", title=str(report.found), box=box.SIMPLE_HEAD)
    for title in ("matched", "dropped", "missing", "unexpected", "other_shape"):
        names = [entry if isinstance(entry, str) else entry[0] for entry in getattr(report, title)]
        table.add_row(title.replace("_", " "), str(len(names)), ", ".join(names[:2]))
    return table


def main(args: argparse.Namespace) -> ConversionReport:
    if args.output.suffix != ".pth":
        raise UserError(f"{args.output} is to end in .pth")
    if args.output.exists() and not args.overwrite:
        raise UserError(f"{args.output} exists already; pass --overwrite to replace it")
    weights = read_mix_transformer(read(args.input))
    if weights is None:
        raise UserError(f"{args.input} holds no Mix Transformer in a known form")
    check_tensors(str(args.input), weights.tensors)
    variant = Variant.of(weights.tensors)
    if variant not in VARIANTS.values():
        raise UserError(f"{args.input} is incomplete or of no published variant: {variant}")
    tensors, report = fit(weights, parts_of(variant))
    # A pipe or file has no width of its own
    Console(width=None if sys.stdout.isatty() else 120).print(as_table(report))
    if report.problem:
        raise UserError(f"{args.input} cannot be used: {report.problem}")
    with whole_or_not_at_all(args.output) as temporary:
        torch.save({"model": {name: tensors[name].clone() for name in report.matched}}, temporary)
    print(f"{args.output} is for MODEL.WEIGHTS")
    return report


def argument_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("input", type=Path, metavar="INPUT", help="file with pretrained weights")
    parser.add_argument("output", type=Path, metavar="OUTPUT.pth", help="file to write")
    parser.add_argument("--overwrite", action="store_true", help="replace OUTPUT.pth if it is there")
    return parser


if __name__ == "__main__":
    run(main, argument_parser().parse_args())
