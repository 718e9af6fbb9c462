"""What was obtained of a table's rows, beside what the paper has: as Markdown, CSV and JSON."""

import csv
import io
import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from operator import eq
from pathlib import Path
from statistics import fmean
from typing import Any

from . import quick
from .session import Session
from .table_runs import TableRun
from .tables import COST, UPPER_BOUND, Row, Table, Tables

OTHERS = "not this project's"
ABOUT = ("state", "commit", "schedule", "annotations", "device", "changes")
FORMATS = ("markdown", "csv", "json")
WITHIN = "(within the spread)"
SPREAD = (
    "Spread: the largest of the runs minus the smallest. A difference between rows is within the spread if it is not "
    "larger than the larger of the two rows' spreads; then these runs do not tell which of the two is better."
)


@dataclass(frozen=True)
class Result:
    """What there is of one row.

    ``obtained`` has a figure or None for each column, of several runs their mean; ``runs`` has for each column the
    figures of the runs it is a mean of. ``commit``, ``schedule``, ``annotations``, ``device`` (of FPS and seconds) and
    ``changes`` (how the runs' config differs from the one at hand) are text, "" where nothing is known.
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
    runs: tuple[tuple[float, ...], ...] = ()

    @property
    def repeats(self) -> int:
        """The number of runs that the figures are of, as far as there are any."""
        return max(map(len, self.runs), default=0)


def results_of(table: Table, rows: Sequence[Row], session: Session) -> list[Result]:
    """Return what the runs of a session's folder have of some rows; nothing is run."""
    return [_result(table, row, session) for row in rows]


def _result(table: Table, row: Row, session: Session) -> Result:
    if not row.config:
        return Result(row.name, "", OTHERS, (None,) * len(table.columns))
    runs, measured, test = session.runs_of(row), session.run_of(row), session.test_of(row)
    records = [run.record() for run in runs]
    training = [record.get("training", {}) for record in records]
    schedules = [done["schedule"] for done in training if "schedule" in done]
    evaluated = [record.get("evaluations", {}).get(test, {}).get("annotations", {}) for record in records]
    versions = [done.get("annotations", {}) for done in training] + evaluated
    figures = []
    for column in table.columns:
        values = [run.obtained(row, column, test) for run in ([measured] if column.source == COST else runs)]
        figures.append(tuple(value for value in values if value is not None))
    return Result(
        row.name,
        row.config,
        runs[0].state(test),
        tuple(fmean(values) if values else None for values in figures),
        commit="; ".join(_commits(table, records, measured.record(), test)),
        schedule=_distinct(f"{s['iterations']} x {s['batch']}, lr {s['lr']:g}" for s in schedules),
        annotations=_distinct(f"{name} {version}" for part in versions for name, version in part.items()),
        device=measured.benchmark_device() if table.uses(COST, "fps", "seconds") else "",
        changes="; ".join(runs[0].differences()),
        runs=tuple(figures),
    )


def _commits(table: Table, records: Sequence[dict[str, Any]], cost: dict[str, Any], test: str) -> list[str]:
    """The commits of each step of some runs; one alone if all have the same. ``cost`` is the record of the costs."""
    steps = {
        "trained": [commit for record in records for commit in record.get("training", {}).get("commits", [])],
        "evaluated": [record.get("evaluations", {}).get(test, {}).get("commit") for record in records],
    }
    if table.uses(UPPER_BOUND):
        steps["upper bound"] = [record.get("upper_bound", {}).get(test) for record in records]
    if table.uses(COST):
        steps["cost"] = sorted(filter(None, cost.get("cost", {}).values()))
    known = {step: text for step, commits in steps.items() if (text := _distinct(map(str, filter(None, commits))))}
    if len(set(known.values())) == 1:
        return [next(iter(known.values()))]
    return [f"{step} {text}" for step, text in known.items()]


def _distinct(texts: Iterable[str]) -> str:
    return ", ".join(dict.fromkeys(texts))


def overview(tables: Tables, session: Session) -> list[dict[str, Any]]:
    """Return a dict for every row of every table: config, sets it needs, hours on a GPU (estimated), state, runs."""
    lines: list[dict[str, Any]] = []
    runs: dict[tuple[str, ...], list[TableRun]] = {}
    for table in tables.tables.values():
        for row in table.rows:
            about: dict[str, Any] = {
                "table": table.name,
                "row": row.name,
                "labels": " | ".join(filter(None, row.labels)),
            }
            if not row.config:
                lines.append({**about, "config": None, "needs": [], "gpu_hours": None, "state": OTHERS, "runs": 0})
                continue
            test = session.test_of(row)
            found = runs.setdefault((row.config, row.starts_from, test), session.runs_of(row))
            run, state = found[0], found[0].state(test)
            needs = [*run.cfg.DATASETS.TRAIN, test]
            if run.starts_from:
                needs.append(f"trained {Path(row.starts_from).name}")
            if not session.quick:
                needs += dict.fromkeys(column.added for column in table.columns if column.added)
            images = run.cfg.SOLVER.MAX_ITER * run.cfg.SOLVER.IMS_PER_BATCH
            hours = None if session.quick else images * tables.seconds_per_image(row.config) / 3600
            about |= {"config": row.config, "needs": needs, "gpu_hours": hours, "state": state}
            lines.append({**about, "runs": len(found) if state == "evaluated" else 0})
    return lines


def as_dict(table: Table, rows: Sequence[Row], results: Sequence[Result], quick: bool) -> dict[str, Any]:
    """Return everything that is known of a table as what JSON can hold.

    A figure of several runs has these, and their spread. Where the row that this one is ``against`` has several, too,
    ``gain`` is the mean here minus the mean there. It is ``within_spread`` if it is not larger than the larger of the
    two rows' spreads: other seeds might have given the opposite.
    """
    lines = []
    for number, (row, result) in enumerate(zip(rows, results, strict=True)):
        other = _other(rows[:number], results, row) if result.repeats > 1 else None
        figures = {}
        for i, (column, paper, obtained) in enumerate(zip(table.columns, row.paper, result.obtained, strict=True)):
            figure: dict[str, Any] = {"paper": None if paper is None else float(paper), "obtained": obtained}
            figure["difference"] = difference(paper, obtained, quick)
            figures[column.name] = figure | _repeats(result, other, i)
        line = {key: value for key, value in asdict(result).items() if key not in ("obtained", "runs")}
        line |= {"repeats": result.repeats} if result.repeats > 1 else {}
        line |= {"against": other.row} if other else {}
        lines.append({**line, "labels": dict(zip(table.labels, row.labels, strict=True)), "figures": figures})
    return {"table": table.name, "title": table.heading, "note": table.note, "quick": quick, "rows": lines}


def _repeats(result: Result, other: Result | None, column: int) -> dict[str, Any]:
    mine, theirs = (r.runs[column] if r and r.runs else () for r in (result, other))
    if len(mine) < 2:
        return {}
    spread = max(mine) - min(mine)
    figure: dict[str, Any] = {"runs": list(mine), "spread": spread}
    if len(theirs) > 1:
        gain = fmean(mine) - fmean(theirs)
        figure |= {"gain": gain, "within_spread": abs(gain) <= max(spread, max(theirs) - min(theirs))}
    return figure


def _other(earlier: Sequence[Row], results: Sequence[Result], row: Row) -> Result | None:
    """The result of the last earlier row of several runs of another model, of those with the most labels in common."""
    found, most = None, 0
    for other, result in zip(earlier, results, strict=False):
        if result.repeats > 1 and other.config != row.config and other.test == row.test:
            common = sum(map(eq, other.labels, row.labels))
            if common >= most:
                found, most = result, common
    return found


def difference(paper: str | None, obtained: float | None, quick: bool = False) -> float | None:
    """Return obtained minus paper; None where one is missing, and for quick runs, which compare with no paper."""
    return None if quick or paper is None or obtained is None else obtained - float(paper)


def render(table: Table, rows: Sequence[Row], results: Sequence[Result], form: str, is_quick: bool) -> str:
    """Return a table as text in one of FORMATS."""
    content = as_dict(table, rows, results, is_quick)
    if form == "json":
        return json.dumps(content, indent=2) + "\n"
    return (_csv if form == "csv" else _markdown)(table, rows, content)


def _markdown(table: Table, rows: Sequence[Row], content: dict[str, Any]) -> str:
    lines = [f"## {table.heading}", ""]
    lines += [f"**{quick.TITLE}**", ""] if content["quick"] else []
    lines += [table.note, ""] if table.note else []
    body: list[list[str]] = []
    for row, line in zip(rows, content["rows"], strict=True):
        body.append([row.name, *row.labels, "paper", *(figure or "" for figure in row.paper)])
        body += [[*[""] * (1 + len(row.labels)), *cells] for cells in _obtained(table, line, content["quick"])]
    header = ["row", *table.labels, "", *(column.name for column in table.columns)]
    lines += markdown_table(header, body, right=len(table.columns))
    lines += ["", SPREAD] if any("repeats" in line for line in content["rows"]) else []
    ours = [line for line in content["rows"] if line["config"]]
    keys = [key for key in ABOUT if any(line[key] for line in ours)]
    if ours:
        of_runs = [[line["row"], line["config"], *(line[key] for key in keys)] for line in ours]
        lines += ["", *markdown_table(["row", "config", *keys], of_runs)]
    others = [line["row"] for line in content["rows"] if line["state"] == OTHERS]
    lines += ["", f"{OTHERS.capitalize()}: {', '.join(others)}."] if others else []
    return "\n".join(lines) + "\n"


def _obtained(table: Table, line: dict[str, Any], is_quick: bool) -> list[list[str]]:
    """The lines below the paper's of one row: what each has, and the figures with as many decimals as printed."""
    if not line["config"]:
        return []
    figures = line["figures"].values()

    def cells(title: str, key: str, sign: str = "", more: int = 0) -> list[str]:
        return [title, *(number_text(f.get(key), table.decimals(i) + more, sign) for i, f in enumerate(figures))]

    repeats = line.get("repeats")
    lines = [cells(f"mean of {repeats} runs" if repeats else "obtained", "obtained")]
    lines += [] if is_quick else [cells("difference", "difference", "+")]
    lines += [cells("spread", "spread", more=1)] if repeats else []
    if "against" in line:
        title, *gains = cells(f"against {line['against']}", "gain", "+", more=1)
        notes = (WITHIN if figure.get("within_spread") else "" for figure in figures)
        lines.append([title, *(" ".join(filter(None, pair)) for pair in zip(gains, notes, strict=True))])
    return lines


def number_text(value: float | None, decimals: int, sign: str = "") -> str:
    """Return a figure with that many decimals, "" for None; ``sign`` "+" gives positive ones a sign, too."""
    if value is None:
        return ""
    # No minus before a zero
    return f"{round(value, decimals) + 0.0:{sign}.{decimals}f}"


def _csv(table: Table, rows: Sequence[Row], content: dict[str, Any]) -> str:
    text = io.StringIO()
    repeated = any("repeats" in line for line in content["rows"])
    kinds = ["obtained", "difference", *(["spread", "gain", "within_spread"] if repeated else [])]
    figures = [f"{column.name} {kind}" for column in table.columns for kind in ("paper", *kinds)]
    about = ["config", *ABOUT, *(["repeats", "against"] if repeated else [])]
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["table", "row", *table.labels, *figures, *about, "data"])
    for row, line in zip(rows, content["rows"], strict=True):
        cells: list[str] = []
        for paper, figure in zip(row.paper, line["figures"].values(), strict=True):
            values = (figure.get(kind) for kind in kinds)
            cells += [paper or "", *(f"{value:.4f}" if isinstance(value, float) else value for value in values)]
        data = "quick: not the paper's data" if content["quick"] else "paper's"
        writer.writerow([table.name, row.name, *row.labels, *cells, *(line.get(key) for key in about), data])
    return text.getvalue()


def markdown_table(header: Sequence[str], body: Sequence[Sequence[str]], right: int = 0) -> list[str]:
    """Return the lines of a Markdown table whose last ``right`` columns are aligned to the right."""
    rule = ["---"] * (len(header) - right) + ["---:"] * right
    # Markdown takes stars for emphasis and bars for the ends of cells
    lines = ([cell.replace("|", "\\|").replace("*", "\\*") for cell in cells] for cells in (header, rule, *body))
    return [f"| {' | '.join(cells)} |" for cells in lines]
