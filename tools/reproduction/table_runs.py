"""Where the trained model of a row lives, how far it is, and what it was made of."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode

from pixelmask.config import flat, load_cfg
from pixelmask.errors import UserError
from pixelmask.files import read_json, write_json, write_text

from .tables import COST, TRAINING, UPPER_BOUND, Column, Row

# Keys that say where and how a run is computed, or what it is evaluated on, and not what is trained
INDIFFERENT = (
    "OUTPUT_DIR",
    "WANDB_PROJECT",
    "DATASETS.TEST",
    "MODEL.DEVICE",
    "DATALOADER.NUM_WORKERS",
    "SOLVER.CHECKPOINT_PERIOD",
)
MAX_NAMED = 4
STATES = ("absent", "interrupted", "trained", "evaluated")


@dataclass(frozen=True)
class TableRun:
    """The trained model of a config, and what was measured of it. Rows of several tables may share it.

    Its folder has ``config.given.yaml``, what ``train_net.py`` writes, ``evaluation/<set>/<its own name>/``, ``cost/``
    and ``upper_bound/<set>.json``; ``reproduction.json`` is the record of commits, schedule and annotations.

    Args:
        folder: of the run.
        config: name of the config, below configs/.
        cfg: that config with everything merged over it; its OUTPUT_DIR is ``folder``.
        starts_from: the run whose trained model this one starts from.
    """

    folder: Path
    config: str
    cfg: CfgNode
    starts_from: "TableRun | None" = None

    @property
    def config_file(self) -> Path:
        return self.folder / "config.given.yaml"

    @property
    def weights(self) -> Path:
        return self.folder / "model_final.pth"

    @property
    def is_airm(self) -> bool:
        return self.cfg.MODEL.META_ARCHITECTURE == "AIRM"

    def evaluation(self, test: str) -> Path:
        """Return what ``train_net.py`` writes into a folder of the run's name, by which COCO's server knows it."""
        return self.folder / "evaluation" / test / self.folder.name / "evaluation.json"

    def detections_of(self, test: str) -> Path:
        """Return the COCO results of an evaluation."""
        return self.evaluation(test).parent / "inference" / test / "coco_instances_results.json"

    def cost(self, tool: str) -> Path:
        """Return the JSON of "analyze_model" or "benchmark"."""
        return self.folder / COST / f"{tool}.json"

    def upper_bound(self, test: str) -> Path:
        return self.folder / UPPER_BOUND / f"{test}.json"

    @property
    def is_trained(self) -> bool:
        return self.weights.is_file()

    def state(self, test: str) -> str:
        """Return one of STATES; "evaluated" is on this test set."""
        if self.is_trained:
            return "evaluated" if self.evaluation(test).is_file() else "trained"
        return "interrupted" if (self.folder / "last_checkpoint").is_file() else "absent"

    def record(self) -> dict[str, Any]:
        """Return what ``reproduction.json`` holds; {} where there is none."""
        return _read_known(self.folder / "reproduction.json") or {}

    def add_to_record(self, **entries: Any) -> None:
        """Merge entries into ``reproduction.json``; of a dict that is there already, single keys are replaced."""
        record = self.record() or {"config": self.config}
        for key, value in entries.items():
            record[key] = {**record.get(key, {}), **value} if isinstance(value, dict) else value
        write_json(self.folder / "reproduction.json", record, indent=2)

    def differences(self) -> list[str]:
        """Return how the config that the run was begun with differs from ``cfg``: "KEY then, now" each."""
        if not self.config_file.is_file():
            return []
        then, now = (flat(cfg) for cfg in (load_cfg(str(self.config_file)), self.cfg))
        keys = [key for key in sorted({*then, *now}) if key not in INDIFFERENT and then.get(key) != now.get(key)]
        return [f"{key} {then.get(key)}, now {now.get(key)}" for key in keys]

    def write_config(self) -> None:
        """Write the config for the tools.

        Raises:
            UserError: if the run was begun with another one.
        """
        differences = self.differences()
        if differences:
            named = "; ".join(differences[:MAX_NAMED])
            more = f" and {len(differences) - MAX_NAMED} more" if len(differences) > MAX_NAMED else ""
            raise UserError(
                f"{self.folder} was made with another config: {named}{more}. Nothing of it is used or overwritten: "
                "repeat the overrides that it was begun with, move the folder away, or choose another one with --output"
            )
        write_text(self.config_file, self.cfg.dump())

    def obtained(self, row: Row, column: Column, test: str) -> float | None:
        """Return the figure of a column, as far as it is there."""
        value: Any = None
        if column.source == TRAINING:
            value = self.record().get("training", {}).get(column.key)
        elif column.source == COST:
            value = self._cost(column.key)
        elif column.source == UPPER_BOUND:
            rows = _read_known(self.upper_bound(test)) or []
            value = next((r[column.key] for r in rows if all(r[key] == v for key, v in row.where)), None)
        elif column.source:
            value = (_read_known(self.evaluation(test)) or {}).get(column.source, {}).get(column.key)
        return None if value is None or math.isnan(value) else value

    def benchmark_device(self) -> str:
        """Return what FPS and seconds were measured on; "" where they were not."""
        content = _read_known(self.cost("benchmark"))
        return f"{content['device_name']}, {content['threads']} threads" if content else ""

    def _cost(self, key: str) -> float | None:
        content = _read_known(self.cost("analyze_model" if key in ("gflops", "parameters") else "benchmark"))
        if content is None:
            return None
        name, unit = {
            "gflops": ("total" if self.is_airm else "every_class", 1e9),
            "parameters": ("model_parameters", 1e6),
            "fps": ("images_per_second", 1),
            "seconds": ("milliseconds", 1000),
        }[key]
        rows = content["rows"] if isinstance(content, dict) else content
        return rows[0][name] / unit


def _read_known(path: Path) -> Any:
    return read_json(path) if path.is_file() else None
