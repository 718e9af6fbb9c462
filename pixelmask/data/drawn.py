"""Data sets that are drawn on first use: their names, folders that are there whole or not at all, and registration."""

import abc
import logging
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, Generic, NamedTuple, TypeVar

import cv2
import numpy as np
from detectron2.data import DatasetCatalog, MetadataCatalog
from iopath.common.file_io import file_lock
from tqdm import tqdm

from ..errors import UserError
from .roots import datasets_root

SEEDS = {"train": 1, "val": 2}
"""Of the sequence of images that each split has the first of."""

_JPEG = [cv2.IMWRITE_JPEG_QUALITY, 92, cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444]

logger = logging.getLogger(__name__)

Spec = TypeVar("Spec")


class DrawnSet(NamedTuple):
    """A data set that is drawn on first use, as registered: calling it loads its dicts."""

    name: str
    folder: Path
    load: Callable[[str, Path], list[dict[str, Any]]]

    def __call__(self) -> list[dict[str, Any]]:
        return self.load(self.name, self.folder)


class DrawnCollection(abc.ABC, Generic[Spec]):
    """All data sets that are drawn by the same code: any name of a pattern is one.

    A subclass sets the attributes and says what a name stands for (a Spec, with the number of ``images``), what is
    drawn into which files, and how Detectron2 gets to know it.
    """

    title: str  # what all names begin with; the folder below `$DETECTRON2_DATASETS`
    pattern: re.Pattern[str]
    usage: str  # describes names, in messages
    version: int  # of the drawing code

    @abc.abstractmethod
    def specify(self, name: str, *groups: str) -> Spec:
        """Return what the groups of the pattern stand for, or raise a UserError."""

    @abc.abstractmethod
    def folder_name(self, spec: Spec) -> str: ...

    @abc.abstractmethod
    def write(self, spec: Spec, index: int, folder: Path) -> Any:
        """Draw one image and write its files."""

    @abc.abstractmethod
    def finish(self, spec: Spec, written: list[Any], folder: Path) -> None:
        """Write what is about all images, given what ``write`` returned of each, and the version."""

    @abc.abstractmethod
    def read_version(self, folder: Path) -> Any:
        """Return what ``finish`` wrote; it may fail where the folder holds something else."""

    @abc.abstractmethod
    def load(self, name: str, folder: Path) -> list[dict[str, Any]]:
        """Make a data set if it is missing, and return its dicts."""

    @abc.abstractmethod
    def metadata(self, folder: Path) -> dict[str, Any]: ...

    def owns(self, name: str) -> bool:
        """Tell whether a name claims to be a data set of these, be it well-formed or not."""
        return name == self.title or name.startswith(self.title + "_")

    def parse(self, name: str) -> Spec:
        """Return what a name stands for, or raise a UserError."""
        match = self.pattern.fullmatch(name)
        if match is None:
            raise UserError(f"'{name}' is no data set: names are {self.usage}")
        return self.specify(name, *match.groups())

    def folder(self, name: str) -> Path:
        """Return where a data set's files belong; `$DETECTRON2_DATASETS` is read at each call."""
        return datasets_root() / self.title / self.folder_name(self.parse(name))

    def make(self, name: str, folder: Path | None = None) -> Path:
        """Return the folder of a data set, drawing it first where it is missing.

        Processes that ask at once wait for the one that draws. It writes into a temporary folder that gets its name
        when all is there, so that an interrupted run leaves nothing that could be taken for a data set.

        Args:
            name: of the data set.
            folder: where the files belong, if not at the place that the name and `$DETECTRON2_DATASETS` imply.

        Raises:
            UserError: the name is malformed, or the folder holds something else or data of another drawing version.
        """
        spec: Any = self.parse(name)
        folder = folder or self.folder(name)
        if not folder.exists():  # else it may be where nothing can be written
            with file_lock(str(folder)):
                self._draw(spec, folder)
        try:
            version = self.read_version(folder)
        except (OSError, UserError, ValueError, KeyError, TypeError):
            raise UserError(
                f"{folder} is not a data set of {self.title}: delete this folder, and it is made anew"
            ) from None
        if version != self.version:
            raise UserError(
                f"{folder} was drawn by version {version} of the drawing code, which is now at version {self.version}: "
                "delete this folder, and it is made anew"
            )
        return folder

    def _draw(self, spec: Any, folder: Path) -> None:
        if folder.exists():  # by now
            return
        partial = folder.with_name(folder.name + ".partial")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        images = tqdm(range(spec.images), f"drawing {self.folder_name(spec)}", unit="image", mininterval=1)
        self.finish(spec, [self.write(spec, index, partial) for index in images], partial)
        partial.rename(folder)
        logger.info("drawn: %s", folder)

    def register(self, name: str) -> None:
        """Register a data set by its name; its files are made when its dicts are first asked for.

        Registering a name again changes nothing.

        Raises:
            UserError: the name is malformed.
        """
        folder = self.folder(name)
        if name not in DatasetCatalog.list():
            DatasetCatalog.register(name, DrawnSet(name, folder, self.load))
            MetadataCatalog.get(name).set(**self.metadata(folder))


def write_jpeg(path: Path, image: np.ndarray) -> None:
    """Write an (H, W, 3) uint8 RGB image in good quality: edges keep their colours."""
    path.write_bytes(cv2.imencode(".jpg", image[..., ::-1], _JPEG)[1].tobytes())
