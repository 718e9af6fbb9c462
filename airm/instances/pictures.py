"""Pictures of an image's instances before and after refinement."""

from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from PIL import Image

from pixelmask.drawing import draw_masks, instance_colour
from pixelmask.rle import decode, to_rle

from ..figures.side_by_side import side_by_side

SHOWN_FROM = 0.5  # score

Results: TypeAlias = list[dict[str, Any]]


def draw_overlays(pixels: np.ndarray, coarse: Results, refined: Results, place: Path) -> None:
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
    place.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.hstack([before, after])).save(f"{place}.jpg", quality=92)
    if pair is not None:
        Image.fromarray(side_by_side(pixels, *pair)).save(f"{place}_change.jpg", quality=92)
