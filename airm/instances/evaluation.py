"""Instances before and after refinement against ground truth: AP, Boundary AP, and IoU and mBA of matched pairs."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from detectron2.data import MetadataCatalog
from pycocotools import mask as mask_util

from pixelmask.errors import UserError
from pixelmask.evaluation import COCOInstanceEvaluator
from pixelmask.rle import Rle, decode, to_rle

from ..evaluation.metrics import mean_boundary_accuracies

MATCHING_IOU = 0.5


class Truth(NamedTuple):
    """Ground truth in COCO format."""

    path: str
    content: dict[str, Any]

    @property
    def images(self) -> dict[str, dict[str, Any]]:
        """By their ids as text."""
        return {str(image["id"]): image for image in self.content["images"]}

    @property
    def category_ids(self) -> list[Any]:
        return sorted(category["id"] for category in self.content.get("categories", ()))


class _ResultsEvaluator(COCOInstanceEvaluator):
    """Takes COCO results, with classes for category ids, instead of a model's output."""

    def process(self, inputs: Iterable[Any], outputs: Iterable[list[dict[str, Any]]]) -> None:
        for image_id, results in zip(inputs, outputs, strict=True):
            self._predictions.append({"image_id": image_id, "instances": results})


def check_truth(truth: Truth) -> None:
    """Raise a :class:`UserError` for ground truth that nothing can be compared with; without annotations, for none."""
    if "annotations" not in truth.content:
        return
    categories = truth.content.get("categories")
    if not categories or not all({"id", "name"} <= category.keys() for category in categories):
        raise UserError(f"{truth.path} has annotations, but no categories with id and name")
    sizes = {image["id"]: (image["height"], image["width"]) for image in truth.content["images"]}
    for i, annotation in enumerate(truth.content["annotations"]):
        if not {"id", "image_id", "category_id"} <= annotation.keys():
            raise UserError(f"{truth.path}: annotation {i} has no id, image_id or category_id")
        name = f"{truth.path}: annotation {annotation['id']}"
        if annotation["image_id"] not in sizes:
            raise UserError(f"{name} has the image_id {annotation['image_id']!r}, which is no image's")
        if not annotation.get("segmentation"):
            raise UserError(f"{name} has no mask; take out all annotations if the file is to name images only")
        try:
            to_rle(annotation["segmentation"], *sizes[annotation["image_id"]])
        except ValueError as e:
            raise UserError(f"{name} {e}") from None


def check_results(results: Sequence[dict[str, Any]], truth: Truth) -> None:
    """Raise a :class:`UserError` for results that cannot be evaluated with this truth."""
    images, categories = truth.images, set(truth.category_ids)
    for i, result in enumerate(results):
        if str(result["image_id"]) not in images:
            raise UserError(
                f"result {i} has the image_id {result['image_id']!r}, which is none of the {len(images)} images of "
                f"{truth.path}; are these the annotations of another set?"
            )
        if "annotations" not in truth.content:
            continue
        if "score" not in result:
            raise UserError(f"result {i} has no score, without which AP is not defined")
        if result.get("category_id") not in categories:
            raise UserError(
                f"result {i} has the category_id {result.get('category_id')!r}; {truth.path} has the categories "
                f"{', '.join(map(str, truth.category_ids))}. Results have their ids, not indices of classes"
            )


def compare_instances(
    truth: Truth,
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
    answer: dict[str, Any] = {}
    for name, results in (("before", before), ("after", after)):
        answer[name] = _average_precision(truth, results, image_ids)
    scores = np.array([_score_pair(*pair) for pair in _match(truth, before, after)], np.float64).reshape(-1, 4)
    for name, iou, mba in (("before", 0, 1), ("after", 2, 3)):
        answer[name]["IoU"], answer[name]["mBA"] = (_mean(100 * scores[:, k]) for k in (iou, mba))
    return {**answer, "pairs": len(scores)}


def _mask(result: dict[str, Any], truth: Truth) -> Rle | None:
    """Return a result's mask, or None for one that cannot be used, which has been said when it was refined."""
    image = truth.images[str(result["image_id"])]
    try:
        return to_rle(result["segmentation"], image["height"], image["width"])
    except ValueError:
        return None


def _average_precision(
    truth: Truth, results: Sequence[dict[str, Any]], image_ids: Sequence[Any] | None
) -> dict[str, Any]:
    name = f"instances:{Path(truth.path).resolve()}"
    classes = {category_id: i for i, category_id in enumerate(truth.category_ids)}
    names = {category["id"]: category["name"] for category in truth.content["categories"]}
    MetadataCatalog.pop(name, None)
    MetadataCatalog.get(name).set(
        json_file=truth.path,
        thing_classes=[names[category_id] for category_id in classes],
        thing_dataset_id_to_contiguous_id=classes,
    )
    evaluator = _ResultsEvaluator(name, tasks=("segm", "boundary"), distributed=False)
    evaluator.reset()
    of_image: dict[Any, list[dict[str, Any]]] = {image["id"]: [] for image in truth.images.values()}
    for result in results:
        image_id = truth.images[str(result["image_id"])]["id"]
        of_image[image_id].append({**result, "image_id": image_id, "category_id": classes[result["category_id"]]})
    evaluator.process(of_image.keys(), of_image.values())
    return dict(evaluator.evaluate(img_ids=image_ids))


def _match(
    truth: Truth, before: Sequence[dict[str, Any]], after: Sequence[dict[str, Any]]
) -> Iterable[tuple[Rle, Rle, Rle]]:
    """Yield the masks of each pair: truth, before and after; the best score takes the object that it overlaps most."""
    objects: dict[tuple[str, Any], list[Rle]] = {}
    for annotation in truth.content["annotations"]:
        image = truth.images[str(annotation["image_id"])]
        if not annotation.get("iscrowd", 0) and annotation.get("segmentation"):
            mask = to_rle(annotation["segmentation"], image["height"], image["width"])
            objects.setdefault((str(image["id"]), annotation["category_id"]), []).append(mask)
    groups: dict[tuple[str, Any], list[int]] = {}
    for k in sorted(range(len(before)), key=lambda k: -before[k]["score"]):
        groups.setdefault((str(before[k]["image_id"]), before[k]["category_id"]), []).append(k)
    for key, indices in groups.items():
        free = objects.get(key, [])
        if not free:
            continue
        ious = mask_util.iou([before[k]["segmentation"] for k in indices], free, [0] * len(free))
        for row, k in enumerate(indices):
            best = int(ious[row].argmax())
            if ious[row, best] >= MATCHING_IOU:
                ious[:, best] = 0
                yield free[best], before[k]["segmentation"], after[k]["segmentation"]


def _score_pair(truth: Rle, *masks: Rle) -> list[float]:
    """Return IoU and mBA of each mask; mBA is NaN where the truth has no boundary."""
    accuracies = mean_boundary_accuracies([decode(mask) for mask in masks], decode(truth))
    ious = mask_util.iou(list(masks), [truth], [0])[:, 0]
    pairs = zip(ious, accuracies or [float("nan")] * len(masks), strict=True)
    return [value for pair in pairs for value in pair]


def _mean(values: np.ndarray) -> float | None:
    """Return the mean of what is not NaN, or None if that is nothing."""
    values = values[~np.isnan(values)]
    return float(values.mean()) if len(values) else None
