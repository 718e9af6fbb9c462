"""The figures that the papers print for a run's config, from ``tools/reproduction/tables.yaml``."""

from pathlib import Path

from reproduction.tables import load_tables

from .runs import Run

# By group and metric of evaluation.json: figures as printed, each with the tables that have it
PaperFigures = dict[tuple[str, str], dict[str, list[str]]]


def paper_figures(run: Run, data_set: str) -> PaperFigures:
    """Return the papers' figures for the metrics of a run on a data set; {} for a config that is in no table.

    A run is known by its OUTPUT_DIR, in its config or as the folder is called now: one of the last parts is the name of
    its config, as in output/NAME, and NAME/evaluation/SET of ``tools/reproduce.py``. Where tables print different
    figures for the same, all are there, in the tables' order.
    """
    names = {*Path(run.cfg.OUTPUT_DIR).parts[-3:], *run.folder.resolve().parts[-3:]}
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
