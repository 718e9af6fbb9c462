"""Detections of several runs on one image, matched to the truth and to each other."""

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from pycocotools import mask as mask_util

from pixelmask.evaluation.boundary import DILATION_RATIO
from pixelmask.evaluation.matching import boundary_overlaps, mask_overlaps
from pixelmask.evaluation.matching import match as match_overlaps

from .gallery import Instance, Picture


def match(detections: Sequence[Instance], objects: Sequence[Instance]) -> list[int | None]:
    """Return for each detection, best score first, the free object of its class with the largest IoU of at least 0.5"""
    classes = [[instance.label for instance in instances] for instances in (detections, objects)]
    ious = mask_overlaps([d.rle for d in detections], [o.rle for o in objects])
    return match_overlaps(ious, (classes[0], classes[1]))


def boundary_iou(a: Instance, b: Instance, dilation_ratio: float = DILATION_RATIO) -> float:
    """Return the smaller of mask IoU and IoU of the boundaries, as Boundary AP does."""
    return float(boundary_overlaps([a.rle], [b.rle], dilation_ratio)[0, 0])


def disagreement(a: Instance, b: Instance) -> float:
    """Return 1 - IoU of two masks, 0 if both are empty."""
    if not mask_util.area(a.rle) and not mask_util.area(b.rle):
        return 0.0
    return 1 - float(mask_overlaps([a.rle], [b.rle])[0, 0])


@dataclass
class FoundObject:
    """An object, true or not, and the detection that each run has of it."""

    truth: Instance | None
    detections: list[Instance | None]

    @property
    def shape(self) -> Instance:
        """The true object, or else the first run's detection."""
        return next(instance for instance in (self.truth, *self.detections) if instance is not None)

    def disagreement(self, i: int, j: int) -> float | None:
        """1 - IoU of two runs' masks; 1 if only one has the object, None if neither has."""
        pair = [d for d in (self.detections[i], self.detections[j]) if d is not None]
        if not pair:
            return None
        return disagreement(*pair) if len(pair) == 2 else 1.0

    def boundary_ious(self, dilation_ratio: float) -> list[float | None]:
        """Of each run's detection with the truth; 0 without a detection, None where there is no such true object."""
        if self.truth is None:
            return [None] * len(self.detections)
        return [0.0 if d is None else boundary_iou(self.truth, d, dilation_ratio) for d in self.detections]


def find_objects(truth: Sequence[Instance], runs: Sequence[Sequence[Instance]]) -> list[FoundObject]:
    """Put together the true objects, then those that are none, each with the runs' detections of it.

    Detections that are of no true object are matched to those of the runs before, in the same way.
    """
    objects = [FoundObject(instance, [None] * len(runs)) for instance in truth]
    for i, detections in enumerate(runs):
        rest = []
        for detection, index in zip(detections, match(detections, truth), strict=True):
            if index is None:
                rest.append(detection)
            else:
                objects[index].detections[i] = detection
        others = objects[len(truth) :]
        for detection, index in zip(rest, match(rest, [o.shape for o in others]), strict=True):
            found = FoundObject(None, [None] * len(runs)) if index is None else others[index]
            found.detections[i] = detection
            if index is None:
                objects.append(found)
    return objects


def compare(
    name: str, file: str, truth: Sequence[Instance], runs: Sequence[Sequence[Instance]], dilation_ratio: float
) -> Picture:
    """Compare runs' detections on one image with its truth and with each other.

    Values of the image: "score", the mean of the detections; "boundary_iou", the mean of the true objects, in which a
    missed one counts as 0. The disagreement of two runs is the mean of the objects that either has found, 0 if none.
    """
    objects = find_objects(truth, runs)
    pairs = {f"{i}-{j}": (i, j) for i, j in itertools.combinations(range(len(runs)), 2)}
    layers: dict[str, list[Instance]] = {"truth": [], **{f"run{i}": [] for i in range(len(runs))}}
    entries: list[dict[str, Any]] = []
    for number, found in enumerate(objects):
        for key, instance in zip(layers, (found.truth, *found.detections), strict=True):
            if instance is not None:
                layers[key].append(replace(instance, object=number))
        entries.append(
            {
                "label": found.shape.label,
                "isTrue": found.truth is not None,
                "values": {
                    "score": [None if d is None else d.score for d in found.detections],
                    "boundary_iou": found.boundary_ious(dilation_ratio),
                },
                "disagreements": {key: found.disagreement(*pair) for key, pair in pairs.items()},
            }
        )
    values = {
        key: [_mean(entry["values"][key][i] for entry in entries) for i in range(len(runs))]
        for key in ("score", "boundary_iou")
    }
    disagreements: dict[str, float | None] = {
        key: _mean(entry["disagreements"][key] for entry in entries) or 0.0 for key in pairs
    }
    return Picture(name, file, layers, values, disagreements, entries)


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None
