"""Detectron2's checkpointer that reads checkpoints as data, says what fitted, and writes files whole or not at all."""

import contextlib
import logging
import os
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import IO, Any, NamedTuple

import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.utils.file_io import PathManager
from fvcore.common.checkpoint import Checkpointer
from torch import nn

from ..errors import UserError
from ..files import whole_or_not_at_all
from .files import UnreadableCheckpoint, by_name, check_tensors, read_pickle, read_torch

logger = logging.getLogger(__name__)


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
        return by_name(f, read_torch(f))

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
        report = self.load_report
        if report.other_shape:
            lines = (
                f"{name}: {in_file} in the checkpoint, {in_model} here"
                for name, in_file, in_model in report.other_shape
            )
            logger.warning("%s. These start untrained:\n%s", report, "\n".join(lines))
        else:
            logger.info("%s", report)
        # fvcore lists the names; those of another shape, for which it would warn one by one, are among its missing ones
        super()._log_incompatible_keys(incompatible._replace(missing_keys=report.missing, incorrect_shapes=[]))


class SafeCheckpointer(DetectionCheckpointer, _SafeReader):
    """:class:`DetectionCheckpointer` for which checkpoints are data: loading one never runs code from it.

    ``.pth``, ``.pyth`` and ``.pkl`` files (Detectron2's and Caffe2's model zoos) are read by an unpickler that knows
    tensors, arrays and Python's containers only, ``.safetensors`` by their own library. What cannot be read so, holds
    NaN, or fits the model nowhere, ends in a :class:`UserError`; a part that does not fit (another number of classes)
    is named in the log and skipped, as in Detectron2. ``load_report`` says what the last checkpoint filled.

    A model, or a module of it such as a backbone, may have a method ``adapt_checkpoint``: from a checkpoint's tensors
    by name, and the module's prefix in the model, to tensors under the model's names. It leaves alone what it does not
    know, and raises :class:`UserError` for what it cannot use.

    Files are written under another name and then renamed, so that a process killed at any moment leaves the previous
    state in place. Arguments are those of :class:`DetectionCheckpointer`.
    """

    def __init__(
        self, model: torch.nn.Module, save_dir: str = "", *, save_to_disk: bool | None = None, **checkpointables: Any
    ):
        super().__init__(model, save_dir, save_to_disk=save_to_disk, **checkpointables)
        self.path_manager: Any = _AtomicWrites(PathManager)
        self.config = ""  # YAML that tells which model the weights are of

    def save(self, name: str, **kwargs: Any) -> None:
        """Write a checkpoint as fvcore's ``Checkpointer.save`` does, with ``config`` in it where that is set."""
        super().save(name, **({"config": self.config} if self.config else {}), **kwargs)

    def load(self, path: str, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Load a checkpoint as fvcore's ``Checkpointer.load`` does.

        Raises:
            UnreadableCheckpoint: if it is missing, cannot be fetched, is damaged or foreign, holds NaN or infinity, or
                would run code.
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
        candidates = sorted(self.get_all_checkpoint_files(), key=os.path.getmtime, reverse=True)
        try:
            last = self.get_checkpoint_file()
            candidates = [last, *(candidate for candidate in candidates if candidate != last)]
        except UnreadableCheckpoint as e:
            logger.warning("%s", e)
        for candidate in candidates:
            try:
                return self.load(candidate)
            except UnreadableCheckpoint as e:
                logger.warning("Cannot resume from the last checkpoint: %s", e)
        raise UserError(f"no checkpoint in {self.save_dir} can be read; train without --resume to start again")

    def get_checkpoint_file(self) -> str:
        """Return the file of save_dir that its ``last_checkpoint`` names.

        Raises:
            UnreadableCheckpoint: if it names none.
        """
        with contextlib.suppress(UnicodeDecodeError):
            path = super().get_checkpoint_file()
            name = os.path.basename(path)
            if path == os.path.join(self.save_dir, name) and 0 < len(name) < 256 and "\0" not in name:
                return path
        raise UnreadableCheckpoint(
            f"{self.save_dir}/last_checkpoint does not name a file beside it; write the name of a checkpoint into it"
        )

    def _load_file(self, filename: str) -> dict[str, Any]:
        if filename.endswith(".pkl"):
            loaded = _from_model_zoo(filename, by_name(filename, read_pickle(filename)))
        elif filename.endswith(".pyth"):
            state = by_name(filename, by_name(filename, read_torch(filename)).get("model_state"))
            state = {name: value for name, value in state.items() if not name.endswith("num_batches_tracked")}
            loaded = {"model": state, "__author__": "pycls", "matching_heuristics": True}
        else:
            loaded = super()._load_file(filename)
        state = by_name(filename, loaded["model"])
        try:
            loaded["model"] = self._adapt(state)
        except UserError as e:
            raise UserError(f"checkpoint {filename} does not fit: {e}") from None
        check_tensors(filename, loaded["model"])
        if not loaded["model"] and loaded.get("matching_heuristics"):  # which take the best match of none
            raise UnreadableCheckpoint(f"{filename} is not a checkpoint of this program: it holds no tensors")
        return loaded

    def _adapt(self, state: dict[str, Any]) -> dict[str, Any]:
        for name, module in self.model.named_modules():
            if hasattr(module, "adapt_checkpoint"):
                state = module.adapt_checkpoint(state, f"{name}." if name else "")
        return state


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
        with whole_or_not_at_all(Path(path)) as temporary, self._manager.open(str(temporary), mode, **kwargs) as f:
            yield f


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
        raise UnreadableCheckpoint(f"no checkpoint {name}; check MODEL.WEIGHTS{_way_out(name)}")


def _way_out(name: str) -> str:
    folder = os.path.dirname(name)
    if os.path.dirname(folder) != "output":
        return ""
    return f", or train that model first: {folder} is what the config {os.path.basename(folder)}.yaml writes"


def _from_model_zoo(filename: str, data: dict[str, Any]) -> dict[str, Any]:
    """Detectron2's .pkl files name an author; Caffe2's are the weights, or have them under "blobs", with momenta."""
    if "model" in data and "__author__" in data:
        return data
    blobs = by_name(filename, data.get("blobs", data))
    weights = {name: value for name, value in blobs.items() if not name.endswith("_momentum")}
    return {"model": weights, "__author__": "Caffe2", "matching_heuristics": True}


def _some(names: Collection[str]) -> str:
    first, others = list(names)[:3], list(names)[3:]
    return ", ".join(first) + (f" and {len(others)} more" if others else "")


def load_trained(model: nn.Module, weights: str) -> None:
    """Load a checkpoint of a trained model, as data (:class:`SafeCheckpointer`).

    Raises:
        UserError: if it cannot be read, or leaves a parameter of the model random.
    """
    checkpointer = SafeCheckpointer(model)
    checkpointer.load(weights)
    parameters = dict(model.named_parameters())
    absent = sorted(parameters.keys() - set(checkpointer.load_report.matched))
    if absent:
        raise UserError(
            f"{checkpointer.load_report}. {len(absent)} parameters would stay random, {absent[0]} first: is it a "
            "checkpoint of this config, of the same encoder and as many classes?"
        )
