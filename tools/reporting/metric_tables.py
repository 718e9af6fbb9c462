"""The tables of a report: what runs reached, beside what the paper prints."""

import json
import math
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from pixelmask.config import flat
from reproduction.table_runs import INDIFFERENT
from reproduction.tables import load_tables

from .reported_runs import ReportedRun

TITLES = {
    "bbox": "Box AP",
    "segm": "Mask AP",
    "boundary": "Boundary AP",
    "lvis_v0.5_segm": "Mask AP* (LVIS v0.5)",
    "lvis_v0.5_boundary": "Boundary AP* (LVIS v0.5)",
    "lvis_v1_segm": "Mask AP* (LVIS v1)",
    "lvis_v1_boundary": "Boundary AP* (LVIS v1)",
    "refinement": "Coarse and refined masks",
}
PER_CLASS = "AP-"
# What a repeat's folder has at the end of its name, in tools/reproduce.py
SEED = re.compile(r"_seed_\d+")
UNDEFINED = "–"


# By group and metric of evaluation.json: figures as printed, each with the tables that have it
PaperFigures = dict[tuple[str, str], dict[str, list[str]]]


class Table(NamedTuple):
    """Texts of a table: each row is its header and a cell for each column. ``is_detail``: shown when asked for."""

    caption: str
    columns: list[str]
    rows: list[tuple[str, list[str]]]
    is_detail: bool = False


def metric_tables(runs: Sequence[ReportedRun]) -> list[Table]:
    """Return a table of each group of metrics of each data set, and the classes' APs of each data set.

    Under a run's row is that of the paper and that of the difference, where the paper has its config. Below all are
    mean and spread of runs that repeat a training with other seeds.
    """
    tables = []
    for data_set in _unique(name for run in runs for name in run.evaluation):
        evaluated = [(run, run.evaluation[data_set]) for run in runs if data_set in run.evaluation]
        papers = [paper_figures(run, data_set) for run, _ in evaluated]
        for group in _unique(group for _, metrics in evaluated for group in metrics):
            keys = _unique(key for _, metrics in evaluated for key in metrics.get(group, ()))
            keys = [key for key in keys if not key.startswith(PER_CLASS)]
            rows: list[tuple[str, list[str]]] = []
            for (run, metrics), paper in zip(evaluated, papers, strict=True):
                rows += _rows(run.name, metrics.get(group, {}), group, keys, paper)
            for repeats in repeats_of([run for run, _ in evaluated]):
                rows += _repeat_rows(repeats, data_set, group, keys)
            tables.append(Table(f"{TITLES.get(group, group)} on {data_set}", keys, rows))
        per_class = _per_class_table(data_set, [(run.name, metrics) for run, metrics in evaluated])
        if per_class.rows:
            tables.append(per_class)
    return tables


def _rows(
    name: str, metrics: dict[str, float], group: str, keys: list[str], paper: PaperFigures
) -> list[tuple[str, list[str]]]:
    rows = [(name, [_figure(metrics.get(key)) for key in keys])]
    printed = [paper.get((group, key), {}) for key in keys]
    if any(printed):
        sources = _unique(table for figures in printed for tables in figures.values() for table in tables)
        rows.append((f"paper: {_join(sources)}", [" / ".join(figures) for figures in printed]))
        pairs = [(metrics.get(key), next(iter(figures), None)) for key, figures in zip(keys, printed, strict=True)]
        rows.append(("difference to the paper's first figure", [_difference(*pair) for pair in pairs]))
    return rows


def repeats_of(runs: Sequence[ReportedRun]) -> list[list[ReportedRun]]:
    """Return the groups of runs whose configs differ in the seed, and else in the folders of runs alone."""
    groups: dict[str, list[ReportedRun]] = {}
    for run in runs:
        values = {key: value for key, value in flat(run.cfg).items() if key not in (*INDIFFERENT, "SEED")}
        groups.setdefault(SEED.sub("", json.dumps(values, sort_keys=True)), []).append(run)
    return [group for group in groups.values() if 1 < len(group) == len({run.cfg.SEED for run in group})]


def _repeat_rows(
    repeats: Sequence[ReportedRun], data_set: str, group: str, keys: list[str]
) -> list[tuple[str, list[str]]]:
    """Return the mean of repeats and their spread, the largest figure minus the smallest."""
    values = [[run.evaluation[data_set].get(group, {}).get(key, math.nan) for run in repeats] for key in keys]
    names = ", ".join(run.name for run in repeats)
    return [
        (f"mean of {len(repeats)} seeds: {names}", [_figure(float(np.mean(column))) for column in values]),
        ("their spread, largest minus smallest", [_figure(float(np.ptp(column))) for column in values]),
    ]


def _per_class_table(data_set: str, evaluated: list[tuple[str, dict[str, dict[str, float]]]]) -> Table:
    columns = [
        (f"{TITLES.get(group, group)}, {name}", metrics[group])
        for group in _unique(group for _, metrics in evaluated for group in metrics)
        for name, metrics in evaluated
        if any(key.startswith(PER_CLASS) for key in metrics.get(group, ()))
    ]
    keys = _unique(key for _, values in columns for key in values if key.startswith(PER_CLASS))
    rows = [(key.removeprefix(PER_CLASS), [_figure(values.get(key)) for _, values in columns]) for key in keys]
    return Table(f"AP of each class on {data_set}", [title for title, _ in columns], rows, is_detail=True)


def paper_figures(run: ReportedRun, data_set: str) -> PaperFigures:
    """Return the papers' figures for the metrics of a run on a data set; {} for a config that is in no table.

    A run is known by its OUTPUT_DIR, in its config or as the folder is called now: one of the last parts is the name of
    its config, as in output/NAME, and NAME/evaluation/SET or NAME_seed_2/evaluation/SET of ``tools/reproduce.py``.
    Where tables print different figures for the same, all are there, in the tables' order.
    """
    parts = (*Path(run.cfg.OUTPUT_DIR).parts[-3:], *run.folder.resolve().parts[-3:])
    names = {SEED.sub("", part) for part in parts}
    figures: PaperFigures = {}
    for table in load_tables().tables.values():
        for row in table.rows:
            if Path(row.config).name not in names or row.test != data_set:
                continue
            for column, figure in zip(table.columns, row.paper, strict=True):
                if figure is not None and column.source:
                    tables = figures.setdefault((column.source, column.key), {}).setdefault(figure, [])
                    tables.append(table.heading.partition(":")[0])
    return figures


def _figure(value: float | None) -> str:
    if value is None or not math.isfinite(value):
        return UNDEFINED
    return str(value) if isinstance(value, int) else f"{value:.2f}"


def _difference(value: float | None, printed: str | None) -> str:
    if printed is None or value is None or not math.isfinite(value):
        return ""
    return f"{value - float(printed):+.2f}"


def _join(sources: list[str]) -> str:
    """Write "PatchDCT, Table 2" and "PatchDCT, Table 5" as "PatchDCT, Table 2, 5"."""
    papers: dict[str, list[str]] = {}
    for source in sources:
        paper, _, number = source.rpartition(" ")
        papers.setdefault(paper, []).append(number)
    return "; ".join(f"{paper} {', '.join(numbers)}" for paper, numbers in papers.items())


def _unique(values: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(values))
