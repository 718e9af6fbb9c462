"""The figures themselves, with matplotlib. Images are (H, W, 3) uint8 RGB, masks (H, W) boolean."""

from collections import defaultdict
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.offsetbox import AnnotationBbox, OffsetImage
from matplotlib.patches import Rectangle

from pixelmask.drawing import Window, draw_masks, fit, instance_colour, resize, to_grey

from .model import Box, PositionMaps, Step
from .runs import ONE_AIRMF, ONE_SIRMF, SIRMF_EACH
from .side_by_side import MASK

COLOURS = {"SIRMF": "tab:blue", "AIRMF": "tab:red"}
BARS = {ONE_SIRMF: ("one SIRMF", "tab:blue"), SIRMF_EACH: ("a SIRMF for each", "gold"), ONE_AIRMF: ("AIRMF", "tab:red")}
THUMBNAIL = 40  # longer side in pixels
WIDE = 10.6  # inches, of the widest figure
PANEL = 500  # longer side in pixels to which an image is shrunk, or a part of it enlarged


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
    panels = [(t, v) for t, v in (("Attention", maps.attention), ("Affinity", maps.affinity)) if v is not None]
    height, width = mask.shape
    side = WIDE / 3
    figure = Figure(figsize=(side * (1 + len(panels)), side * height / width + 0.4), layout="constrained")
    axes = np.atleast_1d(figure.subplots(1, 1 + len(panels)))
    frame = (0, width, height, 0)
    grey = to_grey(image, contrast=1, brightness=0)
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


class Column(NamedTuple):
    """A mask in :func:`draw_steps`."""

    title: str
    mask: np.ndarray
    """(H, W) boolean."""
    step: Step | None = None
    """The ratio that made it; where it has several tiles they are drawn, and what was not encoded is dark."""


def draw_steps(image: np.ndarray, columns: Sequence[Column], zooms: Sequence[Window]) -> Figure:
    """Draw masks of one image side by side, and below them parts of the image, enlarged.

    Args:
        image: (H, W, 3).
        columns: the masks, from left to right; titles have as many lines each.
        zooms: rows and columns of the parts, of one aspect.
    """
    parts = [(slice(0, image.shape[0]), slice(0, image.shape[1])), *zooms]
    aspects = [(rows.stop - rows.start) / (cols.stop - cols.start) for rows, cols in parts]
    lines = 1 + columns[0].title.count("\n")
    height = WIDE / len(columns) * sum(aspects) + 0.05 * len(parts) + 0.2 * lines
    figure = Figure(figsize=(WIDE, height), layout="constrained")
    grid = figure.subplots(len(parts), len(columns), squeeze=False, height_ratios=aspects)
    for x, (title, mask, step) in enumerate(columns):
        for axes, (rows, cols) in zip(grid[:, x], parts, strict=True):
            size, _ = fit(image[rows, cols], PANEL)
            part, inside = (resize(x[rows, cols], size) for x in (image, mask))
            shown = draw_masks(part, inside[None], colours=[MASK], opacity=0.35)
            axes.imshow(shown, extent=(cols.start, cols.stop, rows.stop, rows.start))
            axes.set_axis_off()
        grid[0, x].set_title(title, fontsize=6.5)
        if step is not None and step.tiles > 1:
            _mark_tiles(grid[0, x], step)
        for rows, cols in zooms:
            _outline(grid[0, x], (cols.start, rows.start, cols.stop, rows.stop), "white")
    return figure


def _mark_tiles(axes: Axes, step: Step) -> None:
    """Outline the tiles that were encoded, and darken the rest."""
    height, width = step.mask.shape
    dark = np.zeros((height, width, 4), np.float32)
    dark[..., 3] = 0.6
    for box in step.encoded:
        x0, y0, x1, y1 = (round(end) for end in box)
        dark[y0:y1, x0:x1] = 0
        _outline(axes, box, "cyan")
    axes.imshow(dark, extent=(0, width, height, 0))


def _outline(axes: Axes, box: Box, colour: str) -> None:
    x0, y0, x1, y1 = box
    axes.add_patch(Rectangle((x0, y0), x1 - x0, y1 - y0, fill=False, edgecolor=colour, linewidth=0.6))


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
    return resize(image, fit(image, THUMBNAIL)[0])
