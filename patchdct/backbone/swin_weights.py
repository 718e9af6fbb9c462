"""Published weights of Swin Transformers, for the backbone of :mod:`patchdct.backbone.swin`.

Known are the files of Swin's authors (``swin_base_patch4_window7_224_22k.pth``), the same with Detectron2's prefix
(``..._d2.pth``), and detectors that have a Swin backbone under the published names. The parameters have these names in
the model, so that only what belongs to the classifier, and what the model computes, is to be left out.
"""

import math
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pixelmask.checkpoint import pretrained
from pixelmask.checkpoint.pretrained import ConversionReport, PretrainedWeights, describe, find_first, unwrap, usable

PREFIX = "backbone.bottom_up."  # where a detector with an FPN has it
_FIRST = "patch_embed.proj.weight"  # by which a Swin Transformer is recognised
_TABLE = "layers.{}.blocks.0.attn.relative_position_bias_table"
_INDEX = "relative_position_index"
# What of the files is left out, and why
_REASONS = {
    r"head\.": "ImageNet's classifier",
    r"norm\.": "the classifier's norm; norm0 to norm3 of the stages start afresh",
    rf".*\.({_INDEX}|attn_mask)$": "computed by the model",
    r"": "not in the model",
}


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

    @property
    def is_published(self) -> bool:
        """Whether it is one of VARIANTS, with any window."""
        return self._replace(window_size=7) in VARIANTS.values()

    def first_stages(self, count: int) -> "Variant":
        return self._replace(depths=self.depths[:count], num_heads=self.num_heads[:count])

    def __str__(self) -> str:
        same = (name for name, variant in VARIANTS.items() if variant == self._replace(window_size=7))
        return describe(self, next(same, "a Swin Transformer"))


VARIANTS = {
    "Swin-T": Variant(96, (2, 2, 6, 2), (3, 6, 12, 24), 7),
    "Swin-S": Variant(96, (2, 2, 18, 2), (3, 6, 12, 24), 7),
    "Swin-B": Variant(128, (2, 2, 18, 2), (4, 8, 16, 32), 7),
    "Swin-L": Variant(192, (2, 2, 18, 2), (6, 12, 24, 48), 7),
}


def read_swin(state: Mapping[str, Any]) -> PretrainedWeights | None:
    """Find a Swin Transformer in a checkpoint's tensors by name; None if there is none.

    ``others`` are what a detector has beside its backbone, without a prefix that precedes all of its names.
    """
    found = find_first(state, [_FIRST])
    if found is None:
        return None
    prefix = found[1]
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
    return PretrainedWeights(Variant.of(tensors), tensors, {}, others)


def fit(weights: PretrainedWeights, own: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], ConversionReport]:
    """Compare weights with a backbone's own tensors: see :func:`pixelmask.checkpoint.pretrained.fit`."""
    tensors, wanted = weights.tensors, Variant.of(own)
    dropped = {name: _reason(name) for name in tensors if name not in own}
    problem = None
    if any("absolute_pos_embed" in name for name in dropped):
        problem = "it has an absolute position embedding, which the model does not"
    elif weights.variant.first_stages(len(wanted.depths)) != wanted:
        problem = (
            f"it holds the weights of {weights.variant}, but the model's backbone is {wanted}. Set these keys of "
            "MODEL.SWINT accordingly, or give other weights"
        )
    elif not all(_is_known(tensors[name]) for name in dropped if name.endswith(_INDEX)):
        problem = "it numbers the relative positions in another order"
    weights = PretrainedWeights(weights.variant, tensors, dropped, weights.others)
    return pretrained.fit(weights, own, wanted, problem, fresh=r"norm\d\.")


def _reason(name: str) -> str:
    return next(why for pattern, why in _REASONS.items() if re.match(pattern, name))


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
        state: a checkpoint's tensors by name; also a dict that has them under ``state_dict``.
        own: the backbone's state.
        prefix: of the backbone's names in the detector.

    Returns:
        tensors by name; ``state`` itself if it has no Swin Transformer.

    Raises:
        UserError: for weights of another variant than the backbone, or incomplete ones.
    """
    weights = read_swin(unwrap(state))
    return state if weights is None else usable(fit(weights, own), prefix)
