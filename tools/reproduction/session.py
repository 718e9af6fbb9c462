"""Making what is missing of a table: training, evaluation and measurements, each in a process of its own."""

import logging
import sys
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog

from pixelmask.cli import run_tool
from pixelmask.config import changed, load_cfg
from pixelmask.data.roots import datasets_root
from pixelmask.errors import UserError
from train_net import trainer_of

from . import quick
from .provenance import ROOT, annotation_version, commit, file_version, hours_of, schedule_of
from .table_runs import STATES, TableRun
from .tables import COST, UPPER_BOUND, Row, Table

logger = logging.getLogger(__name__)

PARTS = ("train", "evaluate", "cost")
OUTPUT = Path("output/reproduction")
# Height and width, instances of an image, for detectors and for AIRM, as the papers have them
DETECTOR_INPUT = ("--size", "800", "1333", "--instances", "20")
AIRM_SIZE = ("--size", "1706", "2560")


def run_command(command: list[str]) -> None:
    """Run a tool of this project; raise UserError if it fails."""
    if status := run_tool(command):
        raise UserError(f"{Path(command[1]).name} ended with status {status}; what it said is above")


@dataclass
class Session:
    """What ``reproduce.py run`` does, with the options it has.

    Args:
        output: folder of the runs; quick ones are in ``quick`` below it.
        quick: take small models and drawn data.
        overrides: KEY VALUE pairs that override every config.
        iterations: length of every training, its schedule in proportion; None leaves each as it is.
        repeats: train each config with the seeds 1 to this; None trains it once, with the SEED that it has.
        num_gpus: for training and evaluation.
        run: what runs a command.
    """

    output: Path = OUTPUT
    quick: bool = False
    overrides: Sequence[str] = ()
    iterations: int | None = None
    repeats: int | None = None
    num_gpus: int = 1
    run: Callable[[list[str]], None] = run_command
    _failed: dict[Path, str] = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        if self.repeats and "SEED" in self.overrides[::2]:
            raise UserError("repeats have the seeds 1, 2, ...: leave out SEED, or --repeats")

    def run_of(self, row: Row, seed: int | None = None) -> TableRun:
        """Return the run of one of our rows, with another seed than its config's if one is given.

        The run that it starts from has the same seed.
        """
        run = self._run(row.config, seed)
        if not row.starts_from:
            return run
        base = self._run(row.starts_from, seed)
        return replace(run, cfg=changed(run.cfg, "MODEL.WEIGHTS", str(base.weights)), starts_from=base)

    def runs_of(self, row: Row) -> list[TableRun]:
        """Return the runs that a row's figures are of, one at least.

        These are, of all that there are with any seed, those that are furthest, and of these the ones whose config has
        changed least since.
        """
        first, test = self.run_of(row), self.test_of(row)
        folders = first.folder.parent.glob(f"{first.folder.name}_seed_*")
        seeds = sorted(int(seed) for folder in folders if (seed := folder.name.rpartition("_")[2]).isdecimal())
        runs = [first, *(self.run_of(row, seed) for seed in seeds)]
        furthest = max((run.state(test) for run in runs), key=STATES.index)
        runs = [run for run in runs if run.state(test) == furthest]
        if len(runs) == 1:
            return runs
        changes = [run.differences() for run in runs]
        return [run for run, change in zip(runs, changes, strict=True) if change == min(changes, key=len)]

    def test_of(self, row: Row) -> str:
        """Return the set that a row is evaluated on."""
        return quick.test_set(row.test) if self.quick else row.test

    def _run(self, config: str, seed: int | None) -> TableRun:
        folder = self.output / ("quick" if self.quick else "") / Path(config).name
        cfg = load_cfg(str(ROOT / "configs" / f"{config}.yaml"), self.overrides)
        if self.quick:
            cfg = changed(quick.overlay(cfg), *self.overrides)
        if seed not in (None, cfg.SEED):
            folder, cfg = folder.with_name(f"{folder.name}_seed_{seed}"), changed(cfg, "SEED", seed)
        schedule = _schedule(cfg.SOLVER, self.iterations) if self.iterations else ()
        return TableRun(folder, config, changed(cfg, "DATASETS.TEST", (), "OUTPUT_DIR", str(folder), *schedule))

    def make(self, table: Table, rows: Sequence[Row], parts: Collection[str] = PARTS) -> list[str]:
        """Make what is missing of some rows of a table, and return what could not be made: "ROW, ROW: reason" each.

        Repeats of all rows with one seed come before those with the next.
        """
        problems: dict[str, dict[str, None]] = {}
        for row in rows:
            if not row.config:
                logger.info("%s %s is not this project's", table.name, row.name)
        ours = [row for row in rows if row.config]
        seeds = range(1, self.repeats + 1) if self.repeats else [None]
        steps = [
            (seed, row, step) for seed in seeds for row in ours for step in (self._measure, self._train_and_evaluate)
        ]
        for seed, row, step in steps:
            try:
                step(table, row, seed, parts)
            except UserError as e:
                logger.error("%s %s%s: %s", table.name, row.name, f", seed {seed}" if seed else "", e)
                problems.setdefault(str(e), {})[row.name] = None
        return [f"{', '.join(names)}: {reason}" for reason, names in problems.items()]

    def _measure(self, table: Table, row: Row, seed: int | None, parts: Collection[str]) -> None:
        run = self.run_of(row)  # costs are the same for every seed
        for tool, keys in (("analyze_model", ("gflops", "parameters")), ("benchmark", ("fps", "seconds"))):
            if "cost" in parts and table.uses(COST, *keys) and not run.cost(tool).is_file():
                run.write_config()
                run.cost(tool).parent.mkdir(exist_ok=True)
                options = self._cost_options(tool, run)
                self._call(f"{tool}.py", "--config-file", run.config_file, "--json", run.cost(tool), *options)
                run.add_to_record(cost={tool: commit()})

    def _cost_options(self, tool: str, run: TableRun) -> Sequence[str]:
        drawn = quick.settings() if self.quick else None
        size = ("--size", *map(str, drawn["image_size"])) if drawn else None
        timing = drawn["benchmark"].split() if drawn else []
        if tool == "analyze_model":
            return [*(size or AIRM_SIZE), "--tile-size", "0"] if run.is_airm else []
        if run.is_airm:
            return ["--parts", "refine", "--tile-sizes", "0", *(size or AIRM_SIZE), *timing]
        return ["--parts", "model", *DETECTOR_INPUT, *(size or ()), *timing]

    def _train_and_evaluate(self, table: Table, row: Row, seed: int | None, parts: Collection[str]) -> None:
        run, test = self.run_of(row, seed), self.test_of(row)
        if "train" in parts:
            self.train(run)
        if "evaluate" in parts:
            added = [] if self.quick else [column.added for column in table.columns if column.added]
            self.evaluate(run, test, [file for file in dict.fromkeys(added) if (datasets_root() / file).is_file()])
            if table.uses(UPPER_BOUND) and not run.upper_bound(test).is_file():
                self._bound(run, test)

    def train(self, run: TableRun) -> None:
        """Train a run to its end from wherever it is; raise UserError if that cannot be done, or its config changed."""
        if run.starts_from:
            self.train(run.starts_from)
        if run.folder in self._failed:
            raise UserError(self._failed[run.folder])
        try:
            self._train(run)
        except UserError as e:
            self._failed[run.folder] = str(e)
            raise

    def _train(self, run: TableRun) -> None:
        run.write_config()
        if not run.is_trained:
            _check_data(run.cfg, train=run.cfg.DATASETS.TRAIN)
            commits = run.record().get("training", {}).get("commits", [])
            run.add_to_record(training={"commits": list(dict.fromkeys([*commits, commit()]))})
            self._train_net(run, "--resume")
        if "schedule" not in run.record().get("training", {}):
            schedule = schedule_of(run.weights)
            _check_data(run.cfg, train=run.cfg.DATASETS.TRAIN)
            run.add_to_record(
                training={
                    "schedule": schedule,
                    "hours": hours_of(run.folder / "metrics.json", schedule["iterations"]),
                    "gpus": self.num_gpus,
                    "annotations": {name: annotation_version(name) for name in run.cfg.DATASETS.TRAIN},
                }
            )

    def evaluate(self, run: TableRun, test: str, added: Sequence[str] = ()) -> None:
        """Evaluate a run on a set, unless it was with all ``added`` files below ``$DETECTRON2_DATASETS``.

        Raises:
            UserError: if the run is not trained, its config changed, or the set is missing.
        """
        known = run.record().get("evaluations", {}).get(test, {}).get("annotations", {})
        if run.evaluation(test).is_file() and {test, *added} <= set(known):
            run.write_config()
            return
        if not run.is_trained:
            raise UserError(f"{run.folder} is not trained yet, its state is {run.state(test)}")
        run.write_config()
        _check_data(run.cfg, test=(test,))
        folder = run.evaluation(test).parent
        opts = ("MODEL.WEIGHTS", run.weights, "DATASETS.TEST", repr((test,)), "OUTPUT_DIR", folder)
        self._train_net(run, "--eval-only", *opts)
        versions = {file: file_version(datasets_root() / file) for file in added}
        entry = {"commit": commit(), "annotations": {test: annotation_version(test), **versions}}
        run.add_to_record(evaluations={test: entry})

    def _bound(self, run: TableRun, test: str) -> None:
        _check_data(run.cfg, test=(test,))
        run.upper_bound(test).parent.mkdir(exist_ok=True)
        inputs = ("--annotations", MetadataCatalog.get(test).json_file, "--detections", run.detections_of(test))
        self._call("upper_bound.py", *inputs, "--json", run.upper_bound(test))
        run.add_to_record(upper_bound={test: commit()})

    def _train_net(self, run: TableRun, *args: object) -> None:
        self._call("train_net.py", "--config-file", run.config_file, "--num-gpus", self.num_gpus, *args)

    def _call(self, tool: str, *args: object) -> None:
        command = [sys.executable, str(ROOT / "tools" / tool), *map(str, args)]
        logger.info("+ %s", " ".join(command))
        self.run(command)


def _check_data(cfg: CfgNode, train: Sequence[str] = (), test: Sequence[str] = ()) -> None:
    """Register sets and check that they are there, as ``train_net.py`` does; raise UserError if one is not."""
    cfg = changed(cfg, "DATASETS.TRAIN", tuple(train), "DATASETS.TEST", tuple(test))
    trainer_of(cfg).prepare_datasets(cfg, train=bool(train))


def _schedule(solver: CfgNode, iterations: int) -> list[Any]:
    """Return the keys and values of a schedule in proportion."""
    share = iterations / solver.MAX_ITER
    steps = tuple(round(share * step) for step in solver.STEPS)
    warmup, period = round(share * solver.WARMUP_ITERS), max(round(share * solver.CHECKPOINT_PERIOD), 1)
    lengths = ["SOLVER.WARMUP_ITERS", warmup, "SOLVER.CHECKPOINT_PERIOD", period, "SOLVER.MAX_ITER", iterations]
    return ["SOLVER.STEPS", steps, *lengths]
