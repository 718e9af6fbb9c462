"""The synthetic data set "shapes" as COCO files, made on first use, and its registration in Detectron2.

A name `shapes_{train|val}[_{images}][_{size}px]` is a data set: `shapes_train` (2000 images of 256 pixels),
`shapes_val` (200), `shapes_train_600`, `shapes_val_100_1024px`. Its files are

    $DETECTRON2_DATASETS/shapes/<split>_<images>_<size>px/annotations.json   COCO instances, masks as RLE
    $DETECTRON2_DATASETS/shapes/<split>_<images>_<size>px/images/000001.jpg  ...

A smaller data set of the same split and size holds the first images of a larger one.
"""

import argparse
import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pycocotools.mask as mask_util
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import load_coco_json
from tqdm import tqdm

from pixelmask.data.roots import DrawnSet, check_version, datasets_root, make_folder, write_jpeg
from pixelmask.errors import UserError

from .shapes import DRAWING_VERSION, SHAPES_CLASSES, draw_scene

__all__ = ["SHAPES_CLASSES", "ShapesSpec", "make_shapes", "parse_shapes_name", "register_shapes"]

_NAME = re.compile(r"shapes_(train|val)(?:_([1-9]\d*))?(?:_([1-9]\d*)px)?")
_IMAGES = {"train": 2000, "val": 200}
_SEEDS = {"train": 1, "val": 2}
_SIZE, _SMALLEST, _LARGEST = 256, 64, 4096


class ShapesSpec(NamedTuple):
    """What a name stands for: the split, the number of images and their height and width in pixels."""

    split: str
    images: int
    size: int

    @property
    def folder(self) -> Path:
        """Where the files are; `$DETECTRON2_DATASETS` is read at each call, as ./datasets where it is not set."""
        return datasets_root() / "shapes" / f"{self.split}_{self.images}_{self.size}px"


def is_shapes_name(name: str) -> bool:
    """Tell whether a data set name claims to be one of shapes, be it well-formed or not."""
    return name == "shapes" or name.startswith("shapes_")


def parse_shapes_name(name: str) -> ShapesSpec:
    """Read a name `shapes_{train|val}[_{images}][_{size}px]`; raise UserError where it is not one."""
    match = _NAME.fullmatch(name)
    if match is None:
        raise UserError(
            f"'{name}' is no data set: names are shapes_{{train|val}}[_{{images}}][_{{size}}px], "
            "such as shapes_train, shapes_val_100 or shapes_train_600_512px"
        )
    split, images, size = match.groups()
    spec = ShapesSpec(split, int(images or _IMAGES[split]), int(size or _SIZE))
    if not _SMALLEST <= spec.size <= _LARGEST:
        raise UserError(f"'{name}' asks for images of {spec.size} pixels: shapes has {_SMALLEST} to {_LARGEST}")
    return spec


def _annotation(mask: np.ndarray, label: int, image_id: int, annotation_id: int) -> dict[str, Any]:
    rle = mask_util.encode(np.asfortranarray(mask, dtype=np.uint8))
    return {
        "id": annotation_id,
        "image_id": image_id,
        "category_id": label + 1,
        "segmentation": {"size": [int(n) for n in rle["size"]], "counts": rle["counts"].decode("ascii")},
        "bbox": mask_util.toBbox(rle).tolist(),
        "area": int(mask_util.area(rle)),
        "iscrowd": 0,
    }


def _write(spec: ShapesSpec, folder: Path) -> None:
    """Draw all images of a data set into an empty folder, and write the annotations last."""
    (folder / "images").mkdir()
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for index in tqdm(range(spec.images), desc=f"drawing {spec.folder.name}", unit="image", mininterval=1):
        scene = draw_scene(_SEEDS[spec.split], index, spec.size)
        file_name = f"{index + 1:06d}.jpg"
        write_jpeg(folder / "images" / file_name, scene.image)
        images.append({"id": index + 1, "file_name": file_name, "height": spec.size, "width": spec.size})
        for mask, label in zip(scene.masks, scene.classes.tolist(), strict=True):
            annotations.append(_annotation(mask, label, index + 1, len(annotations) + 1))
    content = {
        "info": {"description": "shapes, a synthetic data set", "drawing_version": DRAWING_VERSION},
        "images": images,
        "annotations": annotations,
        "categories": [{"id": i, "name": name} for i, name in enumerate(SHAPES_CLASSES, 1)],
    }
    (folder / "annotations.json").write_text(json.dumps(content))


def make_shapes(name: str, folder: Path | None = None) -> Path:
    """Return the folder of a data set, drawing it first where it is missing.

    Processes may ask at once, and be interrupted (see :func:`~pixelmask.data.roots.make_folder`).

    Args:
        name: see :func:`parse_shapes_name`.
        folder: where the files belong, if not at the place that the name and `$DETECTRON2_DATASETS` imply.

    Raises:
        UserError: the name is malformed, or the folder holds something else or data of another drawing version.
    """
    spec = parse_shapes_name(name)
    folder = folder or spec.folder
    annotations = folder / "annotations.json"
    make_folder(folder, lambda partial: _write(spec, partial))
    check_version(
        folder, "shapes", lambda: json.loads(annotations.read_text())["info"]["drawing_version"], DRAWING_VERSION
    )
    return folder


def _load(name: str, folder: Path) -> list[dict[str, Any]]:
    make_shapes(name, folder)
    return load_coco_json(str(folder / "annotations.json"), str(folder / "images"), name)


def register_shapes(name: str) -> None:
    """Register a data set of shapes by its name; its files are made when its dicts are first asked for.

    Registering a name again changes nothing. Masks are RLE: models need `INPUT.MASK_FORMAT: bitmask`.

    Raises:
        UserError: the name is malformed.
    """
    folder = parse_shapes_name(name).folder
    if name in DatasetCatalog.list():
        return
    DatasetCatalog.register(name, DrawnSet(name, folder, _load))
    MetadataCatalog.get(name).set(
        json_file=str(folder / "annotations.json"),
        image_root=str(folder / "images"),
        evaluator_type="coco",
        thing_classes=list(SHAPES_CLASSES),
        thing_dataset_id_to_contiguous_id={i + 1: i for i in range(len(SHAPES_CLASSES))},
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Make the data sets named on the command line and print where they are."""
    parser = argparse.ArgumentParser(prog="python -m patchdct.data.shapes_dataset", description=main.__doc__)
    parser.add_argument("names", nargs="+", metavar="name", help="shapes_{train|val}[_{images}][_{size}px]")
    for name in parser.parse_args(arguments).names:
        sys.stdout.write(f"{make_shapes(name).resolve()}\n")


if __name__ == "__main__":
    from pixelmask.cli import run

    run(main)
