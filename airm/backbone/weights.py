"""Pretrained encoders for AIRM: weights under the names, and in the shapes, of others.

Known are the Mix Transformers (MiT) of SegFormer's authors, the same as Hugging Face names them (``nvidia/mit-b1``),
both alone or inside a whole SegFormer, and Detectron2's ResNets. All of them take 3 channels; the weights of the
fourth, the mask, are zero, so that at first the encoder answers as it was trained to.
"""

import logging
import re
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from pixelmask.errors import UserError

logger = logging.getLogger(__name__)

BACKBONE = "encoder.backbone."  # where AIRM has it
RGB = 3


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

    def __str__(self) -> str:
        name = next((name for name, variant in VARIANTS.items() if variant == self), "a Mix Transformer")
        return f"{name} (EMBED_DIMS {list(self.embed_dims)}, DEPTHS {list(self.depths)})"


VARIANTS = {
    "mit_b0": Variant((32, 64, 160, 256), (2, 2, 2, 2)),
    "mit_b1": Variant((64, 128, 320, 512), (2, 2, 2, 2)),
    "mit_b2": Variant((64, 128, 320, 512), (3, 4, 6, 3)),
    "mit_b3": Variant((64, 128, 320, 512), (3, 4, 18, 3)),
    "mit_b4": Variant((64, 128, 320, 512), (3, 8, 27, 3)),
    "mit_b5": Variant((64, 128, 320, 512), (3, 6, 40, 3)),
}

# The first tensor of the encoder, by which a form is recognised; what precedes it precedes all of them
_FORMS = {"patch_embed1.proj.weight": "published", "patch_embeddings.0.proj.weight": "Hugging Face"}
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


class EncoderWeights(NamedTuple):
    """A Mix Transformer's tensors under their published names, and the names of what stood beside them in the file."""

    form: str
    tensors: dict[str, Tensor]
    dropped: list[str]


class ConversionReport(NamedTuple):
    """How an encoder's weights fit; names are the published ones, shapes (name, weights, model)."""

    form: str
    found: Variant
    wanted: Variant
    matched: list[str]
    dropped: list[str]
    missing: list[str]
    unexpected: list[str]
    other_shape: list[tuple[str, tuple[int, ...], tuple[int, ...]]]

    @property
    def problem(self) -> str | None:
        """Why these weights cannot be used, and the way out; None if they can."""
        if self.found != self.wanted:
            return (
                f"it holds the weights of {self.found}, but the model's encoder is {self.wanted}. Set "
                "MODEL.MIT.EMBED_DIMS and MODEL.MIT.DEPTHS accordingly (configs/airm has a config for each variant), "
                "or give other weights"
            )
        if self.missing:
            return f"{len(self.missing)} of the encoder's tensors are not in it, {self.missing[0]} first"
        for name, in_weights, in_model in self.other_shape:
            more = f", and {len(self.other_shape) - 1} more tensors differ" if len(self.other_shape) > 1 else ""
            return f"its {name} has shape {in_weights}, the model's {in_model}{more}"
        return None

    def __str__(self) -> str:
        return (
            f"{self.found} in {self.form} form: {len(self.matched)} tensors match, {len(self.dropped)} are not the "
            f"encoder's, {len(self.missing)} missing, {len(self.unexpected)} unexpected, "
            f"{len(self.other_shape)} of another shape"
        )


def read_mix_transformer(state: Mapping[str, Any]) -> EncoderWeights | None:
    """Find a Mix Transformer in a checkpoint's tensors.

    Args:
        state: tensors by name, in one of the known forms.

    Returns:
        its weights, keys and values joined as they are published; None if there is none, or one in AIRM.
    """
    form, prefix = _form_and_prefix(state)
    if prefix.endswith(BACKBONE):
        return None
    tensors, dropped = {}, []
    for name, value in state.items():
        inner = name.removeprefix(prefix)
        if not name.startswith(prefix) or inner.startswith(_HEADS):
            dropped.append(name)
        elif isinstance(value, (Tensor, np.ndarray)):
            tensors[inner if form == "published" else _published_name(inner)] = torch.as_tensor(value)
        else:
            return None
    for name in [name for name in tensors if ".attn.k." in name]:
        value_name = name.replace(".attn.k.", ".attn.v.")
        if value_name in tensors:
            tensors[name.replace(".attn.k.", ".attn.kv.")] = torch.cat([tensors.pop(name), tensors.pop(value_name)])
    return EncoderWeights(form, tensors, dropped)


def _form_and_prefix(names: Iterable[str]) -> tuple[str, str]:
    for name in names:
        for first, form in _FORMS.items():
            if f".{name}".endswith(f".{first}"):
                return form, name.removesuffix(first)
    return "", BACKBONE


def _published_name(name: str) -> str:
    kind, stage, rest = (name.split(".", 2) + ["", ""])[:3]
    if kind not in _STAGES or not stage.isdigit():
        return name
    for theirs, published in _MODULES.items():
        rest = rest.replace(theirs, published)
    return f"{_STAGES[kind]}{int(stage) + 1}.{rest}"


def fit(weights: EncoderWeights, own: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], ConversionReport]:
    """Compare weights with an encoder's own tensors, both under the published names.

    Returns:
        the weights, of as many input channels as the encoder takes, and what fits.
    """
    tensors = {name: _widen(value, own[name]) if name in own else value for name, value in weights.tensors.items()}
    shapes = [(name, tuple(value.shape), tuple(own[name].shape)) for name, value in tensors.items() if name in own]
    return tensors, ConversionReport(
        form=weights.form,
        found=Variant.of(tensors),
        wanted=Variant.of(own),
        matched=[name for name, theirs, ours in shapes if theirs == ours],
        dropped=weights.dropped,
        missing=[name for name in own if name not in tensors],
        unexpected=[name for name in tensors if name not in own],
        other_shape=[shape for shape in shapes if shape[1] != shape[2]],
    )


def _widen(weight: Tensor, own: Tensor) -> Tensor:
    """Add zero input channels to the first convolution of an RGB model."""
    added = own.shape[1] - RGB if own.dim() == 4 and weight.dim() == 4 and weight.shape[1] == RGB else 0
    return F.pad(weight, (0, 0, 0, 0, 0, added)) if added > 0 else weight


def adapt_checkpoint(state: dict[str, Any], own: Mapping[str, Tensor]) -> dict[str, Any]:
    """Bring a pretrained encoder's weights under AIRM's names and to its 4 input channels.

    Args:
        state: a checkpoint's tensors by name; also a dict that has them under ``state_dict``.
        own: AIRM's state.

    Returns:
        tensors by name: ``encoder.backbone.`` and the published ones of a Mix Transformer. Those of other models,
        AIRM's own among them, keep their names, Detectron2's ResNets to be matched by its heuristics.

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
        stem = "stem.conv1.weight"
        if stem in state and stem in backbone:
            return {**state, stem: _widen(torch.as_tensor(state[stem]), backbone[stem])}
        return state
    if next(iter(_FORMS)) not in backbone:
        raise UserError("it holds the weights of a Mix Transformer; MODEL.BACKBONE.NAME is to be build_mit_backbone")
    tensors, report = fit(weights, backbone)
    if report.problem:
        raise UserError(report.problem)
    logger.info("%s", report)
    return {BACKBONE + name: value for name, value in tensors.items()}


def unwrap(state: dict[str, Any]) -> dict[str, Any]:
    """Return the tensors of a checkpoint that keeps them under ``model`` or ``state_dict``."""
    inner = next((state[key] for key in ("model", "state_dict") if isinstance(state.get(key), dict)), state)
    return inner if all(isinstance(name, str) for name in inner) else state
