"""Which detections overlap which instances of Cityscapes, in the form that `cityscapesscripts` evaluates."""

from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import numpy as np

from pixelmask.evaluation.boundary import boundary_width, subtract_erosion

Instance = dict[str, Any]
Matches = dict[str, dict[str, dict[str, list[Instance]]]]
"""By image, then "groundTruth" or "prediction", then class: instances, each with those of the other kind that it
overlaps in "matchedPred" or "matchedGt". These also have "boundary_iou"."""


class GroundTruth:
    """Ground truth of an image, from which detections are matched one by one.

    ``instances``: by class, those of the image, and groups, each with the detections matched so far in "matchedPred".
    """

    def __init__(self, ids: np.ndarray, labels: dict[str, int], void: Iterable[int], dilation_ratio: float):
        self.ids = ids
        self.void = [label for label in void if label >= 0]
        height, width = ids.shape
        self.width = boundary_width(height, width, dilation_ratio)
        self.boundaries = np.zeros_like(ids)
        self.instances: dict[str, list[Instance]] = {name: [] for name in labels}
        names = {label: name for name, label in labels.items()}
        areas = np.bincount(ids.ravel())
        for instance_id in np.flatnonzero(areas).tolist():
            label = instance_id if instance_id < 1000 else instance_id // 1000
            if label in names:
                box, _, boundary = _crop(ids == instance_id, self.width)
                self.boundaries[box][boundary] = instance_id
                self.instances[names[label]].append(
                    {
                        "instID": instance_id,
                        "labelID": label,
                        "pixelCount": int(areas[instance_id]),
                        "boundary": int(boundary.sum()),
                        "medDist": -1,
                        "distConf": 0.0,
                        "matchedPred": [],
                    }
                )

    def match(self, mask: np.ndarray, score: float, name: str) -> list[Instance]:
        """Return a detection with the instances of its class that it overlaps, and tell these; none if it is empty."""
        box, inside, boundary = _crop(mask, self.width)
        area, border = int(inside.sum()), int(boundary.sum())
        if not area:
            return []
        inside_counts = _counts(self.ids[box][inside])
        boundary_counts = _counts(self.boundaries[box][boundary])
        prediction = {
            "pixelCount": area,
            "confidence": score,
            "voidIntersection": sum(inside_counts[label] for label in self.void),
        }
        overlapped = []
        for truth in self.instances[name]:
            intersection = inside_counts[truth["instID"]]
            if intersection:
                common = boundary_counts[truth["instID"]]
                pair = {"intersection": intersection, "boundary_iou": common / (border + truth["boundary"] - common)}
                truth["matchedPred"].append({**prediction, **pair})
                overlapped.append({**{k: v for k, v in truth.items() if k != "matchedPred"}, **pair})
        return [{**prediction, "matchedGt": overlapped}]


def _crop(mask: np.ndarray, width: int) -> tuple[tuple[slice, slice], np.ndarray, np.ndarray]:
    """Return where an (H, W) boolean mask is, and that part of it and of its boundary, boolean; all empty for none."""
    rows, columns = (np.flatnonzero(mask.any(axis)) for axis in (1, 0))
    if not len(rows):
        nowhere = slice(0, 0)
        return (nowhere, nowhere), mask[:0, :0], mask[:0, :0]
    box = slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)
    inside = mask[box]
    return box, inside, subtract_erosion(np.ascontiguousarray(inside, dtype=np.uint8), width).astype(bool)


def _counts(values: np.ndarray) -> defaultdict[int, int]:
    """Count each value of an array; 0 for those that it has not."""
    counts = np.bincount(values) if len(values) else np.empty(0, int)
    present = np.flatnonzero(counts).tolist()
    return defaultdict(int, {value: int(counts[value]) for value in present})


def boundaries_above(matches: Matches, threshold: float, smallest: int) -> Matches:
    """Leave out the pairs whose boundary IoU is not above a threshold; the official code looks at their mask IoU.

    Reference behaviour: groups, and instances of fewer pixels than ``smallest``, need no more than boundaries that
    meet. They only serve to ignore detections, and one whose mask IoU is above the threshold is ignored in any case.
    """

    def enough(truth: Instance, pair: Instance) -> bool:
        counts = truth["instID"] >= 1000 and truth["pixelCount"] >= smallest
        return pair["boundary_iou"] > (threshold if counts else 0)

    def of_truth(truth: Instance) -> Instance:
        return {**truth, "matchedPred": [pair for pair in truth["matchedPred"] if enough(truth, pair)]}

    def of_prediction(prediction: Instance) -> Instance:
        return {**prediction, "matchedGt": [pair for pair in prediction["matchedGt"] if enough(pair, pair)]}

    return {
        image: {
            "groundTruth": {name: list(map(of_truth, group)) for name, group in found["groundTruth"].items()},
            "prediction": {name: list(map(of_prediction, group)) for name, group in found["prediction"].items()},
        }
        for image, found in matches.items()
    }
