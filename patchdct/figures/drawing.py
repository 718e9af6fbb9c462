"""The pictures themselves, with matplotlib. Images are (H, W, 3) uint8 RGB, masks (H, W) boolean."""

from collections.abc import Sequence
from typing import NamedTuple

import cv2
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from pixelmask.drawing import Colour, Window, draw_masks, fit, resize, to_grey

from ..dct import zigzag_order
from .patch_histograms import ROWS as LABEL_COLOURS
from .representation import PATCH_DIMS, PATCH_SIZE, Influence, Reconstruction

PANEL_PIXELS = 320
KEPT, LOST, ADDED, OUTSIDE = (235, 235, 235), (40, 120, 255), (255, 70, 50), (40, 42, 48)


class Panel(NamedTuple):
    """A picture (H, W, 3) uint8 with a line of text over and under it."""

    picture: np.ndarray
    title: str = ""
    caption: str = ""


def draw_panels(rows: Sequence[Sequence[Panel]], side: float = 2.0) -> tuple[Figure, np.ndarray]:
    """Set panels in rows of one length; return the figure and its axes, of the rows' shape; ``side`` is in inches."""
    lines = sum(max(bool(p.title) for p in row) + max(bool(p.caption) for p in row) for row in rows)
    size = side * len(rows[0]), side * len(rows) + 0.2 * lines
    figure = Figure(figsize=size, layout=ConstrainedLayoutEngine(w_pad=0.02, h_pad=0.02))
    axes = figure.subplots(len(rows), len(rows[0]), squeeze=False)
    for ax, panel in zip(axes.flat, (panel for row in rows for panel in row), strict=True):
        ax.imshow(panel.picture)
        ax.set_title(panel.title, fontsize=10, pad=3)
        ax.set_xlabel(panel.caption, fontsize=9, labelpad=2)
        ax.set_xticks([])
        ax.set_yticks([])
        for spine in ax.spines.values():
            spine.set_visible(False)
    return figure, axes


def colour_errors(mask: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Draw a mask: right pixels light, lost ones blue, added ones red."""
    colours = np.array([OUTSIDE, LOST, ADDED, KEPT], np.uint8)
    return colours[2 * mask.astype(int) + truth.astype(int)]


def draw_representation(truth: np.ndarray, rows: Sequence[Sequence[Reconstruction]]) -> Figure:
    """Draw a mask and its :func:`~patchdct.figures.representation.reconstructions`, and the zigzag order."""
    panels = []
    for row, first in zip(rows, (f"truth, {len(truth)} x {len(truth)}", "zigzag order"), strict=True):
        shown = [
            Panel(
                colour_errors(r.mask, truth),
                f"N = {r.vector_dim}" if r.patch_size == len(truth) else f"n = {r.vector_dim}: {r.elements:,} elements",
                f"IoU {100 * r.iou:.1f}, Boundary IoU {100 * r.boundary_iou:.1f}",
            )
            for r in row
        ]
        panels.append([Panel(colour_errors(truth, truth), first), *shown])
    figure, axes = draw_panels(panels)
    _draw_zigzag(axes[1][0])
    return figure


def _draw_zigzag(ax: Axes) -> None:
    """Draw the order in which the elements of a patch's spectrum are taken, shaded by the vectors that have them."""
    order = np.array(zigzag_order(PATCH_SIZE))
    shades = np.full((PATCH_SIZE, PATCH_SIZE), 0.95)
    for dim, shade in list(zip(PATCH_DIMS, (0.35, 0.5, 0.65, 0.8), strict=True))[::-1]:
        shades[tuple(order[:dim].T)] = shade
    ax.clear()
    ax.imshow(shades, cmap="Blues_r", vmin=0, vmax=1)
    ax.plot(order[:, 1], order[:, 0], color="0.3", linewidth=0.8)
    for i, (row, column) in enumerate(order[: PATCH_DIMS[-1]]):
        ax.text(column, row, str(i + 1), fontsize=6, ha="center", va="center")
    ax.set_title("zigzag order of a patch", fontsize=10, pad=3)
    ax.set_xlabel("n = 1, 3, 6, 12: dark to light", fontsize=9, labelpad=2)
    ax.set_xticks([])
    ax.set_yticks([])


def draw_influences(found: Sequence[Influence]) -> Figure:
    """Draw masks before and after a change of elements, and how far each pixel moves: Fig. 1."""
    rows = []
    for x in found:
        vector = f"{'whole mask' if x.patch_size == len(x.before) else 'one patch'}, {x.vector_dim} elements"
        moved = 255 - (255 * (x.change / max(x.change.max(), 1e-6))).astype(np.uint8)
        row = (
            Panel(colour_errors(x.before, x.before), vector),
            Panel(
                colour_errors(x.after, x.before), "three changed", f"{int((x.before != x.after).sum()):,} pixels flip"
            ),
            Panel(moved[..., None].repeat(3, 2), "move of each pixel", f"{100 * (x.change > 0).mean():.1f} % of all"),
        )
        rows.append(row)
    return draw_panels(rows)[0]


def tint_grid(mask: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Draw an (M, M) mask under its (P, P) patch labels: foreground green, background blue, mixed orange."""
    factor = 6  # pixels of the picture for each of the mask
    picture = np.where(mask[..., None], 255, 70).astype(np.uint8).repeat(factor, 0).repeat(factor, 1)
    side = len(picture) // len(labels)
    colour_of = 255 * np.array([to_rgb(LABEL_COLOURS[label]) for label in sorted(LABEL_COLOURS)])
    tint = colour_of[labels].repeat(side, 0).repeat(side, 1)
    picture = np.round(0.5 * picture + 0.5 * tint).astype(np.uint8)
    picture[::side] = picture[:, ::side] = 20
    return picture


def draw_part(
    image: np.ndarray, window: Window, mask: np.ndarray | None = None, colour: Colour = KEPT, side: int = PANEL_PIXELS
) -> np.ndarray:
    """Draw a window of an image, its longer side of ``side`` pixels; with a mask, in grey and the mask on it."""
    part = image[window]
    size, _ = fit(part, side)
    part = resize(part, size, cv2.INTER_CUBIC)
    if mask is None:
        return part
    return draw_masks(to_grey(part), resize(mask[window], size)[None], colours=[colour], opacity=0.45)
