"""Runs readers on damaged files in a process of its own, within limits of memory and time, and counts what happens."""

import collections
import contextlib
import logging
import multiprocessing
import os
import resource
import tempfile
import time
import traceback
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

from pixelmask.errors import UserError
from reproduction.tables import load_tables

from .mutations import damage
from .readers import READERS, Reader, write_seeds

MEMORY = 2**30  # bytes beyond the loaded program
SECONDS = 30  # for one file, of a machine that may have more to do
OUTCOMES = ("read", "refused", "fault", "memory")


@dataclass
class Found:
    """What became of the files; a finding is a reader, the number of its file, and what happened."""

    tried: int = 0
    counts: collections.Counter[str] = field(default_factory=collections.Counter)
    findings: list[tuple[str, int, str]] = field(default_factory=list)
    peak: int = 0
    """Bytes that a process had in memory at most; those of the program are among them."""
    slowest: tuple[float, str, int] = (0.0, "", 0)
    """Seconds, and of which reader and file."""


def fuzz(
    seed: int, seconds: float, most: int | None = None, readers: Sequence[Reader] = READERS, start: int = 0
) -> Found:
    """Try files until the time is over, or as many as ``most``.

    File ``i`` of a seed is always the same, for the reader ``i`` modulo their number.
    """
    found, end = Found(), time.monotonic() + seconds
    context = multiprocessing.get_context("fork")
    with tempfile.TemporaryDirectory() as folder:
        real = os.environ.get("REAL_DATA_ROOT")
        write_seeds(Path(folder), Path(real) if real else None)
        load_tables()  # which would take as long as all else in a process that is new
        while time.monotonic() < end and (most is None or start < most):
            receiver, sender = context.Pipe(duplex=False)
            arguments = (sender, Path(folder), seed, start, most, readers, end)
            process = context.Process(target=_work, args=arguments, daemon=True)
            process.start()
            sender.close()
            start = _watch(process, receiver, found, readers, start)
            process.join()
    return found


def _watch(process: Any, receiver: Any, found: Found, readers: Sequence[Reader], number: int) -> int:
    """Take what a process says of each file; return the number of the next one when it is over."""
    while True:
        if not receiver.poll(SECONDS):
            process.kill()
            happened = "hang"
        else:
            with contextlib.suppress(EOFError):
                number, outcome, what, peak, seconds = receiver.recv()
                found.tried += 1
                found.counts[outcome] += 1
                found.peak = max(found.peak, peak)
                found.slowest = max(found.slowest, (seconds, readers[number % len(readers)].name, number))
                if what:
                    found.findings.append((readers[number % len(readers)].name, number, what))
                number += 1
                continue
            process.join()
            if process.exitcode == 0:
                return number
            happened = "crash"
        process.join()
        found.tried += 1
        found.counts[happened] += 1
        found.findings.append((readers[number % len(readers)].name, number, f"{happened}, {process.exitcode}"))
        return number + 1


def _work(
    sender: Any, folder: Path, seed: int, start: int, most: int | None, readers: Sequence[Reader], end: float
) -> None:
    logging.disable()
    warnings.simplefilter("ignore")
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    os.dup2(null, 2)
    size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + MEMORY, size + MEMORY))
    number = start
    while time.monotonic() < end and (most is None or number < most):
        begun = time.monotonic()
        outcome, what = try_one(folder, seed, number, readers)
        sender.send((number, outcome, what, _resident(), time.monotonic() - begun))
        number += 1


def try_one(folder: Path, seed: int, number: int, readers: Sequence[Reader] = READERS) -> tuple[str, str]:
    """Damage a file and have it read; return one of OUTCOMES, and a finding's traceback or message."""
    reader, rng = readers[number % len(readers)], Random(f"{seed} {number}")
    source = folder / rng.choice([name for name in reader.seeds if (folder / name).exists()])
    path = source.with_name(f"damaged_{source.name}")
    path.write_bytes(damage(source, rng))
    try:
        reader.read(path)
    except UserError as e:
        if _of_memory(e):
            return "memory", f"asks for too much memory: {e}"
        return "refused", "" if str(e) and "\n\n" not in str(e) else "an empty message"
    except BaseException:
        return "fault", traceback.format_exc()
    return "read", ""


def _of_memory(error: BaseException | None) -> bool:
    while error is not None:
        if isinstance(error, MemoryError) or "allocate memory" in str(error):
            return True
        error = error.__cause__ or error.__context__
    return False


def _resident() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
