"""What the command-line tools share."""

import argparse
import errno
import importlib.util
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn, TypeVar

from .errors import UserError

if TYPE_CHECKING:
    from rich.console import Console

T = TypeVar("T")

# How fvcore's registries, which Detectron2 finds its parts in, say that a config names something unknown
UNREGISTERED = re.compile(r"No object named '(.+)' found in '(.+)' registry")

# Of files: no permission, a medium that cannot be written or is full, a file where a folder is needed, or the other way
UNWRITABLE = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.ENOTDIR, errno.EEXIST, errno.EISDIR)


def run(main: Callable[..., T], *args: object) -> T:
    """Call ``main`` and return its result; print a :class:`UserError` as one message and exit with status 1.

    The same for files that cannot be written, and names in the config that no registry has.
    """
    try:
        return main(*args)
    except UserError as e:
        _leave(str(e))
    except OSError as e:
        if e.errno not in UNWRITABLE:
            raise
        _leave(f"cannot read or write {e.filename2 or e.filename or 'a file'}: {e.strerror}")
    except KeyError as e:
        if not (names := UNREGISTERED.search(str(e))):
            raise
        _leave(
            f"the config names {names[1]}, which is not in the registry {names[2]}; correct the name, or --import the "
            "file that registers it"
        )


def _leave(message: str) -> NoReturn:
    sys.stdout.flush()
    sys.stderr.write(f"error: {message}\n")
    raise SystemExit(1) from None


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
