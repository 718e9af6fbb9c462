"""SIGTERM and SIGINT (Ctrl-C) as one exception, raised where nothing is half done.

A scheduler that preempts a job sends SIGTERM, and SIGKILL half a minute later.
"""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupted(KeyboardInterrupt):
    """SIGTERM or SIGINT was received."""

    kept = "files are whole, or as they were"
    """What is kept of the work, and how to go on: the second half of a sentence."""

    def __init__(self, received: signal.Signals):
        super().__init__()
        self.received = received


class _Watch:
    """What this process has received; the first signal counts, later ones are not to disturb what it sets off."""

    process: int | None = None
    worker: int | None = None
    """Of :func:`stay_with_parent`."""
    received: signal.Signals | None = None
    waits = False
    of_children: Any = None
    """PyTorch's handler, which raises an error where a worker has ended, while it is put aside."""

    def handle(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self.process:  # a fork, which after Ctrl-C ends with its parent
            if number == signal.SIGTERM:
                os._exit(128 + number)
        elif self.received is None:
            self.received = signal.Signals(number)
            self.of_children = signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            if not self.waits:
                check_interrupted()


_watch = _Watch()


@contextmanager
def interruptible() -> Iterator[None]:
    """Have both signals raise :class:`Interrupted`, once; in the main thread, and unless they are ignored already."""
    if _watch.process == os.getpid() or threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in SIGNALS}
    _watch.process, _watch.received, _watch.waits = os.getpid(), None, False
    try:
        for number, handler in before.items():
            if handler is not signal.SIG_IGN:
                signal.signal(number, _watch.handle)
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler or signal.SIG_DFL)
        if _watch.received is not None:
            signal.signal(signal.SIGCHLD, _watch.of_children or signal.SIG_DFL)
        _watch.process = _watch.received = None


@contextmanager
def signals_wait(wait: bool = True) -> Iterator[None]:
    """Let signals wait for :func:`check_interrupted` or the end of the context; with False they wait no more in it."""
    before, _watch.waits = _watch.waits, wait
    try:
        if not wait:
            check_interrupted()
        yield
    finally:
        _watch.waits = before
    if not before:
        check_interrupted()


def stay_with_parent() -> None:
    """In a data loader's worker: let a SIGTERM be that all processes of a job get, but for the parent's own.

    PyTorch has the worker end at once, so that its trainer cannot finish the iteration. It ends with its parent anyway.
    """
    if _watch.process in (None, os.getpid()) or _watch.worker == os.getpid() or not hasattr(signal, "sigwaitinfo"):
        return
    _watch.worker = os.getpid()
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    threading.Thread(target=_end_with, args=[os.getppid()], daemon=True).start()


def _end_with(parent: int) -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent:
        pass
    os._exit(0)


def was_interrupted() -> bool:
    return _watch.received is not None


def check_interrupted() -> None:
    """Raise :class:`Interrupted` if a signal has waited, or its exception was lost in a library's callback."""
    if _watch.received is not None:
        raise Interrupted(_watch.received)
