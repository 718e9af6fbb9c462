"""The launcher, as a user starts it: training, resuming, evaluation, several processes, and every kind of bad input."""

import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from pixelmask.cli import run
from pixelmask.config import load_cfg
from pixelmask.engine.trainer import log_scaled_schedule
from pixelmask.errors import UserError
from tests.support.models import load_tool

SHAPES = "configs/patchdct/shapes/patchdct_shapes.yaml"
TINY = [
    "MODEL.RESNETS.RES2_OUT_CHANNELS", "8", "MODEL.RESNETS.STEM_OUT_CHANNELS", "8", "MODEL.FPN.OUT_CHANNELS", "8",
    "MODEL.ROI_BOX_HEAD.FC_DIM", "16", "MODEL.ROI_MASK_HEAD.CONV_DIM", "8", "MODEL.ROI_MASK_HEAD.HIDDEN_FEATURES", "8",
    "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE", "8", "INPUT.MIN_SIZE_TRAIN", "(96,)", "INPUT.MIN_SIZE_TEST", "96",
    "SOLVER.IMS_PER_BATCH", "2", "SOLVER.MAX_ITER", "3", "SOLVER.STEPS", "()", "SOLVER.CHECKPOINT_PERIOD", "2",
    "DATASETS.TRAIN", "('shapes_train_8_96px',)", "DATASETS.TEST", "('shapes_val_6_96px',)",
    "MODEL.ROI_HEADS.SCORE_THRESH_TEST", "0.0", "TEST.DETECTIONS_PER_IMAGE", "5",
]  # fmt: skip


train_net = load_tool("train_net")


def call(*args: str, config: str = SHAPES, tiny: bool = True):
    """Run train_net in this process, as its command line does."""
    options = [a for a in args if a.startswith("--")]
    arguments = [
        "--config-file",
        config,
        *options,
        *(TINY if tiny else []),
        *(a for a in args if not a.startswith("--")),
    ]
    return run(train_net.launch, train_net.main, train_net.argument_parser().parse_args(arguments))


def command(*args: str) -> list[str]:
    return [sys.executable, "tools/train_net.py", "--config-file", SHAPES, *args]


@pytest.fixture(scope="session")
def shapes_root(tmp_path_factory):
    return tmp_path_factory.mktemp("datasets")


@pytest.fixture(autouse=True)
def environment(monkeypatch, shapes_root):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(shapes_root))


@pytest.fixture(scope="session")
def trained(tmp_path_factory, shapes_root) -> Path:
    """The output folder of a short training."""
    output = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DETECTRON2_DATASETS", str(shapes_root))
        call("OUTPUT_DIR", str(output))
    return output


def metrics_of(folder: Path) -> dict:
    return json.loads((folder / "evaluation.json").read_text())


def same(a, b) -> bool:
    return json.dumps(a, sort_keys=True) == json.dumps(b, sort_keys=True)


def test_training_leaves_checkpoint_log_and_metrics(trained):
    assert (trained / "model_final.pth").is_file()
    results = metrics_of(trained)
    assert set(results) == {"bbox", "segm", "boundary"}
    logged = {key for line in (trained / "metrics.json").read_text().splitlines() for key in json.loads(line)}
    assert {"loss_mask", "patchdct/loss_dct", "patchdct/loss_patch_cls", "patchdct/loss_patch_dct", "lr"} <= logged
    assert {"segm/AP", "boundary/AP", "bbox/AP"} <= logged


def test_evaluation_alone_is_digit_for_digit_that_of_training(trained, tmp_path):
    call("--eval-only", "OUTPUT_DIR", str(tmp_path), "MODEL.WEIGHTS", str(trained / "model_final.pth"))
    assert same(metrics_of(tmp_path), metrics_of(trained))


def test_two_processes_evaluate_like_one(trained, tmp_path):
    opts = [*TINY, "OUTPUT_DIR", str(tmp_path), "MODEL.WEIGHTS", str(trained / "model_final.pth")]
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    result = subprocess.run([*launcher, *command("--eval-only", *opts)[1:]], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-3000:]
    assert "World size: 2" in result.stdout + result.stderr
    assert same(metrics_of(tmp_path), metrics_of(trained))


@pytest.mark.slow
def test_two_processes_train(tmp_path):
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    opts = [*TINY, "OUTPUT_DIR", str(tmp_path)]
    result = subprocess.run([*launcher, *command(*opts)[1:]], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-3000:]
    assert (tmp_path / "model_final.pth").is_file()


def test_evaluation_and_pictures_in_between_change_nothing_of_a_training(tmp_path, trained):
    call("OUTPUT_DIR", str(tmp_path), "TEST.EVAL_PERIOD", "1", "VIS_PERIOD", "1")
    metrics = [json.loads(line) for line in (tmp_path / "metrics.json").read_text().splitlines()]
    assert sum("segm/AP" in line for line in metrics) >= 2
    once, often = (torch.load(f / "model_final.pth", weights_only=False)["model"] for f in (trained, tmp_path))
    assert all(torch.equal(once[name], often[name]) for name in once)


def steps_of_adam(checkpoint: Path) -> set[int]:
    """How often the optimizer in a checkpoint has updated its averages."""
    optimizer = torch.load(checkpoint, weights_only=False)["trainer"]["_trainer"]["optimizer"]
    return {int(state["step"]) for state in optimizer["state"].values()}


def test_resume_after_kill_continues_from_the_last_checkpoint(tmp_path):
    opts = [*TINY, "OUTPUT_DIR", str(tmp_path), "SOLVER.MAX_ITER", "100000", "SOLVER.CHECKPOINT_PERIOD", "5"]
    process = subprocess.Popen(command(*opts), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.time() + 100
    while not (tmp_path / "model_0000009.pth").exists() and time.time() < deadline:
        time.sleep(0.1)
    process.send_signal(signal.SIGKILL)
    process.wait()
    last = (tmp_path / "last_checkpoint").read_text().strip()
    iteration = int(Path(last).stem.removeprefix("model_"))
    log = tmp_path / "log.txt"
    before = len(log.read_text())
    call("--resume", "OUTPUT_DIR", str(tmp_path), "SOLVER.MAX_ITER", str(iteration + 3))
    assert f"Starting training from iteration {iteration + 1}" in log.read_text()[before:]
    assert steps_of_adam(tmp_path / last) == {iteration + 1}
    assert steps_of_adam(tmp_path / "model_final.pth") == {iteration + 3}


def test_a_checkpoint_without_the_optimizer_is_resumed_with_a_warning(tmp_path, trained, caplog):
    content = torch.load(trained / "model_0000001.pth", weights_only=False)
    del content["trainer"]["_trainer"]
    torch.save(content, tmp_path / "model_0000001.pth")
    (tmp_path / "last_checkpoint").write_text("model_0000001.pth")
    call("--resume", "OUTPUT_DIR", str(tmp_path))
    assert "no state of the optimizer, which starts anew" in (tmp_path / "log.txt").read_text()
    assert steps_of_adam(tmp_path / "model_final.pth") == {1}


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (("SOLVER.OPTIMIZER", "SGD"), "has no dampening and momentum"),
        (("MODEL.ROI_BOX_HEAD.NUM_FC", "3"), "loaded state dict"),
    ],
)
def test_resuming_with_another_optimizer_ends_in_a_message(tmp_path, trained, capsys, change, reason):
    shutil.copy(trained / "model_0000001.pth", tmp_path)
    (tmp_path / "last_checkpoint").write_text("model_0000001.pth")
    with pytest.raises(SystemExit):
        call("--resume", "OUTPUT_DIR", str(tmp_path), *change)
    message = capsys.readouterr().err
    assert f"cannot resume in {tmp_path}" in message and reason in message


def test_reference_world_size_scales_the_schedule_and_says_so(caplog):
    cfg = load_cfg("configs/patchdct/patchdct_R_50_FPN_1x_coco.yaml", ["SOLVER.REFERENCE_WORLD_SIZE", "8"])
    with caplog.at_level("INFO", logger="patchdct"):
        scaled = log_scaled_schedule(cfg)
    assert (scaled.SOLVER.IMS_PER_BATCH, scaled.SOLVER.BASE_LR, scaled.SOLVER.MAX_ITER) == (2, 0.0025, 720000)
    for change in ("IMS_PER_BATCH from 16 to 2", "BASE_LR from 0.02 to 0.0025", "MAX_ITER from 90000 to 720000"):
        assert f"Scaled SOLVER.{change}" in caplog.text


def test_a_reference_that_does_not_divide_the_batch_is_named():
    cfg = load_cfg("configs/patchdct/patchdct_R_50_FPN_1x_coco.yaml", ["SOLVER.REFERENCE_WORLD_SIZE", "3"])
    with pytest.raises(UserError, match="REFERENCE_WORLD_SIZE 3"):
        log_scaled_schedule(cfg)


def test_nothing_is_scaled_unasked():
    cfg = load_cfg("configs/patchdct/patchdct_R_50_FPN_1x_coco.yaml")
    assert log_scaled_schedule(cfg) == cfg


def coco_set(folder: Path, **changes) -> tuple[str, str, str]:
    """A COCO-format set of two images, with ``changes`` to the parts of its JSON; its name, JSON and image folder."""
    (folder / "images").mkdir(parents=True)
    for i in (1, 2):
        cv2.imwrite(str(folder / "images" / f"{i}.png"), np.full((64, 64, 3), 40 * i, np.uint8))
    content = {
        "images": [{"id": i, "file_name": f"{i}.png", "height": 64, "width": 64} for i in (1, 2)],
        "annotations": [
            {"id": i, "image_id": i, "category_id": 7, "bbox": [10, 10, 30, 20], "area": 600, "iscrowd": 0,
             "segmentation": [[10, 10, 40, 10, 40, 30, 10, 30]]}
            for i in (1, 2)
        ],
        "categories": [{"id": 7, "name": "thing"}],
    }  # fmt: skip
    content.update(changes)
    (folder / "set.json").write_text(json.dumps(content))
    return f"set_{folder.name}_{os.urandom(4).hex()}", str(folder / "set.json"), str(folder / "images")


def train_on(triple: tuple[str, str, str], output: Path, *args: str):
    name = triple[0]
    opts = [
        "DATASETS.COCO_FORMAT",
        str([list(triple)]),
        "DATASETS.TRAIN",
        f"('{name}',)",
        "DATASETS.TEST",
        f"('{name}',)",
    ]
    opts += ["INPUT.MASK_FORMAT", "polygon", "MODEL.ROI_HEADS.NUM_CLASSES", "1", "SOLVER.MAX_ITER", "1"]
    return call("OUTPUT_DIR", str(output), *opts, *args)


def test_own_data_set_needs_no_python(tmp_path):
    name, json_file, images = coco_set(tmp_path / "data")
    arguments = ["--config-file", SHAPES, "--dataset", name, json_file, images]
    arguments += [*TINY, "OUTPUT_DIR", str(tmp_path / "out")]
    arguments += ["DATASETS.TRAIN", f"('{name}',)", "DATASETS.TEST", f"('{name}',)", "INPUT.MASK_FORMAT", "polygon"]
    arguments += ["MODEL.ROI_HEADS.NUM_CLASSES", "1", "SOLVER.MAX_ITER", "1"]
    run(train_net.launch, train_net.main, train_net.argument_parser().parse_args(arguments))
    assert "AP-thing" not in metrics_of(tmp_path / "out")["segm"], "Detectron2 gives no class AP for a single class"
    assert "boundary" in metrics_of(tmp_path / "out")


def expect_message(capsys, *parts: str):
    message = capsys.readouterr().err.strip().splitlines()[-1]
    assert message.startswith("error: ")
    for part in parts:
        assert part in message


TWO_POINTS = {"id": 5, "image_id": 1, "category_id": 7, "bbox": [1, 1, 9, 9], "segmentation": [[1, 1, 9, 9]]}


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({"annotations": [{**TWO_POINTS, "area": 9, "iscrowd": 0}]}, ["set.json", "5"]),
        ({"images": [], "annotations": []}, ["set.json"]),
        ({"images": {"a": 1}}, ["set.json"]),
        ({"categories": None}, ["set.json"]),
    ],
    ids=["two points", "no images", "images no list", "no categories"],
)
def test_json_that_cannot_be_used(tmp_path, capsys, changes, parts):
    triple = coco_set(tmp_path / "data", **changes)
    with pytest.raises(SystemExit) as exit_:
        train_on(triple, tmp_path / "out")
    assert exit_.value.code == 1
    expect_message(capsys, *parts)


@pytest.mark.parametrize("content", ["[1, 2", '{"shapes": []}', "[]"])
def test_json_that_is_not_coco(tmp_path, capsys, content):
    triple = coco_set(tmp_path / "data")
    Path(triple[1]).write_text(content)
    with pytest.raises(SystemExit) as exit_:
        train_on(triple, tmp_path / "out")
    assert exit_.value.code == 1
    expect_message(capsys, triple[1])


def test_missing_image_folder(tmp_path, capsys):
    triple = coco_set(tmp_path / "data")
    shutil.rmtree(triple[2])
    with pytest.raises(SystemExit) as exit_:
        train_on(triple, tmp_path / "out")
    assert exit_.value.code == 1
    expect_message(capsys, triple[2])


def test_missing_builtin_data_set(tmp_path, capsys):
    with pytest.raises(SystemExit) as exit_:
        call("OUTPUT_DIR", str(tmp_path), "DATASETS.TRAIN", "('coco_2017_train',)", "DATASETS.TEST", "()")
    assert exit_.value.code == 1
    expect_message(capsys, "coco_2017_train", "DETECTRON2_DATASETS")


def test_unregistered_data_set(tmp_path, capsys):
    with pytest.raises(SystemExit) as exit_:
        call("OUTPUT_DIR", str(tmp_path), "DATASETS.TRAIN", "('coco_2017_trian',)")
    assert exit_.value.code == 1
    expect_message(capsys, "coco_2017_trian", "coco_2017_train")


def test_class_count_that_does_not_fit(tmp_path, capsys):
    with pytest.raises(SystemExit) as exit_:
        call("OUTPUT_DIR", str(tmp_path), "MODEL.ROI_HEADS.NUM_CLASSES", "3")
    assert exit_.value.code == 1
    expect_message(capsys, "MODEL.ROI_HEADS.NUM_CLASSES", "3", "shapes_val_6_96px")


@pytest.mark.parametrize("workers", ["0", "1"])
@pytest.mark.parametrize("damage", ["truncated", "text"])
def test_unreadable_image(tmp_path, capsys, damage, workers):
    triple = coco_set(tmp_path / "data")
    for i in (1, 2):
        path = Path(triple[2]) / f"{i}.png"
        path.write_bytes(path.read_bytes()[:60] if damage == "truncated" else b"no image")
    with pytest.raises(SystemExit) as exit_:
        train_on(triple, tmp_path / "out", "DATALOADER.NUM_WORKERS", workers)
    assert exit_.value.code == 1
    expect_message(capsys, ".png")


class Malicious:
    def __init__(self, marker: Path):
        self.marker = marker

    def __reduce__(self):
        return (Path.touch, (self.marker,))


@pytest.mark.parametrize("suffix", ["pth", "pkl"])
def test_checkpoint_that_would_run_code_is_refused(tmp_path, capsys, suffix):
    marker = tmp_path / "marker"
    weights = tmp_path / f"bad.{suffix}"
    content = {"model": {"a": Malicious(marker)}}
    weights.write_bytes(pickle.dumps(content)) if suffix == "pkl" else torch.save(content, weights)
    with pytest.raises(SystemExit) as exit_:
        call("--eval-only", "OUTPUT_DIR", str(tmp_path / "out"), "MODEL.WEIGHTS", str(weights))
    assert exit_.value.code == 1
    assert not marker.exists()
    expect_message(capsys, str(weights))


@pytest.mark.parametrize("kind", ["truncated", "text", "foreign", "missing"])
def test_checkpoint_that_cannot_be_used(tmp_path, capsys, trained, kind):
    weights = tmp_path / "weights.pth"
    if kind == "truncated":
        weights.write_bytes((trained / "model_final.pth").read_bytes()[:5000])
    elif kind == "text":
        weights.write_text("not a checkpoint")
    elif kind == "foreign":
        torch.save({"encoder.layer.0": torch.zeros(3)}, weights)
    with pytest.raises(SystemExit) as exit_:
        call("--eval-only", "OUTPUT_DIR", str(tmp_path / "out"), "MODEL.WEIGHTS", str(weights))
    assert exit_.value.code == 1
    expect_message(capsys, str(weights))


def test_evaluation_of_a_model_that_would_be_partly_random(tmp_path, capsys, trained):
    for opts, part in (
        (
            [
                "MODEL.WEIGHTS",
                str(trained / "model_final.pth"),
                "MODEL.ROI_MASK_HEAD.PATCH_SIZE",
                "16",
                "MODEL.ROI_MASK_HEAD.PATCH_CLASSES",
                "2",
            ],
            "stay random",
        ),
        (["MODEL.WEIGHTS", ""], "MODEL.WEIGHTS"),
        (["--resume", "MODEL.WEIGHTS", ""], "--resume"),
    ):
        with pytest.raises(SystemExit) as exit_:
            call("--eval-only", *opts, "OUTPUT_DIR", str(tmp_path / "out"))
        assert exit_.value.code == 1
        expect_message(capsys, part)


@pytest.mark.parametrize(
    ("opts", "part"),
    [
        (["MODEL.ROI_MASK_HEAD.EVAL_GT", "True"], "EVAL_GT"),
        (["MODEL.ROI_MASK_HEAD.PATCHSIZE", "8"], "MODEL.ROI_MASK_HEAD.PATCHSIZE"),
    ],
)
def test_bad_keys(tmp_path, capsys, opts, part):
    with pytest.raises(SystemExit) as exit_:
        call("OUTPUT_DIR", str(tmp_path), *opts)
    assert exit_.value.code == 1
    expect_message(capsys, part)


def test_more_gpus_than_there_are(tmp_path, capsys):
    with pytest.raises(SystemExit) as exit_:
        arguments = ["--config-file", SHAPES, "--num-gpus", "99"]
        run(train_net.launch, train_net.main, train_net.argument_parser().parse_args(arguments))
    assert exit_.value.code == 1
    expect_message(capsys, "--num-gpus 99", "torchrun")


def test_error_ends_the_real_command_without_traceback(tmp_path):
    result = subprocess.run(command("OUTPUT_DIR", str(tmp_path), "MODEL.MASKS", "1"), capture_output=True, text=True)
    assert result.returncode == 1
    assert result.stderr.strip().splitlines()[-1].startswith("error: the command line: unknown config key MODEL.MASKS")
    assert "Traceback" not in result.stderr
