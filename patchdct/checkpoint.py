"""Detectron2's checkpointer that reads checkpoints as data, says what fitted, and writes files whole or not at all."""

import contextlib
import logging
import os
import pickle
import re
import zipfile
from collections import OrderedDict
from collections.abc import Collection, Iterator
from typing import IO, Any, NamedTuple

import numpy as np
import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.utils.file_io import PathManager
from fvcore.common.checkpoint import Checkpointer

from .errors import UserError

logger = logging.getLogger(__name__)


class UnreadableCheckpoint(UserError):
    """A checkpoint file that is missing, damaged, of another format, or that would run code."""


class LoadReport(NamedTuple):
    """Names of a model's state that a checkpoint filled, and those it did not; shapes as (name, checkpoint, model)."""

    path: str
    matched: list[str]
    missing: list[str]
    unexpected: list[str]
    other_shape: list[tuple[str, tuple[int, ...], tuple[int, ...]]]

    def __str__(self) -> str:
        counts = (
            f"{len(self.matched)} tensors loaded from {self.path}; {len(self.missing)} of the model are not in it, "
            f"{len(self.unexpected)} in it are not the model's, {len(self.other_shape)} have another shape"
        )
        for name, in_file, in_model in self.other_shape:
            if name.endswith("cls_score.weight"):
                return f"{counts} ({in_file[0] - 1} classes in the checkpoint, {in_model[0] - 1} in the model)"
        return counts


class _SafeReader(Checkpointer):
    """What :class:`DetectionCheckpointer` calls as its parent: stands between it and fvcore's checkpointer."""

    path: str
    load_report: LoadReport

    def _load_file(self, f: str) -> dict[str, Any]:
        return _mapping(f, _read_torch(f))

    def _load_model(self, checkpoint: dict[str, Any]) -> Any:
        state = checkpoint["model"]
        names = list(state)
        incompatible = super()._load_model(checkpoint)  # leaves in `state` what has the model's shapes
        own = self.model.state_dict()
        matched = [name for name in state if name in own]
        if own and not matched:
            raise UserError(
                f"no tensor of checkpoint {self.path} fits the model: it has {_some(names)}, the model {_some(own)}. "
                "Is it a checkpoint of another model, or does it have to be converted?"
            )
        other_shape = {name for name, *_ in incompatible.incorrect_shapes}
        missing = [name for name in incompatible.missing_keys if name not in other_shape]
        self.load_report = LoadReport(
            self.path, matched, missing, list(incompatible.unexpected_keys), list(incompatible.incorrect_shapes)
        )
        return incompatible

    def _log_incompatible_keys(self, incompatible: Any) -> None:
        logger.info("%s", self.load_report)
        # fvcore lists the names; those of another shape would be among the missing ones too
        super()._log_incompatible_keys(incompatible._replace(missing_keys=self.load_report.missing))


class SafeCheckpointer(DetectionCheckpointer, _SafeReader):
    """:class:`DetectionCheckpointer` for which checkpoints are data: loading one never runs code from it.

    ``.pth`` and ``.pyth`` files are read with ``weights_only``, ``.pkl`` files (Detectron2's and Caffe2's model zoos)
    by an unpickler that knows numpy arrays and Python's containers only. What cannot be read so, and what fits the
    model nowhere, ends in a :class:`UserError`; a part that does not fit (another number of classes) is named in the
    log and skipped, as in Detectron2. ``load_report`` says what the last checkpoint filled.

    Files are written under another name and then renamed, so that a process killed at any moment leaves the previous
    state in place. Arguments are those of :class:`DetectionCheckpointer`.
    """

    def __init__(
        self, model: torch.nn.Module, save_dir: str = "", *, save_to_disk: bool | None = None, **checkpointables: Any
    ):
        super().__init__(model, save_dir, save_to_disk=save_to_disk, **checkpointables)
        self.path_manager: Any = _AtomicWrites(PathManager)

    def load(self, path: str, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Load a checkpoint as fvcore's ``Checkpointer.load`` does.

        Raises:
            UnreadableCheckpoint: if it is missing, cannot be fetched, is damaged or foreign, or would run code.
            UserError: if none of it fits the model.
        """
        self.path = path
        if path:
            _check_exists(path)
        try:
            return super().load(path, *args, **kwargs)
        finally:
            self._parsed_url_during_load = None  # Detectron2 refuses to load after a load that failed

    def resume_or_load(self, path: str, *, resume: bool = True) -> dict[str, Any]:
        """Load save_dir's last checkpoint with its training state if that is asked for and there, else path's model.

        A last checkpoint that is missing or damaged is passed over, with a warning, for the newest that can be read.
        """
        if not (resume and self.has_checkpoint()):
            return super().resume_or_load(path, resume=False)
        last = self.get_checkpoint_file()
        others = sorted(set(self.get_all_checkpoint_files()) - {last}, key=os.path.getmtime, reverse=True)
        for candidate in [last, *others]:
            try:
                return self.load(candidate)
            except UnreadableCheckpoint as e:
                logger.warning("Cannot resume from the last checkpoint: %s", e)
        raise UserError(f"no checkpoint in {self.save_dir} can be read; train without --resume to start again")

    def _load_file(self, filename: str) -> dict[str, Any]:
        if filename.endswith(".pkl"):
            loaded = _from_model_zoo(_mapping(filename, _read_pickle(filename)))
        elif filename.endswith(".pyth"):
            state = _mapping(filename, _mapping(filename, _read_torch(filename)).get("model_state"))
            state = {name: value for name, value in state.items() if not name.endswith("num_batches_tracked")}
            loaded = {"model": state, "__author__": "pycls", "matching_heuristics": True}
        else:
            loaded = super()._load_file(filename)
        for name, value in _mapping(filename, loaded["model"]).items():
            if not isinstance(value, (torch.Tensor, np.ndarray)):
                found = f"its {name!r} is not a tensor but of type {type(value).__name__}"
                raise UnreadableCheckpoint(f"{filename} is not a checkpoint of this program: {found}")
        return loaded


class _AtomicWrites:
    """A path manager whose local files appear under their name when they are complete."""

    def __init__(self, manager: Any):
        self._manager = manager

    def __getattr__(self, name: str) -> Any:
        return getattr(self._manager, name)

    def open(self, path: str, mode: str = "r", **kwargs: Any) -> Any:
        if "w" not in mode or "://" in path:
            return self._manager.open(path, mode, **kwargs)
        return self._replace(path, mode, **kwargs)

    @contextlib.contextmanager
    def _replace(self, path: str, mode: str, **kwargs: Any) -> Iterator[IO[Any]]:
        temporary = f"{path}.tmp"
        try:
            with self._manager.open(temporary, mode, **kwargs) as f:
                yield f
            os.replace(temporary, path)
        finally:
            with contextlib.suppress(FileNotFoundError):
                os.remove(temporary)


def _check_exists(path: str) -> None:
    name = path.partition("?")[0]  # Detectron2 takes options after it
    try:
        local = PathManager.get_local_path(name)
    except Exception as e:  # whatever a download can fail with
        raise UnreadableCheckpoint(
            f"cannot fetch checkpoint {name}: {e}. Where there is no network, bring the file here by other means and "
            "give its path in MODEL.WEIGHTS"
        ) from e
    if not os.path.isfile(local):
        raise UnreadableCheckpoint(f"no checkpoint {name}; check MODEL.WEIGHTS")


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


def _read_torch(filename: str) -> Any:
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


def _read_pickle(filename: str) -> Any:
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


def _from_model_zoo(data: dict[str, Any]) -> dict[str, Any]:
    """Detectron2's .pkl files name an author; Caffe2's are the weights, or have them under "blobs", with momenta."""
    if "model" in data and "__author__" in data:
        return data
    weights = {name: value for name, value in data.get("blobs", data).items() if not name.endswith("_momentum")}
    return {"model": weights, "__author__": "Caffe2", "matching_heuristics": True}


def _mapping(filename: str, data: Any) -> dict[str, Any]:
    if not isinstance(data, dict) or not all(isinstance(name, str) for name in data):
        raise UnreadableCheckpoint(f"{filename} is not a checkpoint of this program: it holds no tensors by name")
    return data


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".partition("\n")[0]


def _some(names: Collection[str]) -> str:
    first, others = list(names)[:3], list(names)[3:]
    return ", ".join(first) + (f" and {len(others)} more" if others else "")
