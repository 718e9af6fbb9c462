"""Files of data sets that are drawn on first use: folders that are there whole or not at all, and their images."""

import logging
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
from iopath.common.file_io import file_lock

from ..errors import UserError

_JPEG = [cv2.IMWRITE_JPEG_QUALITY, 92, cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444]

logger = logging.getLogger(__name__)


def datasets_root() -> Path:
    """Return the folder of all data sets: `$DETECTRON2_DATASETS`, read at each call; ./datasets where it is not set."""
    return Path(os.environ.get("DETECTRON2_DATASETS", "datasets")).expanduser()


def make_folder(folder: Path, write: Callable[[Path], None]) -> None:
    """Have ``write`` fill a new folder, unless it exists.

    Processes that ask at once wait for the one that writes. It writes into a temporary folder that gets its name when
    all is there, so that an interrupted run leaves nothing that could be taken for a data set.
    """
    with file_lock(str(folder)):
        if not folder.exists():
            partial = folder.with_name(folder.name + ".partial")
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(parents=True)
            write(partial)
            partial.rename(folder)
            logger.info("drawn: %s", folder)


class DrawnSet(NamedTuple):
    """A data set that is drawn on first use, as registered: calling it loads its dicts."""

    name: str
    folder: Path
    load: Callable[[str, Path], list[dict[str, Any]]]

    def __call__(self) -> list[dict[str, Any]]:
        return self.load(self.name, self.folder)


def check_version(folder: Path, collection: str, read_version: Callable[[], Any], wanted: int) -> None:
    """Check that a folder holds data of a collection as the present code draws them.

    ``read_version`` gets the version they were drawn by; it may fail where the folder holds something else.

    Raises:
        UserError: if it fails, or gives another version.
    """
    try:
        version = read_version()
    except (OSError, ValueError, KeyError, TypeError):
        raise UserError(
            f"{folder} is not a data set of {collection}: delete this folder, and it is made anew"
        ) from None
    if version != wanted:
        raise UserError(
            f"{folder} was drawn by version {version} of the drawing code, which is now at version {wanted}: "
            "delete this folder, and it is made anew"
        )


def write_jpeg(path: Path, image: np.ndarray) -> None:
    """Write an (H, W, 3) uint8 RGB image in good quality: edges keep their colours."""
    path.write_bytes(cv2.imencode(".jpg", image[..., ::-1], _JPEG)[1].tobytes())
