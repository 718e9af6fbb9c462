"""Collect what finished runs have measured: IoU over kernel sizes, and over categories (AIRM, Fig. 2)."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pixelmask.errors import UserError
from pixelmask.evaluation.finished import FinishedRun, read_finished_run

from ..backbone.plain_cnn import receptive_field

ROLES = ONE_SIRMF, SIRMF_EACH, ONE_AIRMF = "one_sirmf", "sirmf_each", "airmf"


def read_run(folder: str | Path) -> FinishedRun:
    """Read a finished run of AIRM.

    Raises:
        UserError: see :func:`~pixelmask.evaluation.finished.read_finished_run`; or if the run is not of AIRM.
    """
    run = read_finished_run(folder)
    for name in run.cfg.DATASETS.TEST:
        if "refined_IoU" not in run.evaluation.get(name, {}).get("refinement", {}):
            raise UserError(
                f"{run.folder / 'evaluation.json'} has no IoU of {name}; is it of an AIRM, evaluated to the end with "
                "the config.yaml beside it?"
            )
    return run


def _iou(run: FinishedRun, dataset: str) -> float:
    return run.evaluation[dataset]["refinement"]["refined_IoU"]


def kernel_size_rows(runs: Sequence[FinishedRun], dataset: str | None = None) -> list[dict[str, Any]]:
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
        name = dataset or run.cfg.DATASETS.TEST[0]
        if name not in run.evaluation:
            raise UserError(f"{run.folder} was not evaluated on {name}, but on {', '.join(run.evaluation)}")
        rows.append(
            {
                "mapping": run.cfg.MODEL.AIRM.MAPPING,
                "kernel_size": plain.KERNEL_SIZE,
                "receptive_field": receptive_field(plain.KERNEL_SIZE, plain.NUM_LAYERS, plain.STRIDE),
                "dataset": name,
                "IoU": _iou(run, name),
                "mBA": run.evaluation[name]["refinement"].get("refined_mBA"),
                "run": str(run.folder),
            }
        )
    return sorted(rows, key=lambda row: (row["mapping"], row["kernel_size"]))


def category_rows(runs: Sequence[FinishedRun]) -> list[dict[str, Any]]:
    """Return a row for each category, a test set, of Fig. 2b.

    A SIRMF that was trained on one set is the first test set's own; it counts for no other. One that was trained on
    several is shared by all that it was tested on, and so is an AIRMF.

    Returns:
        rows with ``category``, ``dataset``, and the IoU in percent of ``one_sirmf`` (blue in the paper), ``sirmf_each``
        (yellow) and ``airmf`` (red); None where no run has it.

    Raises:
        UserError: if two runs have the same place.
    """
    found: dict[str, dict[str, FinishedRun]] = {}
    for run in runs:
        role, names = ONE_AIRMF, list(run.cfg.DATASETS.TEST)
        if run.cfg.MODEL.AIRM.MAPPING == "SIRMF":
            own = len(run.cfg.DATASETS.TRAIN) == 1
            role, names = (SIRMF_EACH, names[:1]) if own else (ONE_SIRMF, names)
        for name in names:
            other = found.setdefault(name, {}).setdefault(role, run)
            if other is not run:
                raise UserError(f"{other.folder} and {run.folder} are both {role} of {name}; leave one of them out")
    return [
        {"category": category, "dataset": name}
        | {role: _iou(place, name) if (place := found[name].get(role)) else None for role in ROLES}
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
