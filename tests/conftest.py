"""What all tests share without asking for it."""

import logging
from collections.abc import Iterator

import pytest


@pytest.fixture(autouse=True)
def restore_log_handlers() -> Iterator[None]:
    """Take away the handlers that a test leaves: they hold its captured streams, which are closed when it ends."""
    loggers = [logging.getLogger(name) for name in ("detectron2", "fvcore", "pixelmask", "patchdct", "airm")]
    before = [list(logger.handlers) for logger in loggers]
    yield
    for logger, handlers in zip(loggers, before, strict=True):
        logger.handlers[:] = handlers
