"""Check data sets for refinement, split one into training and validation, make one of instances, or measure its masks.

Check that every set that is there is complete, and every file of it readable:

    python datasets/prepare_refinement.py --check

Check some sets by their names, folders of any layout, or two folders, with a colon between:

    python datasets/prepare_refinement.py --check ecssd big_deeplabv3plus
    python datasets/prepare_refinement.py --check /data/mine /data/other/images:/data/other/masks

Hold out every tenth pair of a set, and write train.txt and val.txt, list files for DATASETS.REFINEMENT:

    python datasets/prepare_refinement.py --split /data/ECSSD/images /data/ECSSD/ground_truth_mask \\
        --every 10 --output /data/ECSSD/split

Measure what errors training makes in 200 crops of a set, with either kind of INPUT.REFINEMENT.PERTURBATION:

    python datasets/prepare_refinement.py --statistics ecssd

Make pairs of image and mask of the instances of a COCO file, each in a crop with what is around it:

    python datasets/prepare_refinement.py --instances instances_train2017.json train2017 --output /data/instances

The exit status is 1 if anything is wrong. Layouts, and where to get the sets: datasets/README.md.
"""

import argparse
import contextlib
import json
import os
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

from pycocotools import mask as mask_util
from tqdm import tqdm

from airm.data.dataset_mapper import RefinementDatasetMapper
from airm.data.datasets import BUILT_IN, BuiltInSet, CustomSet, make_dicts, parse_folders
from airm.data.pairs import Pair, check_pair
from airm.data.perturbation import KINDS
from airm.data.perturbation_statistics import FAR, perturbation_statistics
from airm.instances.crops import find_window
from pixelmask.cli import run
from pixelmask.data.coco_file import read_coco
from pixelmask.data.roots import datasets_root
from pixelmask.errors import UserError
from pixelmask.files import write_text
from pixelmask.images import read_mask, read_picture, write_picture
from pixelmask.rle import decode, to_rle

SMALLEST_AREA = 40**2  # in pixels, of instances; smaller ones show no contour worth learning
CONTEXT = 0.35  # around an instance, as a share of its longer side
PAIRS_AT_ONCE = 8
CROPS = 200


def find_faults(pairs: Sequence[Pair], workers: int, title: str) -> list[str]:
    """Decode the files of all pairs in ``workers`` processes; return what is wrong with them, in their order."""
    in_parallel = workers > 1 and len(pairs) > PAIRS_AT_ONCE
    with ProcessPoolExecutor(workers) if in_parallel else contextlib.nullcontext() as pool:
        checked = pool.map(check_pair, pairs, chunksize=PAIRS_AT_ONCE) if pool else map(check_pair, pairs)
        bar = tqdm(checked, title, len(pairs), unit="pair", leave=False, disable=None)
        return [fault for faults in bar for fault in faults]


def check_target(target: BuiltInSet | CustomSet, workers: int, limit: int) -> bool:
    """Check one set and print what is found, at most ``limit`` faults; return whether all is well."""
    pairing = target.find()
    found = len(pairing.pairs)
    faults = [str(stray) for stray in pairing.unmatched] + find_faults(pairing.pairs, workers, target.name)
    if not found and not faults:
        faults.append("no images at all")
    if target.count is not None and found != target.count:
        than = "fewer than" if found < target.count else "more than"
        faults.insert(0, f"{abs(target.count - found):,} pairs {than} published")
    counted = f"{found:,} pairs" + (f" of {target.count:,}" if target.count is not None else "")
    print(f"{'wrong' if faults else 'ok':<7}{target.name}: {counted} in {pairing.place}")
    for fault in faults[:limit]:
        print(f"         {fault}")
    if len(faults) > limit:
        print(f"         ... and {len(faults) - limit:,} more; --limit {len(faults)} prints them all")
    return not faults


def check(arguments: Sequence[str], workers: int, limit: int) -> int:
    """Check the sets named, or all of the paper's that are there; return the exit status."""
    targets = [BUILT_IN.get(argument) or parse_folders(argument) for argument in arguments or BUILT_IN]
    absent, wrong = [], 0
    for target in targets:
        try:
            wrong += not check_target(target, workers, limit)
        except UserError as e:  # its folder is missing
            absent.append(target.name)
            if arguments:
                print(f"absent {e}")
    if absent and not arguments:
        print(
            f"absent {', '.join(absent)}: no folders in {datasets_root().absolute()}; their layout: datasets/README.md"
        )
    return int(wrong > 0 or (len(absent) > 0 if arguments else len(absent) == len(targets)))


def split(folders: Sequence[str], every: int, output: Path) -> None:
    """Write the image_ids of each ``every``-th pair to val.txt, of all others to train.txt, and print their use."""
    if len(folders) > 2:
        raise UserError(f"--split takes one folder, or images and masks, not {len(folders)} folders")
    if every < 2:
        raise UserError(f"--every {every} would leave nothing to train on; it is to be 2 or more")
    paths = [os.path.abspath(os.path.expanduser(folder)) for folder in folders]
    argument = ":".join(paths)
    names = [entry["image_id"] for entry in make_dicts(argument, parse_folders(argument).find(), argument)]
    held_out = names[every - 1 :: every]
    if not held_out:
        raise UserError(
            f"{argument} has {len(names)} pairs, too few to hold out every {every}th; use a smaller --every"
        )
    parts = {"train": [name for i, name in enumerate(names, 1) if i % every], "val": held_out}
    texts = {output / f"{part}.txt": "\n".join(ids) + "\n" for part, ids in parts.items()}
    for path, text in texts.items():
        if path.exists() and path.read_text(encoding="utf-8") != text:
            raise UserError(f"{path} exists, with other content; delete it, or choose another --output")
    print(f"# {len(parts['train']):,} pairs to train on, {len(held_out):,} held out\nDATASETS:\n  REFINEMENT:")
    for (path, text), part in zip(texts.items(), parts, strict=True):
        write_text(path, text)
        print(f"    - {json.dumps([f'my_{part}', paths[0], paths[-1], str(path.absolute())])}")
    print('  TRAIN: ("my_train",)\n  TEST: ("my_val",)')


def statistics(argument: str) -> None:
    """Print the errors of perturbed training crops of a set, whose pairs are taken evenly, for each kind."""
    target = BUILT_IN.get(argument) or parse_folders(argument)
    paths = [entry["mask_file_name"] for entry in target()]
    masks = [read_mask(paths[i * len(paths) // CROPS]) for i in range(CROPS)]
    rows = {kind: perturbation_statistics(masks, RefinementDatasetMapper(True, perturbation=kind)) for kind in KINDS}
    print(f"{CROPS} crops    IoU  errors > {FAR:.0f} px off  islands  holes")
    for kind, errors in rows.items():
        print(f"{kind:12} {errors.iou:.3f}  {errors.far:17.1%}  {errors.islands:7.2f}  {errors.holes:5.2f}")


def write_instances(annotations: str, images: str, output: Path) -> None:
    """Write NAME_ID.jpg and NAME_ID.png, crop and mask, of each instance that is no crowd and at least 40^2 pixels."""
    content = read_coco(annotations, required=("images", "annotations"), boxes=False, masks=True)
    groups: dict[Any, list[dict[str, Any]]] = {}
    for annotation in content["annotations"]:
        groups.setdefault(annotation["image_id"], []).append(annotation)
    count = 0
    for image in tqdm(content["images"], unit="image", disable=None):
        rles = {
            a["id"]: to_rle(a["segmentation"], image["height"], image["width"])
            for a in groups.get(image["id"], ())
            if not a.get("iscrowd", 0)
        }
        rles = {key: rle for key, rle in rles.items() if mask_util.area(rle) >= SMALLEST_AREA}
        pixels = read_picture(Path(images, image["file_name"])) if rles else None
        for key, rle in rles.items():
            window = find_window([int(n) for n in mask_util.toBbox(rle)], rle["size"], CONTEXT)
            place = output / f"{Path(image['file_name']).stem}_{key}"
            write_picture(f"{place}.jpg", pixels[window], quality=95)
            write_picture(f"{place}.png", decode(rle)[window])
        count += len(rles)
    print(f"{count:,} instances of {annotations}, image and mask of each, are in {output}")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    action = parser.add_mutually_exclusive_group(required=True)
    action.add_argument("--check", nargs="*", metavar="SET", help="names, folders, or IMAGES:MASKS; none: all known")
    action.add_argument("--split", nargs="+", metavar="FOLDER", help="one folder of any layout, or images and masks")
    action.add_argument("--instances", nargs=2, metavar=("JSON", "FOLDER"), help="COCO annotations, and their images")
    action.add_argument("--statistics", metavar="SET", help="name, folder, or IMAGES:MASKS")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes that decode (%(default)s)")
    parser.add_argument("--limit", type=int, default=20, help="faults of each set that are printed (%(default)s)")
    parser.add_argument("--every", type=int, default=10, metavar="N", help="hold out every Nth pair (%(default)s)")
    parser.add_argument("--output", type=Path, metavar="DIR", help="where --split and --instances write")
    options = parser.parse_args(arguments)
    if options.statistics is not None:
        statistics(options.statistics)
        return 0
    if options.check is not None:
        return check(options.check, max(options.workers, 1), max(options.limit, 0))
    if options.output is None:
        parser.error("--split and --instances want --output DIR, the folder for what they write")
    if options.instances:
        write_instances(*options.instances, options.output)
    else:
        split(options.split, options.every, options.output)
    return 0


if __name__ == "__main__":
    raise SystemExit(run(main))
