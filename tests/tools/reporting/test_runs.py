import json
from pathlib import Path

import pytest
import yaml

from pixelmask.errors import UserError
from reporting.metric_tables import metric_tables
from reporting.page import spread
from reporting.reported_runs import choose_data_set, read_curves, read_run, read_runs
from tests.support.models import tiny_airm_cfg, tiny_cfg

METRICS = {"segm": {"AP": 37.0, "AP50": float("nan"), "AP-cat": 12.5}, "boundary": {"AP": 25.0}}


def write_run(folder: Path, sets: tuple[str, ...] = ("val",), evaluation: object = METRICS, airm: bool = False) -> Path:
    folder.mkdir(parents=True)
    cfg = tiny_airm_cfg() if airm else tiny_cfg()
    cfg.DATASETS.TEST = sets
    cfg.OUTPUT_DIR = str(folder)
    (folder / "config.yaml").write_text(cfg.dump())
    (folder / "evaluation.json").write_text(json.dumps(evaluation))
    return folder


def test_metrics_of_one_set_and_of_several(tmp_path):
    one = read_run(write_run(tmp_path / "one"))
    assert one.name == "one" and one.evaluation["val"]["boundary"] == {"AP": 25.0}
    two = read_run(write_run(tmp_path / "two", ("val", "other"), {"val": METRICS, "other": {}}))
    assert list(two.evaluation) == ["val", "other"] and two.evaluation["other"] == {}
    assert choose_data_set([two, one]) == "val"
    assert choose_data_set([two], "other") == "other"


def test_the_weights_of_a_run(tmp_path):
    run = read_run(write_run(tmp_path / "a"))

    def weights() -> Path:
        return Path(run.config_for("val").MODEL.WEIGHTS)

    assert weights() == Path("")
    (run.folder / "last_checkpoint").write_text("model_final.pth")
    assert weights() == run.folder / "model_final.pth"
    run.cfg.defrost()
    run.cfg.MODEL.WEIGHTS = str(run.folder / "model_0000099.pth")  # --eval-only on one of its own
    assert weights() == run.folder / "model_0000099.pth"


@pytest.mark.parametrize("missing", ["config.yaml", "evaluation.json"])
def test_a_folder_without_an_evaluation(tmp_path, missing):
    folder = write_run(tmp_path / "a")
    (folder / missing).unlink()
    with pytest.raises(UserError, match=f"no {missing}.*--eval-only"):
        read_run(folder)
    with pytest.raises(UserError, match="no folder"):
        read_run(tmp_path / "b")


@pytest.mark.parametrize("content", ["{", "[]", '{"val": 3}', '{"elsewhere": {"segm": {}}, "val": {}}'])
def test_a_damaged_evaluation(tmp_path, content):
    folder = write_run(tmp_path / "a", ("val", "other"))
    (folder / "evaluation.json").write_text(content)
    with pytest.raises(UserError, match="evaluation.json"):
        read_run(folder)


def test_runs_that_cannot_be_compared(tmp_path):
    runs = [read_run(write_run(tmp_path / name, (name,))) for name in ("a", "b")]
    with pytest.raises(UserError, match="different data sets.*a on a; b on b"):
        choose_data_set(runs)
    with pytest.raises(UserError, match="--data-set c.*a on a"):
        choose_data_set(runs[:1], "c")
    with pytest.raises(UserError, match="not of both"):
        choose_data_set([runs[0], read_run(write_run(tmp_path / "c", ("a",), {}, airm=True))])


def test_names_tell_runs_apart(tmp_path):
    folders = [write_run(tmp_path / parent / "run") for parent in "ab"]
    with pytest.raises(UserError, match="--names"):
        read_runs(folders)
    with pytest.raises(UserError, match="1 names.*2 runs"):
        read_runs(folders, ["a"])
    with pytest.raises(UserError, match="own"):
        read_runs(folders, ["a", "a"])
    assert [run.name for run in read_runs(folders, ["b", "a"])] == ["b", "a"]


def test_curves_of_a_resumed_and_interrupted_and_of_a_long_training(tmp_path):
    lines = [{"iteration": i, "total_loss": 10.0 - i, "lr": 0.1} for i in (1, 2, 3)]
    lines += [{"iteration": 3, "total_loss": 5.0}, {"iteration": 4, "segm/AP": float("nan"), "segm/AP50": 1}]
    path = tmp_path / "metrics.json"
    path.write_text("\n".join(map(json.dumps, lines)) + '\n{"iteration": 5, "tot')
    assert read_curves(path) == {
        "total_loss": [(1, 9.0), (2, 8.0), (3, 5.0)],
        "lr": [(1, 0.1), (2, 0.1), (3, 0.1)],
        "segm/AP50": [(4, 1.0)],
    }
    assert read_curves(tmp_path / "none.json") == {}
    path.write_text("\n".join(json.dumps({"iteration": i, "total_loss": i % 2}) for i in range(800)))
    curve = read_curves(path)["total_loss"]
    assert len(curve) == 400 and curve[0] == (1, 0.5) and curve[-1] == (799, 0.5)


def test_lines_that_are_no_metrics(tmp_path):
    lines = ["3", "[]", '{"iteration": []}', '{"iteration": "x", "lr": 1}', '{"iteration": 2, "lr": {}, "loss": 1e400}']
    path = tmp_path / "metrics.json"
    path.write_bytes("\n".join([*lines, "[" * 100_000, '{"iteration": 1, "lr": 0.5}']).encode() + b"\n\xff")
    assert read_curves(path) == {"lr": [(1, 0.5)]}


def test_an_evaluation_alone_has_the_curves_of_its_training(tmp_path):
    training, evaluation = write_run(tmp_path / "training"), write_run(tmp_path / "evaluation")
    (training / "metrics.json").write_text(json.dumps({"iteration": 1, "total_loss": 2.0}))
    config = (evaluation / "config.yaml").read_text().replace("WEIGHTS: ''", f"WEIGHTS: {training}/model_final.pth")
    (evaluation / "config.yaml").write_text(config)
    assert read_run(evaluation).curves == {"total_loss": [(1, 2.0)]}


def test_tables_put_runs_and_the_papers_figures_together(tmp_path):
    paper = write_run(tmp_path / "patchdct_R_50_FPN_1x_coco", ("coco_2017_val",))
    other = write_run(tmp_path / "other", ("coco_2017_val",))
    tables = {table.caption: table for table in metric_tables(read_runs([paper, other]))}
    segm, boundary = tables["Mask AP on coco_2017_val"], tables["Boundary AP on coco_2017_val"]
    assert segm.columns == ["AP", "AP50"]
    (name, cells), (source, printed), (_, differences), other_row = segm.rows
    assert (name, cells) == ("patchdct_R_50_FPN_1x_coco", ["37.00", "–"])
    assert source.startswith("paper: PatchDCT, Table 2, 5, 6") and printed == ["37.2", ""]
    assert differences == ["-0.20", ""] and other_row == ("other", ["37.00", "–"])
    # Table 5 prints another figure than Table 2
    assert boundary.rows[1][1] == ["24.5 / 24.7"] and boundary.rows[2][1] == ["+0.50"]
    classes = tables["AP of each class on coco_2017_val"]
    assert classes.is_detail and classes.rows == [("cat", ["12.50", "12.50"])]
    run = read_run(write_run(tmp_path / "shapes" / "patchdct_R_50_FPN_1x_coco", ("shapes_val",)))
    assert [len(table.rows) for table in metric_tables([run])] == [1, 1, 1], "these are of the paper's data alone"


def test_repeats_have_a_mean_and_a_spread(tmp_path):
    def repeat(name: str, ap: float, seed: int, **changes: object) -> Path:
        folder = write_run(tmp_path / name, evaluation={"segm": {"AP": ap, "APl": float("nan")}})
        config = yaml.safe_load((folder / "config.yaml").read_text())
        config["MODEL"]["WEIGHTS"] = str(folder / "model_final.pth")
        (folder / "config.yaml").write_text(yaml.safe_dump({**config, "SEED": seed, **changes}))
        return folder

    folders = [repeat(f"a_seed_{seed}", ap, seed) for seed, ap in ((1, 30.0), (2, 33.0), (3, 31.5))]
    others = [repeat("b", 50.0, 1, VIS_PERIOD=7), repeat("c", 60.0, 1)]  # another config, and other weights
    (table,) = metric_tables(read_runs([*folders, *others]))
    assert [name for name, _ in table.rows[:5]] == ["a_seed_1", "a_seed_2", "a_seed_3", "b", "c"]
    assert table.rows[5:] == [
        ("mean of 3 seeds: a_seed_1, a_seed_2, a_seed_3", ["31.50", "–"]),
        ("their spread, largest minus smallest", ["3.00", "–"]),
    ]
    (table,) = metric_tables(read_runs([folders[0], repeat("again/a_seed_1", 20.0, 1)], ["one", "same seed"]))
    assert len(table.rows) == 2


def test_records_are_spread_evenly():
    assert spread(range(10), 4) == [0, 2, 5, 7]
    assert spread(range(3), 100) == [0, 1, 2]
