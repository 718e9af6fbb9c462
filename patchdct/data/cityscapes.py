"""Instances of Cityscapes (Cordts et al., CVPR 2016) from its own files, on any Detectron2.

Detectron2 registers `cityscapes_fine_instance_seg_{train,val,test}` with a loader of polygons, which in its newest
versions needs a module that is not public. :func:`register_cityscapes` gives these names a loader of masks, from

    $DETECTRON2_DATASETS/cityscapes/leftImg8bit/<split>/<city>/*_leftImg8bit.png
    $DETECTRON2_DATASETS/cityscapes/gtFine/<split>/<city>/*_gtFine_instanceIds.png

Masks are exact; as polygons they are their outer outlines, so that holes are filled, as in Detectron2's polygons.
Reading them takes minutes, so they are kept in a COCO JSON, `cityscapes/instances_{rle,polygon}_<split>.json`, which is
made anew when an annotation file changes. Where that folder cannot be written, it is in iopath's cache.
"""

import contextlib
import functools
import hashlib
import logging
import multiprocessing
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import load_coco_json
from iopath.common.file_io import file_lock, get_cache_dir
from PIL import Image
from tqdm import tqdm

from pixelmask.data.roots import datasets_root
from pixelmask.errors import UserError
from pixelmask.files import read_json, write_json
from pixelmask.rle import encode, measure

logger = logging.getLogger(__name__)

CITYSCAPES_CLASSES = {
    "person": 24, "rider": 25, "car": 26, "truck": 27, "bus": 28, "train": 31, "motorcycle": 32, "bicycle": 33,
}  # fmt: skip
"""Label id of each evaluated class. Pixels of an instance have 1000 times that plus its number, of a group the id."""

_PREFIX = "cityscapes_fine_instance_seg_"
_PUBLISHED_SIZES = {"train": 2975, "val": 500, "test": 1525}
_IMAGE, _ANNOTATION = "_leftImg8bit.png", "_gtFine_instanceIds.png"
_VERSION = 1  # of the JSON's content
_MOST_WORKERS, _IMAGES_PER_WORKER = 16, 20


class CityscapesSplit(NamedTuple):
    """A part of Cityscapes, as registered: calling it loads its dicts in Detectron2's format, with polygons or RLE."""

    name: str
    root: Path
    polygons: bool = False

    @property
    def split(self) -> str:
        return self.name.removeprefix(_PREFIX)

    @property
    def image_dir(self) -> Path:
        return self.root / "leftImg8bit" / self.split

    @property
    def annotation_dir(self) -> Path:
        return self.root / "gtFine" / self.split

    def __call__(self) -> list[dict[str, Any]]:
        frames = self.check()
        expected = _PUBLISHED_SIZES[self.split]
        if len(frames) != expected:
            logger.warning(
                "%s has %d images here, not %d as published: figures differ", self.name, len(frames), expected
            )
        path = self._json_file()
        version = _fingerprint([self.annotation_dir / f"{frame}{_ANNOTATION}" for frame in frames])
        if _read_version(path) != version:  # else it may be where nothing can be written
            with file_lock(str(path)):  # processes that start together wait for the first, which makes the folder
                if _read_version(path) != version:
                    write_json(path, {"info": {"version": version}, **self._coco(frames)})
                    logger.info("wrote the masks of %d images to %s", len(frames), path)
        return load_coco_json(str(path), str(self.image_dir), self.name)

    def check(self) -> list[str]:
        """Return the frames as `<city>/<city>_<sequence>_<frame>`, in order.

        Raises:
            UserError: if there are none, or an image has no annotation file or the other way round.
        """
        images = _find(self.image_dir, _IMAGE)
        annotations = _find(self.annotation_dir, _ANNOTATION)
        if not images:
            raise UserError(f"data set {self.name}: no image <city>/*{_IMAGE} in {self.image_dir}")
        for alone, found, suffix, other in (
            (images - annotations, images, _IMAGE, _ANNOTATION),
            (annotations - images, annotations, _ANNOTATION, _IMAGE),
        ):
            if alone:
                raise UserError(
                    f"data set {self.name}: {len(alone)} of {len(found)} files *{suffix} in {self.root} have no "
                    f"*{other}, the first is {min(alone)}{suffix}; unpack leftImg8bit_trainvaltest.zip and "
                    "gtFine_trainvaltest.zip again"
                )
        return sorted(images)

    def _json_file(self) -> Path:
        folder = self.root
        if not os.access(folder, os.W_OK):
            # One for each place, so that several copies of the data set do not overwrite each other's
            place = hashlib.sha256(str(folder.absolute()).encode()).hexdigest()[:16]
            folder = Path(get_cache_dir()) / f"cityscapes_{place}"
        return folder / f"instances_{'polygon' if self.polygons else 'rle'}_{self.split}.json"

    def _coco(self, frames: list[str]) -> dict[str, Any]:
        images: list[dict[str, Any]] = []
        annotations: list[dict[str, Any]] = []
        for frame, (size, instances) in zip(frames, self._read_all(frames), strict=True):
            number = len(images) + 1
            images.append({"id": number, "file_name": f"{frame}{_IMAGE}", "height": size[0], "width": size[1]})
            for instance in instances:
                annotations.append({"id": len(annotations) + 1, "image_id": number, **instance})
        categories = [{"id": number, "name": name} for number, name in enumerate(CITYSCAPES_CLASSES, 1)]
        return {"images": images, "annotations": annotations, "categories": categories}

    def _read_all(self, frames: list[str]) -> Iterator[tuple[tuple[int, ...], list[dict[str, Any]]]]:
        """Yield size and instances of each frame, read in several processes if there are many, with a progress bar."""
        paths = [self.annotation_dir / f"{frame}{_ANNOTATION}" for frame in frames]
        workers = min(os.cpu_count() or 1, _MOST_WORKERS, len(paths) // _IMAGES_PER_WORKER)
        with contextlib.ExitStack() as stack:
            in_turn = stack.enter_context(multiprocessing.Pool(workers)).imap if workers > 1 else map
            found = in_turn(functools.partial(_read_instances, polygons=self.polygons), paths)
            yield from tqdm(found, f"reading {self.annotation_dir}", len(paths), unit="image", mininterval=1)


def is_cityscapes_name(name: str) -> bool:
    """Tell whether a name is one of the data sets of this module."""
    return name.startswith(_PREFIX) and name.removeprefix(_PREFIX) in _PUBLISHED_SIZES


def register_cityscapes(name: str, polygons: bool = False) -> None:
    """Register `cityscapes_fine_instance_seg_{train,val,test}` below `$DETECTRON2_DATASETS`, in place of Detectron2's.

    Nothing is read until the data set is checked or loaded. Masks are RLE for `INPUT.MASK_FORMAT: bitmask`, or
    ``polygons``. Groups, which the annotators did not divide into objects, are crowd regions.
    """
    dataset = CityscapesSplit(name, datasets_root() / "cityscapes", polygons)
    if DatasetCatalog.data.get(name) == dataset:
        return
    DatasetCatalog[name] = dataset
    MetadataCatalog.pop(name, None)  # metadata cannot be changed, and Detectron2's has the root of when it was imported
    MetadataCatalog.get(name).set(
        image_dir=str(dataset.image_dir),
        gt_dir=str(dataset.annotation_dir),
        evaluator_type="cityscapes_instance",
        thing_classes=list(CITYSCAPES_CLASSES),
    )


def check_cityscapes(cfg: CfgNode, train: bool) -> None:
    """Check those sets of the config that are Cityscapes, whose folders are known to exist.

    Raises:
        UserError: see :meth:`CityscapesSplit.check`.
    """
    for name in (*(cfg.DATASETS.TRAIN if train else ()), *cfg.DATASETS.TEST):
        if is_cityscapes_name(name):
            DatasetCatalog[name].check()


def annotation_file(image_file: str, gt_dir: str) -> Path:
    """Return the file in ``gt_dir`` that has the instance ids of an image."""
    image = Path(image_file)
    return Path(gt_dir) / image.parent.name / (image.name.removesuffix(_IMAGE) + _ANNOTATION)


def read_instance_ids(path: Path) -> np.ndarray:
    """Read the (H, W) ids of an `instanceIds.png`: a label's id, or 1000 times that plus the number of an instance.

    Raises:
        UserError: if it cannot be read, or is an image of another kind.
    """
    try:
        with Image.open(path) as image:
            ids = np.array(image)
    except Exception as e:  # whatever a damaged file makes Pillow stumble over
        raise UserError(f"cannot read annotation {path}: {e}; restore it from gtFine_trainvaltest.zip") from None
    if ids.ndim != 2 or ids.dtype.kind not in "iu":
        raise UserError(f"{path} does not hold instance ids: restore it from gtFine_trainvaltest.zip")
    return ids


def _read_instances(path: Path, polygons: bool) -> tuple[tuple[int, ...], list[dict[str, Any]]]:
    """Return (height, width) and the annotations of an image's instances and groups."""
    ids = np.asfortranarray(read_instance_ids(path))  # the order in which masks are encoded
    found = []
    categories = {label: number for number, label in enumerate(CITYSCAPES_CLASSES.values(), 1)}
    for instance_id in np.flatnonzero(np.bincount(ids.ravel(order="K"))).tolist():
        is_group = instance_id < 1000
        category = categories.get(instance_id if is_group else instance_id // 1000)
        if category is not None:
            mask = ids == instance_id
            annotation = {"category_id": category, **measure(encode(mask)), "iscrowd": int(is_group)}
            found.append({**annotation, "segmentation": outlines(mask)} if polygons else annotation)
    return ids.shape, found


def outlines(mask: np.ndarray) -> list[list[float]]:
    """Return the outer outlines of the parts of an (H, W) boolean mask, along the edges of its pixels.

    They are polygons [x, y, x, y, ...] as COCO has them; inner corners are cut by half a pixel.
    """
    left, top, width, height = cv2.boundingRect(mask.astype(np.uint8))
    # OpenCV's outlines go through the centres of pixels: each is spread over the nine half pixels on and in its edges
    spread = np.zeros((2 * height + 1, 2 * width + 1), np.uint8)
    for down in range(3):
        for right in range(3):
            part = spread[down : down + 2 * height : 2, right : right + 2 * width : 2]
            part |= mask[top : top + height, left : left + width]
    contours, _ = cv2.findContours(spread, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    return [(contour.reshape(-1, 2) / 2 + (left, top)).ravel().tolist() for contour in contours]


def _find(folder: Path, suffix: str) -> set[str]:
    return {f"{path.parent.name}/{path.name.removesuffix(suffix)}" for path in folder.glob(f"*/*{suffix}")}


def _fingerprint(paths: list[Path]) -> str:
    """Return what changes when one of the files does."""
    digest = hashlib.sha256(str(_VERSION).encode())
    for path in paths:
        stat = path.stat()
        digest.update(f"{path.name} {stat.st_size} {stat.st_mtime_ns}\n".encode())
    return digest.hexdigest()


def _read_version(path: Path) -> str | None:
    try:
        return read_json(path)["info"]["version"]
    except (UserError, KeyError, TypeError):
        return None
