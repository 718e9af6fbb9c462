"""What a refinement of instances is about, from what a user names: images, masks, and ground truth."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from pixelmask.data.coco_file import CocoFile, read_coco, read_results
from pixelmask.errors import UserError

from .files import (
    InstanceImage,
    find_instance_images,
    images_of_annotations,
    images_of_results,
    number_images,
    read_png_folder,
)


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

    @classmethod
    def of(cls, inputs: Sequence[str], masks: str | None, annotations: str | None) -> "Work":
        """
        Args:
            inputs: images, folders of them, or glob patterns.
            masks: COCO results or a folder of PNG masks, see :func:`~.files.read_png_folder`; None for none.
            annotations: COCO JSON of the images, with ground truth or without; None for none.

        Raises:
            UserError: if a file cannot be used, or they do not fit together.
        """
        truth = read_truth(annotations) if annotations else None
        files = find_instance_images(inputs)
        if masks and not Path(masks).is_dir():
            results = read_results(masks, truth)
            if truth is None:
                return cls(images_of_results(results, files), results, None, True)
            present = {str(result["image_id"]) for result in results}
            images = images_of_annotations(truth.content, files)
            return cls([image for image in images if str(image.id) in present], results, truth, True)
        if masks:  # masks may lie beside their images
            files = [p for p in files if p.suffix.lower() != ".png" or Path(masks) not in p.parents] or files
        images = number_images(files)
        if truth is not None:
            images = [image for image in images_of_annotations(truth.content, files) if image.path]
            if not images:
                raise UserError(f"none of the {len(files)} files of --images is an image of {annotations}")
        if not masks:
            return cls(images, None, truth, False)
        categories = truth.category_ids if truth else []
        category_id = categories[0] if len(categories) == 1 else 1
        return cls(images, read_png_folder(masks, images, category_id), truth, False)
