"""The papers' tables, as ``tables.yaml`` has them."""

from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import yaml

from pixelmask.errors import UserError

FILE = Path(__file__).with_name("tables.yaml")
COST, TRAINING, UPPER_BOUND = "cost", "training", "upper_bound"
# What the first part of a column's source may be beside a key of evaluation.json
OTHER_SOURCES = {COST: ("gflops", "parameters", "fps", "seconds"), TRAINING: ("hours",), UPPER_BOUND: ("AP", "AP_B")}
NONE = "-"
PAPERS = {"patchdct": "PatchDCT", "airm": "AIRM"}


@dataclass(frozen=True)
class Column:
    """A figure of a table. ``source`` and ``key`` say where its obtained value is, see ``tables.yaml``; "": nowhere.

    ``added`` is the file below ``$DETECTRON2_DATASETS`` whose presence adds it to an evaluation, if it needs one.
    """

    name: str
    source: str
    key: str
    added: str = ""

    @property
    def is_evaluated(self) -> bool:
        return bool(self.source) and self.source not in OTHER_SOURCES


@dataclass(frozen=True)
class Row:
    """A line of a table. Without ``config`` it is another project's; ``paper`` has text, as printed, or None."""

    name: str
    labels: tuple[str, ...]
    paper: tuple[str | None, ...]
    config: str = ""
    test: str = ""
    starts_from: str = ""
    where: tuple[tuple[str, int], ...] = ()


@dataclass(frozen=True)
class Table:
    """A table of a paper; ``name`` is "patchdct-2" for PatchDCT's Table 2."""

    name: str
    title: str
    note: str
    labels: tuple[str, ...]
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]

    @property
    def heading(self) -> str:
        paper, number = self.name.split("-")
        return f"{PAPERS[paper]}, Table {number}: {self.title}"

    def uses(self, source: str, *keys: str) -> bool:
        """Tell whether a column has this source, and one of these keys if there are any."""
        return any(c.source == source and (not keys or c.key in keys) for c in self.columns)

    def select(self, names: Sequence[str]) -> list[Row]:
        """Return the rows of these names, all if there are none; raise UserError for an unknown name."""
        unknown = set(names) - {row.name for row in self.rows}
        if unknown:
            known = ", ".join(row.name for row in self.rows)
            raise UserError(f"table {self.name} has no row {', '.join(sorted(unknown))}; its rows are {known}")
        return [row for row in self.rows if not names or row.name in names]

    def decimals(self, column: int) -> int:
        """Return the number of decimals that the paper prints in a column; two where it prints nothing."""
        printed = [row.paper[column] for row in self.rows]
        return max((len(text.partition(".")[2]) for text in printed if text), default=2)


@dataclass(frozen=True)
class Tables:
    """All tables by name, the papers' titles, and the commands that draw figures.

    ``seconds`` are the GPU seconds that one image of training is expected to take, by patterns of config names.
    """

    tables: dict[str, Table]
    papers: dict[str, str]
    seconds: dict[str, float]
    figures: dict[str, str]

    def table(self, name: str) -> Table:
        """Return a table by its name; raise UserError for an unknown one."""
        if name not in self.tables:
            raise UserError(f"no table {name}; there are {', '.join(self.tables)}")
        return self.tables[name]

    def seconds_per_image(self, config: str) -> float:
        """Return the estimate for a config by the first pattern that matches its name."""
        return next(seconds for pattern, seconds in self.seconds.items() if fnmatch(config, pattern))


def load_tables(path: Path = FILE) -> Tables:
    """Read and check the tables.

    Raises:
        UserError: if a row has another number of labels or figures than its table has columns, a figure is no number, a
            source is unknown, or one of our rows has no test set or no estimate of its time.
    """
    # Every value as text: numbers keep the zeros they are printed with
    content = yaml.load(path.read_text(encoding="utf-8"), Loader=yaml.BaseLoader)
    try:
        tables = {name: _table(name, entry, content["added_annotations"]) for name, entry in content["tables"].items()}
        seconds = {pattern: float(text) for pattern, text in content["gpu_seconds_per_image"].items()}
        result = Tables(tables, content["papers"], seconds, content["figures"])
        for table in tables.values():
            for row in table.rows:
                _check(table, row, result)
    except (KeyError, TypeError, ValueError, AttributeError, StopIteration) as e:
        raise e if isinstance(e, UserError) else UserError(f"{path} is faulty: {e!r}") from e
    return result


def _table(name: str, entry: dict[str, Any], added: dict[str, str]) -> Table:
    rows = tuple(_row(row, fields, entry.get("test", "")) for row, fields in entry["rows"].items())
    columns = tuple(_column(column, source, added) for column, source in entry["columns"].items())
    return Table(name, entry["title"], entry.get("note", ""), tuple(entry["labels"]), columns, rows)


def _column(name: str, source: str, added: dict[str, str]) -> Column:
    if source == NONE:
        return Column(name, "", "")
    group, _, key = source.partition("/")
    if not key or key not in OTHER_SOURCES.get(group, (key,)):
        raise UserError(f"tables.yaml: column {name} has the unknown source {source}")
    needed = [file for prefix, file in added.items() if group.startswith(prefix + "_")]
    return Column(name, group, key, needed[0] if needed else "")


def _row(name: str, fields: dict[str, Any], test: str) -> Row:
    return Row(
        name=name,
        labels=tuple(fields["labels"]),
        paper=tuple(None if figure == NONE else figure for figure in fields["paper"].split()),
        config=fields.get("config", ""),
        test=fields.get("test", test),
        starts_from=fields.get("starts_from", ""),
        where=tuple((key, int(value)) for key, value in fields.get("where", {}).items()),
    )


def _check(table: Table, row: Row, tables: Tables) -> None:
    place = f"tables.yaml: {table.name}, row {row.name}"
    if len(row.paper) != len(table.columns):
        raise UserError(f"{place} has {len(row.paper)} figures for {len(table.columns)} columns")
    if len(row.labels) != len(table.labels):
        raise UserError(f"{place} has {len(row.labels)} labels, not {len(table.labels)}")
    for figure in row.paper:
        float(figure or 0)
    if row.config:
        tables.seconds_per_image(row.config)
        if not row.test:
            raise UserError(f"{place} has no test set")
