"""The log of a training: all of it in a file; on the terminal, what a person follows."""

import logging
import logging.handlers
import os
import re
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from detectron2.engine import defaults
from detectron2.utils import comm
from termcolor import colored

from .compat import replaced

logger = logging.getLogger(__name__)

# "py.warnings" is what Python's own warnings are logged by
LOGGERS = ("detectron2", "fvcore", "pixelmask", "patchdct", "airm", "py.warnings")
# In lines: that of 80 classes is left to the file
LONGEST_TABLE = 12

_COLOUR = re.compile(r"\x1b\[[0-9;]*m")


class Log:
    """Where the log of this process goes; see :func:`logged`."""

    def __init__(self, terminal: "_Terminal | None"):
        self._terminal = terminal
        # What is logged before its file is known
        self._file = logging.handlers.MemoryHandler(capacity=1, flushLevel=logging.CRITICAL)

    @property
    def handlers(self) -> list[logging.Handler]:
        return [self._terminal, self._file] if self._terminal else [self._file]

    def keep(self, folder: str) -> None:
        """Write all to ``log.txt`` in a folder, made if missing; all but the first process have files of their own."""
        path = Path(folder, f"log.txt.rank{comm.get_rank()}" if comm.get_rank() else "log.txt")
        path.parent.mkdir(parents=True, exist_ok=True)
        file = logging.FileHandler(path)
        file.setFormatter(_Plain("[%(asctime)s] %(name)s %(levelname)s: %(message)s", "%m/%d %H:%M:%S"))
        self._file.setTarget(file)
        if self._terminal:
            self._terminal.file = str(path)

    def repeat_warnings(self) -> None:
        """Log every warning that was printed once more, with how often it came."""
        warned = list(self._terminal.warned.items()) if self._terminal else []
        if warned:
            logger.info("%d warnings of this run, for a second look:", len(warned))
        for text, times in warned:
            logger.info("  %s%s", text, f" ({times} times)" if times > 1 else "")


@contextmanager
def logged() -> Iterator[Log]:
    """Let the first process print, as long as the context lasts, what Detectron2 and this project log; others are mute.

    A text of many lines (config, environment, model) is printed by its first line, and where the rest is; short tables
    are printed whole, each warning once. There are colours on terminals only. At the end the warnings are repeated.
    """
    log = Log(_Terminal() if comm.is_main_process() else None)
    loggers = [logging.getLogger(name) for name in LOGGERS]
    before = [list(logger.handlers) for logger in loggers]
    for each in loggers:
        each.setLevel(logging.DEBUG)
        each.propagate = False
        each.handlers += log.handlers
    logging.captureWarnings(True)
    try:
        yield log
    finally:
        log.repeat_warnings()
        logging.captureWarnings(False)
        for each, handlers in zip(loggers, before, strict=True):
            each.handlers[:] = handlers


def default_setup(cfg: Any, args: Any) -> None:
    """Do as Detectron2's ``default_setup``, which would print to the terminal otherwise, within :func:`logged`."""
    with replaced(defaults, "setup_logger", lambda *_, name="detectron2", **__: logging.getLogger(name)):
        defaults.default_setup(cfg, args)


class _Plain(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return _COLOUR.sub("", super().format(record))


class _Terminal(logging.StreamHandler):
    def __init__(self) -> None:
        super().__init__(sys.stdout)
        self.warned: Counter[str] = Counter()
        self.file = ""

    def emit(self, record: logging.LogRecord) -> None:
        if record.levelno >= logging.WARNING:
            text = self._brief(record)
            self.warned[text] += 1
            if self.warned[text] > 1:
                return
        super().emit(record)

    def format(self, record: logging.LogRecord) -> str:
        time = logging.Formatter().formatTime(record, "%m/%d %H:%M:%S")
        level = f"{record.levelname} " if record.levelno >= logging.WARNING else ""
        line = f"{colored(f'[{time} {record.name}]:', 'green')} {colored(level, 'red')}{self._brief(record)}"
        return line if self.stream.isatty() and "NO_COLOR" not in os.environ else _COLOUR.sub("", line)

    def _brief(self, record: logging.LogRecord) -> str:
        text = record.getMessage().rstrip()
        first, *rest = text.splitlines() or [""]
        if not rest or (len(rest) <= LONGEST_TABLE and all(line.startswith("|") for line in rest)):
            return text
        # The second line of Python's own warnings is the code that they come from
        return first if record.name == "py.warnings" else f"{first} ({len(rest)} lines in {self.file or 'no file'})"
