"""Reading checkpoint files as data: tensors, arrays and plain values, never code."""

import contextlib
import io
import mmap
import struct
import zipfile
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .unpickling import DataUnpickler, ForbiddenError, UnreadableCheckpoint

_OLD_MAGIC, _OLD_VERSION = 0x1950A86A20F9469CFC6C, 1001  # before PyTorch 1.6


def read_torch(filename: str) -> Any:
    """Read what ``torch.save`` wrote, or a .safetensors file; tensors on the CPU.

    Raises:
        UnreadableCheckpoint: if the file is damaged, of another format, or would run code or become larger than it is.
    """
    if filename.endswith(".safetensors"):
        return _read_safetensors(filename)
    with _whatever_it_holds(filename), open(filename, "rb") as f:
        head = f.read(16)
        if not head.startswith((b"PK", b"\x80")):
            found = f"starts with {head!r}" if head else "is empty"
            raise UnreadableCheckpoint(f"{filename} is not a checkpoint: it {found}")
        if head.startswith(b"\x80"):
            with _mapped(filename) as content:
                return _read_before_zip(content)
        if not zipfile.is_zipfile(f):
            raise UnreadableCheckpoint(f"checkpoint {filename} is truncated; copy or download it again")
        with zipfile.ZipFile(f) as archive:
            return _read_zip(archive, f.seek(0, io.SEEK_END))


def read_pickle(filename: str) -> Any:
    """Read a pickle of numpy arrays; raises as :func:`read_torch` does."""
    with _whatever_it_holds(filename), _mapped(filename) as content:
        return DataUnpickler(content, len(content)).load()


@contextlib.contextmanager
def _mapped(filename: str) -> Iterator[mmap.mmap]:
    """A file of which reading more than there is takes no memory."""
    with open(filename, "rb") as f, mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_READ) as content:
        yield content


def _read_zip(archive: zipfile.ZipFile, size: int) -> Any:
    entries, names = archive.infolist(), archive.namelist()
    sizes = sum(max(entry.file_size, entry.compress_size) for entry in entries)
    if sizes > size or any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
        raise ValueError("it is compressed, or its parts are larger than it is; unpack it, and save it with torch.save")
    root = next(name for name in names if name.endswith("data.pkl")).removesuffix("data.pkl")
    if f"{root}byteorder" in names and archive.read(f"{root}byteorder") != b"little":
        raise ValueError("it is of a big-endian machine; save it again on one like this")
    storages: dict[str, bytearray] = {}

    def read_storage(key: str, dtype: torch.dtype, numel: int) -> Tensor:
        name = f"{root}data/{key}"
        if name not in storages:
            storages[name] = bytearray(archive.read(name))
        return _numbers(storages[name], dtype, numel)

    with archive.open(f"{root}data.pkl") as f:
        return DataUnpickler(io.BytesIO(f.read()), size, read_storage).load()


def _read_before_zip(content: mmap.mmap) -> Any:
    """Read pickles one after the other: of signs, of what was saved, of its storages' keys; and then these."""
    size = left = len(content)
    storages: dict[str, bytearray] = {}

    def read_storage(key: str, dtype: torch.dtype, numel: int) -> Tensor:
        nonlocal left
        if key not in storages:
            left -= numel * dtype.itemsize
            if left < 0:
                raise ValueError(f"its storages are more than its {size} bytes")
            storages[key] = bytearray(numel * dtype.itemsize)
        return _numbers(storages[key], dtype, numel)

    magic, version, _, loaded, keys = (DataUnpickler(content, size, read_storage).load() for _ in range(5))
    if (magic, version) != (_OLD_MAGIC, _OLD_VERSION):
        raise ValueError("it is no file of PyTorch")
    for key in keys:
        storage = memoryview(storages.pop(key))
        content.seek(struct.calcsize("<q"), io.SEEK_CUR)  # its length, which the pickle has too
        storage[:] = content.read(len(storage))
    if storages:
        raise ValueError(f"it lacks the storage {next(iter(storages))}")
    return loaded


def _numbers(storage: bytearray, dtype: torch.dtype, numel: int) -> Tensor:
    return torch.frombuffer(storage, dtype=dtype, count=numel) if numel else torch.empty(0, dtype=dtype)


def _read_safetensors(filename: str) -> dict[str, Tensor]:
    try:
        from safetensors.torch import load_file
    except ImportError:
        raise UnreadableCheckpoint(
            f"to read {filename}, pip install safetensors; or take the pytorch_model.bin beside it"
        ) from None
    with _whatever_it_holds(filename):
        return load_file(filename)


@contextlib.contextmanager
def _whatever_it_holds(filename: str) -> Iterator[None]:
    """Turn whatever a damaged file makes its reader stumble over into an error that names the file."""
    try:
        yield
    except UnreadableCheckpoint:
        raise
    except ForbiddenError as e:
        raise _refusal(filename, str(e)) from None
    except Exception as e:
        raise UnreadableCheckpoint(f"cannot read checkpoint {filename}: {_reason(e)}") from e


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
    return dict(data)


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
