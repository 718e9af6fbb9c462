"""What the command-line tools share."""

import argparse
import sys
from collections.abc import Callable
from typing import TypeVar

from .errors import UserError

T = TypeVar("T")


def run(main: Callable[..., T], *args: object) -> T:
    """Call ``main`` and return its result; print a :class:`UserError` as one message and exit with status 1."""
    try:
        return main(*args)
    except UserError as e:
        sys.stdout.flush()
        sys.stderr.write(f"error: {e}\n")
        raise SystemExit(1) from None


def positive(text: str) -> int:
    """Read a whole number of at least 1, as ``type`` of an argument."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} is not at least 1")
    return number
