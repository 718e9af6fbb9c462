"""How good a model's masks are in the true boxes: mask quality alone, whatever the detector finds.

Letters: R objects of an image, H x W its size in pixels.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from detectron2.evaluation import DatasetEvaluator
from detectron2.modeling import GeneralizedRCNN
from detectron2.structures import Boxes, BoxMode, Instances
from torch import nn
from tqdm import tqdm

from pixelmask.errors import UserError
from pixelmask.evaluation.matching import boundary_overlaps, mask_overlaps
from pixelmask.rle import encode, to_rle

from .upper_bound import objects_of


@torch.no_grad()
def masks_in_true_boxes(
    model: GeneralizedRCNN, inputs: Sequence[dict[str, Any]], objects: Sequence[list[dict[str, Any]]]
) -> list[Instances]:
    """Give the objects' boxes and classes to the mask head as if they had been detected, with a score of 1.

    Args:
        model: in evaluation mode.
        inputs: images as Detectron2's test loader gives them.
        objects: the R annotations of each image, as in a data set's dicts.

    Returns:
        per image what the model detects, on the CPU; ``pred_masks`` is (R, H, W) boolean, and ``objects`` has the
        places of the annotations, without those whose box is empty.
    """
    given = []
    for x, of_image in zip(inputs, objects, strict=True):
        height, width = x["image"].shape[-2:]
        corners = [BoxMode.convert(a["bbox"], a["bbox_mode"], BoxMode.XYXY_ABS) for a in of_image]
        boxes = Boxes(torch.tensor(corners, dtype=torch.float32).reshape(-1, 4))
        boxes.scale(width / x["width"], height / x["height"])
        classes = torch.tensor([a["category_id"] for a in of_image], dtype=torch.int64)
        instances = Instances((height, width), pred_boxes=boxes, pred_classes=classes, scores=torch.ones(len(boxes)))
        instances.objects = torch.arange(len(boxes))
        given.append(instances.to(model.device))
    return [output["instances"].to("cpu") for output in model.inference(list(inputs), given)]


def quality_in_true_boxes(
    model: nn.Module,
    loader: Iterable[list[dict[str, Any]]],
    records: Iterable[dict[str, Any]],
    evaluator: DatasetEvaluator,
) -> dict[str, Any]:
    """Compare a model's masks in the true boxes with the true masks; crowd regions are left out.

    Args:
        model: a GeneralizedRCNN with a mask head, in evaluation mode.
        loader: Detectron2's test loader of a data set.
        records: the data set's dicts.
        evaluator: of the data set, whose AP of masks are returned as well.

    Returns:
        ``objects``, their number; ``IoU`` and ``Boundary IoU``, means over the objects in percent, the latter as in
        Boundary AP (:func:`~pixelmask.evaluation.matching.boundary_overlaps`); and ``AP`` by task, "segm" and, where
        the evaluator has it, "boundary".

    Raises:
        UserError: if the model has no mask head that takes boxes, or the data set no objects with masks.
    """
    if not isinstance(model, GeneralizedRCNN) or not getattr(model.roi_heads, "mask_on", False):
        raise UserError(
            f"{type(model).__name__} has no masks in given boxes: that takes MODEL.META_ARCHITECTURE GeneralizedRCNN "
            "and MODEL.MASK_ON True"
        )
    found = {r["image_id"]: [a for a in objects_of(r) if a.get("segmentation")] for r in records}
    overlaps: list[tuple[float, float]] = []
    evaluator.reset()
    for inputs in tqdm(loader, desc="masks in true boxes", unit="batch"):
        objects = [found[x["image_id"]] for x in inputs]
        outputs = masks_in_true_boxes(model, inputs, objects)
        evaluator.process(inputs, [{"instances": output} for output in outputs])
        for x, of_image, output in zip(inputs, objects, outputs, strict=True):
            overlaps += _overlaps(of_image, output, x["height"], x["width"])
    if not overlaps:
        raise UserError("the data set has no objects with masks to compare with")
    iou, boundary_iou = 100 * np.mean(overlaps, axis=0)
    ap = {task: metrics["AP"] for task, metrics in evaluator.evaluate().items() if task != "bbox"}
    return {"objects": len(overlaps), "IoU": float(iou), "Boundary IoU": float(boundary_iou), "AP": ap}


def _overlaps(objects: list[dict[str, Any]], output: Instances, height: int, width: int) -> list[tuple[float, float]]:
    """Return mask and Boundary IoU of each object; 0 where its box was empty."""
    pairs = [(0.0, 0.0)] * len(objects)
    for i, mask in zip(output.objects.tolist(), output.pred_masks.numpy(), strict=True):
        both = [encode(mask)], [to_rle(objects[i]["segmentation"], height, width)]
        pairs[i] = float(mask_overlaps(*both)[0, 0]), float(boundary_overlaps(*both)[0, 0])
    return pairs
