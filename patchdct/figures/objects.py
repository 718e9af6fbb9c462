"""The true objects of an image, the detections that belong to them, and the parts of the image to show.

Letters: N true objects, D detections. Masks are (H, W) boolean arrays, boxes (N, 4) corners in pixels.
"""

from typing import Any, NamedTuple

import cv2
import numpy as np
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.detection_utils import annotations_to_instances
from detectron2.structures import BitMasks, Boxes, Instances, pairwise_iou
from torch import Tensor

from pixelmask.drawing import Window
from pixelmask.errors import UserError
from pixelmask.evaluation.matching import MATCHING_IOU
from pixelmask.images import read_picture

from ..data.shapes_dataset import is_shapes_name, register_shapes
from ..evaluation.upper_bound import MASK_SIZE


class TrueObjects(NamedTuple):
    """An image and its objects, the largest (by area) first."""

    image: np.ndarray
    """(H, W, 3) uint8, RGB."""
    masks: np.ndarray
    """(N, H, W) boolean."""
    boxes: Boxes
    names: list[str]

    def in_boxes(self) -> Tensor:
        """(N, 112, 112) boolean masks in their boxes, rasterised as training targets are."""
        return BitMasks(torch.from_numpy(self.masks)).crop_and_resize(self.boxes.tensor, MASK_SIZE)


def load_records(dataset: str) -> list[dict[str, Any]]:
    """Return Detectron2's dicts of a registered data set, or of synthetic shapes, which are drawn if missing.

    Raises:
        UserError: if there is no such data set, or its files are missing.
    """
    if is_shapes_name(dataset):
        register_shapes(dataset)
    if dataset not in DatasetCatalog.list():
        raise UserError(f"no data set {dataset!r}; datasets/README.md names those that are built in")
    try:
        return DatasetCatalog.get(dataset)
    except FileNotFoundError as e:
        raise UserError(f"data set {dataset}: no {e.filename}; datasets/README.md says what belongs where") from None


def load_objects(dataset: str, number: int) -> TrueObjects:
    """Return image ``number`` of a data set, counted from 1, with its objects; crowd regions are left out.

    Raises:
        UserError: see :func:`load_records`; or if there is no such image, or it has no objects.
    """
    records = load_records(dataset)
    if not 1 <= number <= len(records):
        raise UserError(f"image {number} of {dataset}: it has {len(records)}, counted from 1")
    truth = read_objects(records[number - 1], dataset)
    if not len(truth.masks):
        raise UserError(f"image {number} of {dataset} has no objects with masks")
    return truth


def read_objects(record: dict[str, Any], dataset: str) -> TrueObjects:
    """Return the image of a data set's dict with its objects that have masks; crowd regions are left out."""
    image = read_picture(record["file_name"])
    annotations = [a for a in record.get("annotations", []) if not a.get("iscrowd", 0) and a.get("segmentation")]
    truth = annotations_to_instances(annotations, image.shape[:2], "bitmask")
    found = truth.gt_masks if annotations else BitMasks(torch.zeros(0, *image.shape[:2]))
    masks = found.tensor.numpy()
    order = np.argsort(-masks.sum(axis=(1, 2)), kind="stable")
    names = MetadataCatalog.get(dataset).thing_classes
    classes = truth.gt_classes[order].tolist()
    return TrueObjects(image, masks[order], found.get_bounding_boxes()[order], [names[i] for i in classes])


def count_pieces(mask: np.ndarray) -> int:
    """Count the parts and the holes of a mask; 1 is whole."""
    return len(cv2.findContours(mask.astype(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)[0])


def match_detections(truth: Boxes, detections: Instances) -> list[int | None]:
    """Return for each true box the best-scored detection that overlaps it by half, or None.

    Boxes alone decide, so that no mask is preferred. With boxes that overlap much, a detection may serve twice.
    """
    overlaps = pairwise_iou(truth, detections.pred_boxes) >= MATCHING_IOU
    scores = np.where(overlaps.numpy(), detections.scores.numpy(), -1.0)
    return [int(row.argmax()) if len(row) and row.max() >= 0 else None for row in scores]


def square_around(mask: np.ndarray, margin: float = 0.1) -> Window:
    """Return a square, as far as the image goes, with a mask in its middle and a margin (share of its longer side)."""
    rows, columns = (np.flatnonzero(mask.any(axis=axis)) for axis in (1, 0))
    side = round((1 + 2 * margin) * (1 + max(np.ptp(rows), np.ptp(columns))))
    height, width = mask.shape
    return _span((rows[0] + rows[-1] + 1) / 2, side, height), _span((columns[0] + columns[-1] + 1) / 2, side, width)


def richest_window(mask: np.ndarray, side: int) -> Window:
    """Return the square of this side, within the image, that has the most contour pixels of a mask."""
    side = min(side, *mask.shape)
    pixels = mask.astype(np.uint8)
    contour = pixels - cv2.erode(pixels, np.ones((3, 3), np.uint8))
    total = cv2.integral(contour)
    inside = total[side:, side:] - total[:-side, side:] - total[side:, :-side] + total[:-side, :-side]
    top, left = (int(i) for i in np.unravel_index(inside.argmax(), inside.shape))
    return slice(top, top + side), slice(left, left + side)


def _span(centre: float, side: int, limit: int) -> slice:
    low = min(max(0, round(centre - side / 2)), max(0, limit - side))
    return slice(low, min(limit, low + side))
