"""AP, AP50 and Boundary AP of instance masks on Cityscapes.  See PatchDCT (Wen et al., ICLR 2023), Table 3.

How detections are matched, what is ignored, and the average precision are of the official `cityscapesscripts`; it gets
the overlaps counted in memory, where it would read each mask from a file of its own.

Boundary AP is the same with min(mask IoU, boundary IoU) for the overlap, as in Boundary IoU (Cheng et al., CVPR 2021),
whose published evaluation has boundaries of 0.005 of the diagonal for Cityscapes: 11 pixels. COCO's 0.02 would be 46
pixels, more than most of these objects leave for an interior, and Boundary AP little else than AP.
"""

import copy
import logging
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from detectron2.data import MetadataCatalog
from detectron2.evaluation import DatasetEvaluator
from detectron2.structures import Instances
from detectron2.utils import comm

from pixelmask.drawing import Window
from pixelmask.errors import UserError
from pixelmask.evaluation.boundary import boundary_width, subtract_erosion

from ..data.cityscapes import annotation_file, read_instance_ids

logger = logging.getLogger(__name__)

CITYSCAPES_DILATION_RATIO = 0.005

Instance = dict[str, Any]
Matches = dict[str, dict[str, dict[str, list[Instance]]]]
"""By image, then "groundTruth" or "prediction", then class: instances, each with those of the other kind that it
overlaps in "matchedPred" or "matchedGt". These also have "boundary_iou"."""


class CityscapesInstanceEvaluator(DatasetEvaluator):
    """Evaluate instance masks on `cityscapes_fine_instance_seg_{train,val}`.

    ``evaluate()`` returns {"segm": metrics, "boundary": metrics}, each with AP, AP50 and AP-<class> from 0 to 100. A
    class without ground truth has NaN, and is not in the mean.

    Args:
        dataset_name: see :func:`patchdct.data.cityscapes.register_cityscapes`.
        distributed: gather the detections of all processes; only the main process gets results.
        dilation_ratio: boundary width as a fraction of the image diagonal.

    Raises:
        UserError: if `cityscapesscripts` is missing.
    """

    def __init__(self, dataset_name: str, distributed: bool = True, dilation_ratio: float = CITYSCAPES_DILATION_RATIO):
        try:
            from cityscapesscripts.evaluation import evalInstanceLevelSemanticLabeling as official
        except ImportError as e:
            raise UserError(
                f"the evaluation on Cityscapes needs cityscapesscripts ({e}): pip install cityscapesscripts"
            ) from e
        self._official = official
        self._settings = copy.copy(official.args)
        official.setInstanceLabels(self._settings)
        self._labels = {label.name: label.id for label in official.labels if label.name in self._settings.instLabels}
        self._void = [label.id for label in official.labels if label.ignoreInEval]
        self._metadata = MetadataCatalog.get(dataset_name)
        self._distributed = distributed
        self._dilation_ratio = dilation_ratio
        self.reset()

    def reset(self) -> None:
        self._matches: Matches = {}

    def process(self, inputs: list[dict[str, Any]], outputs: list[dict[str, Any]]) -> None:
        """Count the overlaps of each image's detections ("instances" with ``pred_masks``) with its ground truth."""
        for image, output in zip(inputs, outputs, strict=True):
            ids = read_instance_ids(annotation_file(image["file_name"], self._metadata.gt_dir))
            truth = GroundTruth(ids, self._labels, self._void, self._dilation_ratio)
            instances: Instances = output["instances"]
            if instances.image_size != ids.shape:
                raise UserError(
                    f"detections in {image['file_name']} have (height, width) {instances.image_size}, its annotation "
                    f"{ids.shape}; is it the image that was annotated?"
                )
            predictions: dict[str, list[dict[str, Any]]] = {name: [] for name in self._labels}
            masks = instances.pred_masks.cpu().numpy().astype(bool, copy=False)
            for mask, score, label in zip(
                masks, instances.scores.tolist(), instances.pred_classes.tolist(), strict=True
            ):
                name = self._metadata.thing_classes[label]
                predictions[name] += truth.match(mask, score, name)
            self._matches[Path(image["file_name"]).name] = {"groundTruth": truth.instances, "prediction": predictions}

    def evaluate(self) -> dict[str, dict[str, float]]:
        matches = self._matches
        if self._distributed:
            comm.synchronize()
            gathered = comm.gather(matches, dst=0)
            if not comm.is_main_process():
                return {}
            matches = {image: found for part in gathered for image, found in part.items()}
        if not matches:
            logger.warning("No image was evaluated")
            return {}
        smallest = self._settings.minRegionSizes[0]
        results = {
            "segm": self._average(lambda threshold: matches),
            "boundary": self._average(lambda threshold: boundaries_above(matches, threshold, smallest)),
        }
        for task, metrics in results.items():
            logger.info("Cityscapes, %s: %s", task, ", ".join(f"{name} {value:.2f}" for name, value in metrics.items()))
        return results

    def _average(self, matches_at: Callable[[float], Matches]) -> dict[str, float]:
        """Average the precision over classes and thresholds; ``matches_at`` gives the matches for an overlap."""
        overlaps = self._settings.overlaps
        precisions = np.empty((1, len(self._labels), len(overlaps)))
        for column, threshold in enumerate(overlaps):
            matches = matches_at(threshold)
            for row, name in enumerate(self._settings.instLabels):
                precisions[0, row, column] = self._average_precision(matches, name, threshold)
        if np.isnan(precisions).all():
            logger.warning("None of the images has an instance to evaluate: all metrics are NaN")
            return dict.fromkeys(("AP", "AP50", *(f"AP-{name}" for name in self._labels)), float("nan"))
        averages = self._official.computeAverages(precisions, self._settings)
        classes = {f"AP-{name}": 100 * float(figures["ap"]) for name, figures in averages["classes"].items()}
        return {"AP": 100 * float(averages["allAp"]), "AP50": 100 * float(averages["allAp50%"]), **classes}

    def _average_precision(self, matches: Matches, name: str, threshold: float) -> float:
        settings = copy.copy(self._settings)
        settings.instLabels, settings.overlaps = [name], [threshold]
        try:
            return float(self._official.evaluateMatches(matches, settings).item())
        except IndexError:
            return 0.0  # the official code looks for the last of the counted detections, and all of them are ignored


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
        if not mask.any():
            return []
        box, inside, boundary = _crop(mask, self.width)
        border = int(boundary.sum())
        inside_counts = _counts(self.ids[box][inside])
        boundary_counts = _counts(self.boundaries[box][boundary])
        prediction = {
            "pixelCount": int(inside.sum()),
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


def _crop(mask: np.ndarray, width: int) -> tuple[Window, np.ndarray, np.ndarray]:
    """Return where an (H, W) boolean mask, not empty, is, and that part of it and of its boundary, boolean."""
    left, top, columns, rows = cv2.boundingRect(mask.view(np.uint8))
    box = slice(top, top + rows), slice(left, left + columns)
    inside = mask[box]
    return box, inside, subtract_erosion(np.ascontiguousarray(inside, dtype=np.uint8), width).astype(bool)


def _counts(values: np.ndarray) -> Counter[int]:
    """Count each value of an array."""
    counts = np.bincount(values)
    return Counter({value: int(counts[value]) for value in np.flatnonzero(counts).tolist()})


def boundaries_above(matches: Matches, threshold: float, smallest: int) -> Matches:
    """Leave out the pairs whose boundary IoU is not above a threshold; the official code looks at their mask IoU.

    Reference behaviour: groups, and instances of fewer pixels than ``smallest``, need no more than boundaries that
    meet. They only serve to ignore detections, and one whose mask IoU is above the threshold is ignored in any case.
    """

    def enough(truth: Instance, pair: Instance) -> bool:
        counts = truth["instID"] >= 1000 and truth["pixelCount"] >= smallest
        return pair["boundary_iou"] > (threshold if counts else 0)

    def kept(instance: Instance, key: str) -> Instance:
        pairs = [x for x in instance[key] if enough(instance if key == "matchedPred" else x, x)]
        return {**instance, key: pairs}

    keys = {"groundTruth": "matchedPred", "prediction": "matchedGt"}
    return {
        image: {
            kind: {name: [kept(instance, keys[kind]) for instance in group] for name, group in classes.items()}
            for kind, classes in found.items()
        }
        for image, found in matches.items()
    }
