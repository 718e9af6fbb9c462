"""COCO annotation files and COCO results, checked: the first fault is said in a sentence, before anything is computed.

Each reader says what it cannot do without; what others write beyond that is no fault.
"""

import functools
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from msgspec import UNSET, Meta, Struct, UnsetType, defstruct

from ..errors import UserError
from ..files import read_json
from ..images import MOST_PIXELS
from ..rle import Length, check_mask, to_rle
from ..schema import Id, Int64, Number, find_fault

_Name = Annotated[str, Meta(min_length=1, max_length=4096, pattern=r"^[^\0]*$")]
_Box = Annotated[list[Number], Meta(min_length=4, max_length=4)]
_WANTED = {
    **dict.fromkeys(("images", "categories", "annotations"), "a list of objects, of at least one image and category"),
    **dict.fromkeys(("height", "width"), "a whole number of pixels"),
    "bbox": "four numbers: left, top, width, height",
    "file_name": "the path of a file",
    "iscrowd": "0 or 1",
}


def in_order(number: Any) -> tuple[bool, Any]:
    """Sort ids: numbers, and then texts."""
    return isinstance(number, str), number


@dataclass(frozen=True)
class CocoFile:
    """An annotation file and what it holds."""

    path: str
    content: dict[str, Any]

    @functools.cached_property
    def images(self) -> dict[str, dict[str, Any]]:
        """By their ids as text: some tools write numbers as strings."""
        return {str(image["id"]): image for image in self.content["images"]}

    @functools.cached_property
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
    required = (*required, *(["categories"] if "annotations" in content else []))
    yield from (f"it has no {key!r}" for key in required if key not in content)
    fault = find_fault(content, _schema(frozenset(required), integer_ids, file_names, boxes), _WANTED)
    if fault:
        yield fault
        return
    for key in ("images", "categories", "annotations"):
        if integer_ids or key == "images":
            yield from (
                f"the id {number} comes twice in its {key!r}" for number in _repeated(content.get(key, ()), "id")
            )
    for name in _repeated(content.get("categories", ()), "name"):
        yield f"two of its 'categories' have the name {name!r}; give each its own, or merge them"
    if len({isinstance(category["id"], str) for category in content.get("categories", ())}) > 1:
        yield "its 'categories' have numbers and texts as ids; make all of them numbers"
    sizes = {image["id"]: (image["height"], image["width"]) for image in content["images"]}
    for number, (height, width) in sizes.items():
        if height * width > MOST_PIXELS:
            yield f"image {number} has {height} x {width} pixels, more than the {MOST_PIXELS:,} that are read"
    categories = {category["id"] for category in content.get("categories", ())}
    for annotation in content.get("annotations", ()):
        for fault in _annotation_faults(annotation, sizes, categories, boxes, masks):
            yield f"annotation {annotation['id']} {fault}"


@functools.cache
def _schema(required: frozenset[str], integer_ids: bool, file_names: bool, boxes: bool) -> type[Struct]:
    """Return what an annotation file is to hold, see :func:`find_faults`; every field that anybody reads is in it."""
    number = Int64 if integer_ids else Id
    image = defstruct(
        "Image",
        [("id", number), ("height", Length), ("width", Length), *([("file_name", _Name)] if file_names else [])],
    )
    category = defstruct("Category", [("id", number), ("name", str)])
    fields: list[Any] = [("id", number), ("image_id", number), ("category_id", number)]
    fields += [("bbox", _Box)] if boxes else []
    fields += [("area", Number | UnsetType, UNSET), ("iscrowd", int | bool | UnsetType, UNSET)]
    fields += [("keypoints", list[Number] | None, None)]
    annotation = defstruct("Annotation", fields)
    lists: dict[str, Any] = {"images": image, "categories": category, "annotations": annotation}
    keys = []
    for key, entry in lists.items():
        several: Any = Annotated[list[entry], Meta(min_length=int(key in required and key != "annotations"))]  # type: ignore[valid-type]
        keys.append((key, several) if key in required else (key, several | UnsetType, UNSET))
    return defstruct("CocoFile", keys, kw_only=True)


def _repeated(entries: Sequence[dict[str, Any]], key: str) -> Iterator[Any]:
    counts = Counter(str(entry[key]) for entry in entries)
    return (value for value, number in counts.items() if number > 1)


def _annotation_faults(
    annotation: dict[str, Any], sizes: dict[Any, tuple[int, int]], categories: set[Any], boxes: bool, masks: bool
) -> Iterator[str]:
    for key, known in (("image_id", sizes), ("category_id", categories)):
        if annotation[key] not in known:
            yield f"has the {key} {annotation[key]!r}, which is no {'image' if known is sizes else 'category'}'s"
    if boxes and annotation.get("ignore", 0):
        yield "is marked 'ignore', which Detectron2 does not support; 'iscrowd' is ignored in evaluation"
    segmentation = annotation.get("segmentation", [])
    if masks and not segmentation:
        yield "has no mask; take out all annotations if the file is to name images only"
    try:  # polygons that are well formed have a mask
        (to_rle if masks or isinstance(segmentation, dict) else check_mask)(
            segmentation, *sizes[annotation["image_id"]]
        )
    except ValueError as e:
        yield str(e)


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


class _Result(Struct):
    image_id: Id
    segmentation: Any = UNSET  # what is wrong with one is said where it is read, and the others are used
    category_id: Id | UnsetType = UNSET
    bbox: _Box | UnsetType = UNSET
    score: Number | UnsetType = UNSET
    iscrowd: int | bool | UnsetType = UNSET


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
    fault = find_fault(content, list[_Result], _WANTED, "result")
    if fault:
        raise UserError(f"{path} does not hold COCO results: {fault}")
    for i, result in enumerate(content):
        if "segmentation" not in result and not (boxes and "bbox" in result):
            raise UserError(f'{path}: result {i} has no "segmentation"{"" if boxes else "; a box alone is no mask"}')
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
