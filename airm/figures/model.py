"""What a trained AIRM makes of an image, as numbers: maps of one position (Fig. 6), the parameters that AIRMF's
hypernetwork predicts (Fig. 7), and what each ratio makes of a coarse mask, with the tiles encoded for it (Sec. 4.3).
"""

import logging
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from torch import Tensor
from torch.nn import functional as F

from pixelmask.drawing import Window, find_largest_change
from pixelmask.errors import UserError

from ..backbone.mix_transformer import MixTransformer
from ..coarse_to_fine import CoarseToFine, Settings
from ..data.dataset_mapper import RefinementDatasetMapper
from ..data.datasets import parse_folders
from ..data.synthetic_dataset import is_synthetic_name, register_synthetic
from ..evaluation.metrics import intersection_and_union, mean_boundary_accuracy
from ..evaluation.refinement import MaskScores, sum_up
from ..implicit_mapping import AIRMF
from ..meta_arch import AIRM
from ..tiles import ALIGNMENT, SMALLEST_SIDE, GridAxis, Tile

MAX_SIDE = 512
LARGEST_SIDE = 1024
"""Attention has a row for each position of the grid at 1/16, and a column: from here on it takes gigabytes."""
FEWEST = 4  # images for t-SNE; the perplexity, a number of neighbours, is then 1
ZOOM_SHARE = 10  # an enlarged part is this share of the image's sides

logger = logging.getLogger(__name__)

Box = tuple[float, float, float, float]
"""x0, y0, x1, y1 in pixels of the image."""


def encoder_input(model: AIRM, image: Tensor, coarse_mask: Tensor, max_side: int = MAX_SIDE) -> Tensor:
    """Normalise an image with its coarse mask, and shrink both where the longer side exceeds ``max_side``.

    Args:
        model: whose encoder it is for.
        image: (3, H, W) RGB in [0, 255].
        coarse_mask: (1, H, W) in [0, 1].
        max_side: in pixels, 32 to 1024.

    Returns:
        (1, 4, h, w) on the model's device; sides are multiples of 16, the aspect changes by what that takes.

    Raises:
        UserError: for a ``max_side`` out of its range.
    """
    if not SMALLEST_SIDE <= max_side <= LARGEST_SIDE:
        raise UserError(f"max_side is {max_side} pixels; it lies in {SMALLEST_SIDE} to {LARGEST_SIDE}")
    scale = min(1.0, max_side / max(image.shape[1:]))
    largest = max_side // ALIGNMENT * ALIGNMENT
    sides = [min(max(round(n * scale / ALIGNMENT) * ALIGNMENT, SMALLEST_SIDE), largest) for n in image.shape[1:]]
    mask = coarse_mask.to(model.device, torch.float32)
    inputs = model.encoder_input(model.normalise(image)[None], mask[None])
    return F.interpolate(inputs, tuple(sides), mode="bilinear", antialias=True)


def load_dicts(argument: str) -> list[dict[str, Any]]:
    """Return the dicts of a data set for refinement, each with its "category".

    Args:
        argument: a registered or synthetic data set, or folders as in :func:`~airm.data.datasets.parse_folders`.

    Returns:
        dicts as in :mod:`airm.data.datasets`. The category is the folder of an image within its data set
        (``bus/1`` of FSS-1000 is of category ``bus``), else the name of the set or folder.

    Raises:
        UserError: if there is no such set or folder, or its files cannot be paired.
    """
    if is_synthetic_name(argument):
        register_synthetic(argument)
    if argument in DatasetCatalog.list():
        if MetadataCatalog.get(argument).get("evaluator_type") != "refinement":
            raise UserError(f"{argument} is no data set for refinement; known ones are in datasets/README.md")
        name, dicts = argument, DatasetCatalog.get(argument)
    else:
        dataset = parse_folders(argument)
        name, dicts = Path(dataset.images).resolve().name, dataset()
    return [{**entry, "category": entry["image_id"].rpartition("/")[0] or name} for entry in dicts]


def read_samples(dicts: Sequence[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Read the picture and coarse mask of each dict, as testing does: see :class:`RefinementDatasetMapper`."""
    return map(RefinementDatasetMapper(is_train=False), dicts)


class PositionMaps(NamedTuple):
    """What one position has to do with every position of the encoder's last stage, an h x w grid over the image."""

    cell: tuple[int, int]
    """Row and column of the position in the grid."""
    attention: np.ndarray | None
    """(h, w), adding up to 1: attention of the last stage, the mean of its blocks and heads; None of a CNN."""
    affinity: np.ndarray | None
    """(h, w) in [0, 1], Eq. 4; None of a model that was trained without."""


@torch.no_grad()
def position_maps(
    model: AIRM, image: Tensor, coarse_mask: Tensor, position: tuple[int, int], max_side: int = MAX_SIDE
) -> PositionMaps:
    """Compute the maps of one position of an image.

    Training alone makes these matrices, of (h w) x (h w), which is why the input is limited.

    Args:
        model: in evaluation mode.
        image: (3, H, W) RGB in [0, 255].
        coarse_mask: (1, H, W) in [0, 1].
        position: (x, y) in pixels of the image.
        max_side: see :func:`encoder_input`.

    Raises:
        UserError: if the position is outside the image, or the model has neither map.
    """
    height, width = image.shape[1:]
    x, y = position
    if not (0 <= x < width and 0 <= y < height):
        raise UserError(f"position {x} {y} is outside the image, which has {width} x {height} pixels")
    encoder, inputs = model.encoder, encoder_input(model, image, coarse_mask, max_side)
    attention, affinity = None, None
    if isinstance(encoder.backbone, MixTransformer):
        stages, attention = encoder.backbone.forward_with_attention(inputs)
        h, w = stages[encoder.in_features[-1]].shape[2:]
        affinity = encoder.affinity(attention) if encoder.affinity is not None else None
    elif encoder.affinity is not None:
        _, affinity, (h, w) = encoder.forward_with_affinity(inputs)
    else:
        raise UserError("this model has neither attention, which takes a Mix Transformer, nor affinity")
    row, col = y * h // height, x * w // width
    query = row * w + col
    return PositionMaps(
        (row, col),
        None if attention is None else attention[0, :, query].float().softmax(-1).mean(0).view(h, w).cpu().numpy(),
        None if affinity is None else affinity.same[0, query].exp().view(h, w).cpu().numpy(),
    )


@torch.no_grad()
def predict_parameters(model: AIRM, samples: Iterable[dict[str, Any]], max_side: int = MAX_SIDE) -> np.ndarray:
    """Return the (n, P) float32 parameters that the hypernetwork predicts: A, B and bias of each layer (Eq. 6).

    Args:
        model: in evaluation mode.
        samples: "image" (3, H, W) RGB in [0, 255] and "coarse_mask" (1, H, W) in [0, 1] of each image.
        max_side: see :func:`encoder_input`.

    Raises:
        UserError: if the model predicts none: its mapping is SIRMF.
    """
    if not isinstance(model.mapping, AIRMF):
        raise UserError("this model has a SIRMF, which is the same for all images; MODEL.AIRM.MAPPING is to be AIRMF")
    rows = [
        model.mapping.embed(model.encoder(encoder_input(model, sample["image"], sample["coarse_mask"], max_side)))[0]
        for sample in samples
    ]
    return torch.stack(rows).float().cpu().numpy()


def reduce_parameters(parameters: np.ndarray, perplexity: float = 30.0, seed: int = 0) -> tuple[np.ndarray, float]:
    """Bring (n, P) parameters to the plane by t-SNE.

    Args:
        parameters: one row for each image.
        perplexity: how many neighbours each image has, about; at most (n - 1) / 3.
        seed: of t-SNE.

    Returns:
        (n, 2) float32 coordinates, without unit, and the perplexity that was used.

    Raises:
        UserError: if scikit-learn is missing, there are fewer than four images, all of them have the same parameters,
            or the perplexity is not positive.
    """
    try:
        from sklearn.manifold import TSNE
    except ImportError:
        raise UserError("t-SNE needs scikit-learn: pip install scikit-learn") from None
    if perplexity <= 0:
        raise UserError(f"perplexity is {perplexity}; it is a number of neighbours, above 0")
    n = len(parameters)
    if n < FEWEST:
        raise UserError(f"{n} images are too few for t-SNE; give {FEWEST} or more")
    if (parameters == parameters[0]).all():
        raise UserError(f"the parameters of all {n} images are the same; is the model trained, are these copies?")
    used = min(perplexity, (n - 1) / 3)
    if used < perplexity:
        logger.warning("Perplexity %.3g is too large for %d images: it becomes %.3g", perplexity, n, used)
    return TSNE(perplexity=used, random_state=seed, init="pca").fit_transform(parameters), used


class Step(NamedTuple):
    """One ratio of a refinement."""

    size: tuple[int, int]
    """(h, w) of image and mask at this ratio, without the border."""
    encoded: list[Box]
    """Cores of the tiles that were encoded, as far as they lie in the image."""
    tiles: int
    """All tiles; those that were not encoded keep the mask of the ratio before."""
    mask: np.ndarray
    """(H, W) float32 in [0, 1]: the answer, enlarged from the resolution of the next ratio to the image's."""


def refinement_steps(model: AIRM, image: Tensor, coarse_mask: Tensor, settings: Settings | None = None) -> list[Step]:
    """Refine a coarse mask, and keep what each ratio answers.

    Args:
        model: in evaluation mode.
        image: (3, H, W) RGB in [0, 255].
        coarse_mask: (1, H, W) in [0, 1]; if it is empty, there are no steps.
        settings: by default the model's.

    Returns:
        the ratios, the lowest first. The last one's mask is what :meth:`AIRM.refine` returns without MIN_CONFIDENCE.
    """
    recorder = model.coarse_to_fine(model.normalise(image)[None], settings, kind=_RecordingPass)
    recorder.refine(coarse_mask.to(model.device, torch.float32)[None])
    return recorder.steps


class _RecordingPass(CoarseToFine):
    """Also notes the answer and the encoded tiles of each ratio."""

    def __init__(self, *args: Any):
        super().__init__(*args)
        self.steps: list[Step] = []

    def refine_ratio(self, level: int, masks: Tensor) -> tuple[Tensor, list[Tile]]:
        answer, tiles = super().refine_ratio(level, masks)
        rows, cols = grid = self.grids[level]
        full = F.interpolate(answer, (rows.full, cols.full), mode="bilinear", align_corners=False)
        encoded = [_core(tile, grid) for tile in tiles]
        size = rows.size, cols.size
        self.steps.append(Step(size, encoded, len(self.tiles(level)), full[0, 0].cpu().numpy()))
        return answer, tiles


def _core(tile: Tile, grid: Sequence[GridAxis]) -> Box:
    """Return where the core of a tile lies in the image, in its pixels."""
    rows, cols = grid
    ends = (tile.cols.low, cols), (tile.rows.low, rows), (tile.cols.high, cols), (tile.rows.high, rows)
    x0, y0, x1, y1 = (
        min(max((end - axis.before) * axis.full / axis.size, 0.0), float(axis.full)) for end, axis in ends
    )
    return x0, y0, x1, y1


def score_mask(mask: np.ndarray, truth: np.ndarray) -> dict[str, float | None]:
    """Return IoU and mBA of a boolean mask in percent; None where they are not defined."""
    return sum_up([MaskScores(*intersection_and_union(mask, truth), mean_boundary_accuracy(mask, truth))])


def zoom_windows(
    coarse: np.ndarray, refined: np.ndarray, centres: Sequence[Sequence[int]] | None = None
) -> list[Window]:
    """Return rows and columns of parts to enlarge, a tenth of the image's sides each.

    Args:
        coarse, refined: (H, W) boolean.
        centres: (x, y) in pixels; None for a single part, that in which most pixels changed, if any did.

    Raises:
        UserError: for a centre outside the image.
    """
    if centres is None:
        part = find_largest_change(coarse ^ refined)
        return [] if part is None else [part]
    height, width = coarse.shape
    parts = []
    for x, y in centres:
        if not (0 <= x < width and 0 <= y < height):
            raise UserError(f"zoom {x} {y} is outside the image, which has {width} x {height} pixels")
        sides = max(1, height // ZOOM_SHARE), max(1, width // ZOOM_SHARE)
        top, left = (
            min(max(c - n // 2, 0), limit - n) for c, n, limit in zip((y, x), sides, coarse.shape, strict=True)
        )
        parts.append((slice(top, top + sides[0]), slice(left, left + sides[1])))
    return parts
