"""The runs of a report: finished ones, with names that differ and the curves of their training."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode
from msgspec import Struct
from torch import nn

from pixelmask.checkpoint.checkpointer import SafeCheckpointer
from pixelmask.config import changed
from pixelmask.data.coco_file import read_results
from pixelmask.errors import UserError
from pixelmask.evaluation.finished import FinishedRun, read_finished_run
from pixelmask.rle import read_rle
from pixelmask.schema import Int64, Number, find_fault, read_lines

Curve = list[tuple[int, float]]

MAX_POINTS = 400


@dataclass(frozen=True)
class ReportedRun(FinishedRun):
    """A finished run with its name in the report.

    ``curves`` has [iteration, value] pairs of every quantity that was logged, finite values only; those of the training
    for an evaluation of its checkpoint.
    """

    name: str
    curves: dict[str, Curve]

    @property
    def about(self) -> str:
        return str(self.folder)

    def results(self, data_set: str, file: str) -> list[dict[str, Any]] | None:
        """Return the COCO results that the evaluation of a data set wrote, masks as RLE; None where it wrote none.

        Raises:
            UserError: if the file holds something else.
        """
        path = self.folder / "inference" / data_set / file
        if not path.is_file():
            return None
        results = read_results(path, boxes=True)
        for i, result in enumerate(results):
            try:
                result["segmentation"] = read_rle(result.get("segmentation"))
            except ValueError as e:
                raise UserError(
                    f"{path} does not hold instance masks of {data_set}: result {i} {e}. A report needs those: was it "
                    "a model with MODEL.MASK_ON?"
                ) from None
        return results

    def config_for(self, data_set: str) -> CfgNode:
        """Return the config with this data set alone to test on, and with the weights of the trained model.

        These are MODEL.WEIGHTS where it is a file of the run's folder, as after an evaluation of one of its
        checkpoints; else the folder's last checkpoint; else MODEL.WEIGHTS, as after ``--eval-only``.
        """
        weights, folder = self.cfg.MODEL.WEIGHTS, SafeCheckpointer(nn.Module(), str(self.folder))
        own = Path(weights).resolve().parent == self.folder.resolve()
        if folder.has_checkpoint() and not own:
            weights = folder.get_checkpoint_file()
        return changed(self.cfg, "DATASETS.TEST", (data_set,), "MODEL.WEIGHTS", weights)


def read_run(folder: str | Path, name: str = "") -> ReportedRun:
    """Read a finished run; ``name`` is what to call it, by default its folder's name.

    Raises:
        UserError: see :func:`~pixelmask.evaluation.finished.read_finished_run`.
    """
    run = read_finished_run(folder)
    # An evaluation alone logs nothing: beside its checkpoint is what the training logged
    logged = [path / "metrics.json" for path in (run.folder, Path(run.cfg.MODEL.WEIGHTS).parent)]
    curves = read_curves(next((path for path in logged if path.is_file()), logged[0]))
    return ReportedRun(run.folder, run.cfg, run.evaluation, name or run.folder.resolve().name, curves)


def read_runs(folders: Sequence[str | Path], names: Sequence[str] = ()) -> list[ReportedRun]:
    """Read runs, which get different names.

    Raises:
        UserError: for a folder that is no finished evaluation, or too few or equal names.
    """
    if names and len(names) != len(folders):
        raise UserError(f"--names: {len(names)} names were given for {len(folders)} runs")
    if len(set(names)) < len(names):
        raise UserError(f"--names {' '.join(names)}: every run needs a name of its own")
    runs = [read_run(folder, name) for folder, name in zip(folders, names or [""] * len(folders), strict=True)]
    if len({run.name for run in runs}) < len(runs):
        known = ", ".join(run.name for run in runs)
        raise UserError(f"the runs' folders have the same names ({known}); tell them apart with --names")
    return runs


def choose_data_set(runs: Sequence[ReportedRun], wanted: str = "") -> str:
    """Return the data set to compare runs on: the wanted one, or else the first that all were evaluated on.

    Raises:
        UserError: if there is none, or the runs are of instance segmentation and of refinement.
    """
    if len({run.is_refinement for run in runs}) > 1:
        kinds = "; ".join(f"{run.name}: {'refinement' if run.is_refinement else 'instances'}" for run in runs)
        raise UserError(f"one report is of instance segmentation or of refinement, not of both ({kinds})")
    common = [name for name in runs[0].evaluation if all(name in run.evaluation for run in runs)]
    if wanted in common:
        return wanted
    found = "; ".join(f"{run.name} on {', '.join(run.evaluation)}" for run in runs)
    if wanted:
        raise UserError(f"--data-set {wanted} is not a set that every run was evaluated on: {found}")
    if not common:
        raise UserError(f"the runs were evaluated on different data sets, and cannot be compared: {found}")
    return common[0]


def read_curves(path: Path) -> dict[str, Curve]:
    """Read Detectron2's ``metrics.json``, a JSON object on each line; {} if there is no such file.

    Where a training was resumed, an iteration comes twice: the later line counts. A line cut off by an interruption is
    left out. Curves of more than 400 points become means of equally many neighbours.
    """
    values: dict[str, dict[int, float]] = {}
    for entry in read_lines(path, _Logged):
        iteration = entry.pop("iteration")
        for key, value in entry.items():
            if not find_fault(value, Number):
                values.setdefault(key, {})[iteration] = value
    return {key: _thin(sorted(points.items())) for key, points in values.items()}


class _Logged(Struct):
    iteration: Int64


def _thin(points: Curve) -> Curve:
    step = math.ceil(len(points) / MAX_POINTS)
    groups = [points[i : i + step] for i in range(0, len(points), step)]
    return [(group[-1][0], math.fsum(value for _, value in group) / len(group)) for group in groups]
