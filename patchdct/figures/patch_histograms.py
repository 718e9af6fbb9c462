"""Patches of masks: how many have which label, and histograms of their vectors (PatchDCT, Sec. 3.2, Fig. 3)."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor

from pixelmask.drawing import save

from ..dct import DCTMaskCodec
from ..evaluation.upper_bound import boxes_of, cut_out, objects_of
from ..patches import PatchLabel, classify_patches, split_into_patches

# Uniform patches first, as in the paper's figure; colours are those of the patches in this project's pictures
ROWS = {PatchLabel.FOREGROUND: "tab:green", PatchLabel.BACKGROUND: "tab:blue", PatchLabel.MIXED: "tab:orange"}


class PatchHistograms:
    """Adds up masks, of which only the counts are kept.

    Bins are 1 / m wide, for patches of m x m, and centred on its multiples: the first element is the number of
    foreground pixels, divided by m, so it has m * m + 1 values from 0 to m. No other element of a patch of zeros and
    ones leaves [-m / 2, m / 2].

    Attributes:
        counts: (3, n, m * m + 1) int64: patches by :class:`~patchdct.patches.PatchLabel`, element and bin.
        num_masks: masks added so far.
    """

    def __init__(self, patch_size: int = 8, vector_dim: int = 6):
        self.codec = DCTMaskCodec(patch_size, vector_dim)
        self.lowest = torch.full((vector_dim,), -patch_size / 2)
        self.lowest[0] = 0
        self.counts = torch.zeros(len(PatchLabel), vector_dim, patch_size**2 + 1, dtype=torch.int64)
        self.num_masks = 0

    @property
    def centers(self) -> Tensor:
        """(n, m * m + 1) the middle of each bin."""
        return self.lowest[:, None] + torch.arange(self.counts.shape[2]) / self.codec.mask_size

    def add(self, masks: Tensor) -> None:
        """Count the patches of (B, M, M) boolean masks; M must be a multiple of the patch's side."""
        patches = split_into_patches(masks, self.codec.mask_size)
        labels = classify_patches(patches).flatten()
        vectors = self.codec.encode(patches).flatten(0, 1)
        _, num_elements, num_bins = self.counts.shape
        bins = ((vectors - self.lowest) * self.codec.mask_size).round().long().clamp(0, num_bins - 1)
        histogram = labels[:, None] * num_elements + torch.arange(num_elements)
        flat = (histogram * num_bins + bins).flatten()
        self.counts += torch.bincount(flat, minlength=self.counts.numel()).view_as(self.counts)
        self.num_masks += len(masks)

    def patches(self) -> dict[str, int]:
        """Return the number of patches of each label, by its name in lower case."""
        return {label.name.lower(): int(self.counts[label, 0].sum()) for label in PatchLabel}

    def to_json(self) -> dict[str, Any]:
        """Return everything as JSON has it: "bin_centers" by element, "counts" by label and element."""
        return {
            "masks": self.num_masks,
            "patch_size": self.codec.mask_size,
            "dim": self.codec.vector_dim,
            "patches": self.patches(),
            "bin_centers": self.centers.tolist(),
            "counts": {label.name.lower(): self.counts[label].tolist() for label in PatchLabel},
        }

    def draw(self, path: Path) -> None:
        """Write a picture: a row for each label, a column for each element, in percent of the label's patches."""
        num_elements = self.codec.vector_dim
        figure = Figure(figsize=(2 * num_elements, 6), layout="constrained")
        axes = figure.subplots(len(ROWS), num_elements, sharex="col", sharey="row", squeeze=False)
        for row, (label, color) in zip(axes, ROWS.items(), strict=True):
            total = int(self.counts[label, 0].sum())
            for element, (ax, counts) in enumerate(zip(row, self.counts[label], strict=True)):
                edges = self.lowest[element] + (torch.arange(len(counts) + 1) - 0.5) / self.codec.mask_size
                ax.stairs(100 * counts / max(total, 1), edges, fill=True, color=color)
                if label == PatchLabel.MIXED:
                    ax.set_xlabel(f"element {element + 1}")
            row[0].set_ylabel(f"{label.name.lower()}\n% of {total:,}")
        figure.align_ylabels()
        save(figure, path)


def count_patches(records: Iterable[dict[str, Any]], patch_sizes: Sequence[int]) -> tuple[int, dict[int, Tensor]]:
    """Count the patches of all objects in their true boxes, at 112 x 112 pixels.

    Args:
        records: Detectron2's dicts, with masks.
        patch_sizes: sides of patches, divisors of 112.

    Returns:
        the number of objects, and by patch size a (3,) int64 count by :class:`~patchdct.patches.PatchLabel`.
    """
    num_objects = 0
    counts = {size: torch.zeros(len(PatchLabel), dtype=torch.int64) for size in patch_sizes}
    for record in records:
        objects = objects_of(record)
        masks = cut_out(objects, boxes_of(objects))
        num_objects += len(masks)
        for size, count in counts.items():
            labels = classify_patches(split_into_patches(masks, size))
            count += torch.bincount(labels.flatten(), minlength=len(PatchLabel))
    return num_objects, counts
