"""Registration of data sets in COCO format, and checks that find a data set's faults before training does.

Sets registered here are checked in full: files, ids, boxes, polygons, and the presence of their images (all of them up
to 5,000, else 5,000 spread evenly; a missing one among the others is named when it is read). Of Detectron2's own sets
the files and folders are looked for, and their large JSON files are examined only if Detectron2 fails on them.
"""

import difflib
import functools
import logging
import math
import os
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import load_coco_json

from ..config import changed
from ..errors import UserError
from .coco_file import read_coco
from .drawn import DrawnSet
from .roots import describe_root, expand_path

logger = logging.getLogger(__name__)

MAX_IMAGES_LOOKED_FOR = 5000
# Metadata of Detectron2's own data sets that are paths
PATH_KEYS = (
    *("json_file", "image_root", "image_dir", "gt_dir", "dirname"),
    *("sem_seg_root", "panoptic_root", "panoptic_json"),
)
ARCHITECTURES_WITH_ROI_HEADS = ("GeneralizedRCNN", "PanopticFPN")


class CocoSummary(NamedTuple):
    """What a COCO JSON has: class names in the order of category ids, and what matters for training on it.

    ``trainable`` counts annotations that are no crowd regions; ``rle`` and ``maskless`` are the id of the first of
    them that has its mask as RLE, or has none.
    """

    classes: list[str]
    trainable: int
    rle: int | None
    maskless: int | None


class CocoFormat(NamedTuple):
    """A data set in COCO format, as registered: calling it loads its dicts, and fills in its metadata."""

    name: str
    json_file: str
    image_root: str

    def __call__(self) -> list[dict[str, Any]]:
        self.check()
        return load_coco_json(self.json_file, self.image_root, self.name)

    def check(self) -> CocoSummary:
        summary = check_coco_file(self.json_file, self.image_root)
        MetadataCatalog.get(self.name).set(thing_classes=summary.classes)
        return summary


class _Diagnosed(NamedTuple):
    """A registered data set whose JSON is examined when loading it fails."""

    load: Callable[[], list[dict[str, Any]]]
    json_file: str
    image_root: str

    def __call__(self) -> list[dict[str, Any]]:
        try:
            return self.load()
        except Exception:
            check_coco_file(self.json_file, self.image_root)  # raises what is wrong with the file, if that is the cause
            raise


def register_coco_format(name: str, json_file: str, image_root: str) -> None:
    """Register a data set in COCO format under a name for DATASETS.TRAIN and DATASETS.TEST.

    Nothing is read until the data set is checked or loaded. Its classes are the JSON's categories in the order of their
    ids, which need not be contiguous. ``~`` and ``$VARIABLES`` in paths are expanded. The same triple may be registered
    again.

    Raises:
        UserError: if the name stands for other files.
    """
    dataset = CocoFormat(name, expand_path(json_file), expand_path(image_root))
    known = DatasetCatalog.data.get(name)
    if known == dataset:
        return
    if known is not None:
        other = MetadataCatalog.get(name).get("json_file", "another data set")
        raise UserError(f"data set {name} is {other} already, and cannot be {json_file}; choose another name")
    DatasetCatalog.register(name, dataset)
    MetadataCatalog.get(name).set(json_file=dataset.json_file, image_root=dataset.image_root, evaluator_type="coco")


def register_from_config(cfg: CfgNode) -> None:
    """Register the [name, JSON file, image folder] triples of ``DATASETS.COCO_FORMAT``."""
    for entry in cfg.DATASETS.COCO_FORMAT:
        if isinstance(entry, str) or len(entry) != 3 or not all(isinstance(part, str) for part in entry):
            raise UserError(f"DATASETS.COCO_FORMAT wants [name, JSON file, image folder] triples, not {entry!r}")
        register_coco_format(*entry)


def with_classes_of_data(cfg: CfgNode) -> CfgNode:
    """Return a config whose MODEL.ROI_HEADS.NUM_CLASSES is that of its first data set of ``DATASETS.COCO_FORMAT``.

    Without one in DATASETS.TRAIN and DATASETS.TEST, and for models that have no such key, it is left as it is.

    Raises:
        UserError: if that data set's files are faulty.
    """
    register_from_config(cfg)
    names = (*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST)
    own = [dataset for dataset in map(DatasetCatalog.data.get, names) if isinstance(dataset, CocoFormat)]
    if not own or cfg.MODEL.META_ARCHITECTURE not in ARCHITECTURES_WITH_ROI_HEADS:
        return cfg
    classes = own[0].check().classes
    logger.info("MODEL.ROI_HEADS.NUM_CLASSES is %d, the classes of %s", len(classes), own[0].name)
    return changed(cfg, "MODEL.ROI_HEADS.NUM_CLASSES", len(classes))


def check_datasets(cfg: CfgNode, train: bool = True) -> None:
    """Check every data set of DATASETS.TEST, and of DATASETS.TRAIN if it is to be trained on.

    Raises:
        UserError: for a name that is not registered, missing files, faults in a JSON of :func:`register_coco_format`, a
            class count other than MODEL.ROI_HEADS.NUM_CLASSES, sets of different classes, and annotations that cannot
            be trained on as the config has it.
    """
    register_from_config(cfg)
    key = "TRAIN" if train else "TEST"
    if not cfg.DATASETS[key]:
        raise UserError(f"DATASETS.{key} is empty; name at least one data set there")
    for name in cfg.DATASETS.TEST:
        check_dataset(cfg, name, "TEST")
    if not train:
        return
    for name in cfg.DATASETS.TRAIN:
        check_dataset(cfg, name, "TRAIN")
    first, *others = cfg.DATASETS.TRAIN
    classes = MetadataCatalog.get(first).get("thing_classes")
    for name in others:
        if MetadataCatalog.get(name).get("thing_classes") != classes:
            raise UserError(
                f"data sets {first} and {name} of DATASETS.TRAIN have different classes; give both JSON files the same "
                "categories"
            )
    for name in cfg.DATASETS.TEST:
        if (tested := MetadataCatalog.get(name).get("thing_classes")) and classes and tested != classes:
            number = next(i for i, pair in enumerate(zip(tested, classes, strict=True)) if pair[0] != pair[1])
            raise UserError(
                f"data set {name} of DATASETS.TEST has other classes than {first} of DATASETS.TRAIN, or numbers them "
                f"otherwise: class {number} is {tested[number]!r} there and {classes[number]!r} here; classes are in "
                "the order of the categories' ids"
            )


def suggest(name: str, known: Iterable[str], number: int) -> str:
    """Return how a sentence about an unknown name goes on: with the nearest ones that are known, if any are near."""
    close = difflib.get_close_matches(name, sorted(known), n=number)
    return f"; did you mean {' or '.join(close)}?" if close else "."


def check_dataset(cfg: CfgNode, name: str, split: str) -> None:
    """Check one data set as :func:`check_datasets` does; ``split`` is the key, "TRAIN" or "TEST", that names it."""
    if name not in DatasetCatalog:
        raise UserError(
            f"data set {name} of DATASETS.{split} is not registered{suggest(name, DatasetCatalog, 3)} To register one "
            f"of your own in COCO format, add [{name}, JSON file, image folder] to DATASETS.COCO_FORMAT"
        )
    dataset = DatasetCatalog[name]
    metadata = MetadataCatalog.get(name)
    if isinstance(dataset, CocoFormat):
        summary = dataset.check()
        if split == "TRAIN":
            _check_trainable(cfg, dataset.json_file, summary)
    elif not isinstance(dataset, DrawnSet):  # those are made when they are first loaded
        for path in (metadata.get(key) for key in PATH_KEYS):
            if path is not None and "://" not in path and not os.path.exists(path):
                raise UserError(
                    f"data set {name} needs {path}, which does not exist; {describe_root()}. Set it to the folder of "
                    "your data sets (their layout is in datasets/README.md)"
                )
        if metadata.get("evaluator_type") == "coco" and not isinstance(dataset, _Diagnosed):
            DatasetCatalog[name] = _Diagnosed(dataset, metadata.json_file, metadata.image_root)
    classes = metadata.get("thing_classes")
    expected = cfg.MODEL.ROI_HEADS.NUM_CLASSES
    if cfg.MODEL.META_ARCHITECTURE in ARCHITECTURES_WITH_ROI_HEADS and classes and len(classes) != expected:
        raise UserError(
            f"data set {name} has {len(classes)} classes, but MODEL.ROI_HEADS.NUM_CLASSES is {expected}; "
            f"set MODEL.ROI_HEADS.NUM_CLASSES {len(classes)}"
        )


def _check_trainable(cfg: CfgNode, json_file: str, summary: CocoSummary) -> None:
    if not summary.trainable:
        raise UserError(f"{json_file} has no annotations to train on")
    if not cfg.MODEL.MASK_ON:
        return
    if summary.maskless is not None:
        raise UserError(
            f"{json_file}: annotation {summary.maskless} has no mask; training masks needs one for every annotation "
            "(or set MODEL.MASK_ON False)"
        )
    if summary.rle is not None and cfg.INPUT.MASK_FORMAT == "polygon":
        raise UserError(f"{json_file}: annotation {summary.rle} has an RLE mask; set INPUT.MASK_FORMAT bitmask")


def check_coco_file(json_file: str, image_root: str) -> CocoSummary:
    """Check a COCO JSON and the presence of its images; a file that was found good is not read again.

    Raises:
        UserError: naming the file and its first fault.
    """
    if not os.path.isfile(json_file):
        raise UserError(f"no annotation file {os.path.abspath(json_file)}; correct its path in DATASETS.COCO_FORMAT")
    if not os.path.isdir(image_root):
        raise UserError(f"no image folder {os.path.abspath(image_root)}; correct its path in DATASETS.COCO_FORMAT")
    return _check_coco_file(json_file, image_root, os.stat(json_file).st_mtime_ns)


@functools.lru_cache
def _check_coco_file(json_file: str, image_root: str, modified: int) -> CocoSummary:
    content = read_coco(json_file)
    images = content["images"]
    looked_for = [image["file_name"] for image in images[:: math.ceil(len(images) / MAX_IMAGES_LOOKED_FOR)]]
    missing = [name for name in looked_for if not os.path.isfile(os.path.join(image_root, name))]
    if missing:
        raise UserError(
            f"{len(missing)} of {len(looked_for)} images that {json_file} lists and were looked for are not in "
            f"{image_root}, the first is {missing[0]}; correct the image folder in DATASETS.COCO_FORMAT"
        )
    trainable = [a for a in content.get("annotations", ()) if not a.get("iscrowd", 0)]
    return CocoSummary(
        classes=[category["name"] for category in sorted(content["categories"], key=lambda category: category["id"])],
        trainable=len(trainable),
        rle=next((a["id"] for a in trainable if isinstance(a.get("segmentation"), dict)), None),
        maskless=next((a["id"] for a in trainable if not a.get("segmentation")), None),
    )
