"""Objects of an image, from the truth to what each stage of a model makes of them (PatchDCT, Fig. 2, as pictures).

Letters: K detections, of an image of H x W pixels.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from detectron2.layers import paste_masks_in_image
from detectron2.structures import Instances

from pixelmask.drawing import Window, instance_colour, to_grey
from pixelmask.evaluation.boundary import mask_iou

from .drawing import Panel, draw_part
from .objects import TrueObjects
from .panels import tint_patch_labels


def stage_columns(image: np.ndarray, detections: Instances, with_labels: bool = False) -> dict[str, np.ndarray]:
    """Return what a PatchDCT model says of K detections, by a title for each stage.

    Args:
        image: (H, W, 3) uint8, RGB.
        detections: on the CPU, with ``pred_coarse_masks``, ``pred_patch_labels`` and ``pred_masks``.
        with_labels: whether patch labels are among it.

    Returns:
        (K, H, W) boolean masks; of patch labels (K, H, W, 3) uint8, the image in grey, tinted.
    """
    boxes, size = detections.pred_boxes, detections.image_size
    coarse = paste_masks_in_image(detections.pred_coarse_masks[:, 0], boxes, size, threshold=0.5)
    columns = {"DCT-Mask stage": coarse.numpy()}
    if with_labels:
        pairs = zip(boxes.tensor[:, None], detections.pred_patch_labels[:, None], strict=True)
        columns["patch labels"] = np.array([tint_patch_labels(to_grey(image), *pair) for pair in pairs])
    return {**columns, "PatchDCT": detections.pred_masks.numpy()}


def arrange(columns: Mapping[str, np.ndarray], places: Sequence[int | None]) -> dict[str, list[np.ndarray | None]]:
    """Put the values of K detections, by title, in the order of objects, whose detections are at these places."""
    return {title: [None if place is None else values[place] for place in places] for title, values in columns.items()}


def object_rows(
    truth: TrueObjects, windows: Sequence[Window], columns: Mapping[str, Sequence[np.ndarray | None]]
) -> tuple[list[list[Panel]], list[dict[str, Any]]]:
    """Make a row of panels for each of the first objects: image, truth, and the columns.

    Args:
        truth: the image and its objects.
        windows: the part to show of each of its first objects; IoU is that of the part shown.
        columns: by title, of each of these objects an (H, W) boolean mask or an (H, W, 3) picture; None if it was not
            found.

    Returns:
        the panels; and for each object its class, the window as [left, top, right, bottom], and the IoU by title (None
        if it was not found).
    """
    rows: list[list[Panel]] = []
    numbers = []
    for i, window in enumerate(windows):
        mask, colour = truth.masks[i], instance_colour(i)
        row = [
            Panel(draw_part(truth.image, window), "image", truth.names[i]),
            Panel(draw_part(truth.image, window, mask, colour), "truth"),
        ]
        ious: dict[str, float | None] = {}
        for title, values in columns.items():
            value = values[i]
            if value is None:
                row.append(Panel(draw_part(truth.image, window, np.zeros_like(mask), colour), title, "not found"))
                ious[title] = None
            elif value.ndim == 3:
                row.append(Panel(draw_part(value, window), title))
            else:
                iou = mask_iou(value[window], mask[window], if_empty=1.0)
                row.append(Panel(draw_part(truth.image, window, value, colour), title, f"IoU {100 * iou:.1f}"))
                ious[title] = iou
        vertical, horizontal = window
        box = [horizontal.start, vertical.start, horizontal.stop, vertical.stop]
        numbers.append({"class": truth.names[i], "window": box, "IoU": ious})
        rows.append(row if not rows else [panel._replace(title="") for panel in row])
    return rows, numbers
