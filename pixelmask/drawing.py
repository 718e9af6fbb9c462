"""What all pictures are made of: overlays of masks, their colours, panels with titles, and figures as files.

Images are (H, W, 3) uint8, RGB; masks are (H, W) or (N, H, W), boolean. Nothing that is given is changed.
"""

import colorsys
import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import cv2
import numpy as np
import torch

from .errors import UserError
from .files import whole_or_not_at_all, write_json

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Array: TypeAlias = np.ndarray | torch.Tensor
Colour: TypeAlias = tuple[int, int, int]
Window: TypeAlias = tuple[slice, slice]
"""Rows and columns of a part of an image."""

FONT = cv2.FONT_HERSHEY_SIMPLEX
WHITE = (255, 255, 255)
PAPER = (24, 26, 30)
DPI = 150
SUFFIXES = (".jpg", ".jpeg", ".pdf", ".png", ".svg")


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
    (text_width, text_height), baseline = cv2.getTextSize(text, FONT, scale, 1)
    rows, columns = np.nonzero(mask)
    top = rows.argmin()
    x = int(np.clip(columns[top] - text_width // 2, 0, max(0, width - text_width - 4)))
    y = int(np.clip(rows[top], text_height + baseline, height))
    cv2.rectangle(picture, (x, y - text_height - baseline), (x + text_width + 4, y), colour, cv2.FILLED)
    cv2.putText(picture, text, (x + 2, y - baseline // 2 - 1), FONT, scale, PAPER, 1, cv2.LINE_AA)


def fit(image: np.ndarray, side: int, max_scale: float = math.inf) -> tuple[tuple[int, int], float]:
    """Return the (width, height) at which the longer side of an image has ``side`` pixels, and the scale."""
    scale = min(side / max(image.shape[:2]), max_scale)
    return (max(1, round(image.shape[1] * scale)), max(1, round(image.shape[0] * scale))), scale


def resize(
    image: np.ndarray, size: tuple[int, int], enlarge: int = cv2.INTER_NEAREST, any_part: bool = False
) -> np.ndarray:
    """Resize an image or a boolean mask.

    Args:
        image: (H, W, 3) uint8, or (H, W) boolean, of which a pixel is set if half of it is.
        size: (width, height); means are taken where it is smaller than the image.
        enlarge: OpenCV's way to enlarge; by default pixels are seen as they are.
        any_part: set a pixel of a mask if any part of it is.
    """
    if image.shape[1::-1] == size:
        return image
    method = cv2.INTER_AREA if size < image.shape[1::-1] else enlarge
    if image.dtype != bool:
        return cv2.resize(image, size, interpolation=method)
    covered = cv2.resize(image.astype(np.float32), size, interpolation=method)
    return covered > 0 if any_part else covered >= 0.5


def to_grey(image: np.ndarray, contrast: float = 0.8, brightness: float = 10, colour: float = 0) -> np.ndarray:
    """Take colour and contrast out of an image, so that what is laid over it stands out.

    Args:
        image: (H, W, 3) uint8.
        contrast: share of the grey values in the result.
        brightness: added to it, of 255.
        colour: share of the image itself in it.
    """
    grey = contrast * image.mean(axis=2, keepdims=True) + brightness + colour * image
    return np.round(grey).clip(0, 255).astype(np.uint8)


def frame(panel: np.ndarray, top: int, bottom: int, left: int, right: int) -> np.ndarray:
    """Put dark margins of these pixels around a panel."""
    return cv2.copyMakeBorder(panel, top, bottom, left, right, cv2.BORDER_CONSTANT, value=PAPER)


def write_title(picture: np.ndarray, title: str, bar: int, x: int) -> None:
    """Write white text into the uppermost ``bar`` pixels of a picture, from ``x`` on; in place."""
    place, size = (x, round(0.7 * bar)), bar / 48
    cv2.putText(picture, title, place, FONT, size, WHITE, max(1, bar // 24), cv2.LINE_AA)


ZOOM_SHARE = 8  # the zoomed part is this share of the image, at least SMALLEST_ZOOM pixels
SMALLEST_ZOOM = 64


def find_largest_change(changed: np.ndarray) -> Window | None:
    """Return the rows and columns of the window with the most changed pixels, or None if nothing changed.

    Args:
        changed: (H, W) boolean; the window is as wide and high as an eighth of the longer side.
    """
    if not changed.any():
        return None
    window = [min(n, max(SMALLEST_ZOOM, max(changed.shape) // ZOOM_SHARE)) for n in changed.shape]
    counts = cv2.boxFilter(
        changed.astype(np.float32), -1, (window[1], window[0]), normalize=False, borderType=cv2.BORDER_CONSTANT
    )
    centre = np.unravel_index(counts.argmax(), counts.shape)
    starts = [int(np.clip(c - w // 2, 0, n - w)) for c, w, n in zip(centre, window, changed.shape, strict=True)]
    return slice(starts[0], starts[0] + window[0]), slice(starts[1], starts[1] + window[1])


def check_suffix(path: Path) -> None:
    """Raise UserError for a name that ends as no kind of picture does."""
    if path.suffix.lower() not in SUFFIXES:
        raise UserError(f"{path}: a figure is written as one of {', '.join(SUFFIXES)}")


def save(figure: "Figure", path: Path, quality: int = 80) -> None:
    """Write a figure of matplotlib as the kind of file that the name's ending says, a JPEG with this quality.

    Raises:
        UserError: see :func:`check_suffix`.
    """
    check_suffix(path)
    kind = path.suffix.lower().removeprefix(".")
    jpeg: dict[str, Any] = {"pil_kwargs": {"quality": quality, "optimize": True}} if kind in ("jpg", "jpeg") else {}
    content = io.BytesIO()
    figure.savefig(content, format=kind, dpi=DPI, **jpeg)
    with whole_or_not_at_all(path) as partial:
        partial.write_bytes(content.getvalue())


def save_with_numbers(figure: "Figure", path: Path, numbers: Any) -> Path:
    """Write a figure as :func:`save` does, and beside it the numbers behind it as JSON, whose path is returned."""
    save(figure, path)
    beside = path.with_suffix(".json")
    write_json(beside, numbers, indent=2)
    return beside
