"""LVIS annotation files, the cocofied ones made from them, and what can be wrong with either.

A cocofied file has an LVIS file's annotations of COCO's 80 categories, under COCO's category ids. It stays an LVIS
file: each image tells which categories are verified to be absent (neg_category_ids), and of which not every instance is
annotated (not_exhaustive_category_ids).
"""

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pixelmask.data.coco_file import find_faults
from pixelmask.data.roots import datasets_root
from pixelmask.errors import UserError
from pixelmask.files import read_json

from .lvis_categories import COCO_ID_OF_NAME, COCO_NAME_OF_SYNSET

VERSIONS = ("v0.5", "v1")
#: How cocofied files are made
COMMAND = "python datasets/prepare_lvis_cocofied.py"
_LISTS_OF_IMAGE = ("neg_category_ids", "not_exhaustive_category_ids")
_FREQUENCIES = ("r", "c", "f")


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
    ids = {category["id"] for category in content["categories"]}
    for image in content["images"]:
        for key in _LISTS_OF_IMAGE:
            listed = image.get(key)
            if not isinstance(listed, list):
                yield f"image {image['id']} has no list of {key}, which COCO's own files do not have either"
            elif not ids.issuperset(listed):
                yield f"image {image['id']} has {key} that are no category's"
    for category in content["categories"]:
        if category.get("frequency") not in _FREQUENCIES or not isinstance(category.get("synset"), str):
            yield f"category {category['id']} has no synset, or no frequency of {', '.join(_FREQUENCIES)}"
    for annotation in content["annotations"]:
        if not annotation.get("segmentation") or not isinstance(annotation.get("area"), (int, float)):
            yield f"annotation {annotation['id']} has no mask, or no area"
