"""What a refinement of instances is about, from what a user names: images, masks, and ground truth.

Images are found by the ids of COCO files. An id is any number or string; those of results and annotations are compared
as text, because some tools write numbers as strings.
"""

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from pixelmask.data.coco_file import CocoFile, read_coco, read_results
from pixelmask.errors import UserError
from pixelmask.files import find_images
from pixelmask.images import read_mask
from pixelmask.rle import encode

from ..data.pairs import COARSE, IMAGE


class InstanceImage(NamedTuple):
    """An image and where it is; None if it was not found."""

    id: Any
    name: str
    path: Path | None
    numbered: bool = False
    """Whether the id says no more than the place in the list."""


def find_instance_images(inputs: Sequence[str]) -> list[Path]:
    """Return the image files of :func:`~pixelmask.files.find_images`; those of a folder of BIG's layout are NAME_im.

    Raises:
        UserError: for an input that stands for no file.
    """
    found: dict[Path, None] = {}
    for text in inputs:
        files = find_images([text])
        of_big = [path for path in files if path.stem.endswith(IMAGE)] if Path(text).is_dir() else []
        found.update(dict.fromkeys(of_big or files))
    return list(found)


def images_of_annotations(annotations: dict[str, Any], files: Sequence[Path]) -> list[InstanceImage]:
    """Find the file of each image of a COCO file: its ``file_name`` is the end of the path, or names a file itself."""
    by_name: dict[str, list[Path]] = {}
    for path in files:
        by_name.setdefault(path.name, []).append(path)
    images = []
    for image in annotations["images"]:
        name = Path(str(image["file_name"]))
        candidates = by_name.get(name.name, [])
        candidates = [p for p in candidates if p.parts[-len(name.parts) :] == name.parts] or candidates
        if len(candidates) != 1:
            candidates = [name] if name.is_file() else []
        images.append(InstanceImage(image["id"], str(name), next(iter(candidates), None)))
    return images


def images_of_results(results: Iterable[dict[str, Any]], files: Sequence[Path]) -> list[InstanceImage]:
    """Find the file of each image id of results by name: the id, or digits at its end that are the id as a number."""
    by_stem: dict[str, list[Path]] = {}
    by_number: dict[str, list[Path]] = {}
    for path in files:
        by_stem.setdefault(path.stem, []).append(path)
        digits = re.search(r"\d+$", path.stem)
        if digits:
            by_number.setdefault(str(int(digits[0])), []).append(path)
    images = []
    for image_id in {str(result["image_id"]): result["image_id"] for result in results}.values():
        candidates = by_stem.get(str(image_id)) or by_number.get(str(image_id)) or []
        images.append(InstanceImage(image_id, f"image {image_id}", candidates[0] if len(candidates) == 1 else None))
    return images


def number_images(files: Sequence[Path]) -> list[InstanceImage]:
    """Give files without annotations the numbers that they are called, as in COCO, or else the ids 1, 2, ..."""
    if all(path.stem.isdecimal() for path in files) and len({int(path.stem) for path in files}) == len(files):
        return [InstanceImage(int(path.stem), str(path), path) for path in files]
    return [InstanceImage(number, str(path), path, numbered=True) for number, path in enumerate(files, start=1)]


def read_png_folder(
    folder: str | Path, images: Sequence[InstanceImage], category_id: int, broken: dict[str, str] | None = None
) -> list[dict[str, Any]]:
    """Read the masks that a folder has of images, one PNG each, as COCO results with a score of 1.

    The masks of the image x.jpg with the id 7 are all PNG files of the sub-folder x or 7, or x.png, x_1.png, x_2.png
    and so on, of an image x_im.jpg also x_seg.png; the result's "mask_file" is the path within the folder. Foreground
    is as :func:`~pixelmask.images.read_mask` has it.

    Args:
        folder: of the masks.
        images: those without masks are left out.
        category_id: of the results.
        broken: gets a sentence for each image, by its id as text, that has a mask that cannot be read; without it the
            first one is an error.

    Raises:
        UserError: if there is no such folder, no mask of these images, one that may be of several of them, or one that
            cannot be read.
    """
    root = Path(folder)
    stems = {image: (image.path or Path(image.name)).stem.removesuffix(IMAGE) for image in images}
    beside: dict[str, list[Path]] = {}
    for path in root.glob("*.png"):
        stem = path.stem if path.stem in stems.values() else re.sub(rf"(_\d+|{COARSE})$", "", path.stem)
        beside.setdefault(stem, []).append(path)
    results = []
    for image, stem in stems.items():
        folders = {stem} if image.numbered else {stem, str(image.id)}
        inside = [path for name in folders for path in (root / name).glob("*.png")]
        own = sorted(inside + beside.get(stem, []), key=_natural)
        if own and list(stems.values()).count(stem) > 1:
            names = ", ".join(image.name for image, other in stems.items() if other == stem)
            raise UserError(f"{own[0]} may be of several images ({names}); give these one by one, or other names")
        for path in own:
            try:
                entry = {"image_id": image.id, "category_id": category_id, "segmentation": encode(read_mask(path))}
            except UserError as e:
                if broken is None:
                    raise
                broken.setdefault(str(image.id), str(e))
            else:
                results.append({**entry, "score": 1.0, "mask_file": path.relative_to(root).as_posix()})
    if not results:
        if broken:
            raise UserError("\n".join(broken.values()))
        raise UserError(
            f"{folder} has no PNG masks of the {len(images)} images: those of x.jpg are x.png, x_1.png, x_2.png, ... "
            "or the PNG files of a sub-folder x, or of one named by the image's id"
        )
    return results


def _natural(path: Path) -> list[Any]:
    """Sort numbers by value: x_2 before x_10."""
    return [(part.zfill(20) if part.isdigit() else part) for part in re.split(r"(\d+)", path.as_posix())]


def read_truth(path: str) -> CocoFile:
    """Read a COCO file of images, perhaps with annotations; these have masks then, and results can be compared with it.

    Raises:
        UserError: if it is missing or no JSON, or naming its first fault.
    """
    return CocoFile(path, read_coco(path, required=["images"], integer_ids=False, boxes=False, masks=True))


class Work(NamedTuple):
    """What there is to do: images, the masks of all of them unless a detector finds them, and ground truth."""

    images: list[InstanceImage]
    results: list[dict[str, Any]] | None
    truth: CocoFile | None
    from_json: bool
    """Whether the results are a JSON file; an image without results is then not to be read."""
    broken: dict[str, str]
    """By id as text, why the masks of an image cannot be read."""

    @classmethod
    def of(cls, inputs: Sequence[str], masks: str | None, annotations: str | None) -> "Work":
        """
        Args:
            inputs: images, folders of them, or glob patterns.
            masks: COCO results or a folder of PNG masks, see :func:`read_png_folder`; None for none.
            annotations: COCO JSON of the images, with ground truth or without; None for none.

        Raises:
            UserError: if a file cannot be used, or they do not fit together.
        """
        truth = read_truth(annotations) if annotations else None
        files = find_instance_images(inputs)
        if masks and not Path(masks).is_dir():
            results = read_results(masks, truth)
            if truth is None:
                return cls(images_of_results(results, files), results, None, True, {})
            present = {str(result["image_id"]) for result in results}
            images = images_of_annotations(truth.content, files)
            return cls([image for image in images if str(image.id) in present], results, truth, True, {})
        if masks:  # masks may lie beside their images
            files = [p for p in files if p.suffix.lower() != ".png" or Path(masks) not in p.parents] or files
        images = number_images(files)
        if truth is not None:
            images = [image for image in images_of_annotations(truth.content, files) if image.path]
            if not images:
                raise UserError(f"none of the {len(files)} files of --images is an image of {annotations}")
        if not masks:
            return cls(images, None, truth, False, {})
        categories = truth.category_ids if truth else []
        category_id = categories[0] if len(categories) == 1 else 1
        broken: dict[str, str] = {}
        return cls(images, read_png_folder(masks, images, category_id, broken), truth, False, broken)


def in_order(results: Iterable[dict[str, Any]], done: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """Put the refined results of each image at the places of its results; those of other images stay as they are.

    Args:
        results: of all images, in any order.
        done: by image id as text, lines whose "refined" are as many results in the same order.
    """
    queues = {image_id: iter(entry["refined"]) for image_id, entry in done.items()}
    return [next(queues.get(str(result["image_id"]), iter([result]))) for result in results]
