"""Instances before and after refinement against ground truth: AP, Boundary AP, and IoU and mBA of matched pairs."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.data import MetadataCatalog

from pixelmask.data.coco_file import CocoFile
from pixelmask.evaluation.coco import ResultsEvaluator
from pixelmask.evaluation.matching import mask_overlaps, match
from pixelmask.rle import Rle, decode, to_rle

from ..evaluation.metrics import mean_boundary_accuracies


def compare_instances(
    truth: CocoFile,
    before: Sequence[dict[str, Any]],
    after: Sequence[dict[str, Any]],
    image_ids: Sequence[Any] | None = None,
) -> dict[str, Any]:
    """Evaluate COCO results before and after refinement.

    Args:
        truth: with annotations; crowd regions count as in COCO, and not in the pairs.
        before, after: the same results in the same order, but for their masks.
        image_ids: evaluate these images only.

    Returns:
        "before" and "after", each with "segm" and "boundary" (AP, AP50, AP75, APs, APm, APl and AP-<class>, see
        :class:`~pixelmask.evaluation.COCOInstanceEvaluator`), and in per cent the mean "IoU" and "mBA" over pairs;
        and the number of "pairs": each object with the best-scoring result of its image and class that overlaps it by
        an IoU of 0.5 before refinement. mBA is that of the whole image, see :mod:`.metrics`.
    """
    usable = [k for k, result in enumerate(before) if _mask(result, truth) is not None]
    before, after = ([{**r[k], "segmentation": _mask(r[k], truth)} for k in usable] for r in (before, after))
    pairs = [
        _score_pair(true, before[k]["segmentation"], after[k]["segmentation"])
        for k, true in match_objects(truth, before)
    ]
    scores = np.array(pairs, np.float64).reshape(-1, 4)
    answer: dict[str, Any] = {}
    for name, results, column in (("before", before, 0), ("after", after, 2)):
        means = {metric: _mean(100 * scores[:, column + k]) for k, metric in enumerate(("IoU", "mBA"))}
        answer[name] = {**average_precision(truth, results, image_ids), **means}
    return {**answer, "pairs": len(scores)}


def _mask(result: dict[str, Any], truth: CocoFile) -> Rle | None:
    """Return a result's mask, or None for one that cannot be used, which has been said when it was refined."""
    image = truth.images[str(result["image_id"])]
    try:
        return to_rle(result["segmentation"], image["height"], image["width"])
    except ValueError:
        return None


def average_precision(
    truth: CocoFile, results: Sequence[dict[str, Any]], image_ids: Sequence[Any] | None = None
) -> dict[str, Any]:
    """Return "segm" and "boundary" of COCO results as :func:`compare_instances` has them."""
    name = f"instances:{Path(truth.path).resolve()}"
    classes = {category_id: i for i, category_id in enumerate(truth.category_ids)}
    names = {category["id"]: category["name"] for category in truth.content["categories"]}
    MetadataCatalog.pop(name, None)
    MetadataCatalog.get(name).set(
        json_file=truth.path,
        thing_classes=[names[category_id] for category_id in classes],
        thing_dataset_id_to_contiguous_id=classes,
    )
    evaluator = ResultsEvaluator(name, tasks=("segm", "boundary"), distributed=False)
    evaluator.reset()
    of_image: dict[Any, list[dict[str, Any]]] = {image["id"]: [] for image in truth.images.values()}
    for result in results:
        image_id = truth.images[str(result["image_id"])]["id"]
        of_image[image_id].append({**result, "image_id": image_id, "category_id": classes[result["category_id"]]})
    evaluator.process(of_image.keys(), of_image.values())
    return dict(evaluator.evaluate(img_ids=image_ids))


def match_objects(truth: CocoFile, results: Sequence[dict[str, Any]]) -> Iterator[tuple[int, Rle]]:
    """Yield the index of each result that is an object's, and the object's mask; results have masks as RLE."""
    images = truth.images
    objects: dict[tuple[str, Any], list[Rle]] = {}
    for annotation in truth.content["annotations"]:
        image = images[str(annotation["image_id"])]
        if not annotation.get("iscrowd", 0):
            mask = to_rle(annotation["segmentation"], image["height"], image["width"])
            objects.setdefault((str(image["id"]), annotation["category_id"]), []).append(mask)
    groups: dict[tuple[str, Any], list[int]] = {}
    for k in sorted(range(len(results)), key=lambda k: -results[k]["score"]):
        groups.setdefault((str(results[k]["image_id"]), results[k]["category_id"]), []).append(k)
    for key, indices in groups.items():
        true = objects.get(key, [])
        found = match(mask_overlaps([results[k]["segmentation"] for k in indices], true))
        for k, index in zip(indices, found, strict=True):
            if index is not None:
                yield k, true[index]


def _score_pair(truth: Rle, *masks: Rle) -> list[float]:
    """Return IoU and mBA of each mask; mBA is NaN where the truth has no boundary."""
    accuracies = mean_boundary_accuracies([decode(mask) for mask in masks], decode(truth))
    ious = mask_overlaps(masks, [truth])[:, 0]
    pairs = zip(ious, accuracies or [float("nan")] * len(masks), strict=True)
    return [value for pair in pairs for value in pair]


def _mean(values: np.ndarray) -> float | None:
    """Return the mean of what is not NaN, or None if that is nothing."""
    values = values[~np.isnan(values)]
    return float(values.mean()) if len(values) else None
