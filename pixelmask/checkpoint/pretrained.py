"""Published weights of a backbone: reading their file, and how they fit a model's backbone.

Which names the files have, and which variants there are, stands beside each backbone.
"""

import logging
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ..errors import UserError
from .files import by_name, read_torch

logger = logging.getLogger(__name__)

RGB = 3


@dataclass(frozen=True)
class PretrainedWeights:
    """A backbone's weights as they were found in a file."""

    variant: Any
    """A NamedTuple of what tells the published backbones apart."""
    tensors: dict[str, Tensor]
    """By published name."""
    dropped: dict[str, str]
    """Why a tensor is left out, by its name."""
    others: dict[str, Any] = field(default_factory=dict)
    """What a detector has beside its backbone, by its name there."""
    form: str = ""
    """Which of several forms of names the file has."""


@dataclass(frozen=True)
class ConversionReport:
    """How published weights fit a backbone; names are the published ones, shapes (name, weights, backbone)."""

    weights: PretrainedWeights
    wanted: Any
    """The backbone's own variant."""
    loaded: list[str]
    missing: list[str]
    unexpected: list[str]
    other_shape: list[tuple[str, tuple[int, ...], tuple[int, ...]]]
    problem: str | None
    """Why these weights cannot be used, and the way out; None if they can."""

    def __str__(self) -> str:
        form = f" in {self.weights.form} form" if self.weights.form else ""
        return (
            f"{self.weights.variant}{form}: {len(self.loaded)} tensors loaded, {len(self.weights.dropped)} dropped, "
            f"{len(self.missing)} missing, {len(self.unexpected)} unexpected, {len(self.other_shape)} of another shape"
        )

    def groups(self) -> dict[str, list[str]]:
        """Return the names of the tensors by what becomes of them."""
        groups = {"loaded": self.loaded}
        for name, why in self.weights.dropped.items():
            groups.setdefault(f"dropped: {why}", []).append(name)
        other_shape = [f"{name} {theirs}, not {ours}" for name, theirs, ours in self.other_shape]
        return {**groups, "missing": self.missing, "unexpected": self.unexpected, "of another shape": other_shape}


def fit(
    weights: PretrainedWeights, own: Mapping[str, Tensor], wanted: Any, problem: str | None = None, fresh: str = r"(?!)"
) -> tuple[dict[str, Tensor], ConversionReport]:
    """Compare weights with a backbone's own tensors, both under the published names.

    Args:
        weights: with the names that ``own`` has, and others.
        own: the backbone's state.
        wanted: the backbone's variant.
        problem: what is wrong with these weights already.
        fresh: pattern of the tensors that no file has, as training begins with them.

    Returns:
        what is to be loaded, of as many input channels as the backbone takes, and the report.
    """
    tensors = {
        name: _widen(value, own[name]) if name in own else value
        for name, value in weights.tensors.items()
        if name not in weights.dropped
    }
    shapes = [(name, tuple(value.shape), tuple(own[name].shape)) for name, value in tensors.items() if name in own]
    other_shape = [shape for shape in shapes if shape[1] != shape[2]]
    missing = [name for name in own if name not in tensors]
    lost = [name for name in missing if not re.match(fresh, name)]
    if lost:
        problem = problem or f"{len(lost)} of the backbone's tensors are not in it, {lost[0]} first"
    elif other_shape:
        more = f", and {len(other_shape) - 1} more tensors differ" if len(other_shape) > 1 else ""
        name, theirs, ours = other_shape[0]
        problem = problem or f"its {name} has shape {theirs}, the model's {ours}{more}"
    return tensors, ConversionReport(
        weights=weights,
        wanted=wanted,
        loaded=[name for name, theirs, ours in shapes if theirs == ours],
        missing=missing,
        unexpected=[name for name in tensors if name not in own],
        other_shape=other_shape,
        problem=problem,
    )


def usable(fitted: tuple[dict[str, Tensor], ConversionReport], prefix: str) -> dict[str, Any]:
    """Return the tensors that :func:`fit` found, under a model's names, and log its report.

    Raises:
        UserError: if the weights cannot be used.
    """
    tensors, report = fitted
    if report.problem:
        raise UserError(report.problem)
    logger.info("%s", report)
    return {**report.weights.others, **{prefix + name: value for name, value in tensors.items()}}


def describe(variant: Any, name: str) -> str:
    """Name a variant, with the config keys that make it: its fields in capitals."""
    keys = (f"{key.upper()} {list(v) if isinstance(v, tuple) else v}" for key, v in variant._asdict().items())
    return f"{name} ({', '.join(keys)})"


def widen_stem(state: dict[str, Any], name: str, own: Mapping[str, Tensor]) -> dict[str, Any]:
    """Give a model's first convolution zero weights for the input channels that RGB weights do not have."""
    if name not in state or name not in own:
        return state
    return {**state, name: _widen(torch.as_tensor(state[name]), own[name])}


def _widen(weight: Tensor, own: Tensor) -> Tensor:
    added = own.shape[1] - RGB if own.dim() == 4 and weight.dim() == 4 and weight.shape[1] == RGB else 0
    return F.pad(weight, (0, 0, 0, 0, 0, added)) if added > 0 else weight


def find_first(names: Collection[str], first: Collection[str]) -> tuple[str, str] | None:
    """Find a backbone's first tensor, under one of the names in ``first``.

    Returns:
        that name, and the prefix that all names of the backbone have in the file; None if it is not there.
    """
    for name in names:
        for known in first:
            if f".{name}".endswith(f".{known}"):
                return known, name.removesuffix(known)
    return None


def unwrap(state: dict[str, Any]) -> dict[str, Any]:
    """Return the tensors of a checkpoint that keeps them under ``model`` or ``state_dict``."""
    inner = next((state[key] for key in ("model", "state_dict") if isinstance(state.get(key), dict)), state)
    return inner if all(isinstance(name, str) for name in inner) else state


def read_published(path: Path) -> dict[str, Any]:
    """Read a file's tensors by name.

    Raises:
        UserError: if it cannot be read.
    """
    if not path.is_file():
        raise UserError(f"no file {path}; give the weights that were downloaded (tools/README.md says where)")
    return unwrap(by_name(str(path), read_torch(str(path))))
