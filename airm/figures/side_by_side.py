"""Pictures of what refinement changed.

Images are (H, W, 3) uint8 RGB, masks (H, W) boolean. Nothing that is given is changed.
"""

from collections.abc import Callable
from typing import Any

import cv2
import numpy as np
import torch

from pixelmask.drawing import FONT, PAPER, WHITE, draw_masks, find_largest_change

MASK = (255, 165, 0)
ADDED, REMOVED = (40, 200, 80), (235, 50, 50)
MAX_ENLARGEMENT = 16  # of pixels; of the whole image a quarter of it
MARGIN, TITLE_BAR = 4, 24
TITLES = ("Coarse", "Refined", "Added green, removed red")


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
    wide = max(panel.shape[1] for row in rows for panel in row)
    columns = []
    for title, *panels in zip(TITLES, *rows, strict=True):
        bar = np.full((TITLE_BAR, wide, 3), PAPER, np.uint8)
        cv2.putText(bar, title, (MARGIN, TITLE_BAR - 6), FONT, 0.5, WHITE, 1, cv2.LINE_AA)
        columns.append(np.vstack([bar, *(_frame(panel, 0, (wide - panel.shape[1]) // 2, wide) for panel in panels)]))
    return np.hstack(columns)


def _draw_panels(
    image: np.ndarray,
    coarse: np.ndarray,
    refined: np.ndarray,
    side: int,
    max_scale: float,
    framed: tuple[slice, slice] | None = None,
) -> list[np.ndarray]:
    """Draw the three panels, which fit into squares of ``side``, and frame a part of the image in them."""
    height, width = coarse.shape
    scale = min(side / max(height, width), max_scale)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    ground = cv2.resize(image, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_NEAREST)
    # A change of few pixels would vanish if it took half of the picture's pixel to show
    added, removed = (_resize(mask, size, 0) for mask in (~coarse & refined, coarse & ~refined))
    change = np.round(0.7 * ground.mean(axis=2, keepdims=True) + 30).astype(np.uint8).repeat(3, axis=2)
    change[added] = ADDED
    change[removed] = REMOVED
    panels = [
        *(
            draw_masks(ground, _resize(mask, size, 0.5)[None], colours=[MASK], opacity=0.35)
            for mask in (coarse, refined)
        ),
        change,
    ]
    if framed is not None:
        low, high = (
            [round(end * scale) for end in ends]
            for ends in zip(*((s.start, s.stop) for s in framed[::-1]), strict=True)
        )
        for panel in panels:
            cv2.rectangle(panel, low, high, WHITE, 1)
    return [_frame(panel, MARGIN, MARGIN, panel.shape[1] + 2 * MARGIN) for panel in panels]


def _resize(mask: np.ndarray, size: tuple[int, int], share: float) -> np.ndarray:
    """Resize a mask to (width, height); a pixel is set if more than ``share`` of it, or half, is."""
    method = cv2.INTER_AREA if size[0] < mask.shape[1] else cv2.INTER_NEAREST
    covered = cv2.resize(mask.astype(np.float32), size, interpolation=method)
    return (covered > share) | (covered >= 0.5)


def _frame(panel: np.ndarray, above: int, left: int, width: int) -> np.ndarray:
    """Put a panel on dark ground of that width, with as much below as above."""
    right = width - left - panel.shape[1]
    return cv2.copyMakeBorder(panel, above, above, left, right, cv2.BORDER_CONSTANT, value=PAPER)


def draw_refinement(
    model: torch.nn.Module,
    record: dict[str, Any],
    mapper: Callable[[dict[str, Any]], dict[str, Any]],
    dataset_name: str,
) -> np.ndarray:
    """Set the coarse mask, the refined one and their difference side by side; (H, W, 3) uint8 RGB."""
    sample = mapper(record)
    refined = model([sample])[0]["refined_mask"]
    coarse, refined = ((mask[0].cpu() >= 0.5).numpy() for mask in (sample["coarse_mask"], refined))
    return side_by_side(sample["image"].permute(1, 2, 0).numpy(), coarse, refined)
