"""What the pictures of docs/patchdct.md show, counted by hand, and the page's tables beside the code."""

import ast
import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.config import get_cfg as get_detectron2_cfg
from detectron2.structures import Boxes, Instances
from matplotlib.figure import Figure
from PIL import Image
from pycocotools import mask as mask_util

from patchdct.figures.drawing import colour_errors, draw_panels, draw_part, draw_representation, tint_grid
from patchdct.figures.objects import (
    TrueObjects,
    count_pieces,
    load_objects,
    match_detections,
    richest_window,
    square_around,
)
from patchdct.figures.patch_histograms import count_patches
from patchdct.figures.representation import influences, reconstructions
from patchdct.figures.stages import arrange, object_rows, stage_columns
from pixelmask.config import get_cfg, load_cfg
from pixelmask.drawing import save
from pixelmask.errors import UserError
from pixelmask.evaluation.boundary import mask_iou

PAGE = Path("docs/patchdct.md")
RED, BLUE, LIGHT = (255, 70, 50), (40, 120, 255), (235, 235, 235)


def rectangle(height: int, width: int, top: int, left: int, bottom: int, right: int) -> np.ndarray:
    mask = np.zeros((height, width), bool)
    mask[top:bottom, left:right] = True
    return mask


def record(mask: np.ndarray) -> dict:
    """The dict of an image with one object, whose box is the whole image."""
    rle = mask_util.encode(np.asfortranarray(mask, np.uint8))
    height, width = mask.shape
    box = {"bbox": [0, 0, width, height], "bbox_mode": 1, "iscrowd": 0, "category_id": 0}
    return {"annotations": [{**box, "segmentation": rle}], "height": height, "width": width}


# ---------------------------------------------------------------- representation


def test_patches_of_a_half_plane():
    # 62 rows: 7 rows of whole patches, and 14 patches of which 6 rows of 8 are foreground
    mask = torch.zeros(112, 112, dtype=torch.bool)
    mask[:62] = True
    whole, patched = reconstructions(mask)
    assert [(r.patch_size, r.vector_dim, r.elements) for r in whole] == [(112, n, n) for n in (10, 50, 100, 300)]
    assert [(r.vector_dim, r.elements) for r in patched] == [(1, 14), (3, 42), (6, 84), (12, 168)]
    # One element is the mean, 6 / 8: such a patch becomes foreground
    assert patched[0].mask[:64].all() and not patched[0].mask[64:].any()
    assert patched[0].iou == pytest.approx(62 / 64)
    # Boundaries are 3 pixels wide (round(0.02 * 158.4)) at the borders, too: a frame of 62 and one of 64 rows
    first, second = (112 * rows - 106 * (rows - 6) for rows in (62, 64))
    shared = first - 2 * 106  # the lower edges are rows 59 to 61 and 61 to 63: two rows are not in both
    assert patched[0].boundary_iou == pytest.approx(shared / (first + second - shared))
    assert patched[3].iou == 1 and patched[3].boundary_iou == 1


def test_more_elements_of_the_whole_mask_bring_it_nearer():
    mask = torch.from_numpy(rectangle(112, 112, 20, 30, 90, 70) & ~rectangle(112, 112, 40, 45, 50, 55))
    whole, _ = reconstructions(mask)
    ious = [r.iou for r in whole]
    assert ious == sorted(ious) and ious[0] < 0.95 < ious[-1] < 1
    figure = draw_representation(mask.numpy(), reconstructions(mask))
    titles = [ax.get_title() for ax in figure.axes]
    assert titles[:2] == ["truth, 112 x 112", "N = 10"] and titles[5] == "zigzag order of a patch"
    assert figure.axes[1].get_xlabel().startswith(f"IoU {100 * ious[0]:.1f}, Boundary IoU")


def test_errors_and_labels_have_their_colours():
    mask, truth = (np.array([row], bool) for row in ([1, 1, 0, 0], [1, 0, 1, 0]))
    assert [tuple(c) for c in colour_errors(mask, truth)[0].tolist()] == [LIGHT, RED, BLUE, (40, 42, 48)]
    assert mask_iou(mask, truth) == pytest.approx(1 / 3)
    assert mask_iou(np.zeros((1, 1), bool), np.zeros((1, 1), bool), if_empty=1.0) == 1
    labels = np.array([[0, 1], [1, 2]])
    picture = tint_grid(np.ones((16, 16), bool), labels)
    assert picture.shape == (96, 96, 3)
    background, mixed, foreground = (picture[y, x].astype(int) for y, x in ((20, 20), (20, 70), (70, 70)))
    assert background.argmax() == 2 and mixed.argmax() == 0 and foreground.argmax() == 1
    assert (picture[70, 20] == mixed).all() and (picture[48, 20] == 20).all()


def test_a_change_of_elements_moves_the_whole_mask_or_one_patch():
    """As in the paper's Fig. 1."""
    mask = torch.from_numpy(rectangle(112, 112, 20, 30, 90, 70))
    whole, patch = influences(mask)
    assert (whole.patch_size, whole.vector_dim, patch.patch_size, patch.vector_dim) == (112, 300, 8, 6)
    assert (whole.change > 0).mean() > 0.99
    rows, columns = np.nonzero(patch.change)
    assert 32 < len(rows) <= 64 and np.ptp(rows) < 8 and np.ptp(columns) < 8
    assert rows.min() // 8 == rows.max() // 8 and columns.min() // 8 == columns.max() // 8
    for x in (whole, patch):
        assert 0 < (x.before != x.after).sum() < (x.change > 0).sum() and x.change.max() <= 0.75
    (blank,) = influences(torch.ones(112, 112, dtype=torch.bool))[1:]
    assert not blank.change.any() and blank.before.all()


# ---------------------------------------------------------------- patches


def test_patches_of_a_mask_without_a_quarter_are_counted():
    mask = ~rectangle(112, 112, 0, 0, 56, 56)
    num_objects, counts = count_patches([record(mask)] * 2, (8, 16))
    assert num_objects == 2
    # Of 14 x 14 patches 7 x 7 are background; of 7 x 7, 3 x 3 are, and the 7 around them are mixed
    assert counts[8].tolist() == [2 * 49, 0, 2 * 147]
    assert counts[16].tolist() == [2 * 9, 2 * 7, 2 * 33]


# ---------------------------------------------------------------- objects


def test_objects_are_the_largest_first(tmp_path, monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    truth = load_objects("shapes_val_3_96px", 2)
    areas = truth.masks.sum(axis=(1, 2)).tolist()
    assert areas == sorted(areas, reverse=True) and len(areas) == 3
    annotations = json.loads((tmp_path / "shapes" / "val_3_96px" / "annotations.json").read_text())["annotations"]
    assert sorted(areas) == sorted(a["area"] for a in annotations if a["image_id"] == 2)
    assert sorted(truth.names) == ["spiral", "star", "star"]
    for mask, box, in_box in zip(truth.masks, truth.boxes.tensor.int().tolist(), truth.in_boxes(), strict=True):
        left, top, right, bottom = box
        assert mask[top:bottom, left:right].sum() == mask.sum()
        assert in_box.shape == (112, 112)
        assert in_box.float().mean() == pytest.approx(mask[top:bottom, left:right].mean(), abs=0.02)


@pytest.mark.parametrize(
    ("dataset", "number", "message"),
    [
        ("unheard_of", 1, "no data set 'unheard_of'"),
        ("shapes_val_3_96px", 4, "image 4 of shapes_val_3_96px: it has 3"),
        ("shapes_test", 1, "'shapes_test' is no data set"),
        ("coco_2017_val", 1, "coco_2017_val: no .*instances_val2017.json"),
    ],
)
def test_what_is_not_there_is_named(dataset, number, message, tmp_path, monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    with pytest.raises(UserError, match=message):
        load_objects(dataset, number)


def test_matches_are_the_best_scored_that_overlap_by_half():
    detections = Instances((100, 100))
    detections.pred_boxes = Boxes(torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 8], [50, 50, 60, 56], [50, 50, 54, 60]]))
    detections.scores = torch.tensor([0.6, 0.9, 0.3, 0.8])
    truth = Boxes(torch.tensor([[0.0, 0, 10, 10], [50, 50, 60, 60], [80, 80, 90, 90]]))
    assert match_detections(truth, detections) == [1, 2, None]
    assert match_detections(truth, detections[[]]) == [None, None, None]


def test_pieces_are_parts_and_holes():
    mask = rectangle(30, 30, 5, 5, 15, 15) | rectangle(30, 30, 20, 20, 25, 25)
    assert [count_pieces(x) for x in (mask[:18], mask, mask & ~rectangle(30, 30, 8, 8, 9, 9), mask[:2])] == [1, 2, 3, 0]


def test_windows():
    mask = rectangle(80, 100, 20, 40, 40, 80)  # 20 rows, 40 columns
    assert square_around(mask, 0.1) == (slice(6, 54), slice(36, 84))
    assert square_around(mask, 2.0) == (slice(0, 80), slice(0, 100))
    assert square_around(rectangle(80, 100, 70, 0, 80, 4), 0.5) == (slice(60, 80), slice(0, 20))
    # A plain square, and bars with more contour
    mask = rectangle(80, 100, 5, 5, 45, 45)
    mask[50:70:4, 60:80] = True
    rows, columns = richest_window(mask, 24)
    assert rows.stop - rows.start == columns.stop - columns.start == 24
    assert rows.start <= 50 and rows.stop >= 67 and columns.start <= 60 and columns.stop >= 80
    assert richest_window(mask, 500) == (slice(0, 80), slice(0, 80))


def detections(masks: np.ndarray) -> Instances:
    instances = Instances(masks.shape[1:])
    instances.pred_boxes = Boxes(torch.tensor([[10.0, 10, 38, 38]] * len(masks)))
    instances.pred_masks = torch.from_numpy(masks)
    instances.pred_coarse_masks = torch.ones(len(masks), 1, 14, 14)
    instances.pred_patch_labels = torch.full((len(masks), 2, 2), 2)
    return instances


def test_rows_have_the_overlap_of_the_part_shown():
    image = np.full((60, 60, 3), 90, np.uint8)
    masks = np.stack([rectangle(60, 60, 10, 10, 38, 38), rectangle(60, 60, 0, 0, 5, 5)])
    truth = TrueObjects(image, masks, Boxes(torch.zeros(2, 4)), ["star", "gear"])
    # Half of the object, and as much outside the window
    predicted = (rectangle(60, 60, 10, 10, 24, 38) | rectangle(60, 60, 50, 0, 60, 60))[None]
    columns = stage_columns(image, detections(predicted), with_labels=True)
    assert list(columns) == ["DCT-Mask stage", "patch labels", "PatchDCT"]
    np.testing.assert_array_equal(columns["DCT-Mask stage"][0], masks[0])
    assert columns["patch labels"][0, 20, 20].argmax() == 1  # green
    windows = [(slice(4, 44), slice(4, 44))] * 2
    rows, numbers = object_rows(truth, windows, arrange(columns, [0, None]))
    assert numbers[0] == {
        "class": "star",
        "window": [4, 4, 44, 44],
        "IoU": {"DCT-Mask stage": 1.0, "PatchDCT": pytest.approx(0.5)},
    }
    assert numbers[1]["IoU"] == {"DCT-Mask stage": None, "patch labels": None, "PatchDCT": None}
    assert [p.title for p in rows[0]] == ["image", "truth", "DCT-Mask stage", "patch labels", "PatchDCT"]
    assert [p.caption for p in rows[0]] == ["star", "", "IoU 100.0", "", "IoU 50.0"]
    assert [p.caption for p in rows[1]] == ["gear", "", "not found", "not found", "not found"]
    assert {p.title for p in rows[1]} == {""}


def test_parts_are_enlarged_pixel_by_pixel():
    image = np.zeros((8, 8, 3), np.uint8)
    image[..., 0] = 200
    part = draw_part(image, (slice(2, 6), slice(2, 4)), side=40)
    assert part.shape == (40, 20, 3) and (part == (200, 0, 0)).all()
    mask = rectangle(8, 8, 4, 2, 8, 8)
    drawn = draw_part(image, (slice(2, 6), slice(2, 6)), mask, (0, 255, 0), side=40).astype(int)
    grey = int(200 / 3 * 0.8 + 10)
    assert (drawn[:15] == grey).all()
    assert (drawn[25:35, 5:35, 1] > drawn[25:35, 5:35, 0] + 80).all()


def test_figures_are_written_by_their_ending(tmp_path):
    rows, _ = object_rows(
        TrueObjects(np.zeros((9, 9, 3), np.uint8), np.ones((1, 9, 9), bool), Boxes(torch.zeros(1, 4)), ["a"]),
        [(slice(0, 9), slice(0, 9))],
        {"b": [None]},
    )
    figure, axes = draw_panels(rows)
    assert axes.shape == (1, 3)
    for name, kind in (("a.png", "PNG"), ("new/b.jpg", "JPEG")):
        save(figure, tmp_path / name)
        with Image.open(tmp_path / name) as picture:
            assert picture.format == kind and picture.width == 900
    save(figure, tmp_path / "c.pdf")
    assert (tmp_path / "c.pdf").read_bytes().startswith(b"%PDF")
    with pytest.raises(UserError, match=r"one of \.jpg, \.jpeg, \.pdf, \.png, \.svg"):
        save(Figure(), tmp_path / "d.gif")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.png", "c.pdf", "new"]


# ---------------------------------------------------------------- the page


def key_rows() -> dict[str, list[str]]:
    """The page's table of keys: default, COCO model's, meaning and table by key."""
    section = PAGE.read_text().partition("## 6. Config keys")[2].partition("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("| `")]
    return {cells[0].strip(" `"): [c.strip() for c in cells[1:]] for cells in (x.strip("|").split("|") for x in lines)}


def test_keys_of_the_page_have_the_values_of_the_code():
    rows = key_rows()
    default = get_cfg().MODEL.ROI_MASK_HEAD
    coco = load_cfg("configs/patchdct/patchdct_R_50_FPN_1x_coco.yaml").MODEL.ROI_MASK_HEAD
    for key, (text, model, *_) in rows.items():
        assert ast.literal_eval(text.strip("`")) == default[key], key
        expected = ast.literal_eval(model.strip("`")) if model else default[key]
        assert expected == coco[key], f"{key} of the COCO model"
    own = default.keys() - get_detectron2_cfg().MODEL.ROI_MASK_HEAD.keys()
    assert own <= rows.keys(), "keys that the page does not have"


def test_configs_of_the_page_set_the_keys_that_it_says():
    section = PAGE.read_text().partition("## 7. Ablations")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| \d+ \|[^|]*\| `([^`]+)` \| ([^|]+) \|$", section, re.MULTILINE)
    assert len(rows) == 14
    base = load_cfg("configs/patchdct/patchdct_R_50_FPN_1x_coco.yaml").MODEL.ROI_MASK_HEAD
    for config, keys in rows:
        head = load_cfg(f"configs/patchdct/{config}").MODEL.ROI_MASK_HEAD
        assert {key for key in head if head[key] != base[key]} == set(re.findall(r"`(\w+)`", keys)), config


def test_pictures_and_links_of_the_page_exist_and_are_small():
    links = [link.partition("#")[0] or PAGE.name for link in re.findall(r"\]\(([^)]+)\)", PAGE.read_text())]
    assert links and all((PAGE.parent / link).is_file() for link in links)
    pictures = [PAGE.parent / link for link in links if link.endswith((".png", ".jpg"))] + [Path("docs/teaser.jpg")]
    assert len(pictures) == 4
    for path in pictures:
        with Image.open(path) as picture:
            assert picture.width <= 1600, path
        assert path.stat().st_size <= 250_000, path
