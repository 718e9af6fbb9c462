#!/usr/bin/env python
"""Detect and segment the objects of images and videos with a trained model: pictures with masks, and COCO results.

    python tools/demo.py --config-file config.yaml --weights model_final.pth --input a.jpg clip.mp4 --output out
    python tools/demo.py --config-file config.yaml --weights model_final.pth --input "photos/*" --output out --stages

The output folder gets

    <name>_masks.jpg, .png   each image with its masks; <name>_masks.mp4 for a video
    detections.json          COCO results: image_id, category_id, bbox, score, segmentation (RLE at native size)
    images.json              file_name of each image_id (and frame_index in videos, from 0), and the categories

With --stages each picture shows side by side the masks of PatchDCT's DCT-Mask stage, its final masks, and the labels of
its patches. A file that cannot be used is left out; all of these are named at the end, with exit status 1. Each file
that is done is kept in progress.jsonl at once: --resume goes on after an interruption. torchrun deals the files out to
processes, as of tools/refine_instances.py.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from detectron2.evaluation.coco_evaluation import instances_to_coco_json
from detectron2.structures import Instances
from detectron2.utils import comm
from tqdm import tqdm

from patchdct.data.prepare import find_categories
from patchdct.figures.panels import compare_panels
from patchdct.predictor import Predictor
from pixelmask.cli import add_import, add_precision, bounded, import_code
from pixelmask.config import load_cfg
from pixelmask.drawing import draw_masks
from pixelmask.engine.launch import launch_shards
from pixelmask.errors import UserError
from pixelmask.files import IMAGE_SUFFIXES, find_images, write_json
from pixelmask.images import read_picture, write_picture
from pixelmask.progress import Item, Progress, check_output, identify
from pixelmask.video import VideoReader, VideoWriter

JPEG_SUFFIXES = {".jpg", ".jpeg"}
VIDEO_SUFFIXES = {".avi", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".webm", ".wmv"}
FILES = ("detections.json", "images.json")
SUFFIXES = {*IMAGE_SUFFIXES, *VIDEO_SUFFIXES, ".gif", ".jp2", ".pgm", ".ppm", ".tga"}


def plan_outputs(sources: list[Path], folder: Path) -> dict[str, Item]:
    """Return the picture or video to write for each source, by its name; no two are alike."""
    items: dict[str, Item] = {}
    for source in sources:
        suffix = source.suffix.lower()
        suffix = ".mp4" if suffix in VIDEO_SUFFIXES else ".jpg" if suffix in JPEG_SUFFIXES else ".png"
        name, count = f"{source.stem}_masks{suffix}", 1
        while name in items or folder / name in sources:
            count += 1
            name = f"{source.stem}_masks_{count}{suffix}"
        items[name] = Item([source], [folder / name])
    return items


def write_results(entries: Sequence[dict[str, Any]], categories: list[dict[str, Any]], folder: Path) -> tuple[int, int]:
    """Write the detections of images and frames as COCO JSON; return how many there are, and in how many images."""
    images: list[dict[str, Any]] = []
    detections: list[dict[str, Any]] = []
    for image in (image for entry in entries for image in entry["images"]):
        found = image["detections"]
        images.append({"id": len(images) + 1, **{key: value for key, value in image.items() if key != "detections"}})
        for result in found:
            category_id = categories[result["category_id"]]["id"]
            detections.append({**result, "image_id": len(images), "category_id": category_id})
    for name, content in zip(FILES, (detections, {"images": images, "categories": categories}), strict=True):
        write_json(folder / name, content)
    return len(detections), len(images)


class Painter(NamedTuple):
    """From a picture to its instances and the picture that shows them."""

    predictor: Predictor
    class_names: list[str]
    panel_size: int | None
    """Longer side of each panel in pixels, to show stages side by side; None for one picture as it is."""

    def __call__(self, image: np.ndarray) -> tuple[Instances, np.ndarray]:
        instances = self.predictor(image)
        if self.panel_size:
            return instances, compare_panels(
                image, None, instances, self.class_names, score_threshold=0.0, panel_size=self.panel_size
            )
        shown = instances.pred_masks, instances.pred_classes, instances.scores
        return instances, draw_masks(image, *shown, self.class_names)


def process(source: Path, target: Path, painter: Painter) -> dict[str, Any]:
    """Detect and draw the instances of one image, or of each frame of one video; return what COCO JSON has of them."""

    def describe(instances: Instances, **frame: int) -> dict[str, Any]:
        height, width = instances.image_size
        about = {"file_name": str(source), "height": height, "width": width, **frame}
        return {**about, "detections": instances_to_coco_json(instances, 0)}

    if source.suffix.lower() not in VIDEO_SUFFIXES:
        instances, picture = painter(read_picture(source))
        write_picture(target, picture, quality=95, subsampling=0)
        return {"images": [describe(instances)]}
    images = []
    reader = VideoReader(source)
    frames = tqdm(reader, total=reader.count, desc=source.name, unit="frame", leave=False)
    with VideoWriter(target, reader.rate) as writer:
        for index, frame in enumerate(frames):
            instances, picture = painter(frame)
            writer.write(picture)
            images.append(describe(instances, frame_index=index))
    return {"images": images}


def main(args: argparse.Namespace) -> None:
    import_code(args.imports)
    opts = [*args.opts, "MODEL.ROI_HEADS.SCORE_THRESH_TEST", str(args.score_threshold)]
    cfg = load_cfg(args.config_file, [*opts, "MODEL.WEIGHTS", args.weights] if args.weights else opts)
    items = plan_outputs(find_images(args.input, SUFFIXES, False, "media file"), args.output)
    outputs = [*(path for item in items.values() for path in item.outputs), *(args.output / name for name in FILES)]
    check_output(args.output, outputs, args.resume, args.overwrite)
    predictor, categories = Predictor(cfg, args.stages, args.precision), find_categories(cfg)
    names = [category["name"] for category in categories]
    painter = Painter(predictor, names, args.panel_size if args.stages else None)
    options = {"categories": categories, "--stages": painter.panel_size, "--precision": args.precision}
    about = identify(cfg, cfg.MODEL.WEIGHTS) | options

    def work(name: str) -> dict[str, Any]:
        return process(items[name].inputs[0], items[name].outputs[0], painter)

    with Progress(args.output, about, items, args.resume) as progress:
        try:
            failures = progress.run(work, "file")
        except KeyboardInterrupt:
            if comm.is_main_process():
                write_results(progress.entries, categories, args.output)
            raise
        if not comm.is_main_process():
            return
        detections, images = write_results(progress.entries, categories, args.output)
        if not failures:
            progress.remove()
    print(
        f"{detections} objects in {images} images, from {len(items) - len(failures)} of {len(items)} files. "
        f"Pictures, {' and '.join(FILES)} are in {args.output}"
    )
    if failures:
        raise UserError("\n".join([f"{len(failures)} of {len(items)} files could not be used:", *failures]))


def argument_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--config-file", required=True, metavar="FILE", help="of the model: config.yaml in its OUTPUT_DIR")
    add("--weights", metavar="FILE", help="checkpoint of the model; else MODEL.WEIGHTS of the config")
    add("--input", nargs="+", required=True, metavar="PATH", help="images, videos, folders of them, or glob patterns")
    add("--output", type=Path, required=True, metavar="FOLDER", help="folder for pictures and JSON")
    add("--score-threshold", type=float, default=0.5, metavar="S", help="leave out detections below; default 0.5")
    add("--stages", action="store_true", help="show PatchDCT's stages and patches side by side")
    add(
        "--panel-size",
        type=bounded(64, 8192),
        default=512,
        metavar="PIXELS",
        help="longer side of a panel; default 512",
    )
    add("--resume", action="store_true", help="go on with an interrupted run")
    add_precision(parser)
    add("--overwrite", action="store_true", help="replace files of the output folder")
    add_import(parser)
    add("opts", nargs=argparse.REMAINDER, metavar="KEY VALUE", help="config overrides")
    return parser


if __name__ == "__main__":
    launch_shards(main, argument_parser().parse_args())
