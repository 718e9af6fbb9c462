"""The synthetic data set "shapes" as COCO files, made on first use, and its registration in Detectron2.

A name `shapes_{train|val}[_{images}][_{size}px]` is a data set: `shapes_train` (2000 images of 256 pixels),
`shapes_val` (200), `shapes_train_600`, `shapes_val_100_1024px`. Its files are

    $DETECTRON2_DATASETS/shapes/<split>_<images>_<size>px/annotations.json   COCO instances, masks as RLE
    $DETECTRON2_DATASETS/shapes/<split>_<images>_<size>px/images/000001.jpg  ...

A smaller data set of the same split and size holds the first images of a larger one.
"""

import argparse
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from detectron2.data.datasets import load_coco_json

from pixelmask.cli import run
from pixelmask.data.drawn import SEEDS, DrawnCollection, write_jpeg
from pixelmask.errors import UserError
from pixelmask.files import read_json, write_json
from pixelmask.rle import encode, measure

from .shapes import DRAWING_VERSION, SHAPES_CLASSES, draw_scene

__all__ = ["SHAPES", "SHAPES_CLASSES", "is_shapes_name", "make_shapes", "parse_shapes_name", "register_shapes"]

_IMAGES = {"train": 2000, "val": 200}
_SIZE, _SMALLEST, _LARGEST = 256, 64, 4096


class ShapesSpec(NamedTuple):
    """What a name stands for: the split, the number of images and their height and width in pixels."""

    split: str
    images: int
    size: int


class ShapesCollection(DrawnCollection[ShapesSpec]):
    """The data sets of shapes. Masks are RLE: models need `INPUT.MASK_FORMAT: bitmask`."""

    title = "shapes"
    pattern = re.compile(r"shapes_(train|val)(?:_([1-9]\d*))?(?:_([1-9]\d*)px)?")
    usage = "shapes_{train|val}[_{images}][_{size}px], such as shapes_train, shapes_val_100 or shapes_train_600_512px"
    version = DRAWING_VERSION

    def specify(self, name: str, *groups: str) -> ShapesSpec:
        split, images, size = groups
        spec = ShapesSpec(split, int(images or _IMAGES[split]), int(size or _SIZE))
        if not _SMALLEST <= spec.size <= _LARGEST:
            raise UserError(f"'{name}' asks for images of {spec.size} pixels: shapes has {_SMALLEST} to {_LARGEST}")
        return spec

    def folder_name(self, spec: ShapesSpec) -> str:
        return f"{spec.split}_{spec.images}_{spec.size}px"

    def write(self, spec: ShapesSpec, index: int, folder: Path) -> list[dict[str, Any]]:
        """Write an image; return its annotations, without ids of their own."""
        scene = draw_scene(SEEDS[spec.split], index, spec.size)
        (folder / "images").mkdir(exist_ok=True)
        write_jpeg(folder / "images" / _file_name(index), scene.image)
        return [
            {"image_id": index + 1, "category_id": label + 1, **measure(encode(mask)), "iscrowd": 0}
            for mask, label in zip(scene.masks, scene.classes.tolist(), strict=True)
        ]

    def finish(self, spec: ShapesSpec, written: list[list[dict[str, Any]]], folder: Path) -> None:
        size = {"height": spec.size, "width": spec.size}
        annotations = [annotation for of_image in written for annotation in of_image]
        content = {
            "info": {"description": "shapes, a synthetic data set", "drawing_version": self.version},
            "images": [{"id": i + 1, "file_name": _file_name(i), **size} for i in range(spec.images)],
            "annotations": [{"id": i, **annotation} for i, annotation in enumerate(annotations, 1)],
            "categories": [{"id": i, "name": name} for i, name in enumerate(SHAPES_CLASSES, 1)],
        }
        write_json(folder / "annotations.json", content)

    def read_version(self, folder: Path) -> Any:
        return read_json(folder / "annotations.json")["info"]["drawing_version"]

    def load(self, name: str, folder: Path) -> list[dict[str, Any]]:
        self.make(name, folder)
        return load_coco_json(str(folder / "annotations.json"), str(folder / "images"), name)

    def metadata(self, folder: Path) -> dict[str, Any]:
        return {
            "json_file": str(folder / "annotations.json"),
            "image_root": str(folder / "images"),
            "evaluator_type": "coco",
            "thing_classes": list(SHAPES_CLASSES),
            "thing_dataset_id_to_contiguous_id": {i + 1: i for i in range(len(SHAPES_CLASSES))},
        }


def _file_name(index: int) -> str:
    return f"{index + 1:06d}.jpg"


SHAPES = ShapesCollection()
is_shapes_name, parse_shapes_name = SHAPES.owns, SHAPES.parse
make_shapes, register_shapes = SHAPES.make, SHAPES.register


def main(arguments: Sequence[str] | None = None) -> None:
    """Make the data sets named on the command line and print where they are."""
    parser = argparse.ArgumentParser(prog="python -m patchdct.data.shapes_dataset", description=main.__doc__)
    parser.add_argument("names", nargs="+", metavar="name", help="shapes_{train|val}[_{images}][_{size}px]")
    for name in parser.parse_args(arguments).names:
        sys.stdout.write(f"{make_shapes(name).resolve()}\n")


if __name__ == "__main__":
    run(main)
