"""Short trainings of tiny models by tools/train_net.py, as its command line starts them."""

import contextlib
import fcntl
import json
import logging
import multiprocessing
import os
import resource
import socket
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from pixelmask.cli import run
from pixelmask.engine import launch
from pixelmask.engine.log import LOGGERS
from tests.support.models import load_tool


def run_train_net(arguments: Sequence[str]) -> Any:
    """Run tools/train_net.py in this process; return what it does, or exit as it does."""
    tool = load_tool("train_net")
    return run(tool.launch, tool.main, tool.argument_parser().parse_args(list(arguments)))


@dataclass(frozen=True)
class TinyModel:
    """A config and the overrides that make its model tiny, its data set a handful of drawn images, its training short.

    Later overrides win, so that each can be given again. ``options`` are those of the command line, before them.
    """

    name: str
    config: str
    opts: tuple[str, ...]
    test_set: str
    iterations: int

    def arguments(self, *opts: Any, options: Sequence[str] = ()) -> list[str]:
        return ["--config-file", self.config, *options, *self.opts, *map(str, opts)]

    def run(self, *opts: Any, options: Sequence[str] = ()) -> Any:
        return run_train_net(self.arguments(*opts, options=options))

    def evaluate(self, output: Path, weights: Path, *opts: Any) -> dict[str, Any]:
        """Evaluate weights with ``--eval-only``; return the metrics as they were written."""
        self.run("OUTPUT_DIR", output, "MODEL.WEIGHTS", weights, *opts, options=["--eval-only"])
        return metrics_of(output)

    def command(self, *opts: Any, options: Sequence[str] = (), launcher: Sequence[str] = ()) -> list[str]:
        """Return the command of another process; a ``launcher`` is the arguments of torchrun."""
        torchrun = ["-m", "torch.distributed.run", *launcher] if launcher else []
        return [sys.executable, *torchrun, "tools/train_net.py", *self.arguments(*opts, options=options)]


PATCHDCT = TinyModel(
    "patchdct",
    "configs/patchdct/shapes/patchdct_shapes.yaml",
    (
        "MODEL.RESNETS.RES2_OUT_CHANNELS", "8", "MODEL.RESNETS.STEM_OUT_CHANNELS", "8", "MODEL.FPN.OUT_CHANNELS", "8",
        "MODEL.ROI_BOX_HEAD.FC_DIM", "16", "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE", "8",
        "MODEL.ROI_MASK_HEAD.CONV_DIM", "8", "MODEL.ROI_MASK_HEAD.HIDDEN_FEATURES", "8",
        "INPUT.MIN_SIZE_TRAIN", "(64,80,96)", "INPUT.MIN_SIZE_TEST", "96",
        "SOLVER.IMS_PER_BATCH", "2", "SOLVER.MAX_ITER", "3", "SOLVER.STEPS", "()", "SOLVER.CHECKPOINT_PERIOD", "2",
        "DATASETS.TRAIN", "('shapes_train_8_96px',)", "DATASETS.TEST", "('shapes_val_6_96px',)",
        "MODEL.ROI_HEADS.SCORE_THRESH_TEST", "0.0", "TEST.DETECTIONS_PER_IMAGE", "5",
    ),
    "shapes_val_6_96px",
    3,
)  # fmt: skip
AIRM = TinyModel(
    "airm",
    "configs/airm/small/airm_synthetic.yaml",
    (
        "MODEL.MIT.EMBED_DIMS", "[8,16,24,32]", "MODEL.MIT.NUM_HEADS", "[1,2,3,4]", "MODEL.MIT.DEPTHS", "[1,1,1,1]",
        "MODEL.AIRM.STAGE_CHANNELS", "8", "MODEL.AIRM.HIDDEN_FEATURES", "[8,8]",
        "MODEL.AIRM.HYPERNETWORK_CHANNELS", "[8,8]", "INPUT.REFINEMENT.CROP_SIZE", "64", "MODEL.AIRM.AFFINITY", "True",
        "SOLVER.IMS_PER_BATCH", "2", "SOLVER.MAX_ITER", "4", "SOLVER.CHECKPOINT_PERIOD", "2",
        "SOLVER.WARMUP_ITERS", "0", "DATASETS.TRAIN", "('synthetic_refinement_train_6_96x72',)",
        "DATASETS.TEST", "('synthetic_refinement_val_5_96x72',)", "DATALOADER.NUM_WORKERS", "0",
    ),
    "synthetic_refinement_val_5_96x72",
    4,
)  # fmt: skip


# Its processes are forks of one that has the libraries and has never computed: autograd does not work in other forks
CLEAN = multiprocessing.get_context("forkserver")
CLEAN.set_forkserver_preload(["airm", "patchdct", "detectron2.engine", "detectron2.modeling", "detectron2.evaluation"])


def in_two_processes(work: Callable[[], object]) -> None:
    """Do the work, which can be pickled, in two processes at once, in the group that torchrun makes for its own."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        group = {"TORCHELASTIC_RUN_ID": "", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(listener.getsockname()[1])}
    torch.multiprocessing.start_processes(
        _joined, (work, {**os.environ, **group}), nprocs=2, start_method=CLEAN.get_start_method()
    )


def _joined(rank: int, work: Callable[[], object], environment: dict[str, str]) -> None:
    sizes = {"WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2, "RANK": rank, "LOCAL_RANK": rank}
    os.environ.update({**environment, **{key: str(value) for key, value in sizes.items()}})
    launch(lambda _: work(), None)


def metrics_of(folder: Path) -> dict[str, Any]:
    """Return the evaluation that a run wrote."""
    return json.loads((folder / "evaluation.json").read_text())


def logged_by(folder: Path) -> list[dict[str, float]]:
    """Return what a training logged, iteration by iteration."""
    return [json.loads(line) for line in (folder / "metrics.json").read_text().splitlines()]


def same(a: Any, b: Any) -> bool:
    """Whether metrics are the same to the last digit, NaN included."""
    return json.dumps(a, sort_keys=True) == json.dumps(b, sort_keys=True)


def made_once(folder: Path, make: Callable[[Path], object]) -> Path:
    """Return a folder that the first process to ask for it makes, while others wait."""
    done = folder.with_name(f"{folder.name}.done")
    with open(folder.with_name(f"{folder.name}.lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not done.exists():
            make(folder)
            done.touch()
    return folder


@contextlib.contextmanager
def little_space(size: int) -> Iterator[None]:
    """Files of this process can have this many bytes, as if the disk were full then."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@contextlib.contextmanager
def records_of(name: str, level: int = logging.INFO) -> Iterator[list[logging.LogRecord]]:
    """The records of a logger, of this level and above, that does not pass them on."""
    records: list[logging.LogRecord] = []
    handler = logging.Handler(level)
    handler.emit = records.append  # type: ignore[method-assign]
    logger = logging.getLogger(name)
    before = logger.level
    logger.addHandler(handler)
    logger.setLevel(min(level, logger.getEffectiveLevel()))
    yield records
    logger.removeHandler(handler)
    logger.setLevel(before)


@contextlib.contextmanager
def log_handlers_restored() -> Iterator[None]:
    """Take away the handlers added meanwhile: they hold a test's captured streams, which are closed when it ends."""
    loggers = [logging.getLogger(name) for name in LOGGERS]
    before = [list(logger.handlers) for logger in loggers]
    try:
        yield
    finally:
        for logger, handlers in zip(loggers, before, strict=True):
            logger.handlers[:] = handlers
