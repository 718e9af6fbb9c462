"""What was obtained of a table's rows, beside what the paper has: as Markdown, CSV and JSON."""

import csv
import io
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from . import quick
from .session import Session
from .table_runs import TableRun
from .tables import COST, UPPER_BOUND, Row, Table, Tables

OTHERS = "not this project's"
ABOUT = ("state", "commit", "schedule", "annotations", "device", "changes")
FORMATS = ("markdown", "csv", "json")


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
    schedule = record.get("training", {}).get("schedule")
    evaluated = record.get("evaluations", {}).get(test, {}).get("annotations", {})
    annotations = {**record.get("training", {}).get("annotations", {}), **evaluated}
    return Result(
        row.name,
        row.config,
        run.state(test),
        tuple(run.obtained(row, column, test) for column in table.columns),
        commit="; ".join(_commits(table, record, test)),
        schedule=f"{schedule['iterations']} x {schedule['batch']}, lr {schedule['lr']:g}" if schedule else "",
        annotations=", ".join(f"{name} {version}" for name, version in annotations.items()),
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


def overview(tables: Tables, session: Session) -> list[dict[str, Any]]:
    """Return a dict for every row of every table: its config, the sets it needs, hours on a GPU (estimated), state."""
    lines: list[dict[str, Any]] = []
    runs: dict[tuple[str, str], TableRun] = {}
    for table in tables.tables.values():
        for row in table.rows:
            about = {"table": table.name, "row": row.name, "labels": " | ".join(filter(None, row.labels))}
            if not row.config:
                lines.append({**about, "config": None, "needs": [], "gpu_hours": None, "state": OTHERS})
                continue
            run = runs.setdefault((row.config, row.starts_from), session.run_of(row))
            test = session.test_of(row)
            needs = [*run.cfg.DATASETS.TRAIN, test]
            if run.starts_from:
                needs.append(f"trained {Path(row.starts_from).name}")
            if not session.quick:
                needs += dict.fromkeys(column.added for column in table.columns if column.added)
            images = run.cfg.SOLVER.MAX_ITER * run.cfg.SOLVER.IMS_PER_BATCH
            hours = None if session.quick else images * tables.seconds_per_image(row.config) / 3600
            state = run.state(test)
            lines.append({**about, "config": row.config, "needs": needs, "gpu_hours": hours, "state": state})
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


def render(table: Table, rows: Sequence[Row], results: Sequence[Result], form: str, is_quick: bool) -> str:
    """Return a table as text in one of FORMATS."""
    if form == "json":
        return json.dumps(as_dict(table, rows, results, is_quick), indent=2) + "\n"
    return (_csv if form == "csv" else _markdown)(table, rows, results, is_quick)


def _markdown(table: Table, rows: Sequence[Row], results: Sequence[Result], is_quick: bool) -> str:
    lines = [f"## {table.heading}", ""]
    lines += [f"**{quick.TITLE}**", ""] if is_quick else []
    lines += [table.note, ""] if table.note else []
    places = [table.decimals(i) for i in range(len(table.columns))]
    body, about, others = [], [], []
    for row, result in zip(rows, results, strict=True):
        # The paper's figures as printed, the obtained with as many decimals
        body.append([row.name, *row.labels, "paper", *(figure or "" for figure in row.paper)])
        others += [row.name] if result.state == OTHERS else []
        if not result.config:
            continue
        about.append((row.name, result))
        blank = [""] * (1 + len(row.labels))
        body.append([*blank, "obtained", *map(number_text, result.obtained, places)])
        if not is_quick:
            differences = map(difference, row.paper, result.obtained)
            body.append(
                [*blank, "difference", *(number_text(d, n, "+") for d, n in zip(differences, places, strict=True))]
            )
    header = ["row", *table.labels, "", *(column.name for column in table.columns)]
    lines += markdown_table(header, body, right=len(table.columns))
    keys = [key for key in ABOUT if any(getattr(result, key) for _, result in about)]
    if about:
        of_runs = [[name, result.config, *(getattr(result, key) for key in keys)] for name, result in about]
        lines += ["", *markdown_table(["row", "config", *keys], of_runs)]
    lines += ["", f"{OTHERS.capitalize()}: {', '.join(others)}."] if others else []
    return "\n".join(lines) + "\n"


def number_text(value: float | None, decimals: int, sign: str = "") -> str:
    """Return a figure with that many decimals, "" for None; ``sign`` "+" gives positive ones a sign, too."""
    if value is None:
        return ""
    # No minus before a zero
    return f"{round(value, decimals) + 0.0:{sign}.{decimals}f}"


def _csv(table: Table, rows: Sequence[Row], results: Sequence[Result], is_quick: bool) -> str:
    text = io.StringIO()
    figures = [f"{column.name} {kind}" for column in table.columns for kind in ("paper", "obtained", "difference")]
    about = ["config", *ABOUT, "data"]
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["table", "row", *table.labels, *figures, *about])
    for row, result in zip(rows, results, strict=True):
        cells = []
        for paper, obtained in zip(row.paper, result.obtained, strict=True):
            gap = difference(paper, obtained, is_quick)
            cells += [paper or "", *("" if value is None else f"{value:.4f}" for value in (obtained, gap))]
        tail = [*(getattr(result, key) for key in about[:-1]), "quick: not the paper's data" if is_quick else "paper's"]
        writer.writerow([table.name, row.name, *row.labels, *cells, *tail])
    return text.getvalue()


def markdown_table(header: Sequence[str], body: Sequence[Sequence[str]], right: int = 0) -> list[str]:
    """Return the lines of a Markdown table whose last ``right`` columns are aligned to the right."""
    rule = ["---"] * (len(header) - right) + ["---:"] * right
    # Markdown takes stars for emphasis and bars for the ends of cells
    lines = ([cell.replace("|", "\\|").replace("*", "\\*") for cell in cells] for cells in (header, rule, *body))
    return [f"| {' | '.join(cells)} |" for cells in lines]
