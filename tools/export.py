#!/usr/bin/env python
"""Export the mask branch of a detector, or one refinement step of an AIRM, by torch.export (.pt2) or as ONNX.

    python tools/export.py --config-file output/a/config.yaml --weights output/a/model_final.pth --output mask.onnx
    python tools/export.py --config-file ... --weights ... --output refiner.onnx --dynamic --queries
    python tools/export.py --config-file ... --weights ... --output refiner.pt2 --height 512 --width 768

The mask branch takes classes and RoI features and gives soft masks, for any number of instances or a fixed one. The
refiner takes image and coarse mask and gives the refined mask, for any size or a fixed one; with --queries it takes the
positions to ask for, too, as refinement from coarse to fine needs (airm.exported.ExportedRefiner).

What was written is read again and compared with the model on random inputs, by onnxruntime or by PyTorch; it is kept if
no value differs by more than 1e-4. docs/export.md says what the files take, and what cannot be exported.
"""

import argparse
import os
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode

from airm.exported import RefinementStep, check_refiner, export_refiner
from patchdct.mask_network import MaskNetwork, check_mask_branch, export_mask_branch
from pixelmask.checkpoint.checkpointer import load_trained
from pixelmask.cli import add_import, import_code, positive, run
from pixelmask.config import load_cfg
from pixelmask.engine.build import build_model
from pixelmask.errors import UserError
from pixelmask.export import TOLERANCE, ExportedFile, check_output, need

MASK_BRANCH, REFINER, DETECTOR = "mask-branch", "refiner", "detector"
DEPLOYMENT = "https://detectron2.readthedocs.io/en/latest/tutorials/deployment.html"


def find_part(args: argparse.Namespace, cfg: CfgNode) -> str:
    """Return what is to be exported.

    Raises:
        UserError: if it cannot be exported, is not in this model, or if an option does not go with it.
    """
    if args.part == DETECTOR:
        raise UserError(
            "whole detectors are not exported: which boxes remain (non-maximum suppression) and what is pooled for "
            "them depends on the image's content. Export --part mask-branch, and the rest with MODEL.MASK_ON False by "
            f"Detectron2's own export: {DEPLOYMENT}"
        )
    own = REFINER if cfg.MODEL.META_ARCHITECTURE == "AIRM" else MASK_BRANCH
    part = args.part or own
    if part != own:
        raise UserError(f"{args.config_file} is of {cfg.MODEL.META_ARCHITECTURE}, which has no {part}, but a {own}")
    if part == REFINER and (args.dynamic == bool(args.height) or bool(args.height) != bool(args.width)):
        raise UserError("the size of the refiner's images is either --height N --width N, or --dynamic")
    if part == MASK_BRANCH and args.dynamic and args.instances:
        raise UserError("the number of instances is either that of --instances, or --dynamic, which is the default")
    if part == REFINER and args.instances:
        raise UserError("--instances is of the mask branch; the refiner takes one mask at a time")
    if part == MASK_BRANCH and (args.height or args.width or args.queries):
        raise UserError(
            "--height, --width and --queries are of the refiner; RoI features have the config's sizes, and --instances "
            "fixes their number"
        )
    return part


def export(part: str, args: argparse.Namespace, model: Any, path: Path) -> float:
    """Write a part, and return by how much the file's masks differ from the model's."""
    if part == MASK_BRANCH:
        network = MaskNetwork(model)
        export_mask_branch(network, args.instances).save(path)
        return check_mask_branch(ExportedFile(path), network, args.instances) if args.check else 0.0
    size = None if args.dynamic else (args.height, args.width)
    export_refiner(RefinementStep(model, args.queries), size).save(path)
    return check_refiner(ExportedFile(path), model, size) if args.check else 0.0


def main(args: argparse.Namespace) -> float:
    """Write the file, and return the largest difference found."""
    import_code(args.imports)
    check_output(args.output, args.overwrite)
    if args.check and args.output.suffix == ".onnx":
        need("onnxruntime")
    cfg = load_cfg(args.config_file, [*args.opts, "MODEL.DEVICE", "cpu"])
    part = find_part(args, cfg)
    model = build_model(cfg).eval()
    load_trained(model, args.weights)
    args.output.parent.mkdir(parents=True, exist_ok=True)
    unchecked = args.output.with_name(f"{args.output.stem}.unchecked{args.output.suffix}")
    try:
        difference = export(part, args, model, unchecked)
        if not difference <= TOLERANCE:
            raise UserError(
                f"{args.output} is not written: its masks would differ from the model's by {difference:.1e}; "
                f"at most {TOLERANCE:.0e} is allowed (--no-check leaves this out)"
            )
        os.replace(unchecked, args.output)
    finally:
        unchecked.unlink(missing_ok=True)
    found = f"masks differ from the model's by at most {difference:.1e}" if args.check else "not checked"
    print(f"{args.output}: {part}, {args.output.stat().st_size / 1e6:.1f} MB, {found}")
    return difference


def argument_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--config-file", required=True, metavar="FILE", help="of the model")
    add("--weights", required=True, metavar="FILE", help="its checkpoint, such as model_final.pth")
    add("--output", required=True, type=Path, metavar="FILE", help="FILE.pt2 or FILE.onnx")
    add("--part", choices=(MASK_BRANCH, REFINER, DETECTOR), help="default: what the model has")
    add("--instances", type=positive, metavar="N", help="mask branch: a fixed number; default: any")
    add("--height", type=positive, metavar="N", help="refiner: of the image, a multiple of 16")
    add("--width", type=positive, metavar="N", help="refiner: likewise")
    dynamic = "images of any size whose sides are multiples of 16, or any number of instances"
    add("--dynamic", action="store_true", help=dynamic)
    add("--queries", action="store_true", help="refiner: take the positions to ask for, too")
    add("--check", action=argparse.BooleanOptionalAction, default=True, help="compare the file with the model")
    add("--overwrite", action="store_true", help="replace FILE if it exists")
    add_import(parser)
    add("opts", nargs=argparse.REMAINDER, metavar="KEY VALUE", help="config overrides")
    return parser


if __name__ == "__main__":
    run(main, argument_parser().parse_args())
