"""Reading checkpoint files as data: tensors, arrays and plain values, never code."""

import pickle
import re
import zipfile
from collections import OrderedDict
from typing import Any

import numpy as np
import torch

from ..errors import UserError


class UnreadableCheckpoint(UserError):
    """A checkpoint file that is missing, damaged, of another format, or that would run code."""


# What pickled numpy arrays and scalars are rebuilt by, under the names that numpy 1 and 2 give it
_NUMPY: dict[tuple[str, str], Any] = {
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
    **{
        (f"{core}.{module}", name): function
        for core in ("numpy.core", "numpy._core")
        for module, name, function in (
            ("multiarray", "_reconstruct", np.empty(0).__reduce__()[0]),
            ("multiarray", "scalar", np.float64(0).__reduce__()[0]),
            ("numeric", "_frombuffer", np.empty(0).__reduce_ex__(5)[0]),
        )
    },
}
_NUMBER_TYPES = [type(np.dtype(code)) for code in np.typecodes["AllInteger"] + np.typecodes["AllFloat"] + "?"]


def read_torch(filename: str) -> Any:
    """Read what ``torch.save`` wrote, tensors on the CPU.

    Raises:
        UnreadableCheckpoint: if the file is damaged, of another format, or would run code.
    """
    if filename.endswith(".safetensors"):
        raise UnreadableCheckpoint(
            f"{filename} is of a format that is not read here; take the pytorch_model.bin beside it, or convert it "
            "(tools/convert_weights.py for Mix Transformers)"
        )
    with open(filename, "rb") as f:
        head = f.read(16)
    if not head.startswith((b"PK", b"\x80")):
        found = f"starts with {head!r}" if head else "is empty"
        raise UnreadableCheckpoint(f"{filename} is not a checkpoint: it {found}")
    if head.startswith(b"PK") and not zipfile.is_zipfile(filename):
        raise UnreadableCheckpoint(f"checkpoint {filename} is truncated; copy or download it again")
    numpy: list[Any] = [(value, ".".join(name)) for name, value in _NUMPY.items()]
    try:
        # Training states hold numpy's scalars now and then
        with torch.serialization.safe_globals(numpy + _NUMBER_TYPES):
            return torch.load(filename, map_location="cpu", weights_only=True)
    except Exception as e:  # whatever a damaged file makes the reader stumble over
        forbidden = re.search(r"GLOBAL (\S+)", str(e))
        if forbidden:
            raise _refusal(filename, forbidden[1]) from None
        raise UnreadableCheckpoint(f"cannot read checkpoint {filename}: {_reason(e)}") from e


def read_pickle(filename: str) -> Any:
    """Read a pickle of numpy arrays; raises as :func:`read_torch` does."""
    try:
        with open(filename, "rb") as f:
            return _DataUnpickler(f, encoding="latin1").load()  # Python 2 wrote the older files
    except _ForbiddenError as e:
        raise _refusal(filename, str(e)) from None
    except Exception as e:  # whatever a damaged file makes the reader stumble over
        raise UnreadableCheckpoint(f"cannot read checkpoint {filename}: {_reason(e)}") from e


class _ForbiddenError(Exception):
    """The full name of what a pickle wants to call."""


def _encode_latin1(text: str, encoding: str) -> bytes:
    """Stand in for ``codecs.encode`` in the one use that pickles of bytes make of it."""
    if encoding != "latin1":
        raise _ForbiddenError(f"_codecs.encode with {encoding}")
    return text.encode("latin1")


class _DataUnpickler(pickle.Unpickler):
    """Unpickler of numpy arrays and scalars in Python's containers."""

    _ALLOWED: dict[tuple[str, str], Any] = {
        **_NUMPY,
        ("collections", "OrderedDict"): OrderedDict,
        ("_codecs", "encode"): _encode_latin1,
        **{(m, c.__name__): c for m in ("builtins", "__builtin__") for c in (set, frozenset, bytearray, complex)},
    }

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self._ALLOWED:
            raise _ForbiddenError(f"{module}.{name}")
        return self._ALLOWED[module, name]


def _refusal(filename: str, name: str) -> UnreadableCheckpoint:
    return UnreadableCheckpoint(
        f"checkpoint {filename} is refused: loading it would call {name}, and a checkpoint is to hold tensors and "
        "plain values only. If you trust where it comes from, save its state dict alone to a new file"
    )


def by_name(filename: str, data: Any) -> dict[str, Any]:
    """Return ``data`` if it is a dict by names.

    Raises:
        UnreadableCheckpoint: if it is not; the message names the file.
    """
    if not isinstance(data, dict) or not all(isinstance(name, str) for name in data):
        raise UnreadableCheckpoint(f"{filename} is not a checkpoint of this program: it holds no tensors by name")
    return data


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".partition("\n")[0]


def check_tensors(filename: str, state: dict[str, Any]) -> None:
    """Raise :class:`UnreadableCheckpoint` unless all of ``state`` are tensors or arrays without NaN and infinity."""
    for name, value in by_name(filename, state).items():
        if not isinstance(value, (torch.Tensor, np.ndarray)):
            found = f"its {name!r} is not a tensor but of type {type(value).__name__}"
            raise UnreadableCheckpoint(f"{filename} is not a checkpoint of this program: {found}")
        if not _is_finite(value):
            raise UnreadableCheckpoint(
                f"checkpoint {filename} is of no use: its {name!r} holds NaN or infinity. A training that diverged "
                "writes such files; take an earlier checkpoint of it"
            )


def _is_finite(value: torch.Tensor | np.ndarray) -> bool:
    if isinstance(value, np.ndarray):
        return value.dtype.kind != "f" or bool(np.isfinite(value).all())
    if not value.is_floating_point():
        return True
    # NaN and infinity survive a sum, which takes a fraction of the time; a sum can also overflow
    return bool(value.float().sum().isfinite() or value.double().isfinite().all())
