"""What the command-line tools share."""

import argparse
import contextlib
import errno
import importlib.util
import io
import logging
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn, TypeVar

from .errors import UserError
from .interruption import Interrupted, interruptible

if TYPE_CHECKING:
    from rich.console import Console

T = TypeVar("T")

# How fvcore's registries, which Detectron2 finds its parts in, say that a config names something unknown
UNREGISTERED = re.compile(r"No object named '(.+)' found in '(.+)' registry")
# Of files: no permission; a medium that cannot be written, is full, over its quota or broken; a file where a folder is
# needed, or the other way; names that are too long or lead in a circle; too many at once; a pipe that nobody reads
UNWRITABLE = (
    *(errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.ESTALE),
    *(errno.ENOTDIR, errno.EEXIST, errno.EISDIR, errno.ENAMETOOLONG, errno.ELOOP, errno.EMFILE, errno.ENFILE),
    errno.EPIPE,
)
# How libraries say that there is no memory left: PyTorch on a CPU and on a GPU, OpenCV
NO_MEMORY = ("can't allocate memory", "out of memory", "Insufficient memory")


def run(main: Callable[..., T], *args: object) -> T:
    """Call ``main`` and return its result; print a :class:`UserError` as one message and exit with status 1.

    The same for files that cannot be read or written (a full disk, a name that is too long, standard output that is
    closed), names in the config that no registry has, and sizes for which there is no memory. SIGTERM and SIGINT
    (Ctrl-C) are :class:`~pixelmask.interruption.Interrupted` in ``main``: it exits with status 143 or 130, and one
    message.
    """
    try:
        with interruptible():
            _prepare_streams()
            result = main(*args)
            sys.stdout.flush()
            return result
    except UserError as e:
        _leave(str(e))
    except Interrupted as e:
        what = "Ctrl-C" if e.received.name == "SIGINT" else e.received.name
        _leave(f"stopped by {what}: {e.kept}", 128 + e.received)
    except KeyboardInterrupt:  # of a thread, which receives no signals
        _leave(f"stopped: {Interrupted.kept}", 130)
    except OSError as e:
        if e.errno not in UNWRITABLE:
            raise
        # Whoever writes files says their names
        _leave(f"cannot read or write {e.filename2 or e.filename or 'standard output or a file'}: {e.strerror}")
    except KeyError as e:
        if not (names := UNREGISTERED.search(str(e))):
            raise
        _leave(
            f"the config names {names[1]}, which is not in the registry {names[2]}; correct the name, or --import the "
            "file that registers it"
        )
    except Exception as e:
        if not isinstance(e, MemoryError) and not any(phrase in str(e) for phrase in NO_MEMORY):
            raise
        _leave("no memory left: " + str(e).partition("\n")[0])


def _prepare_streams() -> None:
    """Have three open files where the shell closed some, and no letter that a terminal's encoding cannot show."""
    while (number := os.open(os.devnull, os.O_RDWR)) <= 2:  # else a file of ours would become standard output
        pass
    os.close(number)
    sys.stdout, sys.stderr = sys.stdout or io.StringIO(), sys.stderr or io.StringIO()
    logging.raiseExceptions = False  # of a log on a full disk; what else is written there fails by itself
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.errors == "strict":
        sys.stdout.reconfigure(errors="backslashreplace")


def _leave(message: str, status: int = 1) -> NoReturn:
    try:
        sys.stdout.flush()
    except OSError:  # Python would try again, and show a traceback
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    with contextlib.suppress(OSError):
        sys.stderr.write(f"error: {message}\n")
    raise SystemExit(status) from None


def run_tool(command: Sequence[str]) -> int:
    """Run a tool in a process of its own, which also gets the signal that stops this one; return its exit status."""
    with subprocess.Popen(command) as process:
        try:
            return process.wait()
        except Interrupted as e:
            process.send_signal(e.received)
            process.wait()
            e.kept = f"{Path(command[1]).name} has said above what is kept"
            raise


def add_precision(parser: argparse.ArgumentParser) -> None:
    """Add ``--precision``, of inference."""
    text = "of inference: fp32, the default, or bf16 or fp16, by torch.autocast"
    parser.add_argument("--precision", choices=("fp32", "bf16", "fp16"), default="fp32", help=text)


def positive(text: str) -> int:
    """Read a whole number of at least 1, as ``type`` of an argument."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} is not at least 1")
    return number


def bounded(least: int, most: int) -> Callable[[str], int]:
    """Return what reads a whole number within bounds, as ``type`` of an argument."""

    def read(text: str) -> int:
        number = int(text)
        if not least <= number <= most:
            raise argparse.ArgumentTypeError(f"{text} is not from {least} to {most}")
        return number

    read.__name__ = "whole number"  # in argparse's message about what is none
    return read


def add_import(parser: argparse.ArgumentParser) -> None:
    """Add the option ``--import``, whose values, ``args.imports``, are for :func:`import_code`."""
    parser.add_argument(
        "--import",
        dest="imports",
        action="append",
        default=[],
        metavar="MODULE",
        help="import a module or .py file first, which registers a head of your own; may be given several times",
    )


def import_code(names: Sequence[str]) -> None:
    """Import modules by their names, and Python files by their paths.

    Raises:
        UserError: if there is none of that name. An error in its code is raised as it is.
    """
    for name in names:
        path = Path(name)
        if path.suffix == ".py":
            if not path.is_file():
                raise UserError(f"--import {name}: no such file")
            sys.path.insert(0, str(path.resolve().parent))  # for what it imports from beside it
        module = path.stem if path.suffix == ".py" else name
        if importlib.util.find_spec(module) is None:
            raise UserError(f"--import {name}: no such module; a file ends in .py")
        importlib.import_module(module)


def console(width: int = 120) -> "Console":
    """Return what prints tables: as wide as the terminal, or ``width`` into a pipe or file, which has no width."""
    from rich.console import Console  # only who prints tables needs it

    return Console(width=None if sys.stdout.isatty() else width)


def print_table(
    title: str,
    columns: Sequence[str],
    rows: Iterable[Iterable[str]],
    left: int = 1,
    caption: str | None = None,
    width: int = 120,
) -> None:
    """Print a table, of whose columns the first ``left`` are texts, and all others figures, aligned to the right."""
    from rich import box
    from rich.table import Table

    table = Table(title=title or None, caption=caption, box=box.SIMPLE_HEAD)
    for i, column in enumerate(columns):
        table.add_column(column, justify="left" if i < left else "right", overflow="fold")
    for row in rows:
        table.add_row(*row)
    console(width).print(table)
