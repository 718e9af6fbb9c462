"""Overlay pictures: masks, patch labels, and panels that set them side by side.

Images are (H, W, 3) uint8, RGB; boxes are xyxy in pixels of the image; masks are (N, H, W), boolean. Nothing that is
given is changed.
"""

import colorsys
from collections.abc import Sequence
from typing import TypeAlias

import cv2
import numpy as np
import torch
from detectron2.layers import paste_masks_in_image
from detectron2.structures import Instances

from .patches import PatchLabel

Array: TypeAlias = np.ndarray | torch.Tensor
Colour: TypeAlias = tuple[int, int, int]

# Colour and opacity of a patch; the background's is only hinted at, so that the object stays visible.
_PATCH_TINTS = {
    PatchLabel.BACKGROUND: ((70, 110, 255), 0.14),
    PatchLabel.MIXED: ((255, 165, 0), 0.55),
    PatchLabel.FOREGROUND: ((40, 200, 80), 0.55),
}
_FONT = cv2.FONT_HERSHEY_SIMPLEX
_WHITE = (255, 255, 255)
_PAPER = (24, 26, 30)


def instance_colour(index: int) -> Colour:
    """Return the RGB colour of the instance with this index: any number of them, neighbours far apart in hue."""
    hue = (0.02 + index * (5**0.5 - 1) / 2) % 1  # steps of the golden ratio
    r, g, b = colorsys.hsv_to_rgb(hue, 0.8 - 0.25 * (index % 2), 1.0)
    return round(255 * r), round(255 * g), round(255 * b)


def draw_masks(
    image: np.ndarray,
    masks: Array,
    classes: Sequence[int] | Array | None = None,
    scores: Sequence[float] | Array | None = None,
    class_names: Sequence[str] | None = None,
    colours: Sequence[Colour] | None = None,
    opacity: float = 0.5,
) -> np.ndarray:
    """Lay instances over an image, the first on top: translucent fill, crisp contour, and a label where there is one.

    Args:
        image: (H, W, 3) uint8.
        masks: (N, H, W) boolean.
        classes: N class indices to write beside the instances, by their names if there are any.
        scores: N scores in [0, 1], written as per cent.
        class_names: names of the classes.
        colours: N RGB colours; by default :func:`instance_colour`.
        opacity: of the fill, from 0 to 1.

    Returns:
        (H, W, 3) uint8, a new image.
    """
    picture = image.copy()
    masks = np.asarray(masks, dtype=bool)
    colours = [instance_colour(i) for i in range(len(masks))] if colours is None else colours
    thickness = max(1, round(min(image.shape[:2]) / 300))
    for mask, colour in zip(masks[::-1], list(colours)[::-1], strict=True):
        picture[mask] = np.round((1 - opacity) * picture[mask] + opacity * np.array(colour)).astype(np.uint8)
        contours = cv2.findContours(mask.astype(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)[0]
        cv2.drawContours(picture, contours, -1, colour, thickness, cv2.LINE_AA)
    for i, mask in enumerate(masks):
        words = [] if classes is None else [class_names[int(classes[i])] if class_names else str(int(classes[i]))]
        words += [] if scores is None else [f"{100 * float(scores[i]):.0f}%"]
        if words and mask.any():
            _write_label(picture, " ".join(words), mask, colours[i])
    return picture


def _write_label(picture: np.ndarray, text: str, mask: np.ndarray, colour: Colour) -> None:
    """Write text on a plate of the instance's colour over the top of its mask, inside the picture; in place."""
    height, width = picture.shape[:2]
    scale = max(0.35, min(height, width) / 1200)
    (text_width, text_height), baseline = cv2.getTextSize(text, _FONT, scale, 1)
    rows, columns = np.nonzero(mask)
    top = rows.argmin()
    x = int(np.clip(columns[top] - text_width // 2, 0, max(0, width - text_width - 4)))
    y = int(np.clip(rows[top], text_height + baseline, height))
    cv2.rectangle(picture, (x, y - text_height - baseline), (x + text_width + 4, y), colour, cv2.FILLED)
    cv2.putText(picture, text, (x + 2, y - baseline // 2 - 1), _FONT, scale, _PAPER, 1, cv2.LINE_AA)


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
        cv2.rectangle(picture, low, high, _WHITE, 1)
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
    height, width = image.shape[:2]
    scale = panel_size / max(height, width)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    ground = _mute(cv2.resize(image, size, interpolation=cv2.INTER_CUBIC if scale > 1 else cv2.INTER_AREA))
    truth = None if truth_masks is None else _resize_masks(truth_masks, size)
    predicted = _resize_masks(instances.pred_masks, size)
    colours = _matching_colours(truth, predicted)
    boxes, labels = instances.pred_boxes.tensor, (instances.pred_classes, instances.scores, class_names, colours)

    panels = []
    if truth is not None:
        panels.append(_titled(draw_masks(ground, truth, truth_classes, None, class_names), "Truth"))
    if instances.has("pred_coarse_masks"):
        coarse = paste_masks_in_image(instances.pred_coarse_masks[:, 0], boxes, (height, width), threshold=0.5)
        panels.append(_titled(draw_masks(ground, _resize_masks(coarse, size), *labels), "DCT-Mask stage"))
    with_patches = instances.has("pred_patch_labels")
    panels.append(_titled(draw_masks(ground, predicted, *labels), "PatchDCT" if with_patches else "Prediction"))
    if with_patches:
        tinted = tint_patch_labels(ground, boxes * scale, instances.pred_patch_labels)
        panels.append(_add_legend(_titled(tinted, "Patch labels")))
    return np.hstack(panels)


def _mute(image: np.ndarray) -> np.ndarray:
    """Take colour and contrast out of an image, so that what is laid over it stands out."""
    grey = image.mean(axis=2, keepdims=True)
    return np.round(0.25 * image + 0.5 * grey + 20).clip(0, 255).astype(np.uint8)


def _resize_masks(masks: Array, size: tuple[int, int]) -> np.ndarray:
    """Resize (N, H, W) boolean masks to size (width, height), with smooth outlines."""
    resized = np.zeros((len(masks), size[1], size[0]), bool)
    for mask, out in zip(np.asarray(masks, dtype=bool), resized, strict=True):
        method = cv2.INTER_LINEAR if size[1] > len(mask) else cv2.INTER_AREA
        out[:] = cv2.resize(mask.astype(np.float32), size, interpolation=method) >= 0.5
    return resized


def _matching_colours(truth: np.ndarray | None, predicted: np.ndarray) -> list[Colour]:
    """Give each prediction, best first, the colour of the free true instance that it overlaps most, or a new one."""
    truth = predicted[:0] if truth is None else truth
    count, free, colours = len(truth), set(range(len(truth))), []
    for mask in predicted:
        overlaps = {i: (mask & truth[i]).sum() / max(1, (mask | truth[i]).sum()) for i in free}
        best = max(overlaps, key=lambda i: overlaps[i], default=None)
        if best is not None and overlaps[best] > 0.1:
            free.remove(best)
            colours.append(instance_colour(best))
        else:
            colours.append(instance_colour(count))
            count += 1
    return colours


def _titled(panel: np.ndarray, title: str) -> np.ndarray:
    """Put a bar with a title over a panel and a margin around it."""
    bar = max(14, panel.shape[1] // 15)
    margin = max(1, bar // 8)
    framed = cv2.copyMakeBorder(panel, bar, margin, margin, margin, cv2.BORDER_CONSTANT, value=_PAPER)
    cv2.putText(framed, title, (2 * margin, round(0.7 * bar)), _FONT, bar / 48, _WHITE, max(1, bar // 24), cv2.LINE_AA)
    return framed


def _add_legend(panel: np.ndarray) -> np.ndarray:
    """Write what the tints mean at the right end of the bar over a panel; in place."""
    bar = max(14, (panel.shape[1] - 2) // 15)
    x = panel.shape[1]
    for label in sorted(_PATCH_TINTS, reverse=True):
        name = label.name.lower()
        x -= cv2.getTextSize(name, _FONT, bar / 72, 1)[0][0] + bar // 3
        cv2.putText(panel, name, (x, round(0.66 * bar)), _FONT, bar / 72, _PATCH_TINTS[label][0], 1, cv2.LINE_AA)
    return panel
