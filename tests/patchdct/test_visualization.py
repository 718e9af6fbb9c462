"""Overlay pictures: what is painted where, and inputs that leave little to paint."""

import cv2
import numpy as np
import pytest
import torch
from detectron2.structures import Boxes, Instances

from patchdct.figures.panels import compare_panels, tint_patch_labels
from patchdct.patches import PatchLabel
from pixelmask.drawing import draw_masks, instance_colour

GREY = 90


def grey_image(height: int = 60, width: int = 80) -> np.ndarray:
    return np.full((height, width, 3), GREY, np.uint8)


def detections(
    count: int, height: int = 60, width: int = 80, *, coarse: bool = True, patches: bool = True
) -> Instances:
    """Detections that cover their boxes: whole masks, empty coarse masks, mixed patches; the scores fall."""
    instances = Instances((height, width))
    x = 5.0 + 15 * torch.arange(count)
    instances.pred_boxes = Boxes(torch.stack([x, x, x + 10, x + 10], 1))
    instances.scores = torch.linspace(0.9, 0.6, count)
    instances.pred_classes = torch.arange(count)
    instances.pred_masks = torch.zeros(count, height, width, dtype=torch.bool)
    for mask, corner in zip(instances.pred_masks, x.int().tolist(), strict=True):
        mask[corner : corner + 10, corner : corner + 10] = True
    if coarse:
        instances.pred_coarse_masks = torch.zeros(count, 1, 16, 16)
    if patches:
        instances.pred_patch_labels = torch.full((count, 14, 14), int(PatchLabel.MIXED))
    return instances


def painted(picture: np.ndarray, ground: np.ndarray) -> np.ndarray:
    return (picture != ground).any(axis=2)


def test_draw_masks_paints_the_instances_and_nothing_else() -> None:
    image = grey_image()
    masks = np.zeros((2, 60, 80), bool)
    masks[0, 10:30, 10:30] = True
    masks[1, 20:50, 20:60] = True
    picture = draw_masks(image, masks, opacity=0.5)
    assert (image == GREY).all(), "the given image was painted on"
    # Contours are anti-aliased over one more pixel.
    near = cv2.dilate(masks.any(axis=0).astype(np.uint8), np.ones((5, 5), np.uint8)) > 0
    change = painted(picture, image)
    assert change[masks.any(axis=0)].all() and not change[~near].any()
    inside = np.round(0.5 * GREY + 0.5 * np.array(instance_colour(1)))
    np.testing.assert_array_equal(picture[40, 40], inside)


def test_draw_masks_leaves_holes_open_and_puts_the_first_instance_on_top() -> None:
    masks = np.zeros((2, 60, 80), bool)
    masks[0, 10:50, 10:50] = True
    masks[0, 20:40, 20:40] = False
    masks[1, 10:50, 10:16] = True
    picture = draw_masks(grey_image(), masks, opacity=1.0)
    assert not painted(picture, grey_image())[24:36, 24:36].any()
    np.testing.assert_array_equal(picture[30, 13], instance_colour(0))


def test_draw_masks_writes_class_and_score_and_accepts_tensors() -> None:
    masks = torch.zeros(1, 60, 80, dtype=torch.bool)
    masks[0, 30:50, 30:50] = True
    bare = draw_masks(grey_image(), masks)
    labelled = draw_masks(grey_image(), masks, torch.tensor([1]), torch.tensor([0.97]), ["gear", "star"])
    assert painted(labelled, bare).sum() > 50
    numbered = draw_masks(grey_image(), masks, [1])
    assert painted(numbered, labelled).any(), "the name is written as the number would be"


@pytest.mark.parametrize("size", [(1, 1), (3, 90), (90, 3)])
def test_draw_masks_labels_fit_any_picture(size: tuple[int, int]) -> None:
    masks = np.ones((1, *size), bool)
    assert draw_masks(np.zeros((*size, 3), np.uint8), masks, [0], [0.5], ["snowflake"]).shape == (*size, 3)


def test_nothing_is_drawn_of_nothing() -> None:
    image = grey_image()
    np.testing.assert_array_equal(draw_masks(image, np.zeros((0, 60, 80), bool), [], []), image)
    np.testing.assert_array_equal(draw_masks(image, np.zeros((1, 60, 80), bool), [0], [0.9]), image)
    picture = tint_patch_labels(grey_image(), torch.zeros(0, 4), torch.zeros(0, 14, 14, dtype=torch.long))
    np.testing.assert_array_equal(picture, grey_image())


def test_instance_colours_are_distinct() -> None:
    colours = np.array([instance_colour(i) for i in range(12)], int)
    apart = np.abs(colours[:, None] - colours[None]).sum(axis=2) + 1000 * np.eye(12, dtype=int)
    assert apart.min() > 40


def test_tint_puts_each_label_at_its_patch() -> None:
    labels = np.array([[[0, 1], [2, 1]]])
    picture = tint_patch_labels(grey_image(), np.array([[20.0, 10.0, 60.0, 50.0]]), labels).astype(int)
    faint, orange, green = picture[20, 30], picture[20, 50], picture[40, 30]
    assert faint.argmax() == 2 and np.abs(faint - GREY).max() < 40
    assert orange[0] > orange[1] > orange[2]
    assert green.argmax() == 1 and green[1] > green[0] + 30
    outside = np.ones((60, 80), bool)
    outside[10:50, 20:60] = False
    assert not painted(picture, grey_image())[outside].any()


@pytest.mark.parametrize(
    ("box", "covered"),
    [
        ((30, 20, 31, 21), 1),  # one pixel
        ((30.4, 20.4, 30.4, 20.4), 1),  # no extent
        ((-40, -40, 0, 0), 0),  # outside, touching the corner
        ((200, 200, 300, 300), 0),
        ((-10, -10, 10, 5), 50),  # over the corner
        ((70, 50, 80, 60), 100),  # touching the border
    ],
)
def test_tint_of_boxes_small_or_across_the_border(box: tuple[float, ...], covered: int) -> None:
    picture = tint_patch_labels(grey_image(), np.array([box], float), np.full((1, 14, 14), 2))
    assert painted(picture, grey_image()).sum() == covered


@pytest.mark.parametrize(
    ("truth", "coarse", "patches", "panels"),
    [(True, True, True, 4), (True, True, False, 3), (True, False, False, 2), (False, False, False, 1)],
)
def test_panels_without_data_are_left_out(truth: bool, coarse: bool, patches: bool, panels: int) -> None:
    instances = detections(2, coarse=coarse, patches=patches)
    masks = instances.pred_masks if truth else None
    one = compare_panels(grey_image(), None, detections(0, coarse=False, patches=False))
    picture = compare_panels(grey_image(), masks, instances, ["a", "b"], [0, 1] if truth else None)
    assert picture.dtype == np.uint8 and picture.shape == (one.shape[0], panels * one.shape[1], 3)


@pytest.mark.parametrize("panel_size", [40, 512])
def test_panels_of_no_detection_and_of_detections_below_the_threshold_are_the_same(panel_size: int) -> None:
    truth = detections(1).pred_masks
    none = compare_panels(grey_image(), truth, detections(0), ["a", "b"], panel_size=panel_size)
    unsure = detections(2)
    unsure.scores = torch.tensor([0.49, 0.1])
    np.testing.assert_array_equal(none, compare_panels(grey_image(), truth, unsure, ["a", "b"], panel_size=panel_size))
    sure = compare_panels(grey_image(), truth, detections(2), ["a", "b"], panel_size=panel_size)
    assert painted(sure, none).any()


def test_predictions_take_the_colour_of_the_truth_they_cover() -> None:
    instances = detections(3, coarse=False, patches=False)
    truth = instances.pred_masks[[2, 0]]  # the second detection covers no true object
    picture = compare_panels(grey_image(), truth, instances, panel_size=320)  # four times the image
    true_panel, predicted_panel = np.hsplit(picture, 2)

    def fill(panel: np.ndarray, corner: int) -> list[int]:
        """The colour within a mask, below its label; `corner` is its upper left one's x and y in the image."""
        return panel[panel.shape[0] - 4 * (60 - corner - 8), 4 * (corner + 5)].tolist()

    assert fill(predicted_panel, 5) == fill(true_panel, 5)
    assert fill(predicted_panel, 35) == fill(true_panel, 35)
    assert fill(true_panel, 20) not in (fill(predicted_panel, 20), fill(true_panel, 5), fill(true_panel, 35))
    assert fill(predicted_panel, 20) not in (fill(true_panel, 5), fill(true_panel, 35))


def test_panels_of_a_large_image_are_no_larger_than_asked_for() -> None:
    picture = compare_panels(grey_image(700, 1400), None, detections(1, 700, 1400, coarse=False), panel_size=300)
    assert picture.shape[1] < 2 * 320 and picture.shape[0] < 150 + 40
