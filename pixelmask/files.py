"""Finding and reading files, and writing those that are there whole or not at all."""

import contextlib
import errno
import glob
import hashlib
import json
import logging
import os
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

import portalocker

from .errors import UserError

logger = logging.getLogger(__name__)

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp")


@contextlib.contextmanager
def whole_or_not_at_all(path: Path, ending: str = ".partial") -> Iterator[Path]:
    """Give the path to write at: what is there becomes ``path`` in the end, and is removed if anything fails.

    Until then, and after a failure, an earlier file at ``path`` is what it was. Its folder is made if missing.

    Args:
        path: of the file.
        ending: of the name to write at, beside ``path``.

    Raises:
        UserError: if the name is too long, or there is a file in the place of its folder.
        OSError: with the file's name, also one that a library turned into an error of its own.
    """
    temporary = path.with_name(f"{path.name}{ending}")
    with named_errors(path, temporary):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except (FileExistsError, NotADirectoryError) as e:
            raise UserError(f"cannot write {path}: {e.filename} is no folder") from None
        try:
            yield temporary
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def named_errors(path: Path, temporary: Path | None = None) -> Iterator[None]:
    """Name the file in an OSError of writing it, which may be the cause of a library's error; see above."""
    try:
        yield
    except UserError:
        raise
    except Exception as e:
        cause: BaseException | None = e
        while cause and not (isinstance(cause, OSError) and cause.errno):
            cause = cause.__cause__ or cause.__context__
        if not isinstance(cause, OSError) or cause.filename not in (None, str(path), str(temporary)):
            raise
        if cause.errno == errno.ENAMETOOLONG:
            raise UserError(f"cannot write {path}: its name is too long") from None
        raise OSError(cause.errno, cause.strerror, str(path)) from None


@contextlib.contextmanager
def only_writer(folder: str | Path) -> Iterator[None]:
    """Be the only process that writes into a folder, which is made if missing.

    The lock is the operating system's, on the file .lock in it, and goes with the process however that ends. A file
    system that knows no locks is taken as it is.

    Raises:
        UserError: if another process writes into it.
    """
    path = Path(folder, ".lock")
    path.parent.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as stack:
        while True:
            file = stack.enter_context(path.open("a"))
            try:
                portalocker.lock(file, portalocker.LOCK_EX | portalocker.LOCK_NB)
            except portalocker.AlreadyLocked:
                raise UserError(
                    f"another process writes into {folder}; wait for its end, or choose another folder"
                ) from None
            except portalocker.LockException as e:
                logger.warning("%s is not locked, as its file system knows no locks: %s", folder, e)
            if path.exists() and os.path.samestat(os.fstat(file.fileno()), path.stat()):
                break  # else the process that had it has removed it
        stack.callback(path.unlink, missing_ok=True)
        yield


def digest(path: str | Path) -> str:
    """Return the SHA-256 of a file's content."""
    found = hashlib.sha256()
    with open(path, "rb") as f:
        while block := f.read(2**20):
            found.update(block)
    return found.hexdigest()


def write_text(path: str | Path, text: str) -> None:
    """Write a text file, whole or not at all."""
    with whole_or_not_at_all(Path(path)) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: str | Path, content: Any, indent: int | None = None) -> None:
    """Write a JSON file that ends in a line break, whole or not at all."""
    write_text(path, json.dumps(content, indent=indent) + "\n")


def read_json(path: str | Path) -> Any:
    """Read a JSON file; raise a :class:`UserError` if it is missing or damaged."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as e:
        raise UserError(f"cannot read {path}: {e.strerror}") from None
    except (ValueError, RecursionError) as e:
        raise UserError(f"{path} is not valid JSON: {e}") from None


def list_folder(
    folder: Path, suffixes: Collection[str] = IMAGE_SUFFIXES, deep: bool = True, skipped: Path | None = None
) -> list[Path]:
    """Return the files of a folder, there or not, that have one of the (lower-case) suffixes, sorted.

    ``deep`` looks into its folders too, but for the one ``skipped``. Hidden files and folders, and the __MACOSX of
    archives, are left out; symbolic links are followed.
    """
    files: list[Path] = []
    for parent, folders, names in os.walk(folder, followlinks=True):
        kept = (name for name in folders if name[0] != "." and name != "__MACOSX" and Path(parent, name) != skipped)
        folders[:] = kept if deep else ()
        files += [Path(parent, name) for name in names if name[0] != "."]
    return sorted(path for path in files if path.suffix.lower() in suffixes)


def find_images(
    inputs: Sequence[str], suffixes: Collection[str] = IMAGE_SUFFIXES, deep: bool = True, kind: str = "image"
) -> list[Path]:
    """Return the files that paths, folders (see :func:`list_folder`) and glob patterns stand for, each once.

    A file and those of a pattern may have any suffix. ``kind`` is what a file is called in messages.

    Raises:
        UserError: for an input that stands for no file.
    """
    found: dict[Path, None] = {}
    for text in inputs:
        path = Path(text)
        if path.is_dir():
            files = list_folder(path, suffixes, deep)
        else:
            candidates = [path] if path.is_file() else map(Path, sorted(glob.glob(text, recursive=True)))
            files = [candidate for candidate in candidates if candidate.is_file()]
        if not files:
            raise UserError(f"{text}: {f'a folder without {kind}s' if path.is_dir() else f'no such {kind}'}")
        found.update(dict.fromkeys(files))
    return list(found)
