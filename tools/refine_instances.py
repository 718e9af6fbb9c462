#!/usr/bin/env python
"""Refine instance masks at the images' own resolution with a trained AIRM: of a detector, or of any model's results.

    python tools/refine_instances.py --results results.json --images val2017 --output out
    python tools/refine_instances.py --results results.json --images val2017 --output out \\
        --annotations instances_val2017.json                              # evaluates before and after
    python tools/refine_instances.py --refiner airm.pth --results masks/ --images photos --output out --overlays
    python tools/refine_instances.py --weights patchdct.pth --images photos --output out --overlays

--results are COCO results (masks as RLE, compressed or not, or polygons), or a folder of PNG masks: of x.jpg these are
x.png, x_1.png, x_2.png, ..., or the files of a sub-folder x. Without --results a detector finds the instances: any
instance model of Detectron2, PatchDCT by default. Each instance is refined in a crop around it. The output folder gets

    refined.json      the results with refined masks (compressed RLE at native size); order, scores, boxes and all other
                      fields are kept, and masks that do not change
    coarse.json       the results with the masks as they were, unless --results is JSON
    images.json       likewise, without --annotations: the file that each image_id is, and the categories
    evaluation.json   with ground truth: AP, Boundary AP, IoU and mBA, before and after; how many masks were refused
    overlays/         with --overlays: <name>.jpg, masks before and after, with scores from 0.5 on, and
                      <name>_change.jpg, the one of these that changed most

Images are done one by one, and each is kept in progress.jsonl at once: --resume goes on after an interruption. Masks
whose image is missing or cannot be used stay as they are; these images are named at the end, with exit status 1.
torchrun deals the images out to processes and machines; the results are those of one process:

    torchrun --standalone --nproc_per_node=2 tools/refine_instances.py --results r.json --images val2017 --output out
"""

import argparse
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from detectron2.evaluation.coco_evaluation import instances_to_coco_json
from detectron2.utils import comm

from airm import Refiner
from airm.figures.side_by_side import draw_overlays
from airm.guard import GUARD
from airm.instances.crops import InstanceRefiner
from airm.instances.evaluation import compare_instances
from airm.instances.work import InstanceImage, Work, in_order
from patchdct.data.prepare import find_categories
from patchdct.predictor import Predictor
from pixelmask.cli import add_import, add_precision, import_code, print_table
from pixelmask.config import load_cfg
from pixelmask.data.coco_file import CocoFile
from pixelmask.engine.launch import launch_shards
from pixelmask.errors import UserError
from pixelmask.files import digest, write_json
from pixelmask.images import read_picture
from pixelmask.progress import Item, Progress, check_output, identify

DEFAULT_CONFIG = "configs/patchdct/patchdct_R_50_FPN_1x_coco.yaml"
OUTPUTS = ("refined.json", "coarse.json", "images.json", "evaluation.json", "overlays")
COUNTS = ("refined", "changed", "emptied", "refused")
# Options that make the results what they are
DECISIVE = (
    *("results", "config_file", "weights", "opts", "annotations", "refiner", "margin", "min_side", "min_area"),
    *("tile_size", "max_memory", "min_confidence", "min_score", "resolution", "precision"),
)

Results: TypeAlias = list[dict[str, Any]]
FindMasks: TypeAlias = Callable[[InstanceImage, np.ndarray], Results]
Detector: TypeAlias = tuple[list[dict[str, Any]], FindMasks, dict[str, str]]
"""The categories of its results, what makes these of an image, and what tells the model from others."""


def load_detector(
    config_file: str, weights: str | None, opts: Sequence[str], truth: CocoFile | None, precision: str = "fp32"
) -> Detector:
    """Load a model, whose classes are the categories of ``truth`` if that is given, in the order of their ids.

    Raises:
        UserError: as :class:`~patchdct.predictor.Predictor`, or if the model has another number of classes.
    """
    cfg = load_cfg(config_file, [*opts, "MODEL.WEIGHTS", weights] if weights else opts)
    predictor = Predictor(cfg, precision=precision)
    if truth is None:
        categories = find_categories(cfg)
    else:
        names = {category["id"]: category["name"] for category in truth.content.get("categories", ())}
        categories = [{"id": category_id, "name": names[category_id]} for category_id in truth.category_ids]
        if len(categories) != cfg.MODEL.ROI_HEADS.NUM_CLASSES:
            raise UserError(
                f"{truth.path} has {len(categories)} categories, but the model of {config_file} has "
                f"{cfg.MODEL.ROI_HEADS.NUM_CLASSES} classes; give annotations with the categories it was trained on"
            )

    def detect(image: InstanceImage, pixels: np.ndarray) -> Results:
        results = instances_to_coco_json(predictor(pixels), image.id)
        return [{**result, "category_id": categories[result["category_id"]]["id"]} for result in results]

    return categories, detect, identify(cfg, cfg.MODEL.WEIGHTS)


def find_detector_config(weights: str | None) -> str:
    """Return the config.yaml beside the weights, or else that of PatchDCT."""
    beside = Path(weights).with_name("config.yaml") if weights else None
    return str(beside if beside and beside.is_file() else DEFAULT_CONFIG)


def masks_by_image(results: Results) -> FindMasks:
    """Return a function from an image to its results, in their order."""
    groups: dict[str, Results] = {}
    for result in results:
        groups.setdefault(str(result["image_id"]), []).append(result)
    return lambda image, _: groups.get(str(image.id), [])


def describe(args: argparse.Namespace, refiner: Refiner, detector: dict[str, str]) -> dict[str, Any]:
    """Return what a resumed run has to have in common with the one that was interrupted, besides images and masks."""
    about: dict[str, Any] = {name: getattr(args, name) for name in DECISIVE} | {"guard": repr(args.guard)}
    own = identify(refiner.cfg, refiner.weights).items()
    about |= {f"{part} of the refiner": value for part, value in own}
    about |= {f"{part} of the detector": value for part, value in detector.items()}
    files = {name: digest(about[name]) for name in ("results", "annotations") if Path(about[name] or "").is_file()}
    return about | {f"{name} (the file)": value for name, value in files.items()}


def items_of(work: Work, masks: str | None) -> dict[str, Item]:
    """Return the images by id, each with its files: itself, and its masks where these are files too."""
    files: dict[str, list[Path]] = {str(image.id): [image.path] if image.path else [] for image in work.images}
    for result in work.results or ():
        if masks and not work.from_json:
            files[str(result["image_id"])].append(Path(masks, result["mask_file"]))
    return {name: Item(paths) for name, paths in files.items()}


def make_worker(
    work: Work, find_masks: FindMasks, refiner: InstanceRefiner, args: Any
) -> Callable[[str], dict[str, Any]]:
    """Return what refines the masks of an image, given by its id, and says what is to be kept of it."""
    images = {str(image.id): image for image in work.images}
    stems = Counter(image.path.stem for image in work.images if image.path)

    def do(name: str) -> dict[str, Any]:
        image = images[name]
        if name in work.broken:
            raise UserError(work.broken[name])
        if image.path is None:
            raise UserError(f"{image.name}: no such file among --images, or several")
        pixels = read_picture(image.path)
        coarse = find_masks(image, pixels)
        outcome = refiner.refine_results(pixels, coarse, args.min_score)
        if args.overlays:
            unique = "" if stems[image.path.stem] == 1 else f"_{image.id}"
            place = args.output / "overlays" / f"{image.path.stem}{unique}"
            draw_overlays(pixels, coarse, outcome.results, place)
        return {
            "coarse": coarse,
            "refined": outcome.results,
            "counts": {key: getattr(outcome, key) for key in COUNTS},
            "size": dict(zip(("height", "width"), pixels.shape, strict=False)),
            "unusable": [f"{image.path}: {fault}" for fault in outcome.faults],
        }

    return do


def print_evaluation(evaluation: dict[str, Any]) -> None:
    rows = []
    for which in ("before", "after"):
        found = evaluation[which]
        values = [found["segm"][key] for key in ("AP", "AP50", "AP75")] + [found["boundary"]["AP"]]
        values += [found["IoU"], found["mBA"]]
        rows.append([which, *("-" if value is None or value != value else f"{value:.2f}" for value in values)])
    title = f"IoU and mBA of {evaluation['pairs']} matched pairs"
    print_table(title, ("masks", "AP", "AP50", "AP75", "Boundary AP", "IoU", "mBA"), rows)


def evaluate(work: Work, coarse: Results, refined: Results) -> dict[str, Any] | str | None:
    """Compare with ground truth; None or the reason where there is none to compare with."""
    if work.truth is None:
        return None
    if "annotations" not in work.truth.content:
        return f"{work.truth.path} has no annotations: nothing is evaluated"
    if not coarse:
        return "There are no masks: nothing is evaluated"
    if work.results is not None and not work.from_json and len(work.truth.category_ids) != 1:
        return "The masks of a folder have no classes, and the annotations have several: nothing is evaluated"
    # Results are of the whole set; a detector's and a folder's of the images that were given
    image_ids = None if work.from_json else [image.id for image in work.images]
    return compare_instances(work.truth, coarse, refined, image_ids)


def write_all(work: Work, categories: list[dict[str, Any]], progress: Progress, folder: Path) -> dict[str, Any] | None:
    """Write what was made of all images, print it in short, and return the evaluation."""
    done = [(image, progress.done[str(image.id)]) for image in work.images if str(image.id) in progress.done]
    coarse = [result for _, entry in done for result in entry["coarse"]] if work.results is None else work.results
    refined = in_order(coarse, progress.done)
    write_json(folder / "refined.json", refined)
    if not work.from_json:
        write_json(folder / "coarse.json", coarse)
        if work.truth is None:
            images = [{"id": image.id, "file_name": image.name, **entry["size"]} for image, entry in done]
            write_json(folder / "images.json", {"images": images, "categories": categories})
    counts = {key: sum(entry["counts"][key] for _, entry in done) for key in COUNTS}
    evaluation = evaluate(work, coarse, refined)
    if isinstance(evaluation, dict):
        write_json(folder / "evaluation.json", {**evaluation, "masks": counts}, indent=2)
    else:  # that of earlier results is not of these
        (folder / "evaluation.json").unlink(missing_ok=True)
    print(
        f"{counts['refined']} of {len(coarse)} masks in {len(done)} images were refined, {counts['changed']} "
        f"changed; {counts['emptied']} would have become empty and {counts['refused']} were refused by the guard, and "
        f"stay as they were. They are in {folder}"
    )
    if isinstance(evaluation, dict):
        print_evaluation(evaluation)
        return evaluation
    if evaluation:
        print(evaluation)
    return None


def main(args: argparse.Namespace) -> dict[str, Any] | None:
    import_code(args.imports)
    check_output(args.output, [args.output / name for name in OUTPUTS], args.resume, args.overwrite)
    work = Work.of(args.images, args.results, args.annotations)
    limits = args.tile_size, args.max_memory, args.min_confidence, args.guard, args.resolution
    refiner = Refiner(args.refiner, args.device, None, *limits, args.precision, args.compile)
    instances = InstanceRefiner(refiner, args.margin, args.batch_size, args.min_side, args.min_area)
    if work.results is None:
        config_file, opts = args.config_file or find_detector_config(args.weights), ["MODEL.DEVICE", args.device]
        categories, find_masks, detector = load_detector(
            config_file, args.weights, [*opts, *args.opts], work.truth, args.precision
        )
    else:
        categories, find_masks, detector = [], masks_by_image(work.results), {}
    about, items = describe(args, refiner, detector), items_of(work, args.results)
    with Progress(args.output, about, items, args.resume) as progress:
        faults = progress.run(make_worker(work, find_masks, instances, args), "image")
        if not comm.is_main_process():
            return None
        evaluation = write_all(work, categories, progress, args.output)
        if not faults:
            progress.remove()  # else --resume does what is missing
    faults += [fault for entry in progress.entries for fault in entry["unusable"]]
    if faults:
        number = f"{len(faults)} images or masks could not be used, and stay as they were:"
        raise UserError("\n".join([number, *faults]))
    return evaluation


def argument_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--refiner", metavar="FILE", help="checkpoint of an AIRM; default: the one that comes with the project")
    add("--images", "--input", nargs="+", required=True, metavar="PATH", help="images, folders, or glob patterns")
    add("--output", type=Path, required=True, metavar="FOLDER", help="folder for JSON and pictures")
    add("--results", metavar="PATH", help="COCO results, or folder of PNG masks; without it, a detector is run")
    add("--annotations", metavar="FILE", help="COCO JSON: which file an image_id is, and ground truth if it has any")
    beside = "config.yaml beside --weights, or else PatchDCT R50"
    add("--config-file", metavar="FILE", help=f"of the detector; default: {beside}")
    add("--weights", metavar="FILE", help="checkpoint of the detector; else MODEL.WEIGHTS of its config")
    add("--min-score", type=float, default=0.0, metavar="S", help="leave masks with lower scores as they are")
    add("--margin", type=float, default=0.2, metavar="M", help="around an instance, as a share of its longer side")
    add("--min-side", type=int, default=224, metavar="N", help="enlarge crops to longer sides of N pixels; 0 for none")
    add("--min-area", type=int, default=1024, metavar="N", help="leave masks of fewer pixels as they are")
    grid = "masks were made of N x N cells in their boxes, 0: of pixels; default: found from each mask"
    add("--resolution", type=int, metavar="N", help=grid)
    every = "take every refinement, however far it goes and unsure it is"
    add("--no-guard", dest="guard", action="store_const", const=None, default=GUARD, help=every)
    add("--batch-size", type=int, default=8, metavar="N", help="crops of one size that are refined at once; default 8")
    add("--tile-size", type=int, metavar="N", help="side in pixels of tiles in larger crops; 0 for none")
    add("--max-memory", type=float, metavar="GIB", help="memory to take beyond the loaded models', by smaller tiles")
    add("--min-confidence", type=float, metavar="C", help="keep the coarse mask where |2 p - 1| < C, from 0 to 1")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    add("--device", default=device, help="cpu or cuda; default: cuda where there is one")
    add_precision(parser)
    add("--compile", action="store_true", help="torch.compile the refiner: for many images, with a compiler")
    add("--overlays", action="store_true", help="also write pictures of the masks before and after")
    add("--resume", action="store_true", help="go on with an interrupted run")
    add("--overwrite", action="store_true", help="replace files of the output folder")
    add_import(parser)
    add("opts", nargs=argparse.REMAINDER, metavar="KEY VALUE", help="config overrides of the detector")
    return parser


if __name__ == "__main__":
    launch_shards(main, argument_parser().parse_args())
