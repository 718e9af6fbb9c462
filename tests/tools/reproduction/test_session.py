"""What a session makes, what it leaves alone, and what it says about data that is missing."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from airm.data.datasets import BUILT_IN as COARSE
from airm.data.synthetic_dataset import make_synthetic, register_synthetic
from patchdct.data.shapes_dataset import make_shapes, register_shapes
from pixelmask.config import load_cfg
from pixelmask.errors import UserError
from reproduction.provenance import annotation_version
from reproduction.results import overview, results_of
from reproduction.session import Session
from reproduction.tables import load_tables
from tests.tools.reproduction.fakes import FakeTools

TABLES = load_tables()
SHAPES, PAIRS = "shapes_val_1_72px", "synthetic_refinement_val_1_72x64"
SMALL = ("DATASETS.TRAIN", "('shapes_train_1_72px',)")


@pytest.fixture(autouse=True, scope="session")
def root(tmp_path_factory) -> Path:
    """The folder of the data sets: drawn ones of one image, and nothing else."""
    root = tmp_path_factory.mktemp("datasets")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DETECTRON2_DATASETS", str(root))
        for name in (SHAPES, "shapes_train_1_72px"):
            register_shapes(name)
            make_shapes(name)
        register_synthetic(PAIRS)
        make_synthetic(PAIRS)
    return root


@pytest.fixture(autouse=True)
def small_sets(monkeypatch, root):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(root))
    monkeypatch.setattr("reproduction.quick.test_set", lambda name: PAIRS if name in COARSE else SHAPES)


@pytest.fixture
def tools() -> FakeTools:
    return FakeTools()


def session(tmp_path: Path, tools: FakeTools, *overrides: str, **options) -> Session:
    options = {"quick": True, "overrides": [*SMALL, *overrides], **options}
    return Session(tmp_path / "runs", run=tools, **options)


def make(made_by: Session, name: str, *rows: str, **options) -> list[str]:
    table = TABLES.table(name)
    return made_by.make(table, table.select(rows), **options)


def state(of: Session, name: str, row: str) -> str:
    table = TABLES.table(name)
    return results_of(table, table.select([row]), of)[0].state


def test_a_row_is_trained_evaluated_and_never_again(tmp_path, tools):
    assert state(session(tmp_path, tools), "patchdct-5", "binary_grid") == "absent"
    assert make(session(tmp_path, tools), "patchdct-5", "binary_grid") == []
    assert tools.names() == ["train", "evaluate"]
    assert state(session(tmp_path, tools), "patchdct-5", "binary_grid") == "evaluated"
    assert make(session(tmp_path, tools), "patchdct-5", "binary_grid") == []
    assert tools.names() == ["train", "evaluate"]


def test_tables_share_a_run(tmp_path, tools):
    for name, row in (("patchdct-6", "three_class"), ("patchdct-9", "dim_6"), ("patchdct-13", "p2")):
        assert make(session(tmp_path, tools), name, row) == []
    assert tools.names() == ["train", "evaluate"]
    assert make(session(tmp_path, tools), "patchdct-10", "stage_1") == []
    assert tools.names() == ["train", "evaluate", "analyze_model", "benchmark"]
    assert make(session(tmp_path, tools), "patchdct-2", "patchdct_R_50") == []
    assert len(tools.calls) == 4


def test_an_interrupted_training_is_resumed(tmp_path, tools):
    tools.interrupt = True
    (problem,) = make(session(tmp_path, tools), "patchdct-8", "without")
    assert problem == "without: train_net.py ended with status -9"
    assert state(session(tmp_path, tools), "patchdct-8", "without") == "interrupted"
    tools.interrupt = False
    assert make(session(tmp_path, tools), "patchdct-8", "without") == []
    assert tools.names() == ["train", "train", "evaluate"]
    assert all("--resume" in args for _, args in tools.calls[:2])


def test_parts_are_made_one_by_one(tmp_path, tools):
    (problem,) = make(session(tmp_path, tools), "patchdct-8", "without", parts=["evaluate"])
    assert "is not trained yet" in problem and not tools.calls
    assert make(session(tmp_path, tools), "patchdct-8", "without", parts=["train"]) == []
    assert state(session(tmp_path, tools), "patchdct-8", "without") == "trained"
    assert make(session(tmp_path, tools), "patchdct-8", "without", parts=["evaluate"]) == []
    assert tools.names() == ["train", "evaluate"]


def test_cost_needs_neither_data_nor_training(tmp_path, tools):
    full = session(tmp_path, tools, quick=False, overrides=[])
    assert make(full, "airm-4", parts=["cost"]) == []
    assert tools.names() == ["analyze_model", "benchmark"] * 4
    assert tools.calls[0][1][-4:] == ["1706", "2560", "--tile-size", "0"]
    (airm,) = results_of(TABLES.table("airm-4"), TABLES.table("airm-4").select(["airm_mit_b1"]), full)
    assert airm.obtained == (None, 1881.0, 0.08, 14.03)
    assert (airm.state, airm.device) == ("absent", "Abacus, 4 threads")


def test_missing_data_is_named_and_the_rest_is_made(tmp_path, tools):
    full = session(tmp_path, tools, quick=False, overrides=[])
    (problem,) = make(full, "patchdct-10")
    assert problem.startswith("stage_1, stage_2, stage_3: data set coco_2017_train needs ")
    assert "datasets/README.md" in problem
    assert tools.names() == ["analyze_model", "benchmark"] * 3


def test_a_missing_test_set_leaves_the_others(tmp_path, tools, monkeypatch):
    monkeypatch.setattr("reproduction.quick.test_set", lambda name: PAIRS if name == "big_fcn8s" else name)
    small = session(tmp_path, tools, "DATASETS.TRAIN", f"('{PAIRS}',)")
    (problem,) = make(small, "airm-1", "big_fcn8s", "big_pspnet")
    assert problem.startswith("big_pspnet: data set big_pspnet needs the folder")
    table = TABLES.table("airm-1")
    first, second = results_of(table, table.select(["big_fcn8s", "big_pspnet"]), small)
    assert first.obtained == (80.0, 50.0, *[None] * 6, 91.5, 72.25)
    assert second.obtained == (None,) * 10 and second.state == "trained"


def test_a_failure_is_not_repeated_for_rows_that_share_the_run(tmp_path, tools):
    tools.failing = {"train_net"}
    assert make(session(tmp_path, tools), "patchdct-1") == [
        "binary_grid, patch_8_dim_3, patch_8_dim_6, patch_8_dim_9, patch_8_dim_12, dct_200, dct_300: "
        "train_net.py ended with status 1"
    ]
    assert tools.names() == ["train"]


def test_repeats_are_trained_once_and_shown_together(tmp_path, tools):
    def shown() -> tuple:
        (result,) = results_of(table, rows, session(tmp_path, tools))
        return result.obtained[:2], result.runs[0], result.repeats

    table, rows = TABLES.table("patchdct-5"), TABLES.table("patchdct-5").select(["binary_grid"])
    make(session(tmp_path, tools), "patchdct-5", "binary_grid")
    assert shown() == ((37.04, 24.0), (37.04,), 1)
    assert make(session(tmp_path, tools, repeats=3), "patchdct-5", "binary_grid") == []
    assert tools.names() == ["train", "evaluate"] * 3  # the quick run has seed 1
    assert [load_cfg(args[1]).SEED for _, args in tools.calls[::2]] == [1, 2, 3]
    assert shown() == ((pytest.approx(37.54), 24.0), (37.04, 37.54, 38.04), 3)
    assert make(session(tmp_path, tools, repeats=2), "patchdct-5", "binary_grid") == []
    assert len(tools.calls) == 6
    tools.interrupt = True
    make(session(tmp_path, tools, repeats=4), "patchdct-5", "binary_grid")
    assert shown()[2] == 3  # the fourth is not evaluated
    only = replace(TABLES, tables={"patchdct-5": replace(table, rows=tuple(rows))})
    (line,) = overview(only, session(tmp_path, tools))
    assert (line["state"], line["runs"]) == ("evaluated", 3)


def test_repeats_go_through_all_rows_with_a_seed_before_the_next(tmp_path, tools):
    assert make(session(tmp_path, tools, repeats=2), "patchdct-10", "stage_1", "stage_2") == []
    folders = [Path(args[1]).parent.name for tool, args in tools.calls if "--resume" in args]
    first, second = "patchdct_R_50_FPN_1x_coco", "patchdct_R_50_FPN_1x_2stage_coco"
    assert folders == [first, second, f"{first}_seed_2", f"{second}_seed_2"]
    assert tools.names().count("benchmark") == 2  # one for a row
    (result, _) = results_of(
        TABLES.table("patchdct-10"), TABLES.table("patchdct-10").rows[:2], session(tmp_path, tools)
    )
    assert [len(runs) for runs in result.runs] == [2, 2, 2, 0, 2, 0, 1, 1]


def test_a_repeat_starts_from_the_repeat_of_the_same_seed(tmp_path, tools):
    assert make(session(tmp_path, tools, repeats=2), "patchdct-3", "mask_rcnn_from_coco") == []
    assert tools.names() == ["train", "train", "evaluate"] * 2
    cfg = load_cfg(tools.calls[4][1][1])
    assert cfg.SEED == 2 and cfg.MODEL.WEIGHTS.endswith("/mask_rcnn_R_50_FPN_1x_coco_seed_2/model_final.pth")


def test_runs_of_another_config_are_not_in_the_mean(tmp_path, tools):
    table, rows = TABLES.table("patchdct-6"), TABLES.table("patchdct-6").select(["two_class"])
    make(session(tmp_path, tools, "SOLVER.BASE_LR", "0.5", repeats=2), "patchdct-6", "two_class")
    (result,) = results_of(table, rows, session(tmp_path, tools))
    assert result.repeats == 2 and result.changes == "SOLVER.BASE_LR 0.5, now 0.002"
    make(session(tmp_path, tools, repeats=3), "patchdct-6", "two_class")
    (result,) = results_of(table, rows, session(tmp_path, tools))
    assert result.runs[0] == (38.04,) and not result.changes
    with pytest.raises(UserError, match="leave out SEED, or --repeats"):
        session(tmp_path, tools, "SEED", "7", repeats=2)


def test_changes_of_a_config(tmp_path, tools):
    make(session(tmp_path, tools), "patchdct-7", "all")
    changed = session(tmp_path, tools, "SOLVER.BASE_LR", "0.5")
    (problem,) = make(changed, "patchdct-7", "all")
    assert "SOLVER.BASE_LR 0.002, now 0.5" in problem and "--output" in problem
    assert len(tools.calls) == 2
    (result,) = results_of(TABLES.table("patchdct-7"), TABLES.table("patchdct-7").select(["all"]), changed)
    assert result.changes == "SOLVER.BASE_LR 0.002, now 0.5"
    other = session(tmp_path, tools, "DATALOADER.NUM_WORKERS", "4", num_gpus=8)
    assert make(other, "patchdct-7", "all") == []
    assert state(session(tmp_path, tools, quick=False), "patchdct-7", "all") == "absent"
    assert (tmp_path / "runs/quick/patchdct_all_patches_R_50_FPN_1x_coco/model_final.pth").is_file()
    (problem,) = make(session(tmp_path, tools, "SOLVER.BASE_LRR", "1"), "patchdct-7", "all")
    assert "SOLVER.BASE_LRR; did you mean" in problem


def test_iterations_scale_the_schedule(tmp_path, tools):
    row = TABLES.table("patchdct-2").rows[0]
    solver = Session(tmp_path, iterations=900).run_of(row).cfg.SOLVER
    assert (solver.MAX_ITER, solver.STEPS, solver.WARMUP_ITERS) == (900, (600, 800), 10)


def test_training_from_coco_starts_with_that_model(tmp_path, tools):
    assert make(session(tmp_path, tools), "patchdct-3", "mask_rcnn_from_coco") == []
    assert tools.names() == ["train", "train", "evaluate"]
    runs = tmp_path / "runs" / "quick"
    given = (runs / "mask_rcnn_R_50_FPN_cityscapes_from_coco" / "config.given.yaml").read_text()
    assert f"WEIGHTS: {runs}/mask_rcnn_R_50_FPN_1x_coco/model_final.pth" in given
    assert make(session(tmp_path, tools), "patchdct-1", "dct_300") == []
    assert tools.names()[3:] == ["evaluate", "upper_bound"]  # of the model trained for it


def test_the_upper_bound_takes_the_detections_of_the_run(tmp_path, tools):
    made_by = session(tmp_path, tools)
    assert make(made_by, "patchdct-1", "dct_200", "dct_300") == []
    assert tools.names() == ["train", "evaluate", "upper_bound"]
    args = tools.calls[2][1]
    assert args[args.index("--detections") + 1].endswith("inference/shapes_val_1_72px/coco_instances_results.json")
    results = results_of(TABLES.table("patchdct-1"), TABLES.table("patchdct-1").rows, made_by)
    assert [result.obtained for result in results] == [(51,), (53,), (56,), (59,), (62,), (250,), (350,)]


def test_the_record_says_what_a_figure_stands_on(tmp_path, tools, monkeypatch):
    monkeypatch.setattr("reproduction.session.commit", lambda: "0123abc")
    made_by = session(tmp_path, tools, num_gpus=2)
    make(made_by, "patchdct-6", "two_class")
    run = made_by.run_of(TABLES.table("patchdct-6").rows[0])
    training = run.record()["training"]
    assert training["schedule"] == {"iterations": 120, "batch": 8, "lr": 0.002}
    assert training["hours"] == pytest.approx(120 * 2.0 / 3600)  # times of 1 and 3 seconds
    assert training["gpus"] == 2 and training["commits"] == ["0123abc"]
    version = annotation_version(SHAPES)
    evaluated = {"commit": "0123abc", "annotations": {SHAPES: version}}
    assert run.record()["evaluations"][SHAPES] == evaluated
    (result,) = results_of(TABLES.table("patchdct-6"), TABLES.table("patchdct-6").select(["two_class"]), made_by)
    assert result.commit == "0123abc" and result.schedule == "120 x 8, lr 0.002"
    assert f"shapes_val_1_72px {version}" in result.annotations


def test_lvis_annotations_that_come_later_are_evaluated(tmp_path, tools, monkeypatch):
    """The test set is drawn, all else is as with COCO."""
    root = tmp_path / "data"
    monkeypatch.setenv("DETECTRON2_DATASETS", str(root))
    full = session(tmp_path, tools, "MODEL.ROI_HEADS.NUM_CLASSES", "8", quick=False)
    monkeypatch.setattr(full, "test_of", lambda row: SHAPES)
    assert make(full, "patchdct-5", "binary_grid") == []
    (root / "lvis").mkdir(parents=True)
    (root / "lvis" / "lvis_v0.5_val_cocofied.json").write_text("{}")
    assert make(full, "patchdct-5", "binary_grid") == []
    assert tools.names() == ["train", "evaluate", "evaluate"]
    record = json.loads(next((tmp_path / "runs").glob("*/reproduction.json")).read_text())
    assert "lvis/lvis_v0.5_val_cocofied.json" in record["evaluations"]["shapes_val_1_72px"]["annotations"]
    assert make(full, "patchdct-5", "binary_grid") == []
    assert len(tools.calls) == 3


def test_versions_of_mask_files_follow_their_content(tmp_path, monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    register_synthetic("synthetic_refinement_val_2_80x64")
    before = annotation_version("synthetic_refinement_val_2_80x64")
    assert before == annotation_version("synthetic_refinement_val_2_80x64")
    coarse = make_synthetic("synthetic_refinement_val_2_80x64") / "000001_seg.png"
    coarse.write_bytes(coarse.with_name("000001_gt.png").read_bytes())
    assert annotation_version("synthetic_refinement_val_2_80x64") != before
