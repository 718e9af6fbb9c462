"""Panels of a picture side by side: truth, stages and patch labels."""

import itertools
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import cv2
import numpy as np
import torch
from detectron2.data import MetadataCatalog
from detectron2.data.detection_utils import annotations_to_instances
from detectron2.layers import paste_masks_in_image
from detectron2.structures import Instances

from pixelmask.drawing import (
    FONT,
    WHITE,
    Array,
    Colour,
    draw_masks,
    fit,
    frame,
    instance_colour,
    resize,
    to_grey,
    write_title,
)
from pixelmask.engine.compat import replaced
from pixelmask.engine.pictures import SCORE_THRESHOLD, Mapper
from pixelmask.evaluation.boundary import mask_iou
from pixelmask.evaluation.matching import match
from pixelmask.images import read_picture

from ..mask_head import RefinementHead
from ..patches import PatchLabel

# Colour and opacity of a patch; the background's is only hinted at, so that the object stays visible.
_PATCH_TINTS = {
    PatchLabel.BACKGROUND: ((70, 110, 255), 0.14),
    PatchLabel.MIXED: ((255, 165, 0), 0.55),
    PatchLabel.FOREGROUND: ((40, 200, 80), 0.55),
}


def tint_patch_labels(image: np.ndarray, boxes: Array, patch_labels: Array) -> np.ndarray:
    """Tint the patches of each instance's box by label: background faintly blue, mixed orange, foreground green.

    Args:
        image: (H, W, 3) uint8.
        boxes: (N, 4), xyxy in pixels; the parts outside the image are left out.
        patch_labels: (N, P, P) labels (:class:`~patchdct.patches.PatchLabel`) in the box frame.

    Returns:
        (H, W, 3) uint8, a new image; the first instance is on top.
    """
    picture = image.copy()
    labels = np.asarray(patch_labels).astype(int)
    colour_of = np.array([_PATCH_TINTS[label][0] for label in sorted(_PATCH_TINTS)], np.float32)
    opacity_of = np.array([_PATCH_TINTS[label][1] for label in sorted(_PATCH_TINTS)], np.float32)[:, None]
    frames = []
    for box, grid in list(zip(np.asarray(boxes, dtype=float), labels, strict=True))[::-1]:
        columns, column_patch = _patch_of_pixels(box[0], box[2], image.shape[1], len(grid))
        rows, row_patch = _patch_of_pixels(box[1], box[3], image.shape[0], len(grid))
        if len(column_patch) == 0 or len(row_patch) == 0:
            continue
        label = grid[row_patch[:, None], column_patch]
        opacity = opacity_of[label]
        if min(box[2] - box[0], box[3] - box[1]) >= 6 * len(grid):  # patches wide enough for lines between them
            seams = (np.diff(row_patch, prepend=0) > 0)[:, None] | (np.diff(column_patch, prepend=0) > 0)
            opacity = np.where(seams[..., None], opacity / 2, opacity)
        # An object's patches hide what is below; its background lets other instances be seen.
        below = np.where(label[..., None] == PatchLabel.BACKGROUND, picture[rows, columns], image[rows, columns])
        picture[rows, columns] = np.round(below * (1 - opacity) + colour_of[label] * opacity)
        frames.append(((columns.start, rows.start), (columns.stop - 1, rows.stop - 1)))
    for low, high in frames:
        cv2.rectangle(picture, low, high, WHITE, 1)
    return picture


def _patch_of_pixels(start: float, end: float, limit: int, patches: int) -> tuple[slice, np.ndarray]:
    """Return the pixels that a box covers along one axis, clipped to the image, and the patch of each."""
    covered = slice(int(np.clip(np.floor(start), 0, limit)), int(np.clip(np.ceil(end), 0, limit)))
    centres = np.arange(covered.start, covered.stop) + 0.5
    index = np.floor((centres - start) / max(end - start, 1e-6) * patches)
    return covered, np.clip(index, 0, patches - 1).astype(int)


def compare_panels(
    image: np.ndarray,
    truth_masks: Array | None,
    instances: Instances,
    class_names: Sequence[str] | None = None,
    truth_classes: Sequence[int] | Array | None = None,
    score_threshold: float = 0.5,
    panel_size: int = 512,
) -> np.ndarray:
    """Set side by side the truth, the masks of the DCT-Mask stage and of PatchDCT, and the patch labels.

    A panel is left out where its data is: `truth_masks` None, `pred_coarse_masks` or `pred_patch_labels` not among the
    fields. A prediction has the colour of the true instance that it covers best.

    Args:
        image: (H, W, 3) uint8.
        truth_masks: (N, H, W) boolean.
        instances: detections after postprocessing, of the image's size: `pred_boxes`, `scores`, `pred_classes`,
            `pred_masks` (M, H, W) boolean; optionally `pred_coarse_masks` (M, 1, K, K), soft, and `pred_patch_labels`
            (M, P, P), both in the box frame.
        class_names: names of the classes.
        truth_classes: N class indices.
        score_threshold: detections below it are not shown.
        panel_size: the longer side of each panel, in pixels.

    Returns:
        (h, w, 3) uint8: panels with their titles in one row.
    """
    instances = instances.to("cpu")
    instances = instances[instances.scores >= score_threshold]
    instances = instances[torch.argsort(instances.scores, descending=True)]
    size, scale = fit(image, panel_size)
    ground = to_grey(resize(image, size, cv2.INTER_CUBIC), contrast=0.5, brightness=20, colour=0.25)
    truth = None if truth_masks is None else _resize_masks(truth_masks, size)
    predicted = _resize_masks(instances.pred_masks, size)
    colours = _matching_colours(truth, predicted)
    boxes, labels = instances.pred_boxes.tensor, (instances.pred_classes, instances.scores, class_names, colours)

    panels = []
    if truth is not None:
        panels.append(_titled(draw_masks(ground, truth, truth_classes, None, class_names), "Truth"))
    if instances.has("pred_coarse_masks"):
        coarse = paste_masks_in_image(instances.pred_coarse_masks[:, 0], boxes, image.shape[:2], threshold=0.5)
        panels.append(_titled(draw_masks(ground, _resize_masks(coarse, size), *labels), "DCT-Mask stage"))
    with_patches = instances.has("pred_patch_labels")
    panels.append(_titled(draw_masks(ground, predicted, *labels), "PatchDCT" if with_patches else "Prediction"))
    if with_patches:
        tinted = tint_patch_labels(ground, boxes * scale, instances.pred_patch_labels)
        panels.append(_add_legend(_titled(tinted, "Patch labels")))
    return np.hstack(panels)


def _resize_masks(masks: Array, size: tuple[int, int]) -> np.ndarray:
    """Resize (N, H, W) boolean masks to size (width, height), with smooth outlines."""
    resized = np.zeros((len(masks), *size[::-1]), bool)
    for mask, out in zip(np.asarray(masks, dtype=bool), resized, strict=True):
        out[:] = resize(mask, size, cv2.INTER_LINEAR)
    return resized


def _matching_colours(truth: np.ndarray | None, predicted: np.ndarray) -> list[Colour]:
    """Give each prediction, best first, the colour of the free true instance that it overlaps most, or a new one."""
    truth = predicted[:0] if truth is None else truth
    overlaps = np.array([[mask_iou(mask, other) for other in truth] for mask in predicted])
    new = itertools.count(len(truth))
    found = match(overlaps.reshape(len(predicted), len(truth)), threshold=0.1)
    return [instance_colour(next(new) if index is None else index) for index in found]


def _titled(panel: np.ndarray, title: str) -> np.ndarray:
    """Put a bar with a title over a panel and a margin around it."""
    bar = max(14, panel.shape[1] // 15)
    margin = max(1, bar // 8)
    framed = frame(panel, bar, margin, margin, margin)
    write_title(framed, title, bar, 2 * margin)
    return framed


def _add_legend(panel: np.ndarray) -> np.ndarray:
    """Write what the tints mean at the right end of the bar over a panel; in place."""
    bar = max(14, (panel.shape[1] - 2) // 15)
    x = panel.shape[1]
    for label in sorted(_PATCH_TINTS, reverse=True):
        name = label.name.lower()
        x -= cv2.getTextSize(name, FONT, bar / 72, 1)[0][0] + bar // 3
        cv2.putText(panel, name, (x, round(0.66 * bar)), FONT, bar / 72, _PATCH_TINTS[label][0], 1, cv2.LINE_AA)
    return panel


def draw_instances(model: torch.nn.Module, record: dict[str, Any], mapper: Mapper, dataset_name: str) -> np.ndarray:
    """Set the truth and the predicted masks side by side; of PatchDCT also the first stage and the patch labels."""
    image = read_picture(record["file_name"])
    truth = annotations_to_instances(record.get("annotations", []), image.shape[:2], "bitmask")
    head = getattr(getattr(model, "roi_heads", None), "mask_head", None)
    with replaced(head, "keep_stages", True) if isinstance(head, RefinementHead) else nullcontext():
        instances = model([mapper(record)])[0]["instances"]
    return compare_panels(
        image,
        truth.gt_masks.tensor.numpy() if truth.has("gt_masks") else None,
        instances,
        MetadataCatalog.get(dataset_name).get("thing_classes"),
        score_threshold=SCORE_THRESHOLD,
    )
