"""Pretrained Swin Transformers: published weights for the backbone of :mod:`patchdct.backbone.swin`.

Known are the files of Swin's authors (``swin_base_patch4_window7_224_22k.pth``), the same with Detectron2's prefix
(``..._d2.pth``), and detectors that have a Swin backbone under the published names. The parameters have these names in
the model, so that only what belongs to the classifier, and what the model computes, is to be left out.
"""

import logging
import math
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pixelmask.errors import UserError

logger = logging.getLogger(__name__)

PREFIX = "backbone.bottom_up."  # where a detector with an FPN has it
_FIRST = "patch_embed.proj.weight"  # by which a Swin Transformer is recognised
_TABLE = "layers.{}.blocks.0.attn.relative_position_bias_table"
_INDEX = "relative_position_index"
# What of the files is left out, and why
_REASONS = {
    r"head\.": "ImageNet's classifier",
    r"norm\.": "the classifier's norm; norm0 to norm3 of the stages start afresh",
    rf".*\.({_INDEX}|attn_mask)$": "computed by the model",
}
_STAGE_NORM = re.compile(r"norm\d\.")


class Variant(NamedTuple):
    """What tells the published Swin Transformers apart: MODEL.SWINT's keys of these names."""

    embed_dim: int
    depths: tuple[int, ...]
    num_heads: tuple[int, ...]
    window_size: int

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor]) -> "Variant":
        """Return that of a Swin Transformer's tensors."""
        depths: dict[int, int] = {}
        for name in tensors:
            if block := re.match(r"layers\.(\d+)\.blocks\.(\d+)\.", name):
                stage, number = int(block[1]), int(block[2])
                depths[stage] = max(depths.get(stage, 0), number + 1)
        tables = [tensors[_TABLE.format(i)] for i in sorted(depths) if _TABLE.format(i) in tensors]
        side = math.isqrt(len(tables[0])) if tables else 0  # 2 * window - 1
        heads = tuple(table.shape[1] for table in tables)
        return cls(len(tensors[_FIRST]), tuple(depths[i] for i in sorted(depths)), heads, (side + 1) // 2)

    def first_stages(self, count: int) -> "Variant":
        return self._replace(depths=self.depths[:count], num_heads=self.num_heads[:count])

    def __str__(self) -> str:
        same = (name for name, variant in VARIANTS.items() if variant == self._replace(window_size=7))
        return (
            f"{next(same, 'a Swin Transformer')} (EMBED_DIM {self.embed_dim}, DEPTHS {list(self.depths)}, NUM_HEADS "
            f"{list(self.num_heads)}, WINDOW_SIZE {self.window_size})"
        )


VARIANTS = {
    "Swin-T": Variant(96, (2, 2, 6, 2), (3, 6, 12, 24), 7),
    "Swin-S": Variant(96, (2, 2, 18, 2), (3, 6, 12, 24), 7),
    "Swin-B": Variant(128, (2, 2, 18, 2), (4, 8, 16, 32), 7),
    "Swin-L": Variant(192, (2, 2, 18, 2), (6, 12, 24, 48), 7),
}


class ConversionReport(NamedTuple):
    """How weights fit a backbone; ``dropped`` has the reason by name, ``other_shape`` (name, weights, model)."""

    found: Variant
    wanted: Variant
    loaded: list[str]
    dropped: dict[str, str]
    missing: list[str]
    other_shape: list[tuple[str, tuple[int, ...], tuple[int, ...]]]
    other_positions: bool

    @property
    def problem(self) -> str | None:
        """Why these weights cannot be used, and the way out; None if they can."""
        if any("absolute_pos_embed" in name for name in self.dropped):
            return "it has an absolute position embedding, which the model does not"
        if self.found.first_stages(len(self.wanted.depths)) != self.wanted:
            return (
                f"it holds the weights of {self.found}, but the model's backbone is {self.wanted}. Set these keys of "
                "MODEL.SWINT accordingly, or give other weights"
            )
        lost = [name for name in self.missing if not _STAGE_NORM.match(name)]
        if lost:
            return f"{len(lost)} of the backbone's tensors are not in it, {lost[0]} first"
        for name, in_weights, in_model in self.other_shape:
            more = f", and {len(self.other_shape) - 1} more tensors differ" if len(self.other_shape) > 1 else ""
            return f"its {name} has shape {in_weights}, the model's {in_model}{more}"
        return "it numbers the relative positions in another order" if self.other_positions else None

    def __str__(self) -> str:
        return (
            f"{self.found}: {len(self.loaded)} tensors loaded, {len(self.dropped)} dropped, {len(self.missing)} "
            f"missing, {len(self.other_shape)} of another shape"
        )


class SwinWeights(NamedTuple):
    """A Swin Transformer's tensors under their published names, and what stood beside them in the file."""

    tensors: dict[str, Tensor]
    others: dict[str, Any]


def read_swin(state: Mapping[str, Any]) -> SwinWeights | None:
    """Find a Swin Transformer in a checkpoint's tensors by name; None if there is none.

    ``others`` are what a detector has beside its backbone, without a prefix that precedes all of its names.
    """
    first = next((name for name in state if f".{name}".endswith(f".{_FIRST}")), None)
    if first is None:
        return None
    prefix = first.removesuffix(_FIRST)
    outer = prefix.removesuffix(PREFIX)
    tensors, others = {}, {}
    for name, value in state.items():
        if name.startswith(prefix):
            try:
                tensors[name.removeprefix(prefix)] = torch.as_tensor(value)
            except (TypeError, RuntimeError):
                return None  # no file of tensors: its reader says so
        else:
            others[name.removeprefix(outer)] = value
    return SwinWeights(tensors, others)


def fit(tensors: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], ConversionReport]:
    """Compare weights with a backbone's own tensors, both under the published names.

    Returns:
        those that the backbone has, and what fits.
    """
    dropped = {name: _reason(name) for name in tensors if name not in own}
    kept = {name: value for name, value in tensors.items() if name in own}
    other_shape = [
        (name, tuple(value.shape), tuple(own[name].shape))
        for name, value in kept.items()
        if value.shape != own[name].shape
    ]
    differing = {name for name, *_ in other_shape}
    return kept, ConversionReport(
        found=Variant.of(tensors),
        wanted=Variant.of(own),
        loaded=[name for name in kept if name not in differing],
        dropped=dropped,
        missing=[name for name in own if name not in tensors],
        other_shape=other_shape,
        other_positions=any(not _is_known(tensors[name]) for name in dropped if name.endswith(_INDEX)),
    )


def _reason(name: str) -> str:
    return next((why for pattern, why in _REASONS.items() if re.match(pattern, name)), "not in the model")


def relative_position_index(window_size: int) -> Tensor:
    """Return (M * M, M * M): the row of the bias table for each query and key of an M x M window, both row by row.

    Rows are numbered by (query - key), y first; -(M - 1) is 0.
    """
    steps = torch.arange(window_size)
    delta = steps[:, None] - steps + window_size - 1  # (M, M): query, key
    side = 2 * window_size - 1
    index = delta[:, None, :, None] * side + delta[None, :, None, :]  # (query y, query x, key y, key x)
    return index.reshape(window_size**2, window_size**2)


def _is_known(index: Tensor) -> bool:
    window_size = math.isqrt(math.isqrt(index.numel()))
    known = relative_position_index(window_size)
    return index.is_meta or (index.numel() == known.numel() and torch.equal(index.long().view_as(known), known))


def adapt_checkpoint(state: dict[str, Any], own: Mapping[str, Tensor], prefix: str) -> dict[str, Any]:
    """Bring published weights of a Swin Transformer under the names that a detector has for its backbone.

    Args:
        state: a checkpoint's tensors by name.
        own: the backbone's state.
        prefix: of the backbone's names in the detector.

    Returns:
        tensors by name; ``state`` itself if it has no Swin Transformer.

    Raises:
        UserError: for weights of another variant than the backbone, or incomplete ones.
    """
    weights = read_swin(state)
    if weights is None:
        return state
    tensors, report = fit(weights.tensors, own)
    if report.problem:
        raise UserError(report.problem)
    logger.info("%s", report)
    return {**weights.others, **{prefix + name: value for name, value in tensors.items()}}
