"""Long work on many files: an interruption loses nothing, one bad file stops nothing, and processes share the work."""

import contextlib
import json
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from detectron2.config import CfgNode
from detectron2.utils import comm
from msgspec import Struct
from tqdm import tqdm

from .config import changed
from .engine.launch import gather, on_main_process
from .errors import UserError
from .files import digest, named_errors, only_writer, write_text
from .interruption import Interrupted, check_interrupted
from .schema import check

FILE = "progress.jsonl"
WAY_OUT = "begin anew with --overwrite instead of --resume"

logger = logging.getLogger(__name__)


class _Done(Struct):
    """What a line has of an item, of images perhaps with what results they gave."""

    item: str
    inputs: dict[str, tuple[int, int, str]]
    coarse: list[dict[str, Any]] = []
    refined: list[dict[str, Any]] = []
    counts: dict[str, int] = {}
    size: dict[str, int] = {}
    unusable: list[str] = []


class Item(NamedTuple):
    """Files that a piece of the work is made from, and those that it makes."""

    inputs: Sequence[Path]
    outputs: Sequence[Path] = ()


def identify(cfg: CfgNode, weights: str | Path) -> dict[str, str]:
    """Return what tells a model from others, wherever it runs: its config, and the digest of its weights' file."""
    of_file = {"weights": digest(weights)} if Path(weights).is_file() else {}
    return {"config": changed(cfg, "MODEL.DEVICE", "").dump(), **of_file}


def check_output(folder: Path | None, outputs: Iterable[Path], resume: bool, overwrite: bool) -> None:
    """Raise a :class:`UserError` if what a run writes, into a folder or None, would replace anything unasked."""

    def check() -> None:
        if folder and folder.exists() and not folder.is_dir():
            raise UserError(f"--output {folder} is no folder")
        unfinished = folder is not None and (folder / FILE).exists()
        if overwrite or (resume and unfinished):
            return
        if unfinished:
            raise UserError(f"{folder} has an unfinished run; --resume goes on with it, --overwrite begins anew")
        existing = [path for path in outputs if path.exists()]
        if existing:
            others = f", and {len(existing) - 1} others" if len(existing) > 1 else ""
            raise UserError(f"{existing[0]} exists already{others}; choose another --output, or pass --overwrite")

    on_main_process(check)


class Progress(contextlib.AbstractContextManager["Progress"]):
    """A file of JSON lines in the output folder: what the run is about, then one line for each item that is done.

    A line is written at once. It has the "item", its "inputs" as they were, and whatever else is to be kept of it. The
    folder is locked meanwhile. Under torchrun (:func:`~pixelmask.engine.launch.launch_shards`) the items are dealt out
    to the processes; each writes lines of its own, and the next run, of however many processes, takes up all of them.
    """

    done: dict[str, dict[str, Any]]
    """The lines of the items that are done, by item."""

    def __init__(self, folder: Path, about: dict[str, Any], items: Mapping[str, Item], resume: bool):
        """
        Args:
            folder: where results go; made if missing.
            about: what makes the results what they are, besides the items' inputs, as JSON has it.
            items: all there is to do, by a name of each.
            resume: whether to go on with what the folder has; else it is begun anew.

        Raises:
            UserError: if another process writes into the folder; if what is done is of a run about something else, or
                of inputs that have changed since: it names them.
        """
        self.folder, self.items, self._stack = folder, items, contextlib.ExitStack()
        self._own: dict[str, dict[str, Any]] = {}
        about = json.loads(json.dumps(about))
        try:
            self.done = on_main_process(lambda: self._begin(about, resume))
            rank = comm.get_rank()
            self._path = folder / (FILE if rank == 0 else f"progress.{rank}.jsonl")
            self._file = self._stack.enter_context(self._path.open("a"))
        except BaseException:
            self._stack.close()
            raise

    def _begin(self, about: dict[str, Any], resume: bool) -> dict[str, dict[str, Any]]:
        self._stack.enter_context(only_writer(self.folder))
        path, lines = self.folder / FILE, []
        parts = sorted(self.folder.glob("progress.*.jsonl"))
        if resume and path.is_file():
            lines = [line for part in (path, *parts) for line in _complete_lines(part)]
        known, *entries = lines or [about]
        check(known, dict[str, Any], f"the first line of {path}", WAY_OUT)
        check(entries, list[_Done], path, WAY_OUT)
        changed = [key for key in about | known if about.get(key) != known.get(key)]
        if changed:
            raise UserError(
                f"{path} was begun with other options ({', '.join(changed)}); resume with the same ones, "
                "choose another --output, or begin anew with --overwrite"
            )
        for entry in entries:
            if fault := self._find_change(entry):
                raise UserError(
                    f"{fault} since {path} was begun; put it back, or begin anew with --overwrite instead of --resume"
                )
        # Without what an interruption may have left of a line
        write_text(path, "".join(json.dumps(line) + "\n" for line in [known, *entries]))
        for part in parts:
            part.unlink()
        made = (entry for entry in entries if all(path.exists() for path in self.items[entry["item"]].outputs))
        return {entry["item"]: entry for entry in made}

    def _find_change(self, entry: dict[str, Any]) -> str | None:
        """Return which file of an item that is done is not what it was; the content counts, not the time."""
        item, then = entry["item"], entry["inputs"]
        if item not in self.items:
            return f"{item} was done, and has been taken away from the inputs"
        now = [str(path) for path in self.items[item].inputs]
        for name in sorted({*then, *now}):
            if name not in now:
                return f"{name} has been taken away from the inputs"
            if name not in then:
                return f"{name} has been added"
            if not Path(name).is_file():
                return f"{name} has been removed"
            if _stamp(name) != then[name][:2] and digest(name) != then[name][2]:
                return f"{name} has changed"
        return None

    def run(self, do: Callable[[str], dict[str, Any]], unit: str) -> list[str]:
        """Do what is not done yet, and this process' share of it; then :attr:`done` is complete on each.

        Args:
            do: from an item's name to what is to be kept of it, as JSON has it. Whatever it raises is the item's fault,
                but for an OSError, which is a disk's: the others would fail as well.
            unit: what an item is called.

        Returns:
            a sentence for each item that cannot be used, in their order.

        Raises:
            UserError: if another process has ended.
        """
        todo = [name for name in self.items if name not in self.done][comm.get_rank() :: comm.get_world_size()]
        faults: dict[str, str] = {}
        try:
            for name in tqdm(todo, unit=unit, disable=len(self.items) == 1 or not comm.is_main_process()):
                check_interrupted()
                try:
                    inputs = self._read_stamps(name)
                    kept = do(name)
                except OSError:
                    raise
                except Exception as e:
                    faults[name] = self._explain(name, e)
                else:
                    self._add({"item": name, "inputs": inputs, **kept})
            shares = gather((self._own, faults))
        except Interrupted as e:
            e.kept = f"{len(self.done)} of {len(self.items)} {unit}s are done and kept; --resume does the others"
            raise
        for own, others in shares:
            self.done.update(own)
            faults.update(others)
        return [faults[name] for name in self.items if name in faults]

    def _read_stamps(self, name: str) -> dict[str, list[Any]]:
        try:
            return {str(path): [*_stamp(path), digest(path)] for path in self.items[name].inputs}
        except OSError as e:
            raise UserError(f"cannot read {e.filename}: {e.strerror}") from None

    def _explain(self, name: str, error: Exception) -> str:
        if isinstance(error, UserError):
            message = str(error)
        else:  # of a library, about what nobody has thought of
            logger.debug("%s", name, exc_info=error)
            message = f"{type(error).__name__}: {error}".partition("\n")[0]
        files = [str(path) for path in self.items[name].inputs] or [name]
        return message if any(file in message for file in files) else f"{files[0]}: {message}"

    def _add(self, entry: dict[str, Any]) -> None:
        self.done[entry["item"]] = self._own[entry["item"]] = entry
        with named_errors(self._path):
            self._file.write(json.dumps(entry) + "\n")
            self._file.flush()

    @property
    def entries(self) -> list[dict[str, Any]]:
        """The lines of the items that are done, in the order of the items."""
        return [self.done[name] for name in self.items if name in self.done]

    def remove(self) -> None:
        """Remove the file, as all is done."""
        for path in (self.folder / FILE, *self.folder.glob("progress.*.jsonl")):
            path.unlink(missing_ok=True)

    def __exit__(self, *error: object) -> None:
        with named_errors(self._path):
            self._stack.close()


def _stamp(path: str | Path) -> list[int]:
    """Return size and time of change."""
    found = Path(path).stat()
    return [found.st_size, found.st_mtime_ns]


def _complete_lines(path: Path) -> list[Any]:
    lines = []
    with contextlib.suppress(ValueError, RecursionError):
        for line in path.read_bytes().splitlines():
            lines.append(json.loads(line))
    return lines
