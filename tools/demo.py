#!/usr/bin/env python
"""Detect and segment the objects of images and videos with a trained model: pictures with masks, and COCO results.

    python tools/demo.py --config-file config.yaml --weights model_final.pth --input a.jpg clip.mp4 --output out
    python tools/demo.py --config-file config.yaml --weights model_final.pth --input "photos/*" --output out --stages

The output folder gets

    <name>_masks.jpg, .png   each image with its masks; <name>_masks.mp4 for a video
    detections.json          COCO results: image_id, category_id, bbox, score, segmentation (RLE at native size)
    images.json              file_name of each image_id (and frame_index in videos, from 0), and the categories

With --stages each picture shows side by side the masks of PatchDCT's DCT-Mask stage, its final masks, and the labels of
its patches. A file that cannot be read is left out; all of these are named at the end, with exit status 1.
"""

import argparse
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from detectron2.evaluation.coco_evaluation import instances_to_coco_json
from detectron2.structures import Instances
from PIL import Image
from tqdm import tqdm

from patchdct.data.prepare import find_categories
from patchdct.figures.panels import compare_panels
from patchdct.predictor import Predictor
from pixelmask.cli import add_import, add_precision, import_code, run
from pixelmask.config import load_cfg
from pixelmask.drawing import draw_masks
from pixelmask.errors import UserError
from pixelmask.files import IMAGE_SUFFIXES, find_images, write_json
from pixelmask.images import read_picture
from pixelmask.video import VideoReader, VideoWriter

JPEG_SUFFIXES = {".jpg", ".jpeg"}
VIDEO_SUFFIXES = {".avi", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".webm", ".wmv"}
SUFFIXES = {*IMAGE_SUFFIXES, *VIDEO_SUFFIXES, ".gif", ".jp2", ".pgm", ".ppm", ".tga"}


def plan_outputs(sources: list[Path], folder: Path, overwrite: bool) -> dict[Path, Path]:
    """Return the picture or video to write for each source, no two alike.

    Raises:
        UserError: if a file to be written is there already, unless it may be overwritten.
    """
    targets: dict[Path, Path] = {}
    for source in sources:
        suffix = source.suffix.lower()
        suffix = ".mp4" if suffix in VIDEO_SUFFIXES else ".jpg" if suffix in JPEG_SUFFIXES else ".png"
        target, count = folder / f"{source.stem}_masks{suffix}", 1
        while target in targets.values() or target in sources:
            count += 1
            target = folder / f"{source.stem}_masks_{count}{suffix}"
        targets[source] = target
    existing = [path for path in (*targets.values(), *(folder / name for name in Results.FILES)) if path.exists()]
    if existing and not overwrite:
        raise UserError(
            f"{existing[0]} exists already{f', and {len(existing) - 1} others' if len(existing) > 1 else ''}; choose "
            "another --output folder, or pass --overwrite"
        )
    return targets


class Results:
    """The detections of all images and frames so far, as COCO JSON."""

    FILES = ("detections.json", "images.json")

    def __init__(self, categories: list[dict[str, Any]]):
        self.categories = categories
        self.images: list[dict[str, Any]] = []
        self.detections: list[dict[str, Any]] = []

    def add(self, instances: Instances, source: Path, frame_index: int | None = None) -> None:
        height, width = instances.image_size
        image = {"id": len(self.images) + 1, "file_name": str(source), "height": height, "width": width}
        self.images.append(image if frame_index is None else {**image, "frame_index": frame_index})
        for result in instances_to_coco_json(instances, image["id"]):
            self.detections.append({**result, "category_id": self.categories[result["category_id"]]["id"]})

    def write(self, folder: Path) -> None:
        contents = (self.detections, {"images": self.images, "categories": self.categories})
        for name, content in zip(self.FILES, contents, strict=True):
            write_json(folder / name, content)


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


def process(source: Path, target: Path, painter: Painter, results: Results) -> None:
    """Detect and draw the instances of one image, or of each frame of one video."""
    if source.suffix.lower() not in VIDEO_SUFFIXES:
        instances, picture = painter(read_picture(source))
        Image.fromarray(picture).save(target, quality=95, subsampling=0)
        results.add(instances, source)
        return
    reader = VideoReader(source)
    frames = tqdm(reader, total=reader.count, desc=source.name, unit="frame", leave=False)
    with VideoWriter(target, reader.rate) as writer:
        for index, frame in enumerate(frames):
            instances, picture = painter(frame)
            writer.write(picture)
            results.add(instances, source, index)


def main(args: argparse.Namespace) -> None:
    import_code(args.imports)
    opts = [*args.opts, "MODEL.ROI_HEADS.SCORE_THRESH_TEST", str(args.score_threshold)]
    cfg = load_cfg(args.config_file, [*opts, "MODEL.WEIGHTS", args.weights] if args.weights else opts)
    targets = plan_outputs(find_images(args.input, SUFFIXES, False, "media file"), args.output, args.overwrite)
    predictor, categories = Predictor(cfg, args.stages, args.precision), find_categories(cfg)
    names = [category["name"] for category in categories]
    painter = Painter(predictor, names, args.panel_size if args.stages else None)
    results, failures = Results(categories), []
    args.output.mkdir(parents=True, exist_ok=True)
    try:
        for source, target in tqdm(targets.items(), unit="file"):
            try:
                process(source, target, painter, results)
            except UserError as e:
                failures.append(str(e))
    finally:
        # Also what was done before an interruption
        results.write(args.output)
    done = len(targets) - len(failures)
    print(
        f"{len(results.detections)} objects in {len(results.images)} images, from {done} of {len(targets)} files. "
        f"Pictures, {' and '.join(Results.FILES)} are in {args.output}"
    )
    if failures:
        raise UserError("\n".join([f"{len(failures)} of {len(targets)} files could not be used:", *failures]))


def argument_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--config-file", required=True, metavar="FILE", help="of the model: config.yaml in its OUTPUT_DIR")
    add("--weights", metavar="FILE", help="checkpoint of the model; else MODEL.WEIGHTS of the config")
    add("--input", nargs="+", required=True, metavar="PATH", help="images, videos, folders of them, or glob patterns")
    add("--output", type=Path, required=True, metavar="FOLDER", help="folder for pictures and JSON")
    add("--score-threshold", type=float, default=0.5, metavar="S", help="leave out detections below; default 0.5")
    add("--stages", action="store_true", help="show PatchDCT's stages and patches side by side")
    add("--panel-size", type=int, default=512, metavar="N", help="longer side of a panel in pixels; default 512")
    add_precision(parser)
    add("--overwrite", action="store_true", help="replace files of the output folder")
    add_import(parser)
    add("opts", nargs=argparse.REMAINDER, metavar="KEY VALUE", help="config overrides")
    return parser


if __name__ == "__main__":
    run(main, argument_parser().parse_args())
