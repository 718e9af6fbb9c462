"""What a refinement of instances is about, from what a user names: images, masks, and ground truth."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from pixelmask.errors import UserError

from .evaluation import Truth, check_results, check_truth
from .files import (
    InstanceImage,
    find_images,
    images_of_annotations,
    images_of_results,
    number_images,
    read_annotations,
    read_png_folder,
    read_results,
)


class Work(NamedTuple):
    """What there is to do: images, the masks of all of them unless a detector finds them, and ground truth."""

    images: list[InstanceImage]
    results: list[dict[str, Any]] | None
    truth: Truth | None
    from_json: bool
    """Whether the results are a JSON file; an image without results is then not to be read."""

    @classmethod
    def of(cls, inputs: Sequence[str], masks: str | None, annotations: str | None) -> "Work":
        """
        Args:
            inputs: images, folders of them, or glob patterns.
            masks: COCO results or a folder of PNG masks, see :func:`~.instance_files.read_png_folder`; None for none.
            annotations: COCO JSON of the images, with ground truth or without; None for none.

        Raises:
            UserError: if a file cannot be used, or they do not fit together.
        """
        truth = Truth(annotations, read_annotations(annotations)) if annotations else None
        if truth is not None:
            check_truth(truth)
        files = find_images(inputs)
        if masks and not Path(masks).is_dir():
            results = read_results(masks)
            if truth is None:
                return cls(images_of_results(results, files), results, None, True)
            check_results(results, truth)
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
