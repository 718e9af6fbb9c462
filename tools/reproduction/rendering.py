"""Tables of the paper's figures beside the obtained ones, as Markdown, CSV and JSON."""

import csv
import io
import json
from collections.abc import Iterable, Sequence

from . import quick
from .results import OTHERS, Result, as_dict, difference
from .tables import Row, Table

ABOUT = ("state", "commit", "schedule", "annotations", "device", "changes")
FORMATS = ("markdown", "csv", "json")


def render(table: Table, rows: Sequence[Row], results: Sequence[Result], form: str, is_quick: bool) -> str:
    """Return a table as text in one of FORMATS."""
    if form == "json":
        return json.dumps(as_dict(table, rows, results, is_quick), indent=2) + "\n"
    return (_csv if form == "csv" else _markdown)(table, rows, results, is_quick)


def _markdown(table: Table, rows: Sequence[Row], results: Sequence[Result], is_quick: bool) -> str:
    lines = [f"## {table.heading}", ""]
    lines += [f"**{quick.TITLE}**", ""] if is_quick else []
    lines += [table.note, ""] if table.note else []
    body = []
    for row, result in zip(rows, results, strict=True):
        who = [row.name, *row.labels]
        for kind, figures in _figures(table, row, result, is_quick):
            if kind == "paper" or result.config:
                body.append([*who, kind, *figures])
                who = [""] * len(who)
    header = ["row", *table.labels, "", *(column.name for column in table.columns)]
    lines += markdown_table(header, body, right=len(table.columns))
    about = [(row.name, result) for row, result in zip(rows, results, strict=True) if result.config]
    keys = [key for key in ABOUT if any(getattr(result, key) for _, result in about)]
    if about:
        lines += ["", *markdown_table(["row", "config", *keys], [_about(name, r, keys) for name, r in about])]
    others = [row.name for row, result in zip(rows, results, strict=True) if result.state == OTHERS]
    lines += ["", f"{OTHERS.capitalize()}: {', '.join(others)}."] if others else []
    return "\n".join(lines) + "\n"


def _figures(table: Table, row: Row, result: Result, is_quick: bool) -> Iterable[tuple[str, list[str]]]:
    """Yield the lines of a row: the paper's figures as printed, the obtained with as many decimals, the differences."""
    pairs = list(zip(row.paper, result.obtained, strict=True))
    places = [table.decimals(i) for i in range(len(pairs))]
    yield "paper", [paper or "" for paper, _ in pairs]
    yield "obtained", [number_text(obtained, n) for (_, obtained), n in zip(pairs, places, strict=True)]
    if not is_quick:
        differences = [difference(paper, obtained) for paper, obtained in pairs]
        yield "difference", [number_text(d, n, "+") for d, n in zip(differences, places, strict=True)]


def _about(name: str, result: Result, keys: Sequence[str]) -> list[str]:
    return [name, result.config, *(getattr(result, key) for key in keys)]


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
    left = len(header) - right
    rule = ["---"] * left + ["---:"] * right
    return [_line(line) for line in (header, rule, *body)]


def _line(cells: Iterable[str]) -> str:
    # Markdown takes stars for emphasis and bars for the ends of cells
    return "| " + " | ".join(cell.replace("|", "\\|").replace("*", "\\*") for cell in cells) + " |"
