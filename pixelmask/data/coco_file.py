"""COCO annotation files and COCO results, checked: the first fault is said in a sentence, before anything is computed.

Each reader says what it cannot do without; what others write beyond that is no fault.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from ..errors import UserError
from ..files import read_json
from ..rle import check_mask, to_rle


@dataclass(frozen=True)
class CocoFile:
    """An annotation file and what it holds."""

    path: str
    content: dict[str, Any]

    @cached_property
    def images(self) -> dict[str, dict[str, Any]]:
        """By their ids as text: some tools write numbers as strings."""
        return {str(image["id"]): image for image in self.content["images"]}

    @cached_property
    def category_ids(self) -> list[Any]:
        return sorted(category["id"] for category in self.content.get("categories", ()))


def find_faults(
    content: Any,
    required: Sequence[str] = ("images", "categories"),
    integer_ids: bool = True,
    file_names: bool = True,
    boxes: bool = True,
    masks: bool = False,
) -> Iterator[str]:
    """Describe the faults of a parsed annotation file, one after the other; later ones rely on the earlier.

    Args:
        content: what the file holds.
        required: lists that cannot be missing, nor, but for "annotations", be empty. Annotations want categories.
        integer_ids: whether ids are integers, each once in its list, as Detectron2 and the evaluations want them; else
            they are numbers or strings, and only images need ids of their own.
        file_names: whether images have a file_name.
        boxes: whether annotations have a bbox, and nothing else that Detectron2 stumbles over.
        masks: whether annotations have a mask; it is read to the last run then. Else only its form is checked.
    """
    if not isinstance(content, dict):
        yield f"it holds a {type(content).__name__} (perhaps it has results?), not images, annotations and categories"
        return
    lists = ("images", "categories", "annotations")
    for key in (*required, *(["categories"] if "annotations" in content else [])):
        if key not in content:
            yield f"it has no {key!r}"
    for key in (key for key in lists if key in content):
        if not isinstance(content[key], list) or not all(isinstance(entry, dict) for entry in content[key]):
            yield f"its {key!r} are not a list of objects"
        elif not content[key] and key in required and key != "annotations":
            yield f"its list of {key!r} is empty"
        else:
            yield from _id_faults(key, [entry.get("id") for entry in content[key]], integer_ids)
    for image in content["images"]:
        if file_names and not isinstance(image.get("file_name"), str):
            yield f"image {image['id']} has no file_name"
        if not all(isinstance(image.get(side), (int, float)) and image[side] > 0 for side in ("height", "width")):
            yield f"image {image['id']} has no height and width in pixels"
    for category in content.get("categories", ()):
        if not isinstance(category.get("name"), str):
            yield f"category {category['id']} has no name"
    sizes = {image["id"]: (image["height"], image["width"]) for image in content["images"]}
    categories = {category["id"] for category in content.get("categories", ())}
    for annotation in content.get("annotations", ()):
        for fault in _annotation_faults(annotation, sizes, categories, boxes, masks):
            yield f"annotation {annotation['id']} {fault}"


def _id_faults(key: str, ids: Sequence[Any], integer_ids: bool) -> Iterator[str]:
    kinds, wanted = (int, "an integer") if integer_ids else ((int, float, str), "a number or string")
    seen = set()
    for number in ids:
        if not isinstance(number, kinds):
            yield f"an id of its {key!r} is {number!r}, not {wanted}"
        elif str(number) in seen and (integer_ids or key == "images"):
            yield f"the id {number} comes twice in its {key!r}"
        seen.add(str(number))


def _annotation_faults(
    annotation: dict[str, Any], sizes: dict[Any, tuple[int, int]], categories: set[Any], boxes: bool, masks: bool
) -> Iterator[str]:
    for key, known in (("image_id", sizes), ("category_id", categories)):
        if annotation.get(key) not in known:
            yield f"has the {key} {annotation.get(key)!r}, which is no {'image' if known is sizes else 'category'}'s"
    if boxes and annotation.get("ignore", 0):
        yield "is marked 'ignore', which Detectron2 does not support; 'iscrowd' is ignored in evaluation"
    box = annotation.get("bbox")
    if boxes and not is_box(box):
        yield f"has the bbox {box}, not four numbers: left, top, width, height"
    if masks and not annotation.get("segmentation"):
        yield "has no mask; take out all annotations if the file is to name images only"
    try:
        (to_rle if masks else check_mask)(annotation.get("segmentation", []), *sizes[annotation["image_id"]])
    except ValueError as e:
        yield str(e)


def is_box(box: Any) -> bool:
    """Tell whether something is a list of four finite numbers."""
    try:
        return isinstance(box, list) and len(box) == 4 and math.isfinite(sum(box))
    except TypeError:
        return False


def read_coco(path: str | Path, **wanted: Any) -> dict[str, Any]:
    """Read an annotation file; ``wanted`` are arguments of :func:`find_faults`.

    Raises:
        UserError: if it is missing or no JSON, or naming its first fault.
    """
    content = read_json(path)
    fault = next(find_faults(content, **wanted), None)
    if fault:
        raise UserError(f"{path} is not a COCO annotation file: {fault}")
    return content


def read_results(path: str | Path, truth: CocoFile | None = None, boxes: bool = False) -> list[dict[str, Any]]:
    """Read COCO results: a list of objects with "image_id", "segmentation", and mostly "score".

    Args:
        path: of the file.
        truth: that the results are of, see :func:`check_results`.
        boxes: whether results may have "bbox" without a mask.

    Raises:
        UserError: if the file is missing or damaged, or holds something else.
    """
    content = read_json(path)
    if not isinstance(content, list):
        keys = isinstance(content, dict) and "annotations" in content
        hint = '. It seems to be an annotation file, whose "annotations" are such a list' if keys else ""
        raise UserError(f"{path} does not hold COCO results, a list of objects, but a {type(content).__name__}{hint}")
    for i, result in enumerate(content):
        if not isinstance(result, dict) or "image_id" not in result:
            raise UserError(f'{path} does not hold COCO results: result {i} is no object with an "image_id"')
        if "segmentation" not in result and not (boxes and "bbox" in result):
            raise UserError(f'{path}: result {i} has no "segmentation"{"" if boxes else "; a box alone is no mask"}')
        if "bbox" in result and boxes and not is_box(result["bbox"]):
            raise UserError(f"{path}: result {i} has the bbox {result['bbox']}, which is not four numbers")
        score = result.get("score", 1)
        if not isinstance(score, (int, float)) or score != score:  # NaN has no place in the order of scores
            raise UserError(f"{path}: result {i} has the score {score!r}, which is no number")
    if truth is not None:
        check_results(content, truth, str(path))
    return content


def check_results(results: Sequence[dict[str, Any]], truth: CocoFile, name: str) -> None:
    """Check that results are of the images of an annotation file; if that has annotations, that AP can be computed.

    Raises:
        UserError: for the first result that does not fit; ``name`` says whose results they are.
    """
    images, categories = truth.images, dict.fromkeys(truth.category_ids)
    for i, result in enumerate(results):
        if str(result["image_id"]) not in images:
            raise UserError(
                f"{name}: result {i} has the image_id {result['image_id']!r}, which is none of the {len(images)} "
                f"images of {truth.path}; is it of another data set?"
            )
        if "annotations" not in truth.content:
            continue
        if "score" not in result:
            raise UserError(f"{name}: result {i} has no score, without which AP is not defined")
        if result.get("category_id") not in categories:
            raise UserError(
                f"{name}: result {i} has the category_id {result.get('category_id')!r}; {truth.path} has the "
                f"categories {', '.join(map(str, categories))}. Results have their ids, not indices of classes"
            )
