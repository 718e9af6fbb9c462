"""Finished runs of ``tools/train_net.py``, read from their OUTPUT_DIR."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode

from ..config import load_cfg
from ..errors import UserError
from ..files import read_json
from ..schema import check, find_fault

# By task or other group of metrics, then by metric
Metrics = dict[str, dict[str, float]]


@dataclass(frozen=True)
class FinishedRun:
    """A run that was evaluated; ``evaluation`` has the metrics of each data set of DATASETS.TEST."""

    folder: Path
    cfg: CfgNode
    evaluation: dict[str, Metrics]

    @property
    def is_refinement(self) -> bool:
        return self.cfg.MODEL.META_ARCHITECTURE == "AIRM"


def read_finished_run(folder: str | Path) -> FinishedRun:
    """Read ``config.yaml`` and ``evaluation.json`` of a run.

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
    return FinishedRun(folder, cfg, _by_data_set(read_json(folder / "evaluation.json"), cfg, folder))


def _by_data_set(content: Any, cfg: CfgNode, folder: Path) -> dict[str, Metrics]:
    """Put metrics under their data set: the trainer leaves its name out where there is one."""
    names = list(cfg.DATASETS.TEST)
    if len(names) == 1:
        content = {names[0]: content}
    if not names or find_fault(content, dict[str, dict[str, Any]]) or set(content) - set(names):
        raise UserError(
            f"{folder / 'evaluation.json'} does not hold the metrics of the data sets that DATASETS.TEST of "
            f"{folder / 'config.yaml'} names: {', '.join(names)}; evaluate this run again"
        )
    found = {
        name: {group: metrics for group, metrics in tasks.items() if isinstance(metrics, dict)}
        for name, tasks in content.items()
    }
    check(found, dict[str, dict[str, dict[str, float | None]]], folder / "evaluation.json", "evaluate this run again")
    return found
