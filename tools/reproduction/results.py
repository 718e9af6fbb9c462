"""What was obtained of a table's rows, beside what the paper has."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode

from .session import Session
from .table_runs import TableRun
from .tables import COST, UPPER_BOUND, Row, Table, Tables

OTHERS = "not this project's"


@dataclass(frozen=True)
class Result:
    """What there is of one row.

    ``obtained`` has a figure or None for each column. ``commit``, ``schedule``, ``annotations``, ``device`` (of FPS and
    seconds) and ``changes`` (how the run's config differs from the one at hand) are text, "" where nothing is known.
    """

    row: str
    config: str
    state: str
    obtained: tuple[float | None, ...]
    commit: str = ""
    schedule: str = ""
    annotations: str = ""
    device: str = ""
    changes: str = ""


def results_of(table: Table, rows: Sequence[Row], session: Session) -> list[Result]:
    """Return what the runs of a session's folder have of some rows; nothing is run."""
    return [_result(table, row, session) for row in rows]


def _result(table: Table, row: Row, session: Session) -> Result:
    if not row.config:
        return Result(row.name, "", OTHERS, (None,) * len(table.columns))
    run, test = session.run_of(row), session.test_of(row)
    record = run.record()
    return Result(
        row.name,
        row.config,
        run.state(test),
        tuple(run.obtained(row, column, test) for column in table.columns),
        commit="; ".join(_commits(table, record, test)),
        schedule=_schedule(record),
        annotations=", ".join(f"{name} {version}" for name, version in _annotations(record, test).items()),
        device=run.benchmark_device() if table.uses(COST, "fps", "seconds") else "",
        changes="; ".join(run.differences()),
    )


def _commits(table: Table, record: dict[str, Any], test: str) -> list[str]:
    """The commit of each step; one alone if all have the same."""
    training = ", ".join(str(commit) for commit in record.get("training", {}).get("commits", []))
    steps = {"trained": training, "evaluated": record.get("evaluations", {}).get(test, {}).get("commit")}
    if table.uses(UPPER_BOUND):
        steps["upper bound"] = record.get("upper_bound", {}).get(test)
    if table.uses(COST):
        steps["cost"] = ", ".join(sorted(set(filter(None, record.get("cost", {}).values()))))
    known = {step: commit for step, commit in steps.items() if commit}
    if len(set(known.values())) == 1:
        return [next(iter(known.values()))]
    return [f"{step} {commit}" for step, commit in known.items()]


def _schedule(record: dict[str, Any]) -> str:
    schedule = record.get("training", {}).get("schedule")
    return f"{schedule['iterations']} x {schedule['batch']}, lr {schedule['lr']:g}" if schedule else ""


def _annotations(record: dict[str, Any], test: str) -> dict[str, str]:
    evaluated = record.get("evaluations", {}).get(test, {}).get("annotations", {})
    return {**record.get("training", {}).get("annotations", {}), **evaluated}


def gpu_hours(config: str, cfg: CfgNode, tables: Tables) -> float:
    """Return the GPU hours that a training is expected to take: an estimate, see ``tables.yaml``."""
    return cfg.SOLVER.MAX_ITER * cfg.SOLVER.IMS_PER_BATCH * tables.seconds_per_image(config) / 3600


def overview(tables: Tables, session: Session) -> list[dict[str, Any]]:
    """Return a dict for every row of every table: its config, the sets it needs, its GPU hours, its state."""
    lines = []
    runs: dict[tuple[str, str], TableRun] = {}
    for table in tables.tables.values():
        for row in table.rows:
            line: dict[str, Any] = {
                "table": table.name,
                "row": row.name,
                "labels": " | ".join(filter(None, row.labels)),
            }
            if not row.config:
                lines.append({**line, "config": None, "needs": [], "gpu_hours": None, "state": OTHERS})
                continue
            run = runs.setdefault((row.config, row.starts_from), session.run_of(row))
            test = session.test_of(row)
            needs = [*run.cfg.DATASETS.TRAIN, test]
            if run.starts_from:
                needs.append(f"trained {Path(row.starts_from).name}")
            if not session.quick:
                needs += dict.fromkeys(column.added for column in table.columns if column.added)
            hours = None if session.quick else gpu_hours(row.config, run.cfg, tables)
            lines.append({**line, "config": row.config, "needs": needs, "gpu_hours": hours, "state": run.state(test)})
    return lines


def as_dict(table: Table, rows: Sequence[Row], results: Sequence[Result], quick: bool) -> dict[str, Any]:
    """Return everything that is known of a table as what JSON can hold."""
    lines = []
    for row, result in zip(rows, results, strict=True):
        figures = {
            column.name: {
                "paper": None if paper is None else float(paper),
                "obtained": obtained,
                "difference": difference(paper, obtained, quick),
            }
            for column, paper, obtained in zip(table.columns, row.paper, result.obtained, strict=True)
        }
        about = {key: value for key, value in asdict(result).items() if key != "obtained"}
        lines.append({**about, "labels": dict(zip(table.labels, row.labels, strict=True)), "figures": figures})
    return {"table": table.name, "title": table.heading, "note": table.note, "quick": quick, "rows": lines}


def difference(paper: str | None, obtained: float | None, quick: bool = False) -> float | None:
    """Return obtained minus paper; None where one is missing, and for quick runs, which compare with no paper."""
    return None if quick or paper is None or obtained is None else obtained - float(paper)
