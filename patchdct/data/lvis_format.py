"""LVIS annotation files, the cocofied ones made from them, and what can be wrong with either.

A cocofied file has an LVIS file's annotations of COCO's 80 categories, under COCO's category ids. It stays an LVIS
file: each image tells which categories are verified to be absent (neg_category_ids), and of which not every instance is
annotated (not_exhaustive_category_ids).
"""

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from detectron2.data.datasets.builtin_meta import COCO_CATEGORIES
from msgspec import Struct

from pixelmask.data.coco_file import find_faults
from pixelmask.data.roots import datasets_root
from pixelmask.errors import UserError
from pixelmask.files import read_json
from pixelmask.schema import Int64, Number, find_fault

VERSIONS = ("v0.5", "v1")
#: How cocofied files are made
COMMAND = "python datasets/prepare_lvis_cocofied.py"

# Which category of LVIS is which of COCO's 80: the one whose synset stands beside the COCO name here. LVIS calls its
# categories by other names from release to release ("baby", then "person"), but their synsets stay. It is the
# correspondence of LVIS's authors, and what published AP* figures rest on: COCO's class, not all that LVIS would put
# below it (a "minivan" of LVIS is no "car").
# Neither LVIS v0.5 nor v1 has frank.n.02; oven.n.01 came with v1.
COCO_NAME_OF_SYNSET = {
    "person.n.01": "person", "bicycle.n.01": "bicycle", "car.n.01": "car", "motorcycle.n.01": "motorcycle",
    "airplane.n.01": "airplane", "bus.n.01": "bus", "train.n.01": "train", "truck.n.01": "truck", "boat.n.01": "boat",
    "traffic_light.n.01": "traffic light", "fireplug.n.01": "fire hydrant", "stop_sign.n.01": "stop sign",
    "parking_meter.n.01": "parking meter", "bench.n.01": "bench", "bird.n.01": "bird", "cat.n.01": "cat",
    "dog.n.01": "dog", "horse.n.01": "horse", "sheep.n.01": "sheep", "beef.n.01": "cow", "elephant.n.01": "elephant",
    "bear.n.01": "bear", "zebra.n.01": "zebra", "giraffe.n.01": "giraffe", "backpack.n.01": "backpack",
    "umbrella.n.01": "umbrella", "bag.n.04": "handbag", "necktie.n.01": "tie", "bag.n.06": "suitcase",
    "frisbee.n.01": "frisbee", "ski.n.01": "skis", "snowboard.n.01": "snowboard", "ball.n.06": "sports ball",
    "kite.n.03": "kite", "baseball_bat.n.01": "baseball bat", "baseball_glove.n.01": "baseball glove",
    "skateboard.n.01": "skateboard", "surfboard.n.01": "surfboard", "tennis_racket.n.01": "tennis racket",
    "bottle.n.01": "bottle", "wineglass.n.01": "wine glass", "cup.n.01": "cup", "fork.n.01": "fork",
    "knife.n.01": "knife", "spoon.n.01": "spoon", "bowl.n.03": "bowl", "banana.n.02": "banana", "apple.n.01": "apple",
    "sandwich.n.01": "sandwich", "orange.n.01": "orange", "broccoli.n.01": "broccoli", "carrot.n.01": "carrot",
    "frank.n.02": "hot dog", "pizza.n.01": "pizza", "doughnut.n.02": "donut", "cake.n.03": "cake",
    "chair.n.01": "chair", "sofa.n.01": "couch", "pot.n.04": "potted plant", "bed.n.01": "bed",
    "dining_table.n.01": "dining table", "toilet.n.02": "toilet", "television_receiver.n.01": "tv",
    "laptop.n.01": "laptop", "mouse.n.04": "mouse", "remote_control.n.01": "remote",
    "computer_keyboard.n.01": "keyboard", "cellular_telephone.n.01": "cell phone", "microwave.n.02": "microwave",
    "oven.n.01": "oven", "toaster.n.02": "toaster", "sink.n.01": "sink", "electric_refrigerator.n.01": "refrigerator",
    "book.n.01": "book", "clock.n.01": "clock", "vase.n.01": "vase", "scissors.n.01": "scissors",
    "teddy.n.01": "teddy bear", "hand_blower.n.01": "hair drier", "toothbrush.n.01": "toothbrush",
}  # fmt: skip

#: COCO's category id of each of its 80 names
COCO_ID_OF_NAME: dict[str, int] = {
    str(category["name"]): int(str(category["id"])) for category in COCO_CATEGORIES if category["isthing"]
}


def lvis_file(version: str, split: str) -> Path:
    """Return where Detectron2 looks for an LVIS file; ``version`` is one of VERSIONS, ``split`` "train" or "val"."""
    return datasets_root() / "lvis" / f"lvis_{version}_{split}.json"


def cocofied_file(source: Path) -> Path:
    """Return the path of the cocofied form of an LVIS file."""
    return source.with_name(f"{source.stem}_cocofied.json")


def read_lvis(path: Path | str) -> dict[str, Any]:
    """Read an LVIS annotation file of any release.

    Raises:
        UserError: if it is missing or no JSON, or naming the first of its entries that lacks what evaluation needs.
    """
    content = read_json(path)
    faults = find_faults(content, ("images", "categories", "annotations"), file_names=False, boxes=False)
    fault = next(itertools.chain(faults, _find_faults(content)), None)
    if fault:
        raise UserError(f"{path} is not an LVIS annotation file: {fault}")
    return content


def read_cocofied(path: Path | str) -> dict[str, Any]:
    """Read a cocofied file.

    Raises:
        UserError: as :func:`read_lvis` does, and for a category without the id that COCO has for it.
    """
    content = read_lvis(path)
    for category in content["categories"]:
        if category["id"] != COCO_ID_OF_NAME.get(COCO_NAME_OF_SYNSET.get(category["synset"], "")):
            name = category.get("name")
            raise UserError(f"{path} has category {category['id']} ({name}), which is not COCO's; remake it: {COMMAND}")
    return content


def _find_faults(content: dict[str, Any]) -> Iterator[str]:
    """Describe what a COCO file lacks to be one of LVIS."""
    fault = find_fault(content, _Lvis, _WANTED)
    if fault:
        yield fault
    ids = {category["id"] for category in content["categories"]}
    for image in content["images"]:
        for key in _LISTS_OF_IMAGE:
            if not ids.issuperset(image[key]):
                yield f"image {image['id']} has {key} that are no category's"
    for annotation in content["annotations"]:
        if not annotation.get("segmentation"):
            yield f"annotation {annotation['id']} has no mask"


class _Image(Struct):
    neg_category_ids: list[Int64]
    not_exhaustive_category_ids: list[Int64]


class _Category(Struct):
    synset: str
    frequency: Literal["r", "c", "f"]


class _Annotation(Struct):
    area: Number


class _Lvis(Struct):
    images: list[_Image]
    categories: list[_Category]
    annotations: list[_Annotation]


_LISTS_OF_IMAGE = _Image.__struct_fields__
_WANTED = {
    **dict.fromkeys(_LISTS_OF_IMAGE, "a list of categories' ids, which COCO's own files do not have either"),
    "frequency": "one of r, c, f",
}
