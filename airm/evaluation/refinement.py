"""Detectron2's evaluator of refinement: IoU and mBA of the coarse and the refined masks, and what was gained."""

import csv
import logging
import math
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from detectron2.evaluation import DatasetEvaluator
from detectron2.utils import comm
from detectron2.utils.logger import create_small_table

from pixelmask.errors import UserError
from pixelmask.files import whole_or_not_at_all, write_json
from pixelmask.rle import encode

from .metrics import binarize, intersection_and_union, mean_boundary_accuracies

logger = logging.getLogger(__name__)

MASKS = "refined_masks.json"

_DEFINITIONS = {
    "threshold": "half of the range, inclusive: 0.5 of a soft mask, 128 of 8 bits",
    "IoU": "sum of intersections over sum of unions, of all images",
    "mBA": "mean over the images whose truth has a boundary",
    "unit": "percent; gains are differences in points; null where there is nothing to measure",
}


class MaskScores(NamedTuple):
    """Pixels that one mask shares with the truth, pixels in either, and its mBA in [0, 1], if it has one."""

    intersection: int
    union: int
    mba: float | None


class ImageScores(NamedTuple):
    """What is kept of one image; ``rle`` is the refined mask as compressed COCO RLE."""

    image_id: str
    file: str
    height: int
    width: int
    coarse: MaskScores
    refined: MaskScores
    rle: dict[str, Any]


class RefinementEvaluator(DatasetEvaluator):
    """Evaluate coarse and refined masks by IoU and mBA.  See AIRM (Zhao et al.), Sec. 5.1, "Metrics".

    ``evaluate()`` returns {"refinement": metrics}, in percent: coarse_IoU, refined_IoU, gain_IoU, coarse_mBA,
    refined_mBA, gain_mBA, and the number of images. IoU is the sum of intersections over the sum of unions of the
    whole set, mBA the mean over images; masks are thresholded at half of their range. An image whose truth has no
    boundary (it is empty or fills the image) is left out of the mean. A metric that no image defines is absent, since
    Detectron2 accepts numbers only.

    In output_dir, ``results.json`` holds the same metrics (null for an absent one) and what they mean, and
    ``per_image.csv`` has a line per image with a cell left empty where it is not defined. ``refined_masks.json`` has
    the refined mask of each as COCO RLE.

    Args:
        dataset_name: what the log and ``results.json`` call the set.
        distributed: gather the images of all processes; only the main process gets results, the others {}.
        output_dir: folder for the three files, made if missing; None writes none.
    """

    def __init__(self, dataset_name: str, distributed: bool = True, output_dir: str | None = None):
        self._name = dataset_name
        self._distributed = distributed
        self._output_dir = output_dir
        self._scores: list[ImageScores] = []

    def reset(self) -> None:
        self._scores = []

    def process(self, inputs: Sequence[dict[str, Any]], outputs: Sequence[dict[str, Any]]) -> None:
        """Measure a batch of images.

        Args:
            inputs: samples with "coarse_mask" and "mask" (the truth), (1, H, W) in [0, 1], "file_name" and "image_id".
            outputs: the model's dicts, with "refined_mask", (1, H, W) in [0, 1].

        Raises:
            UserError: if an image has no truth, or a mask of another size, or one with NaN or values beyond [0, 1].
        """
        for sample, output in zip(inputs, outputs, strict=True):
            self._scores.append(_score(sample, output["refined_mask"]))

    def evaluate(self) -> OrderedDict[str, dict[str, float]]:
        """Sum up what was processed since the last reset, write the files and log a table."""
        scores = self._scores
        if self._distributed:
            comm.synchronize()
            gathered = comm.gather(scores, dst=0)
            if not comm.is_main_process():
                return OrderedDict()
            scores = [row for part in gathered for row in part]
        if not scores:
            logger.warning("%s: no image was processed, there is nothing to evaluate", self._name)
            return OrderedDict()
        scores = _unique(scores)
        metrics = {**_comparison(scores), "images": len(scores)}
        if self._output_dir is not None:
            self._write(Path(self._output_dir), scores, metrics)
        known = {key: value for key, value in metrics.items() if value is not None}
        logger.info("Refinement of %s, in percent:\n%s", self._name, create_small_table(known))
        return OrderedDict(refinement=known)

    def _write(self, folder: Path, scores: list[ImageScores], metrics: dict[str, float | None]) -> None:
        keys = ("image_id", "file", "height", "width")
        rows = [{**{key: getattr(row, key) for key in keys}, **_comparison([row])} for row in scores]
        with whole_or_not_at_all(folder / "per_image.csv") as path, path.open("w", newline="", encoding="utf-8") as f:
            writer = csv.DictWriter(f, rows[0])
            writer.writeheader()
            # None becomes an empty cell
            writer.writerows({k: f"{v:.4f}" if isinstance(v, float) else v for k, v in row.items()} for row in rows)
        write_json(folder / MASKS, [{"image_id": r.image_id, "file": r.file, "segmentation": r.rle} for r in scores])
        without = sum(row.refined.mba is None for row in scores)
        content = {"dataset": self._name, "refinement": metrics, "images_without_boundary": without}
        write_json(folder / "results.json", {**content, "definitions": _DEFINITIONS}, indent=2)
        logger.info("Wrote per_image.csv, results.json and %s to %s", MASKS, folder)


def _score(sample: dict[str, Any], refined: torch.Tensor) -> ImageScores:
    file = sample["file_name"]
    if "mask" not in sample:
        raise UserError(
            f"{file} has no truth to evaluate against: add its mask to the data set, "
            "or leave the data set out of DATASETS.TEST"
        )
    shape = sample["mask"].shape
    truth = _mask(sample["mask"], "truth", file, shape)
    masks = [_mask(sample["coarse_mask"], "coarse mask", file, shape), _mask(refined, "refined mask", file, shape)]
    accuracies = mean_boundary_accuracies(masks, truth) or (None, None)
    coarse, result = (
        MaskScores(*intersection_and_union(mask, truth), accuracy)
        for mask, accuracy in zip(masks, accuracies, strict=True)
    )
    height, width = truth.shape
    return ImageScores(str(sample["image_id"]), file, height, width, coarse, result, encode(masks[1]))


def _mask(mask: torch.Tensor, kind: str, file: str, shape: torch.Size) -> np.ndarray:
    """An (H, W) boolean array of a (1, H, W) mask."""
    if mask.shape != shape:
        raise UserError(
            f"{file}: the {kind} has the shape {tuple(mask.shape)}, the truth {tuple(shape)}: the image, its masks and "
            "the refined mask need one size"
        )
    try:
        # numpy has no bfloat16
        return binarize(mask[0].detach().float().cpu().numpy())
    except ValueError as e:
        raise UserError(
            f"{file}: the {kind} cannot be evaluated: {e}. If it was predicted: is MODEL.WEIGHTS a trained model, and "
            "does it also fail without mixed precision?"
        ) from None


def _unique(scores: list[ImageScores]) -> list[ImageScores]:
    """Rows in the order of their IDs, each image once: a sampler may repeat some to fill up its last batch."""
    first = {(row.image_id, row.file): row for row in reversed(scores)}
    return [first[key] for key in sorted(first)]


def _comparison(scores: list[ImageScores]) -> dict[str, float | None]:
    """IoU and mBA of some images, in percent: coarse, refined, and the gain in points."""
    metrics: dict[str, float | None] = {}
    before, after = sum_up([row.coarse for row in scores]), sum_up([row.refined for row in scores])
    for name, coarse in before.items():
        refined = after[name]
        gain = None if coarse is None or refined is None else refined - coarse
        metrics.update({f"coarse_{name}": coarse, f"refined_{name}": refined, f"gain_{name}": gain})
    return metrics


def sum_up(scores: Sequence[MaskScores]) -> dict[str, float | None]:
    """IoU and mBA of one mask or several, in percent; None where they are not defined."""
    intersections, unions, accuracies = zip(*scores, strict=True)
    known = [accuracy for accuracy in accuracies if accuracy is not None]
    return {
        "IoU": 100 * sum(intersections) / sum(unions) if any(unions) else None,
        "mBA": 100 * math.fsum(known) / len(known) if known else None,
    }
