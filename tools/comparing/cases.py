"""What there is to refine: the pairs of a refinement data set, or the instances of COCO files."""

import functools
import zlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from airm.data.coarse_masks import KINDS, make_coarse_mask
from airm.data.dataset_mapper import RefinementDatasetMapper
from airm.figures.model import load_dicts
from airm.instances.evaluation import average_precision, match_objects
from airm.instances.work import Work
from pixelmask.drawing import fit, resize
from pixelmask.errors import UserError
from pixelmask.images import read_picture
from pixelmask.rle import Rle, decode, to_rle
from reporting.page import spread

GIVEN = "given"  # the kind of coarse masks that come with a data set or with results


@dataclass(frozen=True)
class Case:
    """An object in an image."""

    id: str
    pixels: np.ndarray
    """(H, W, 3) uint8 RGB."""
    truth: np.ndarray | None
    """(H, W) boolean; None for a result that is no true object's."""
    given: np.ndarray | None = None
    """(H, W) boolean; the coarse mask, where there is one."""

    def coarse_mask(self, kind: str, seed: int) -> np.ndarray:
        """Return the (H, W) boolean coarse mask of a kind; it depends on kind, seed and the id alone."""
        if kind == GIVEN:
            assert self.given is not None, "CaseSet.choose_kinds lets no other sets through"
            return self.given
        assert self.truth is not None, "CaseSet.choose_kinds lets no results through"
        return make_coarse_mask(self.truth, kind, np.random.default_rng([seed, zlib.crc32(self.id.encode())]))


class CaseSet(ABC):
    """Cases, which are read one by one."""

    name: str
    number: int
    kinds: tuple[str, ...]
    """Of the coarse masks that there can be."""
    in_crops = False

    @abstractmethod
    def read(self, index: int) -> Case:
        """Read a case; raise UserError if a file cannot be used."""

    def average_precision(self, masks: Sequence[Rle | None]) -> dict[str, float]:
        """Return "AP" and "Boundary AP" of a mask of each case, None for what could not be read; {} without classes."""
        return {}

    def choose_kinds(self, wanted: Sequence[str] | None) -> Sequence[str]:
        """Return the wanted kinds, or all; raise UserError for one that cannot be made."""
        for kind in wanted or ():
            if kind not in self.kinds:
                raise UserError(f"--kinds {kind}: {self.name} has {', '.join(self.kinds)}")
        return wanted or self.kinds


class Pairs(CaseSet):
    """Pairs of image and truth, perhaps with coarse masks."""

    def __init__(self, argument: str, limit: int | None = None, max_size: int | None = None):
        """
        Args:
            argument: see :func:`~airm.figures.model.load_dicts`.
            limit: number of pairs, spread evenly over the set.
            max_size: longer side in pixels to which larger images are shrunk, with their masks.

        Raises:
            UserError: if there is no such set.
        """
        dicts = load_dicts(argument)
        self.name, self.dicts, self.max_size = argument, spread(dicts, limit or len(dicts)), max_size
        self.number = len(self.dicts)
        self.kinds = ((GIVEN,) if all("coarse_file_name" in entry for entry in self.dicts) else ()) + KINDS
        self.mapper = RefinementDatasetMapper(is_train=False)

    def read(self, index: int) -> Case:
        sample = self.mapper(self.dicts[index])
        image = sample["image"].permute(1, 2, 0).numpy()
        size, _ = fit(image, self.max_size or max(image.shape), max_scale=1.0)
        # Without coarse masks the mapper makes some
        keys = ("mask", "coarse_mask") if GIVEN in self.kinds else ("mask",)
        masks = [np.ascontiguousarray(resize(sample[key][0].numpy() >= 0.5, size)) for key in keys]
        return Case(sample["image_id"], np.ascontiguousarray(resize(image, size)), *masks)


class Instances(CaseSet):
    """The objects of COCO annotations, crowd regions left out, or the results of a model; each is one case.

    A result is of the object of its image and class that it overlaps by an IoU of at least 0.5, the best score first.
    """

    in_crops = True

    def __init__(self, annotations: str, images: Sequence[str], results: str | None, limit: int | None = None):
        """
        Args:
            annotations: COCO JSON with masks.
            images: files, folders and patterns.
            results: COCO results in JSON; None for the annotations themselves.
            limit: number of images, spread evenly over those that are found.

        Raises:
            UserError: if a file cannot be used.
        """
        if results and Path(results).is_dir():
            raise UserError(f"--results {results} is a folder; give COCO results, a JSON file")
        work = Work.of(images, results, annotations)
        assert work.truth is not None
        if not work.truth.content.get("annotations"):
            raise UserError(f"{annotations} has no annotations to compare with")
        self.name, self.truth = results or annotations, work.truth
        self.kinds = (GIVEN,) if results else KINDS
        found = spread(work.images, limit or len(work.images))
        self.files = {str(image.id): image for image in found}
        # Results are of the whole set, as tools/refine_instances.py has it
        self.image_ids = None if results and not limit else [image.id for image in found]
        listed = work.truth.content["annotations"] if work.results is None else work.results
        self.results: list[dict[str, Any]] = []
        for entry in listed:
            if str(entry["image_id"]) in self.files and not entry.get("iscrowd", 0):
                self.results.append({"score": 1.0, **entry, "segmentation": self._mask(entry)})
        self.number = len(self.results)
        self.objects = dict(match_objects(self.truth, self.results)) if results else None
        self._read_picture = functools.lru_cache(1)(read_picture)

    def _mask(self, entry: dict[str, Any]) -> Rle:
        image = self.truth.images[str(entry["image_id"])]
        try:
            return to_rle(entry["segmentation"], image["height"], image["width"])
        except ValueError as e:
            raise UserError(f"{self.name}: a mask of image {entry['image_id']} {e}") from None

    def read(self, index: int) -> Case:
        entry = self.results[index]
        file = self.files[str(entry["image_id"])]
        if file.path is None:
            raise UserError(f"{file.name}: no such file among --images, or several")
        pixels, mask = self._read_picture(file.path), decode(entry["segmentation"])
        if mask.shape != pixels.shape[:2]:
            raise UserError(f"{file.path} has not the size that {self.truth.path} says")
        name = f"{entry['image_id']}/{entry.get('id', index)}"
        if self.objects is None:
            return Case(name, pixels, mask)
        return Case(name, pixels, decode(self.objects[index]) if index in self.objects else None, mask)

    def average_precision(self, masks: Sequence[Rle | None]) -> dict[str, float]:
        pairs = zip(self.results, masks, strict=True)
        results = [{**result, "segmentation": mask} for result, mask in pairs if mask is not None]
        found = average_precision(self.truth, results, self.image_ids)
        return {"AP": found["segm"]["AP"], "Boundary AP": found["boundary"]["AP"]}
