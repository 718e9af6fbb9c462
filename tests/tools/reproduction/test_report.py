"""The tables that come out: Markdown, CSV, JSON, and MODEL_ZOO.md."""

import csv
import io
import json
from dataclasses import replace
from pathlib import Path

import pytest

from reproduction import quick, zoo
from reproduction.results import Result, as_dict, difference, overview, render
from reproduction.session import Session
from reproduction.tables import load_tables

TABLES = load_tables()
TABLE = TABLES.table("patchdct-3")
MASK_RCNN = Result(
    "mask_rcnn",
    "patchdct/cityscapes/mask_rcnn_R_50_FPN_cityscapes",
    "evaluated",
    (33.04, None, 11.83),
    commit="0123abc",
    schedule="24000 x 8, lr 0.01",
    annotations="cityscapes_fine_instance_seg_val sha256:1234",
)
REFINEMASK = Result("refinemask", "", "not this project's", (None, None, None))
ROWS = TABLE.select(["mask_rcnn", "refinemask"])


def show(form: str, is_quick: bool = False) -> str:
    return render(TABLE, ROWS, [MASK_RCNN, REFINEMASK], form, is_quick)


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_markdown_has_paper_obtained_and_difference():
    lines = show("markdown").splitlines()
    assert lines[0] == "## PatchDCT, Table 3: Cityscapes val, R50-FPN"
    table = [cells(line) for line in lines if line.startswith("|")]
    assert table[0] == ["row", "Method", "Resolution", "", "AP", "AP_50", "AP_B"]
    assert table[2] == ["mask_rcnn", "Mask-RCNN", "28 x 28", "paper", "33.7", "60.9", "11.8"]
    assert table[3] == ["", "", "", "obtained", "33.0", "", "11.8"]
    assert table[4] == ["", "", "", "difference", "-0.7", "", "+0.0"]
    assert table[5] == ["refinemask", "RefineMask", "112 x 112", "paper", "37.6", "63.3", "17.4"]
    assert table[6] == ["row", "config", "state", "commit", "schedule", "annotations"]
    assert table[8][2:] == ["evaluated", "0123abc", "24000 x 8, lr 0.01", MASK_RCNN.annotations]
    assert lines[-1] == "Not this project's: refinemask."


def test_quick_tables_say_that_they_are_not_the_papers_data():
    text = show("markdown", is_quick=True)
    assert quick.TITLE in text and "NOT THE PAPER'S DATA" in text
    assert "| obtained | 33.0 |" in text and "difference |" not in text
    assert "quick: not the paper's data" in show("csv", is_quick=True)
    assert json.loads(show("json", is_quick=True))["quick"] is True


def repeated(row: str, *runs: float) -> Result:
    """Runs of which only AP is known."""
    mean = sum(runs) / len(runs)
    return Result(row, f"c/{row}", "evaluated", (mean, None, None), runs=(runs, (), ()))


def test_repeats_have_a_spread_and_rows_within_it_are_called_so():
    rows = TABLE.select(["mask_rcnn", "dct_mask", "patchdct", "patchdct_from_coco"])
    results = [
        repeated("mask_rcnn", 33.0, 34.2, 33.6),
        repeated("dct_mask", 36.0, 36.2),
        repeated("patchdct", 36.4, 36.0, 36.2),
        repeated("patchdct_from_coco", 38.0),
    ]
    text = render(TABLE, rows, results, "markdown", False)
    table = [cells(line)[3:5] for line in text.splitlines() if line.startswith("| ")]
    assert table[2:6] == [["paper", "33.7"], ["mean of 3 runs", "33.6"], ["difference", "-0.1"], ["spread", "1.20"]]
    assert ["against mask_rcnn", "+2.50"] in table
    assert ["against dct_mask", "+0.10 (within the spread)"] in table
    assert table.count(["obtained", "38.0"]) == 1 and text.count("against") == 2
    assert text.count("Spread: the largest of the runs minus the smallest.") == 1
    first, _, third, single = json.loads(render(TABLE, rows, results, "json", False))["rows"]
    assert first["repeats"] == 3 and first["figures"]["AP"]["runs"] == [33.0, 34.2, 33.6] and "against" not in first
    assert (third["against"], third["figures"]["AP"]["within_spread"]) == ("dct_mask", True)
    assert set(single["figures"]["AP"]) == {"paper", "obtained", "difference"} and "repeats" not in single
    lines = list(csv.DictReader(io.StringIO(render(TABLE, rows, results, "csv", False))))
    assert (lines[1]["AP spread"], lines[1]["AP gain"], lines[1]["AP within_spread"]) == ("0.2000", "2.5000", "False")
    assert (lines[2]["repeats"], lines[2]["against"], lines[3]["AP spread"]) == ("3", "dct_mask", "")


@pytest.mark.parametrize(
    ("name", "row", "against"),
    [
        ("patchdct-2", "patchdct_R_50", "dct_mask_R_50"),
        ("patchdct-2", "mask_rcnn_R_101", "mask_rcnn_R_50"),
        ("patchdct-2", "dct_mask_R_101", "mask_rcnn_R_101"),
        ("patchdct-9", "dim_9", "dim_6"),
        ("airm-2", "R_101_no_affinity", "R_50_no_affinity"),
        ("patchdct-1", "dct_300", None),  # another measure of the same model
        ("airm-1", "big_pspnet", None),  # other images with the same model
    ],
)
def test_a_row_is_set_against_the_nearest_before_it_that_is_most_like_it(name, row, against):
    table = TABLES.table(name)
    several = ((1.0, 1.5),) * len(table.columns)
    results = [Result(r.name, r.config, "evaluated", (1.25,) * len(several), runs=several) for r in table.rows]
    (line,) = [line for line in as_dict(table, table.rows, results, quick=False)["rows"] if line["row"] == row]
    assert line.get("against") == against


def test_csv_is_read_back():
    first, second = csv.DictReader(io.StringIO(show("csv")))
    assert (first["AP paper"], first["AP obtained"], first["AP difference"]) == ("33.7", "33.0400", "-0.6600")
    assert (first["AP_50 obtained"], first["AP_50 difference"]) == ("", "")
    assert (first["table"], first["row"], first["Method"]) == ("patchdct-3", "mask_rcnn", "Mask-RCNN")
    assert (first["commit"], first["schedule"], first["data"]) == ("0123abc", "24000 x 8, lr 0.01", "paper's")
    assert second["AP paper"] == "37.6" and second["config"] == ""


def test_json_has_whole_figures(tmp_path):
    first, second = json.loads(show("json"))["rows"]
    assert first["figures"]["AP"] == {"paper": 33.7, "obtained": 33.04, "difference": pytest.approx(-0.66)}
    assert first["figures"]["AP_50"] == {"paper": 60.9, "obtained": None, "difference": None}
    assert first["labels"] == {"Method": "Mask-RCNN", "Resolution": "28 x 28"}
    assert first["commit"] == "0123abc" and second["state"] == "not this project's"
    json.dumps(as_dict(TABLE, ROWS, [MASK_RCNN, REFINEMASK], quick=False))


def test_figures_keep_their_decimals_and_stars_and_bars_stay_text():
    table = TABLES.table("airm-4")
    rows = table.select(["airm_R_50"])
    obtained = Result("airm_R_50", "airm/airm_R_50", "evaluated", (90.127, 604.6, 4.5, 9.736))
    text = render(table, rows, [obtained], "markdown", False)
    assert "| obtained | 90.13 | 605 | 4.50 | 9.74 |" in text
    assert "| difference | +1.05 | -1264 | +0.00 | +0.47 |" in text
    table = TABLES.table("patchdct-5")
    results = [Result(row.name, "c", "a|b", (None,) * 4) for row in table.rows]
    text = render(table, table.rows, results, "markdown", False)
    assert r"| AP\* | AP\*_B |" in text and r"a\|b" in text


def test_there_is_no_difference_without_both():
    assert difference("1.5", 1.0) == -0.5
    assert difference(None, 1.0) is difference("1.5", None) is difference("1.5", 1.0, quick=True) is None


def test_overview_has_every_row_with_its_needs_and_hours(tmp_path):
    lines = {(line["table"], line["row"]): line for line in overview(TABLES, Session(tmp_path))}
    assert len(lines) == sum(len(table.rows) for table in TABLES.tables.values())
    line = lines["patchdct-2", "mask_rcnn_R_50"]
    assert line["needs"] == ["coco_2017_train", "coco_2017_val", "lvis/lvis_v0.5_val_cocofied.json"]
    assert line["gpu_hours"] == pytest.approx(8 * 90000 * 0.261 / 3600)  # Detectron2's speed on eight GPUs
    assert lines["airm-5", "all"]["gpu_hours"] == pytest.approx(15.8, abs=0.01)
    assert lines["patchdct-3", "patchdct"]["gpu_hours"] == pytest.approx(8 * 24000 * 0.240 / 3600)
    assert "trained patchdct_R_50_FPN_1x_coco" in lines["patchdct-3", "patchdct_from_coco"]["needs"]
    assert lines["airm-4", "crm"]["state"] == "not this project's" and lines["airm-4", "crm"]["config"] is None
    assert {line["state"] for line in lines.values()} == {"absent", "not this project's"}


def test_model_zoo_is_up_to_date():
    text = zoo.model_zoo(TABLES, zoo.read_obtained())
    assert Path("MODEL_ZOO.md").read_text() == text, "python tools/reproduce.py zoo"


def test_model_zoo_has_every_row_and_its_command():
    text = zoo.model_zoo(TABLES, {})
    for table in TABLES.tables.values():
        for row in table.rows:
            command = f"`python tools/reproduce.py run {table.name} --row {row.name}` |"
            assert (command in text) == bool(row.config)
            assert f"| {' | '.join(figure or '' for figure in row.paper)} |" in text
    for line in text.splitlines():
        if "| obtained |" in line:
            assert not line.partition("| obtained |")[2].replace("|", "").strip()


def test_collected_results_are_in_the_model_zoo(tmp_path, monkeypatch):
    path = tmp_path / "obtained.json"
    path.write_text("{}")

    def results(table, rows, session):
        found = {"mask_rcnn": MASK_RCNN, "dct_mask": Result("dct_mask", "c", "trained", (36.0, None, None))}
        nothing = (None,) * len(table.columns)
        return [found.get(row.name, Result(row.name, row.config, "absent", nothing)) for row in rows]

    monkeypatch.setattr(zoo, "results_of", results)
    only = replace(TABLES, tables={"patchdct-3": TABLE})
    assert zoo.collect(only, Session(tmp_path), path) == ["patchdct-3 mask_rcnn"]
    assert json.loads(path.read_text())["patchdct-3"]["mask_rcnn"]["obtained"] == {"AP": 33.04, "AP_B": 11.83}
    text = zoo.model_zoo(only, zoo.read_obtained(path))
    assert "| obtained | 33.0 |  | 11.8 |" in text
    assert "| mask_rcnn | 0123abc | 24000 x 8, lr 0.01 |" in text and "spread |" not in text
    several = replace(MASK_RCNN, runs=((33.04, 33.0), (), (11.83,)))
    monkeypatch.setattr(zoo, "results_of", lambda table, rows, session: [several] + results(table, rows, session)[1:])
    zoo.collect(only, Session(tmp_path), path)
    text = zoo.model_zoo(only, zoo.read_obtained(path))
    assert "| obtained, mean of 2 | 33.0 |  | 11.8 |" in text and "| their spread | 0.04 |  |  |" in text
