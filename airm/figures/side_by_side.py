"""Pictures of what refinement changed.

Images are (H, W, 3) uint8 RGB, masks (H, W) boolean. Nothing that is given is changed.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeAlias

import cv2
import numpy as np
import torch

from pixelmask.drawing import (
    PAPER,
    WHITE,
    Window,
    draw_masks,
    find_largest_change,
    fit,
    frame,
    instance_colour,
    resize,
    to_grey,
    write_title,
)
from pixelmask.engine.pictures import Mapper
from pixelmask.images import write_picture
from pixelmask.rle import decode, to_rle

MASK = (255, 165, 0)
ADDED, REMOVED = (40, 200, 80), (235, 50, 50)
MAX_ENLARGEMENT = 16  # of pixels; of the whole image a quarter of it
MARGIN, TITLE_BAR = 4, 24
SHOWN_FROM = 0.5  # score
TITLES = ("Coarse", "Refined", "Added green, removed red")

Result: TypeAlias = dict[str, Any]


def side_by_side(image: np.ndarray, coarse: np.ndarray, refined: np.ndarray, width: int = 1800) -> np.ndarray:
    """Set side by side the coarse mask, the refined one and their difference: added green, removed red.

    Below are the same three panels of the part in which most pixels changed, enlarged; it is framed white above. Where
    nothing changed there is no such row.

    Args:
        image: (H, W, 3) uint8.
        coarse, refined: (H, W) boolean.
        width: of the picture, at most; the panels fit into squares of a third of it.

    Returns:
        (h, w, 3) uint8, on dark ground.
    """
    side = width // 3 - 2 * MARGIN
    part = find_largest_change(coarse ^ refined)
    rows = [_draw_panels(image, coarse, refined, side, MAX_ENLARGEMENT / 4, part)]
    if part is not None:
        rows.append(_draw_panels(image[part], coarse[part], refined[part], side, MAX_ENLARGEMENT))
    wide = max(panel.shape[1] for row in rows for panel in row) + 2 * MARGIN
    columns = []
    for title, *panels in zip(TITLES, *rows, strict=True):
        bar = np.full((TITLE_BAR, wide, 3), PAPER, np.uint8)
        write_title(bar, title, TITLE_BAR, MARGIN)
        left = [(wide - panel.shape[1]) // 2 for panel in panels]
        framed = [frame(p, MARGIN, MARGIN, n, wide - p.shape[1] - n) for p, n in zip(panels, left, strict=True)]
        columns.append(np.vstack([bar, *framed]))
    return np.hstack(columns)


def _draw_panels(
    image: np.ndarray,
    coarse: np.ndarray,
    refined: np.ndarray,
    side: int,
    max_scale: float,
    framed: Window | None = None,
) -> list[np.ndarray]:
    """Draw the three panels, which fit into squares of ``side``, and frame a part of the image in them."""
    size, scale = fit(image, side, max_scale)
    ground = resize(image, size)
    change = to_grey(ground, contrast=0.7, brightness=30)
    # A change of few pixels would vanish if it took half of the picture's pixel to show
    change[resize(~coarse & refined, size, any_part=True)] = ADDED
    change[resize(coarse & ~refined, size, any_part=True)] = REMOVED
    masks = (resize(mask, size)[None] for mask in (coarse, refined))
    panels = [*(draw_masks(ground, mask, colours=[MASK], opacity=0.35) for mask in masks), change]
    if framed is not None:
        rows, columns = framed
        low, high = (
            [round(n * scale) for n in corner] for corner in ((columns.start, rows.start), (columns.stop, rows.stop))
        )
        for panel in panels:
            cv2.rectangle(panel, low, high, WHITE, 1)
    return panels


def draw_refinement(model: torch.nn.Module, record: dict[str, Any], mapper: Mapper, dataset_name: str) -> np.ndarray:
    """Set the coarse mask, the refined one and their difference side by side; (H, W, 3) uint8 RGB."""
    sample = mapper(record)
    refined = model([sample])[0]["refined_mask"]
    coarse, refined = ((mask[0].cpu() >= 0.5).numpy() for mask in (sample["coarse_mask"], refined))
    return side_by_side(sample["image"].permute(1, 2, 0).numpy(), coarse, refined)


def draw_overlays(pixels: np.ndarray, coarse: Sequence[Result], refined: Sequence[Result], place: Path) -> None:
    """Write PLACE.jpg, all masks before and after, and PLACE_change.jpg, the one that changed most, if any did.

    Masks are decoded one by one.

    Args:
        pixels: (H, W, 3) uint8.
        coarse, refined: COCO results of the image, in one order; those with a score below 0.5 are not shown.
        place: path without extension; its folder is made if missing.
    """
    before, after, most, pair = pixels, pixels, 0, None
    for i in reversed(range(len(coarse))):  # the first on top
        try:
            old, new = (decode(to_rle(r[i]["segmentation"], *pixels.shape[:2])) for r in (coarse, refined))
        except ValueError:  # has been said when it was refined
            continue
        if coarse[i].get("score", 1) < SHOWN_FROM:
            continue
        colours = [instance_colour(i)]
        before, after = (draw_masks(p, m[None], colours=colours) for p, m in ((before, old), (after, new)))
        changed = int(np.count_nonzero(old != new))
        if changed > most:
            most, pair = changed, (old, new)
    write_picture(f"{place}.jpg", np.hstack([before, after]), quality=92)
    if pair is not None:
        write_picture(f"{place}_change.jpg", side_by_side(pixels, *pair), quality=92)
