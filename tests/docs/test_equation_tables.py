"""The tables of docs/ that say where an equation or a block is in the code: each file and name of theirs exists.

A row of such a table is ``| what | `path/of/file.py` | `name`, `Class.method` |``.
"""

import importlib
import re
from pathlib import Path

import pytest

from tests.support.models import load_tool

PAGES = [page for page in (Path("docs/patchdct.md"), Path("docs/airm.md")) if page.is_file()]


def table_rows(text: str) -> list[tuple[str, str, str]]:
    """Return what, path and names of the rows that have a path in their second column, or "file" over it."""
    rows: list[tuple[str, str, str]] = []
    header: list[str] = []
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.strip().strip("|").split("|")] if line.lstrip().startswith("|") else []
        if cells and not header:
            header = cells
        elif len(cells) >= 3 and not set(line) <= set("|-: "):
            if header[1].lower() == "file" or re.fullmatch(r"`[^`]+\.py`", cells[1]):
                rows.append((cells[0], cells[1], cells[2]))
        elif not cells:
            header = []
    return rows


def find(path: str, name: str) -> object:
    """Return what the name of a file stands for; raise where there is none."""
    assert Path(path).is_file(), f"no file {path}"
    folder, _, rest = path.removesuffix(".py").partition("/")
    found: object = (
        load_tool(rest) if folder == "tools" else importlib.import_module(f"{folder}.{rest}".replace("/", "."))
    )
    module = getattr(found, "__name__", "")
    for part in name.split("."):
        found = getattr(found, part)
    # An imported name would be found, too
    assert getattr(found, "__module__", module) == module, f"{name} is not defined in {path}"
    return found


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_files_and_names_exist(page):
    rows = table_rows(page.read_text())
    assert len(rows) >= 5
    for what, path, names in rows:
        assert re.fullmatch(r"`[\w/]+\.py`", path), f"{what}: {path} is no file"
        assert re.fullmatch(r"`[\w.]+`(, `[\w.]+`)*", names), f"{what}: {names} are no names"
        for name in names.strip("`").split("`, `"):
            find(path.strip("`"), name)


@pytest.mark.parametrize(("page", "equations"), [("patchdct", {1, 2, 3, 4, 5, 6, 13}), ("airm", set(range(1, 12)))])
def test_every_equation_has_a_row(page, equations):
    whats = [what for what, *_ in table_rows(Path(f"docs/{page}.md").read_text())]
    numbers = {int(n) for what in whats if what.startswith("Eq.") for n in re.findall(r"\d+", what.split(",")[0])}
    assert numbers == equations


def test_what_is_wrong_is_found():
    tables = ["| a | file | b |", "|---|---|---|", "| x | gone | `c` |", "", "| a | b | c |", "|---|---|---|"]
    assert table_rows("\n".join([*tables, "| y | `d.py` | `e` |", "| 1 | `2` | 3 |"])) == [
        ("x", "gone", "`c`"),
        ("y", "`d.py`", "`e`"),
    ]
    find("patchdct/dct.py", "DCTMaskCodec.encode")
    find("tools/upper_bound.py", "load_truth")
    with pytest.raises(AttributeError):
        find("patchdct/dct.py", "DCTMaskCodec.compress")
    with pytest.raises(AssertionError, match="no file patchdct/gone"):
        find("patchdct/gone.py", "encode")
    with pytest.raises(AssertionError, match="not defined in patchdct/patch_branch"):
        find("patchdct/patch_branch.py", "classify_patches")
