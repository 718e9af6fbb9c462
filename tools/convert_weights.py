#!/usr/bin/env python
"""Check published weights of a Swin or Mix Transformer, and write what the project's backbone takes of them.

    python tools/convert_weights.py swin_base_patch4_window7_224_22k.pth weights/swin_base_22k_d2.pth
    python tools/convert_weights.py pytorch_model.bin weights/mit_b1.pth
    python tools/convert_weights.py --half output/airm_photo/model_final.pth airm/pretrained/airm_photo.pth

Of Swin: what its authors publish, with or without Detectron2's prefix backbone.bottom_up., and detectors with a Swin
backbone under the published names. Of the Mix Transformer: what SegFormer's authors publish (mit_b*.pth), Hugging
Face's nvidia/mit-b* (pytorch_model.bin, and model.safetensors where the safetensors package is installed), and whole
SegFormers in either form. MODEL.WEIGHTS takes all of them as they are; this tells beforehand
which variant a file holds, whether it is complete, and what becomes of each of its tensors.

With --half: the checkpoint of a training (its file or folder) as a file to hand on, which says what it is of. It has
the weights in half precision, and the config without what is of the machine only: paths and device. It is loaded as
any other checkpoint.
"""

import argparse
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch

from airm.backbone import weights as mit_weights
from airm.backbone.mix_transformer import MixTransformer
from airm.refiner import find_config, find_weights
from patchdct.backbone import swin_weights
from patchdct.backbone.swin import SwinTransformer
from pixelmask.checkpoint.files import by_name, check_tensors, read_torch
from pixelmask.checkpoint.pretrained import RGB, ConversionReport, PretrainedWeights, read_published
from pixelmask.cli import print_table, run
from pixelmask.config import changed, flat
from pixelmask.errors import UserError
from pixelmask.files import whole_or_not_at_all

# Config keys that say where something was on the machine of the training, and what stands there instead
OF_THE_MACHINE = {
    "DATASETS.COCO_FORMAT": [],
    "DATASETS.REFINEMENT": [],
    "MODEL.AIRM.FROZEN_ENCODER": "",
    "MODEL.WEIGHTS": "",
    "OUTPUT_DIR": "./output",
}


class Family(NamedTuple):
    """Backbones that are published in several variants."""

    read: Callable[[Mapping[str, Any]], PretrainedWeights | None]
    fit: Callable[..., tuple[dict[str, torch.Tensor], ConversionReport]]
    build: Callable[[Any], torch.nn.Module]
    """Makes a backbone of a variant, for RGB images."""
    prefix: str
    """Of the names that are written."""


FAMILIES = (
    Family(
        swin_weights.read_swin,
        swin_weights.fit,
        lambda variant: SwinTransformer(**variant._asdict()),
        swin_weights.PREFIX,
    ),
    Family(
        mit_weights.read_mix_transformer,
        mit_weights.fit,
        lambda variant: MixTransformer(
            RGB, variant.embed_dims, variant.depths, (1, 2, 5, 8), (8, 4, 2, 1), (4, 2, 2, 2)
        ),
        "",
    ),
)


def recognise(path: Path) -> tuple[Family, PretrainedWeights]:
    """Read a file, and find out what it holds.

    Raises:
        UserError: if it cannot be read, or holds nothing that is known.
    """
    state = read_published(path)
    for family in FAMILIES:
        weights = family.read(state)
        if weights is not None:
            check_tensors(str(path), weights.tensors)
            if not weights.variant.is_published:
                raise UserError(f"{path} is incomplete or of no published variant: {weights.variant}")
            return family, weights
    raise UserError(f"{path} holds no Swin or Mix Transformer in a known form")


def show(report: ConversionReport, every_name: bool) -> None:
    rows = [
        (group, "\n".join(names) if every_name else ", ".join(names[:2]), str(len(names)))
        for group, names in report.groups().items()
    ]
    print_table(str(report.weights.variant), ("", "" if every_name else "some of them", "tensors"), rows, left=2)


def to_half(path: Path) -> tuple[dict[str, Any], float, str]:
    """Return what the file to hand on has, and by how much and where a weight is rounded most.

    Raises:
        UserError: if the checkpoint cannot be read, has no config, or a weight is beyond what half precision can say.
    """
    content = by_name(str(path), read_torch(str(path)))
    cfg = find_config(path)
    cfg = changed(cfg, *(part for key, value in OF_THE_MACHINE.items() if key in flat(cfg) for part in (key, value)))
    tensors = {name: torch.as_tensor(value) for name, value in by_name(str(path), content.get("model")).items()}
    half = {name: value.half() if value.is_floating_point() else value for name, value in tensors.items()}
    check_tensors(str(path), half)
    rounded = {n: (half[n] - value).abs().max().item() for n, value in tensors.items() if value.is_floating_point()}
    most = max(rounded, key=rounded.__getitem__)
    return {"model": half, "config": cfg.dump(), "iteration": content.get("iteration")}, rounded[most], most


def convert_trained(source: Path, output: Path) -> None:
    """Write the file to hand on of a checkpoint or training's folder, and print its size and rounding."""
    content, difference, name = to_half(find_weights(source))
    with whole_or_not_at_all(output) as temporary:
        torch.save(content, temporary)
    parameters = sum(value.numel() for value in content["model"].values())
    print(
        f"{output}: {parameters / 1e6:.2f} M numbers, {output.stat().st_size / 1e6:.2f} MB; rounded by at most "
        f"{difference:.1e} ({name})"
    )


def main(args: argparse.Namespace) -> ConversionReport | None:
    if args.output.suffix != ".pth":
        raise UserError(f"{args.output} is to end in .pth")
    if args.output.exists() and not args.overwrite:
        raise UserError(f"{args.output} exists already; pass --overwrite to replace it")
    if args.half:
        convert_trained(args.input, args.output)
        return None
    family, weights = recognise(args.input)
    with torch.device("meta"):
        own = family.build(weights.variant).state_dict()
    tensors, report = family.fit(weights, own)
    show(report, args.all)
    if report.problem:
        raise UserError(f"{args.input} cannot be used: {report.problem}")
    with whole_or_not_at_all(args.output) as temporary:
        torch.save({"model": {family.prefix + name: tensors[name].clone() for name in report.loaded}}, temporary)
    print(f"{args.output} is for MODEL.WEIGHTS")
    return report


def argument_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "input", type=Path, metavar="INPUT", help="file with pretrained weights; with --half a training's"
    )
    parser.add_argument("output", type=Path, metavar="OUTPUT.pth", help="file to write")
    parser.add_argument("--all", action="store_true", help="name every tensor, not some of each kind")
    parser.add_argument("--half", action="store_true", help="INPUT is a training's; write it in half precision")
    parser.add_argument("--overwrite", action="store_true", help="replace OUTPUT.pth if it is there")
    return parser


if __name__ == "__main__":
    run(main, argument_parser().parse_args())
