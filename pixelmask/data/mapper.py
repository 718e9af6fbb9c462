"""Detectron2's mapper from data set dicts to model input: readable errors about images, and masks that are shared."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from detectron2.data import DatasetMapper
from detectron2.data.detection_utils import read_image
from detectron2.structures import BitMasks

from ..errors import UserError
from .bitmasks import SharedBitMasks


class ImageError(UserError):
    """An image file that is missing, unreadable, truncated, too narrow or of another size than its annotations say."""


class OwnRandomNumbers:
    """A place in the random numbers of numpy's global generator, from which Detectron2 augments, that is its owner's.

    Where images are loaded by the training process itself, evaluation and pictures draw from that generator too. What
    they draw changes nothing of what the owner draws. In each process it starts where the global generator then is,
    which Detectron2 has seeded.
    """

    def __init__(self) -> None:
        self._states: dict[int, Any] = {}  # by process: workers have copies of this

    @contextmanager
    def drawn(self) -> Iterator[None]:
        """Let the global generator go on from the owner's place, and afterwards from where it was."""
        others = np.random.get_state()
        np.random.set_state(self._states.get(os.getpid(), others))
        try:
            yield
        finally:
            self._states[os.getpid()] = np.random.get_state()
            np.random.set_state(others)


class CheckedDatasetMapper(DatasetMapper):
    """:class:`DatasetMapper` with random numbers of its own, and an :class:`ImageError` where an image cannot be used.

    Bitmasks become :class:`~pixelmask.data.bitmasks.SharedBitMasks`. An image costs nothing more to read; a failed one
    is read again to tell whether the image was the cause. Pillow must be left to refuse truncated files
    (``ImageFile.LOAD_TRUNCATED_IMAGES`` False, as it comes).
    """

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self._random = OwnRandomNumbers()

    def __call__(self, dataset_dict: dict[str, Any]) -> dict[str, Any]:
        try:
            with self._random.drawn():
                sample = super().__call__(dataset_dict)
        except Exception as e:
            check_image(dataset_dict, self.image_format)
            if not isinstance(e, ValueError):
                raise
            name = dataset_dict["file_name"]  # so narrow that resizing leaves nothing of it, for one
            raise ImageError(f"image {name} cannot be used: {e}; take it out of its data set") from None
        instances = sample.get("instances")
        if instances is not None and isinstance(masks := instances.get_fields().get("gt_masks"), BitMasks):
            instances.gt_masks = SharedBitMasks(masks.tensor)
        return sample


def check_image(dataset_dict: dict[str, Any], image_format: str) -> None:
    """Read an image of a data set in Detectron2's format.

    Raises:
        ImageError: if it cannot be read whole, or its size is not the dict's "width" and "height".
    """
    file_name = dataset_dict["file_name"]
    try:
        height, width = read_image(file_name, format=image_format).shape[:2]
    except FileNotFoundError:
        raise ImageError(f"no image {file_name}; check the image folder of its data set") from None
    except Exception as e:  # whatever a damaged file makes Pillow stumble over
        raise ImageError(f"cannot read image {file_name}: {e}; restore it, or take it out of its data set") from None
    expected = dataset_dict.get("width", width), dataset_dict.get("height", height)
    if (width, height) != expected:
        raise ImageError(
            f"image {file_name} is {width} x {height} pixels, but its annotations say {expected[0]} x {expected[1]}; "
            "is it the image that was annotated?"
        )
