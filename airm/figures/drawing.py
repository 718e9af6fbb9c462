"""The figures themselves, with matplotlib. Images are (H, W, 3) uint8 RGB, masks (H, W) boolean."""

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from matplotlib.figure import Figure
from matplotlib.offsetbox import AnnotationBbox, OffsetImage

from patchdct.errors import UserError
from patchdct.visualization import instance_colour

from .maps import PositionMaps
from .runs import ONE_AIRMF, ONE_SIRMF, SIRMF_EACH

COLOURS = {"SIRMF": "tab:blue", "AIRMF": "tab:red"}
BARS = {
    ONE_SIRMF: ("one SIRMF", "tab:blue"),
    SIRMF_EACH: ("a SIRMF for each", "gold"),
    ONE_AIRMF: ("AIRMF", "tab:red"),
}
THUMBNAIL = 40  # longer side in pixels
SUFFIXES = (".png", ".pdf", ".svg", ".jpg")


def draw_kernel_sizes(rows: Sequence[dict[str, Any]]) -> Figure:
    """Draw Fig. 2a from the rows of :func:`~airm.figures.runs.kernel_size_rows`; a line joins the means of runs."""
    figure = Figure(figsize=(5, 4), layout="constrained")
    axes = figure.subplots()
    for mapping in sorted({row["mapping"] for row in rows}, reverse=True):
        by_size = defaultdict(list)
        for row in rows:
            if row["mapping"] == mapping:
                by_size[row["kernel_size"]].append(row["IoU"])
                axes.plot(row["kernel_size"], row["IoU"], "o", color=COLOURS[mapping])
        sizes = sorted(by_size)
        axes.plot(sizes, [np.mean(by_size[size]) for size in sizes], color=COLOURS[mapping], label=mapping)
    fields = {row["kernel_size"]: row["receptive_field"] for row in rows}
    axes.set_xticks(sorted(fields), [f"{size}\n{fields[size]} px" for size in sorted(fields)])
    axes.set_xlabel("Kernel size, receptive field")
    axes.set_ylabel(f"IoU (%), {', '.join(sorted({row['dataset'] for row in rows}))}")
    axes.legend()
    return figure


def draw_categories(rows: Sequence[dict[str, Any]]) -> Figure:
    """Draw Fig. 2b from the rows of :func:`~airm.figures.runs.category_rows`; the axis does not start at 0."""
    figure = Figure(figsize=(1 + 1.5 * len(rows), 4), layout="constrained")
    axes = figure.subplots()
    known = [row[role] for row in rows for role in BARS if row[role] is not None]
    for i, (role, (label, colour)) in enumerate(BARS.items()):
        shown = [(x, row[role]) for x, row in enumerate(rows) if row[role] is not None]
        bars = axes.bar([x + 0.27 * (i - 1) for x, _ in shown], [v for _, v in shown], 0.25, color=colour, label=label)
        axes.bar_label(bars, fmt="%.1f", fontsize=7)
    span = max(max(known) - min(known), 1.0)
    axes.set_ylim(max(0, min(known) - span), min(max(known) + 0.5 * span, 105))
    axes.set_xticks(range(len(rows)), [row["category"] for row in rows])
    axes.set_ylabel("IoU (%)")
    axes.legend()
    return figure


def draw_maps(image: np.ndarray, mask: np.ndarray, position: tuple[int, int], maps: PositionMaps) -> Figure:
    """Draw Fig. 6: the image with the coarse mask's outline and the position, its attention, its affinity."""
    known = [(title, values) for title, values in zip(("Attention", "Affinity"), maps[1:], strict=True)]
    panels = [(title, values) for title, values in known if values is not None]
    height, width = mask.shape
    figure = Figure(figsize=(4 * (1 + len(panels)), 4 * height / width + 0.4), layout="constrained")
    axes = np.atleast_1d(figure.subplots(1, 1 + len(panels)))
    frame = (0, width, height, 0)
    grey = np.repeat(image.mean(axis=2, keepdims=True).astype(np.uint8), 3, axis=2)
    axes[0].imshow(image, extent=frame)
    if mask.any() and not mask.all():
        axes[0].contour(np.arange(width) + 0.5, np.arange(height) + 0.5, mask, levels=[0.5], colors="orange")
    axes[0].set_title("Image, coarse mask")
    for panel, (title, values) in zip(axes[1:], panels, strict=True):
        panel.imshow(grey, extent=frame)
        # Affinity is a probability; attention, which adds up to 1, is small everywhere
        top = 1.0 if title == "Affinity" else float(values.max())
        panel.imshow(values, extent=frame, cmap="jet", alpha=0.6, vmin=0, vmax=top, interpolation="bilinear")
        panel.set_title(f"{title}, red: {top:.2g}")
    for panel in axes:
        panel.plot(position[0] + 0.5, position[1] + 0.5, "*", color="white", markeredgecolor="black", markersize=12)
        panel.set_axis_off()
    return figure


def draw_parameters(
    points: np.ndarray, categories: Sequence[str], thumbnails: Sequence[np.ndarray] | None = None
) -> Figure:
    """Draw Fig. 7.

    Args:
        points: (n, 2).
        categories: of the n images; each has its colour.
        thumbnails: n images to draw at the points, framed in the colour; coloured dots without.
    """
    figure = Figure(figsize=(9, 8), layout="constrained")
    axes = figure.subplots()
    names = sorted(set(categories))
    for i, name in enumerate(names):
        chosen = points[[category == name for category in categories]]
        axes.scatter(chosen[:, 0], chosen[:, 1], s=25, color=np.array(instance_colour(i)) / 255, label=name)
    for point, category, picture in zip(points, categories, thumbnails or [], strict=False):
        colour = np.array(instance_colour(names.index(category))) / 255
        box = {"edgecolor": colour, "linewidth": 2, "boxstyle": "square,pad=0"}
        axes.add_artist(AnnotationBbox(OffsetImage(picture), tuple(point), pad=0, bboxprops=box))
    axes.margins(0.08)
    axes.set_xticks([])
    axes.set_yticks([])
    if 1 < len(names) <= 20:
        axes.legend(fontsize=8)
    return figure


def thumbnail(image: np.ndarray) -> np.ndarray:
    """Shrink an image so that its longer side has 40 pixels."""
    scale = THUMBNAIL / max(image.shape[:2])
    size = max(1, round(image.shape[1] * scale)), max(1, round(image.shape[0] * scale))
    return cv2.resize(image, size, interpolation=cv2.INTER_AREA)


def save(figure: Figure, path: Path) -> None:
    """Write a figure as the kind of file that the name's ending says; raise UserError for an unknown one."""
    if path.suffix.lower() not in SUFFIXES:
        raise UserError(f"{path}: a figure is written as one of {', '.join(SUFFIXES)}")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
