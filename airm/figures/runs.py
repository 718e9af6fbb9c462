"""Collect what finished runs have measured: IoU over kernel sizes, and over categories (AIRM, Fig. 2)."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from detectron2.config import CfgNode

from pixelmask.config import load_cfg
from pixelmask.errors import UserError

from ..backbone.plain_cnn import receptive_field

ONE_SIRMF, SIRMF_EACH, ONE_AIRMF = "one_sirmf", "sirmf_each", "airmf"


class Run(NamedTuple):
    """An evaluated run: its OUTPUT_DIR, its config, and the metrics of each set of DATASETS.TEST."""

    folder: Path
    cfg: CfgNode
    metrics: dict[str, dict[str, float]]

    @property
    def mapping(self) -> str:
        return self.cfg.MODEL.AIRM.MAPPING


def read_run(folder: str | Path) -> Run:
    """Read ``config.yaml`` and ``evaluation.json`` of a run.

    Raises:
        UserError: if one of them is missing or damaged, or the run is not of AIRM.
    """
    folder = Path(folder)
    evaluation = folder / "evaluation.json"
    for path in (folder / "config.yaml", evaluation):
        if not path.is_file():
            raise UserError(f"no {path}; tools/train_net.py writes it into OUTPUT_DIR when a run is evaluated")
    cfg = load_cfg(str(folder / "config.yaml"))
    names = cfg.DATASETS.TEST
    try:
        results = json.loads(evaluation.read_text())
        by_set = {names[0]: results} if len(names) == 1 else results
        metrics = {name: by_set[name]["refinement"] for name in names}
        for figures in metrics.values():
            float(figures["refined_IoU"])
    except (ValueError, KeyError, TypeError) as e:
        raise UserError(
            f"{evaluation} has no IoU of {', '.join(names)} ({e!r}); is it of an AIRM, evaluated to the end with the "
            "config.yaml beside it?"
        ) from None
    return Run(folder, cfg, metrics)


def kernel_size_rows(runs: Sequence[Run], dataset: str | None = None) -> list[dict[str, Any]]:
    """Return a row for each run of Fig. 2a, by mapping and kernel size.

    Args:
        runs: of plain CNN encoders.
        dataset: a set that all runs were evaluated on; the first of each by default.

    Returns:
        rows with ``mapping``, ``kernel_size``, ``receptive_field`` in pixels, ``dataset``, ``IoU`` and ``mBA`` in
        percent, and ``run``.

    Raises:
        UserError: for a run of another encoder, or one that was not evaluated on ``dataset``.
    """
    rows = []
    for run in runs:
        backbone, plain = run.cfg.MODEL.BACKBONE.NAME, run.cfg.MODEL.PLAIN_CNN
        if backbone != "build_plain_cnn_backbone":
            raise UserError(f"the encoder of {run.folder} is {backbone}; Fig. 2a is of build_plain_cnn_backbone")
        name = dataset or next(iter(run.metrics))
        if name not in run.metrics:
            raise UserError(f"{run.folder} was not evaluated on {name}, but on {', '.join(run.metrics)}")
        rows.append(
            {
                "mapping": run.mapping,
                "kernel_size": plain.KERNEL_SIZE,
                "receptive_field": receptive_field(plain.KERNEL_SIZE, plain.NUM_LAYERS, plain.STRIDE),
                "dataset": name,
                "IoU": run.metrics[name]["refined_IoU"],
                "mBA": run.metrics[name].get("refined_mBA"),
                "run": str(run.folder),
            }
        )
    return sorted(rows, key=lambda row: (row["mapping"], row["kernel_size"]))


def category_rows(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """Return a row for each category, a test set, of Fig. 2b.

    A SIRMF that was trained on one set is the first test set's own; it counts for no other. One that was trained on
    several is shared by all that it was tested on, and so is an AIRMF.

    Returns:
        rows with ``category``, ``dataset``, and the IoU in percent of ``one_sirmf`` (blue in the paper), ``sirmf_each``
        (yellow) and ``airmf`` (red); None where no run has it.

    Raises:
        UserError: if two runs have the same place.
    """
    found: dict[str, dict[str, Run]] = {}
    for run in runs:
        role, names = ONE_AIRMF, list(run.metrics)
        if run.mapping == "SIRMF":
            own = len(run.cfg.DATASETS.TRAIN) == 1
            role, names = (SIRMF_EACH, names[:1]) if own else (ONE_SIRMF, names)
        for name in names:
            other = found.setdefault(name, {}).setdefault(role, run)
            if other is not run:
                raise UserError(f"{other.folder} and {run.folder} are both {role} of {name}; leave one of them out")
    return [
        {"category": category, "dataset": name}
        | {
            role: found[name][role].metrics[name]["refined_IoU"] if role in found[name] else None
            for role in (ONE_SIRMF, SIRMF_EACH, ONE_AIRMF)
        }
        for name, category in zip(found, distinct_parts(list(found)), strict=True)
    ]


def distinct_parts(names: Sequence[str]) -> list[str]:
    """Return what tells names apart: without the words, between underscores, that all begin or all end with."""
    if len(names) < 2:
        return list(names)
    words = [name.split("_") for name in names]
    for end in (0, -1):
        while all(len(w) > 1 for w in words) and len({w[end] for w in words}) == 1:
            words = [w[1:] if end == 0 else w[:-1] for w in words]
    return ["_".join(w) for w in words]
