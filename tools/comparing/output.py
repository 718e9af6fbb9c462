"""A comparison as Markdown, as JSON, and as pages of the report with the worst masks."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from pixelmask.files import write_json, write_text
from reporting.metric_tables import Table
from reporting.page import Content, write_page

from .comparison import COARSE, MEASURES, Comparison, Entry
from .methods import Method

COLUMNS = {
    "masks": "masks",
    "IoU": "IoU, %",
    "mBA": "mBA, %",
    "worse": "worse by > 0.1 IoU, %",
    "worst": "worst change of IoU, points",
    "seconds": "seconds",
}
PRECISIONS = ("AP", "Boundary AP")
PAGE = "worst_{}.html"
IMAGE_SIZE = 640  # longest side in the pages


class Source(NamedTuple):
    """What a page shows masks of, in place of a run."""

    name: str
    about: str
    is_refinement: bool = True
    curves: dict[str, Any] = {}


def write_comparison(
    folder: Path, comparison: Comparison, methods: Sequence[Method], about: dict[str, Any], image_size: int = IMAGE_SIZE
) -> str:
    """Write comparison.md, comparison.json and a page for each kind; return the Markdown.

    Args:
        folder: made if missing.
        comparison: what came out.
        methods: what was compared.
        about: what it was compared on, and with which options; "data" is the set's name.
        image_size: longest side of the pages' images in pixels.
    """
    sources = [Source(COARSE, "the masks that the others begin with"), *(Source(m.name, m.about) for m in methods)]
    text = to_markdown(comparison, sources, about)
    write_text(folder / "comparison.md", text)
    content = {**about, "methods": {source.name: source.about for source in sources}}
    results = {"rows": comparison.rows, "masks": comparison.entries, "faults": comparison.faults}
    write_json(folder / "comparison.json", {**content, **results}, indent=1)
    for kind, pictures in comparison.worst.items():
        rows = [row for row in comparison.rows if row["kind"] == kind]
        table = Table(f"Coarse masks: {kind}", header(rows), [(row["method"], cells(row, rows)) for row in rows])
        named = [dataclasses.replace(p, name=f"{rank}. {p.name}") for rank, p in enumerate(pictures, start=1)]
        data_set = f"{about['data']}, coarse masks: {kind}, the {len(named)} that lost most"
        page = Content(sources, data_set, [table], [], MEASURES, named, side_by_side=True)
        write_page(folder / PAGE.format(kind), page, image_size)
    return text


def to_markdown(comparison: Comparison, sources: Sequence[Source], about: dict[str, Any]) -> str:
    """Return a table with a row for each kind and method, and below it how they were made."""
    rows = comparison.rows
    lines = [["coarse masks", "method", *header(rows)], ["---"] * 2 + ["---:"] * len(header(rows))]
    lines += [[row["kind"], row["method"], *cells(row, rows)] for row in rows]
    table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    notes = [f"- {source.name}: {source.about}" for source in sources[1:]]
    notes.append("- " + ", ".join(f"{key} {value}" for key, value in about.items() if value is not None))
    return "\n".join([table, "", *notes, ""])


def header(rows: Sequence[Entry]) -> list[str]:
    return [*COLUMNS.values(), *(key for key in PRECISIONS if any(key in row for row in rows))]


def cells(row: Entry, rows: Sequence[Entry]) -> list[str]:
    """Return the texts of a row under :func:`header`."""
    return [_text(row.get(key)) for key in (*COLUMNS, *header(rows)[len(COLUMNS) :])]


def _text(value: Any) -> str:
    if isinstance(value, dict):
        return f"{value['change']:+.1f} ({value['image']})"
    return "-" if value is None or value != value else str(value) if isinstance(value, int) else f"{value:.2f}"
