"""The command line of reproduce.py; ``slow`` ones run the real tools, on the smallest sets."""

import csv
import json
import sys
from functools import partial
from pathlib import Path

import pytest

from pixelmask.cli import run
from pixelmask.errors import UserError
from reproduction.session import Session, run_command
from reproduction.tables import load_tables
from tests.support.models import load_tool
from tests.tools.reproduction.fakes import FakeTools

reproduce = load_tool("reproduce")
TINY_AIRM = [
    "DATASETS.TRAIN", "('synthetic_refinement_train_2_72x64',)", "INPUT.REFINEMENT.CROP_SIZE", "64",
    "SOLVER.IMS_PER_BATCH", "2", "MODEL.MIT.EMBED_DIMS", "[4,8,20,32]", "MODEL.MIT.DEPTHS", "[1,1,1,1]",
    "MODEL.AIRM.STAGE_CHANNELS", "8",
]  # fmt: skip
TINY_DETECTOR = [
    "DATASETS.TRAIN", "('shapes_train_2_72px',)", "SOLVER.IMS_PER_BATCH", "2", "INPUT.MIN_SIZE_TEST", "96",
    "MODEL.ROI_HEADS.SCORE_THRESH_TEST", "0.0", "TEST.DETECTIONS_PER_IMAGE", "3",
]  # fmt: skip


def call(*args: str) -> None:
    run(reproduce.main, reproduce.argument_parser().parse_args(args))


@pytest.fixture(autouse=True)
def data(monkeypatch, tmp_path_factory, caplog) -> None:
    caplog.set_level(0, "pixelmask.config")  # what reproduce.py sets is undone after the test
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path_factory.getbasetemp() / "reproduced"))


def test_list_has_every_table_and_row_and_is_readable(capsys, tmp_path):
    call("list", "--json", "--output", str(tmp_path))
    lines = json.loads(capsys.readouterr().out)
    expected = [(table.name, row.name) for table in load_tables().tables.values() for row in table.rows]
    assert [(line["table"], line["row"]) for line in lines] == expected
    call("list", "patchdct-5", "airm-1", "--output", str(tmp_path))
    printed = capsys.readouterr().out
    for part in ("two_stage_dct", "patchdct/ablations/binary_grid_R_50_FPN_1x_coco", "needs coco_2017_train", "absent",
                 "voc_relabelled_pspnet", "4 trainings, 172 GPU hours", "estimate"):  # fmt: skip
        assert part in printed
    assert "patchdct-2" not in printed


def test_run_with_missing_data_shows_the_table_and_names_the_data(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(reproduce, "Session", partial(Session, run=FakeTools()))
    with pytest.raises(SystemExit) as e:
        call("run", "patchdct-10", "--row", "stage_2", "--output", str(tmp_path))
    assert e.value.code == 1
    printed = capsys.readouterr()
    assert "| stage_2 | 2 | paper | 37.4 |" in printed.out and "| obtained |  |  |" in printed.out
    assert "| 5.1 |" in printed.out  # GFLOPs need no data
    assert "not everything of patchdct-10 could be made:\nstage_2: data set coco_2017_train needs" in printed.err


def test_repeats_and_their_state_are_shown(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(reproduce, "Session", partial(Session, run=FakeTools()))
    args = ["airm-3", "--quick", "--output", str(tmp_path)]
    call("run", *args, "--row", "sirmf", "--repeats", "2", "--set", *TINY_AIRM)
    assert "| mean of 2 runs | 91.50 | 72.25 |" in capsys.readouterr().out
    call("list", *args)
    assert "evaluated, 2 runs" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("args", "part"),
    [
        (["show", "patchdct-99"], "no table patchdct-99; there are patchdct-1, "),
        (["show", "airm-3", "--row", "both"], "airm-3 has no row both; its rows are sirmf, airmf"),
        (["list", "table-2"], "no table table-2"),
        (["run", "airm-3", "--set", "SOLVER.BASE_LR"], "SOLVER.BASE_LR"),
    ],
)
def test_mistakes_end_in_one_message(fails, tmp_path, args, part):
    with fails(part):
        call(*args, "--output", str(tmp_path))


def test_show_writes_a_file(tmp_path):
    call("show", "airm-6", "--format", "csv", "--to", str(tmp_path / "t.csv"), "--output", str(tmp_path))
    lines = list(csv.DictReader((tmp_path / "t.csv").open()))
    assert [(line["R"], line["IoU paper"], line["IoU obtained"]) for line in lines][2] == ("14", "91.47", "")


def test_zoo_is_checked(tmp_path, monkeypatch):
    path = tmp_path / "MODEL_ZOO.md"
    monkeypatch.setattr(reproduce, "MODEL_ZOO", path)
    with pytest.raises(SystemExit):
        call("zoo", "--check")
    call("zoo")
    call("zoo", "--check")
    assert path.read_text().startswith("# Model zoo")


def test_a_failed_command_is_named(tmp_path):
    script = tmp_path / "tool.py"
    script.write_text("import sys; sys.exit(int(sys.argv[1]))")
    run_command([sys.executable, str(script), "0"])
    with pytest.raises(UserError, match=r"tool\.py ended with status 3"):
        run_command([sys.executable, str(script), "3"])


@pytest.fixture
def real_tools(monkeypatch) -> None:
    """The tools themselves, in this process: to import what they need takes longer than what they do."""

    def run_tool(command: list[str]) -> None:
        tool = load_tool(Path(command[1]).stem)
        start = (tool.launch, tool.main) if hasattr(tool, "launch") else (tool.main,)
        run(*start, tool.argument_parser().parse_args(command[2:]))

    sets = {"big_deeplabv3plus": "synthetic_refinement_val_2_72x64", "coco_2017_val": "shapes_val_2_72px"}
    monkeypatch.setattr("reproduction.quick.test_set", sets.__getitem__)
    monkeypatch.setattr(reproduce, "Session", partial(Session, run=run_tool))


@pytest.mark.slow
@pytest.mark.usefixtures("real_tools")
def test_a_row_of_airm_is_made_whole_and_once(capfd, caplog, tmp_path):
    def started() -> int:
        return sum(record.getMessage().startswith("+ ") for record in caplog.records)

    caplog.set_level("INFO", logger="reproduction")
    args = ["airm-4", "--row", "sirmf_mit_b1", "--quick", "--output", str(tmp_path)]
    call("run", *args, "--iterations", "2", "--set", *TINY_AIRM)
    assert "NOT THE PAPER'S DATA" in capfd.readouterr().out and started() == 4
    call("run", *args, "--iterations", "2", "--set", *TINY_AIRM)
    assert started() == 4
    call("show", *args, "--format", "json", "--to", str(tmp_path / "t.json"))
    (row,) = json.loads((tmp_path / "t.json").read_text())["rows"]
    assert all(figure["obtained"] > 0 for figure in row["figures"].values())
    assert row["schedule"] == "2 x 2, lr 0.001" and row["annotations"].count("sha256:") == 2


@pytest.mark.slow
@pytest.mark.usefixtures("real_tools")
def test_the_upper_bound_is_made_of_real_detections(tmp_path):
    args = ["patchdct-1", "--quick", "--output", str(tmp_path)]
    call("run", *args, "--iterations", "2", "--set", *TINY_DETECTOR)
    call("show", *args, "--format", "json", "--to", str(tmp_path / "t.json"))
    rows = json.loads((tmp_path / "t.json").read_text())["rows"]
    assert [row["state"] for row in rows] == ["evaluated"] * 7
    assert all(row["figures"]["AP"]["obtained"] is not None for row in rows)
    assert Path(tmp_path, "quick", "mask_rcnn_R_50_FPN_1x_coco", "upper_bound").is_dir()
