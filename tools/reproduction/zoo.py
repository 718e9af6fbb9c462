"""MODEL_ZOO.md: every row with its config, the paper's figures, those obtained so far, and the command that makes them.

``obtained.json`` holds the obtained figures that are committed: by table and row what ``show --format json`` has of it.
"""

from pathlib import Path
from typing import Any

from pixelmask.files import read_json, write_json

from .provenance import ROOT
from .results import ABOUT, as_dict, markdown_table, number_text, results_of
from .session import Session
from .tables import Row, Table, Tables

OBTAINED = Path(__file__).with_name("obtained.json")
MODEL_ZOO = ROOT / "MODEL_ZOO.md"
_HEAD = """# Model zoo

Every row of the tables of two papers, made by one command each: `python tools/reproduce.py run TABLE --row ROW`.

- {patchdct}
- AIRM: {airm}

"Paper" is what the paper prints. "Obtained" is what a whole run with this code gave on the same data, and is empty
where nobody has made one; of several runs with other seeds it is the mean, and their spread the largest minus the
smallest. Rows without a config are figures of other projects.

`python tools/reproduce.py list` adds the data that each row needs and the GPU hours to expect; `show TABLE` the commit,
the schedule really run and the version of the annotations; `run TABLE --quick` runs the same rows with small models on
drawn images. This file is written by `python tools/reproduce.py zoo` from `tools/reproduction/tables.yaml` and
`tools/reproduction/obtained.json`.

## AIRM for photos: the weights that come with the project

Of no paper. [Their card](airm/pretrained/README.md) has their data and its terms, recipe, figures and limits. IoU/mBA
of 80 photos of ECSSD that were held out:

| weights | coarse masks | coarse | refined | command |
| --- | --- | --- | --- | --- |
| `airm/pretrained/airm_photo.pth` | perturbed | 83.8/59.8 | 91.2/74.7 | `make photo-model` |
|  | truth through 28 x 28 | 95.9/70.3 | 97.2/82.8 |  |
"""


def read_obtained(path: Path = OBTAINED) -> dict[str, dict[str, Any]]:
    """Return the committed results by table and row."""
    return read_json(path)


def collect(tables: Tables, session: Session, path: Path = OBTAINED) -> list[str]:
    """Take the evaluated rows of this machine over into the committed results; return "TABLE ROW" of each."""
    obtained, taken = read_obtained(path), []
    for table in tables.tables.values():
        results = results_of(table, table.rows, session)
        for line in as_dict(table, table.rows, results, quick=False)["rows"]:
            figures = {name: f["obtained"] for name, f in line["figures"].items() if f["obtained"] is not None}
            if figures and line["state"] == "evaluated":
                about = {key: line[key] for key in ABOUT[1:]}  # without the state
                if "repeats" in line:
                    spread = {name: f["spread"] for name, f in line["figures"].items() if "spread" in f}
                    about |= {"repeats": line["repeats"], "spread": spread}
                obtained.setdefault(table.name, {})[line["row"]] = {**about, "obtained": figures}
                taken.append(f"{table.name} {line['row']}")
    write_json(path, obtained, indent=2)
    return taken


def model_zoo(tables: Tables, obtained: dict[str, dict[str, Any]]) -> str:
    """Return the text of MODEL_ZOO.md."""
    parts = [_HEAD.format(**tables.papers)]
    for table in tables.tables.values():
        lines = [f"## {table.heading}", ""] + ([table.note, ""] if table.note else [])
        body = [line for row in table.rows for line in _lines(table, row, obtained.get(table.name, {}).get(row.name))]
        header = [*table.labels, "config", "", *(column.name for column in table.columns), "command"]
        lines += markdown_table(header, body)
        runs = [(row, entry) for row in table.rows if (entry := obtained.get(table.name, {}).get(row.name))]
        if runs:
            of_runs = [[row.name, *(entry[key] for key in ABOUT[1:])] for row, entry in runs]
            lines += ["", *markdown_table(["row", *ABOUT[1:]], of_runs)]
        parts.append("\n".join(lines) + "\n")
    return "\n".join(parts)


def _lines(table: Table, row: Row, entry: dict[str, Any] | None) -> list[list[str]]:
    paper = [figure or "" for figure in row.paper]
    if not row.config:
        return [[*row.labels, "not this project's", "paper", *paper, ""]]
    config = f"[{Path(row.config).name}](configs/{row.config}.yaml)"
    command = f"`python tools/reproduce.py run {table.name} --row {row.name}`"
    entry = entry or {"obtained": {}}
    kinds = [("obtained", entry["obtained"], 0)]
    if repeats := entry.get("repeats"):
        kinds = [(f"obtained, mean of {repeats}", entry["obtained"], 0), ("their spread", entry["spread"], 1)]
    lines = [[*row.labels, config, "paper", *paper, command]]
    for title, figures, more in kinds:
        texts = [number_text(figures.get(c.name), table.decimals(i) + more) for i, c in enumerate(table.columns)]
        lines.append([*[""] * (len(row.labels) + 1), title, *texts, ""])
    return lines
