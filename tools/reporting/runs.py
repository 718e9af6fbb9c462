"""A finished run of ``tools/train_net.py``, read from its OUTPUT_DIR."""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode

from pixelmask.config import load_cfg
from pixelmask.errors import UserError

# By task or other group of metrics, then by metric
Metrics = dict[str, dict[str, float]]
Curve = list[tuple[int, float]]

MAX_POINTS = 400


@dataclass(frozen=True)
class Run:
    """What is known of a run without its data sets.

    ``evaluation`` has the metrics of each data set of DATASETS.TEST, ``curves`` [iteration, value] pairs of every
    quantity that was logged, finite values only; those of the training for an evaluation of its checkpoint.
    """

    name: str
    folder: Path
    cfg: CfgNode
    evaluation: dict[str, Metrics]
    curves: dict[str, Curve]

    @property
    def is_refinement(self) -> bool:
        return self.cfg.MODEL.META_ARCHITECTURE == "AIRM"

    def results(self, data_set: str, file: str) -> Any:
        """Return the content of a JSON file that the evaluation of a data set wrote, None where it wrote none."""
        path = self.folder / "inference" / data_set / file
        return _read_json(path) if path.is_file() else None

    def config_for(self, data_set: str) -> CfgNode:
        """Return the config with this data set alone to test on, and with the weights of the trained model.

        These are MODEL.WEIGHTS where it is a file of the run's folder, as after an evaluation of one of its
        checkpoints; else the folder's last checkpoint; else MODEL.WEIGHTS, as after ``--eval-only``.
        """
        cfg = self.cfg.clone()
        cfg.defrost()
        cfg.DATASETS.TEST = (data_set,)
        own = Path(cfg.MODEL.WEIGHTS).resolve().parent == self.folder.resolve()
        last = self.folder / "last_checkpoint"
        if last.is_file() and not own:
            cfg.MODEL.WEIGHTS = str(self.folder / last.read_text().strip())
        cfg.freeze()
        return cfg


def read_run(folder: str | Path, name: str = "") -> Run:
    """Read a finished run; ``name`` is what to call it, by default its folder's name.

    Raises:
        UserError: if it is no folder of a finished evaluation, or a file of it cannot be read.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"no folder {folder}; give the OUTPUT_DIR of a run of tools/train_net.py")
    for file in ("config.yaml", "evaluation.json"):
        if not (folder / file).is_file():
            raise UserError(
                f"{folder} has no {file}, so that it is no OUTPUT_DIR of a finished evaluation. To evaluate a trained "
                "model: python tools/train_net.py --config-file CONFIG --eval-only MODEL.WEIGHTS CHECKPOINT "
                f"OUTPUT_DIR {folder}"
            )
    cfg = load_cfg(str(folder / "config.yaml"))
    evaluation = _by_data_set(_read_json(folder / "evaluation.json"), cfg, folder)
    # An evaluation alone logs nothing: beside its checkpoint is what the training logged
    logged = [path / "metrics.json" for path in (folder, Path(cfg.MODEL.WEIGHTS).parent)]
    curves = read_curves(next((path for path in logged if path.is_file()), logged[0]))
    return Run(name or folder.resolve().name, folder, cfg, evaluation, curves)


def choose_data_set(runs: Sequence[Run], wanted: str = "") -> str:
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
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    for line in lines:
        try:
            entry = json.loads(line)
            iteration = entry.pop("iteration")
        except (ValueError, KeyError, AttributeError):
            continue
        for key, value in entry.items():
            if isinstance(value, (int, float)) and math.isfinite(value):
                values.setdefault(key, {})[iteration] = value
    return {key: _thin(sorted(points.items())) for key, points in values.items()}


def _thin(points: Curve) -> Curve:
    step = math.ceil(len(points) / MAX_POINTS)
    groups = [points[i : i + step] for i in range(0, len(points), step)]
    return [(group[-1][0], math.fsum(value for _, value in group) / len(group)) for group in groups]


def _by_data_set(content: Any, cfg: CfgNode, folder: Path) -> dict[str, Metrics]:
    """Put metrics under their data set: the trainer leaves its name out where there is one."""
    names = list(cfg.DATASETS.TEST)
    if len(names) == 1:
        content = {names[0]: content}
    levels = [content, *content.values()] if isinstance(content, dict) else [content]
    if not names or not all(isinstance(level, dict) for level in levels) or set(content) - set(names):
        raise UserError(
            f"{folder / 'evaluation.json'} does not hold the metrics of the data sets that DATASETS.TEST of "
            f"{folder / 'config.yaml'} names: {', '.join(names)}; evaluate this run again"
        )
    return {
        name: {group: metrics for group, metrics in tasks.items() if isinstance(metrics, dict)}
        for name, tasks in content.items()
    }


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as e:
        raise UserError(f"cannot read {path}: {e}; evaluate this run again") from None
