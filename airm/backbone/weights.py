"""Pretrained encoders for AIRM: weights under the names, and in the shapes, of others.

Known are the Mix Transformers (MiT) of SegFormer's authors, the same as Hugging Face names them (``nvidia/mit-b1``),
both alone or inside a whole SegFormer, and Detectron2's ResNets. All of them take 3 channels; the weights of the
fourth, the mask, are zero, so that at first the encoder answers as it was trained to.
"""

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from pixelmask.checkpoint import pretrained
from pixelmask.checkpoint.pretrained import (
    ConversionReport,
    PretrainedWeights,
    describe,
    find_first,
    unwrap,
    usable,
    widen_stem,
)
from pixelmask.errors import UserError

BACKBONE = "encoder.backbone."  # where AIRM has it


class Variant(NamedTuple):
    """What tells the published Mix Transformers apart: channels and blocks of each stage."""

    embed_dims: tuple[int, ...]
    depths: tuple[int, ...]

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor]) -> "Variant":
        """Return that of an encoder's tensors under their published names."""
        dims: list[int] = []
        depths: list[int] = []
        while (proj := tensors.get(f"patch_embed{len(dims) + 1}.proj.weight")) is not None:
            dims.append(len(proj))
            blocks = (re.match(rf"block{len(dims)}\.(\d+)\.", name) for name in tensors)
            depths.append(max((int(block[1]) + 1 for block in blocks if block), default=0))
        return cls(tuple(dims), tuple(depths))

    @property
    def is_published(self) -> bool:
        return self in VARIANTS.values()

    def __str__(self) -> str:
        return describe(self, next((name for name, v in VARIANTS.items() if v == self), "a Mix Transformer"))


VARIANTS = {
    "mit_b0": Variant((32, 64, 160, 256), (2, 2, 2, 2)),
    "mit_b1": Variant((64, 128, 320, 512), (2, 2, 2, 2)),
    "mit_b2": Variant((64, 128, 320, 512), (3, 4, 6, 3)),
    "mit_b3": Variant((64, 128, 320, 512), (3, 4, 18, 3)),
    "mit_b4": Variant((64, 128, 320, 512), (3, 8, 27, 3)),
    "mit_b5": Variant((64, 128, 320, 512), (3, 6, 40, 3)),
}

# The first tensor of the encoder, by which a form is recognised; what precedes it precedes all of them
_FIRST = "patch_embed1.proj.weight"
_FORMS = {_FIRST: "published", "patch_embeddings.0.proj.weight": "Hugging Face"}
_HEADS = ("head.", "classifier.", "decode_head.")
# Hugging Face's names of stages, counted from 0, and of modules, in the order in which they are replaced
_STAGES = {"patch_embeddings": "patch_embed", "block": "block", "layer_norm": "norm"}
_MODULES = {
    "layer_norm_1.": "norm1.",
    "layer_norm_2.": "norm2.",
    "attention.self.query.": "attn.q.",
    "attention.self.key.": "attn.k.",
    "attention.self.value.": "attn.v.",
    "attention.self.sr.": "attn.sr.",
    "attention.self.layer_norm.": "attn.norm.",
    "attention.output.dense.": "attn.proj.",
    "mlp.dense1.": "mlp.fc1.",
    "mlp.dense2.": "mlp.fc2.",
    "layer_norm.": "norm.",
}


def read_mix_transformer(state: Mapping[str, Any]) -> PretrainedWeights | None:
    """Find a Mix Transformer in a checkpoint's tensors by name, in one of the known forms.

    Returns:
        its weights, keys and values joined as they are published; None if there is none, or one in AIRM.
    """
    first, prefix = find_first(state, _FORMS) or ("", BACKBONE)
    if prefix.endswith(BACKBONE):
        return None
    tensors, dropped = {}, {}
    for name, value in state.items():
        inner = name.removeprefix(prefix)
        if not name.startswith(prefix) or inner.startswith(_HEADS):
            dropped[name] = "not the encoder's"
        elif isinstance(value, (Tensor, np.ndarray)):
            tensors[inner if first == _FIRST else _published_name(inner)] = torch.as_tensor(value)
        else:
            return None
    for name in [name for name in tensors if ".attn.k." in name]:
        value_name = name.replace(".attn.k.", ".attn.v.")
        if value_name in tensors:
            tensors[name.replace(".attn.k.", ".attn.kv.")] = torch.cat([tensors.pop(name), tensors.pop(value_name)])
    return PretrainedWeights(Variant.of(tensors), tensors, dropped, form=_FORMS[first])


def _published_name(name: str) -> str:
    kind, stage, rest = (name.split(".", 2) + ["", ""])[:3]
    if kind not in _STAGES or not stage.isdigit():
        return name
    for theirs, published in _MODULES.items():
        rest = rest.replace(theirs, published)
    return f"{_STAGES[kind]}{int(stage) + 1}.{rest}"


def fit(weights: PretrainedWeights, own: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], ConversionReport]:
    """Compare weights with an encoder's own tensors: see :func:`pixelmask.checkpoint.pretrained.fit`."""
    wanted, problem = Variant.of(own), None
    if weights.variant != wanted:
        problem = (
            f"it holds the weights of {weights.variant}, but the model's encoder is {wanted}. Set "
            "MODEL.MIT.EMBED_DIMS and MODEL.MIT.DEPTHS accordingly (configs/airm has a config for each variant), or "
            "give other weights"
        )
    return pretrained.fit(weights, own, wanted, problem)


def adapt_checkpoint(state: dict[str, Any], own: Mapping[str, Tensor], prefix: str = "") -> dict[str, Any]:
    """Bring a pretrained encoder's weights under AIRM's names and to its 4 input channels.

    Args:
        state: a checkpoint's tensors by name; also a dict that has them under ``state_dict``.
        own: AIRM's state.
        prefix: of AIRM in the model that is loaded; "" if it is the model.

    Returns:
        tensors by name: the prefix, ``encoder.backbone.`` and the published ones of a Mix Transformer. Those of other
        models, AIRM's own among them, keep their names, Detectron2's ResNets to be matched by its heuristics.

    Raises:
        UserError: for weights of another architecture than the model's encoder, or incomplete ones.
    """
    state = unwrap(state)
    if "conv1_w" in state:
        raise UserError(
            "a ResNet of Caffe2 takes BGR images of another range; take Detectron2's ImageNetPretrained/torchvision"
        )
    backbone = {name.removeprefix(BACKBONE): value for name, value in own.items() if name.startswith(BACKBONE)}
    weights = read_mix_transformer(state)
    if weights is None:
        return widen_stem(state, "stem.conv1.weight", backbone)
    if _FIRST not in backbone:
        raise UserError("it holds the weights of a Mix Transformer; MODEL.BACKBONE.NAME is to be build_mit_backbone")
    return usable(fit(weights, backbone), prefix + BACKBONE)
