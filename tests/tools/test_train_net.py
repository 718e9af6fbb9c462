"""The launcher, as a user starts it: training, resuming, evaluation, several processes, and every kind of bad input."""

import csv
import json
import os
import pickle
import shutil
import subprocess
import time
from pathlib import Path

import cv2
import detectron2.config
import numpy as np
import pytest
import torch
import yaml

from airm import Refiner, add_airm_config
from airm.data.synthetic_dataset import make_synthetic
from patchdct import Trainer, add_patchdct_config
from pixelmask.config import load_cfg
from pixelmask.engine.trainer import log_scaled_schedule
from pixelmask.errors import UserError
from tests.support.training import (
    AIRM,
    CLEAN,
    PATCHDCT,
    TinyModel,
    logged_by,
    metrics_of,
    run_train_net,
    same,
)

pytestmark = pytest.mark.usefixtures("data_root")


@pytest.fixture(params=[PATCHDCT, AIRM], ids=lambda model: model.name)
def model(request) -> TinyModel:
    return request.param


@pytest.fixture
def trained(model, request) -> Path:
    """The output folder of a short training of the model."""
    return request.getfixturevalue(f"trained_{model.name}")


def load(checkpoint: Path) -> dict:
    return torch.load(checkpoint, weights_only=False)


def updates(checkpoint: Path) -> set[int]:
    """How often the optimizer in a checkpoint, Adam's kind, has updated its averages."""
    optimizer = load(checkpoint)["trainer"]["_trainer"]["optimizer"]
    return {int(state["step"]) for state in optimizer["state"].values()}


def start_from(checkpoint: Path, output: Path) -> None:
    """Make a checkpoint the last of an output folder."""
    shutil.copy(checkpoint, output)
    (output / "last_checkpoint").write_text(checkpoint.name)


# Training


def test_training_of_patchdct_leaves_checkpoint_log_and_metrics(trained_patchdct):
    assert (trained_patchdct / "model_final.pth").is_file()
    assert set(metrics_of(trained_patchdct)) == {"bbox", "segm", "boundary"}
    logged = {key for line in logged_by(trained_patchdct) for key in line}
    assert {"loss_mask", "patchdct/loss_dct", "patchdct/loss_patch_cls", "patchdct/loss_patch_dct", "lr"} <= logged
    assert {"segm/AP", "boundary/AP", "bbox/AP"} <= logged


def test_training_of_airm_leaves_log_metrics_and_a_table(trained_airm):
    logged = {key for line in logged_by(trained_airm) for key in line}
    losses = {f"loss_{name}" for name in ("l1", "l2", "ce", "gradient", "affinity")}
    assert losses | {"lr", "refinement/refined_IoU", "refinement/gain_mBA"} <= logged
    results = metrics_of(trained_airm)["refinement"]
    assert results["images"] == 5 and 0 < results["coarse_IoU"] < 100
    table = trained_airm / "inference" / AIRM.test_set / "per_image.csv"
    assert len(list(csv.DictReader(table.open()))) == 5


def test_the_config_of_a_training_has_the_keys_of_its_own_model_only(model, trained):
    text = (trained / "config.yaml").read_text()
    config = yaml.safe_load(text)
    of_airm = ["AIRM" in config["MODEL"], "MIT" in config["MODEL"], "PLAIN_CNN" in config["MODEL"]]
    of_airm += ["REFINEMENT" in config["DATASETS"], "REFINEMENT" in config["INPUT"]]
    of_patchdct = ["SWINT" in config["MODEL"], "TOP_LEVELS" in config["MODEL"]["FPN"]]
    of_patchdct += [key in config["MODEL"]["ROI_MASK_HEAD"] for key in ("PATCH_SIZE", "DCT_VECTOR_DIM", "NUM_STAGE")]
    assert all(of_airm if model is AIRM else of_patchdct)
    assert not any(of_patchdct if model is AIRM else of_airm)
    assert load(trained / "model_final.pth")["config"] == text
    cfg = detectron2.config.get_cfg()
    (add_airm_config if model is AIRM else add_patchdct_config)(cfg)
    cfg.merge_from_file(str(trained / "config.yaml"))
    assert cfg == load_cfg(str(trained / "config.yaml"))


def test_evaluation_alone_is_digit_for_digit_that_of_training(model, trained, tmp_path):
    assert same(model.evaluate(tmp_path, trained / "model_final.pth"), metrics_of(trained))


def test_evaluation_and_pictures_in_between_change_nothing_of_a_training(model, trained, tmp_path):
    model.run("OUTPUT_DIR", tmp_path, "TEST.EVAL_PERIOD", "1", "VIS_PERIOD", "1")
    metric = "refinement/refined_IoU" if model is AIRM else "segm/AP"
    assert sum(metric in line for line in logged_by(tmp_path)) >= 2
    once, often = (load(folder / "model_final.pth")["model"] for folder in (trained, tmp_path))
    assert all(torch.equal(once[name], often[name]) for name in once)


def test_without_a_seed_every_training_has_an_order_of_images_of_its_own():
    cfg = load_cfg(PATCHDCT.config, [*PATCHDCT.opts, "SEED", "-1", "SOLVER.IMS_PER_BATCH", "8"])
    Trainer.prepare_datasets(cfg, train=True)

    def first_batch(seed: int) -> list[int]:
        np.random.seed(seed)  # as Detectron2 does with a number of its own
        return [sample["image_id"] for sample in next(iter(Trainer.build_train_loader(cfg)))]

    assert first_batch(1) == first_batch(1) != first_batch(2)


def test_a_checkpoint_alone_is_enough_to_refine(trained_airm, tmp_path):
    weights = shutil.copy(trained_airm / "model_final.pth", tmp_path / "alone.pth")
    folder = make_synthetic(AIRM.test_set)
    refined = Refiner(weights).refine(folder / "000001_im.jpg", folder / "000001_seg.png")
    assert refined.shape == (72, 96) and refined.dtype == bool


# Resuming


def test_training_resumes(model, trained, tmp_path):
    start_from(trained / "model_final.pth", tmp_path)
    model.run("OUTPUT_DIR", tmp_path, "SOLVER.MAX_ITER", model.iterations + 2, options=["--resume"])
    assert f"Starting training from iteration {model.iterations}" in (tmp_path / "log.txt").read_text()
    assert updates(trained / "model_final.pth") == {model.iterations}
    assert updates(tmp_path / "model_final.pth") == {model.iterations + 2}


def train(environment: dict[str, str], *opts: object) -> None:
    os.environ.update(environment)
    PATCHDCT.run(*opts)


def test_resume_after_kill_continues_from_the_last_checkpoint(tmp_path):
    opts = ["OUTPUT_DIR", tmp_path, "SOLVER.MAX_ITER", "100000", "SOLVER.CHECKPOINT_PERIOD", "5"]
    process = CLEAN.Process(target=train, args=[dict(os.environ), *opts])
    process.start()
    deadline = time.time() + 300
    while not (tmp_path / "model_0000009.pth").exists() and time.time() < deadline:
        time.sleep(0.1)
    process.kill()
    process.join()
    last = (tmp_path / "last_checkpoint").read_text().strip()
    iteration = int(Path(last).stem.removeprefix("model_"))
    log = tmp_path / "log.txt"
    before = len(log.read_text())
    PATCHDCT.run("OUTPUT_DIR", tmp_path, "SOLVER.MAX_ITER", iteration + 3, options=["--resume"])
    assert f"Starting training from iteration {iteration + 1}" in log.read_text()[before:]
    assert updates(tmp_path / last) == {iteration + 1}
    assert updates(tmp_path / "model_final.pth") == {iteration + 3}


def test_a_checkpoint_without_the_optimizer_is_resumed_with_a_warning(tmp_path, trained_patchdct):
    content = load(trained_patchdct / "model_0000001.pth")
    del content["trainer"]["_trainer"]
    torch.save(content, tmp_path / "old.pth")
    (tmp_path / "last_checkpoint").write_text("old.pth")
    PATCHDCT.run("OUTPUT_DIR", tmp_path, options=["--resume"])
    assert "no state of the optimizer, which starts anew" in (tmp_path / "log.txt").read_text()
    assert updates(tmp_path / "model_final.pth") == {1}


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (("SOLVER.OPTIMIZER", "SGD"), "has no dampening and momentum"),
        (("MODEL.ROI_BOX_HEAD.NUM_FC", "3"), "loaded state dict"),
    ],
)
def test_resuming_with_another_optimizer_ends_in_a_message(tmp_path, trained_patchdct, fails, change, reason):
    start_from(trained_patchdct / "model_0000001.pth", tmp_path)
    with fails(f"cannot resume in {tmp_path}", reason):
        PATCHDCT.run("OUTPUT_DIR", tmp_path, *change, options=["--resume"])


# The schedule for another number of processes


def coco_cfg(*opts: str):
    return load_cfg("configs/patchdct/patchdct_R_50_FPN_1x_coco.yaml", opts)


def test_the_schedule_is_scaled_when_asked(caplog):
    with caplog.at_level("INFO", logger="pixelmask"):
        scaled = log_scaled_schedule(coco_cfg("SOLVER.REFERENCE_WORLD_SIZE", "8"))
    assert (scaled.SOLVER.IMS_PER_BATCH, scaled.SOLVER.BASE_LR, scaled.SOLVER.MAX_ITER) == (2, 0.0025, 720000)
    for change in ("IMS_PER_BATCH from 16 to 2", "BASE_LR from 0.02 to 0.0025", "MAX_ITER from 90000 to 720000"):
        assert f"Scaled SOLVER.{change}" in caplog.text
    with pytest.raises(UserError, match="REFERENCE_WORLD_SIZE 3"):
        log_scaled_schedule(coco_cfg("SOLVER.REFERENCE_WORLD_SIZE", "3"))
    assert log_scaled_schedule(coco_cfg()) == coco_cfg()


# Data sets of one's own


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
    (folder / "set.json").write_text(json.dumps({**content, **changes}))
    return f"set_{folder.name}_{os.urandom(4).hex()}", str(folder / "set.json"), str(folder / "images")


def train_on(triple: tuple[str, str, str], output: Path, *opts: str, on_command_line: bool = False) -> None:
    sets = f"('{triple[0]}',)"
    opts += ("DATASETS.TRAIN", sets, "DATASETS.TEST", sets, "INPUT.MASK_FORMAT", "polygon")
    opts += ("MODEL.ROI_HEADS.NUM_CLASSES", "1", "SOLVER.MAX_ITER", "1", "OUTPUT_DIR", str(output))
    if on_command_line:
        PATCHDCT.run(*opts, options=["--dataset", *triple])
    else:
        PATCHDCT.run(*opts, "DATASETS.COCO_FORMAT", [list(triple)])


def test_own_data_set_needs_no_python(tmp_path):
    train_on(coco_set(tmp_path / "data"), tmp_path / "out", on_command_line=True)
    assert "AP-thing" not in metrics_of(tmp_path / "out")["segm"], "Detectron2 gives no class AP for a single class"
    assert "boundary" in metrics_of(tmp_path / "out")


def test_classes_come_from_the_data_unless_the_config_says_them(tmp_path, fails, capsys, trained_patchdct):
    triple = coco_set(tmp_path / "data")
    sets = ["--config-file", PATCHDCT.config, "--dataset", *triple, *PATCHDCT.opts, "INPUT.MASK_FORMAT", "polygon"]
    sets += ["DATASETS.TRAIN", f"('{triple[0]}',)", "DATASETS.TEST", f"('{triple[0]}',)", "SOLVER.MAX_ITER", "1"]
    with fails(f"data set {triple[0]} has 1 classes", "set MODEL.ROI_HEADS.NUM_CLASSES 1"):
        run_train_net([*sets, "OUTPUT_DIR", str(tmp_path / "wrong"), "MODEL.ROI_HEADS.NUM_CLASSES", "8"])
    assert not (tmp_path / "wrong").exists() and "full config" not in capsys.readouterr().out
    run_train_net([*sets, "OUTPUT_DIR", str(tmp_path), "MODEL.WEIGHTS", str(trained_patchdct / "model_final.pth")])
    assert load_cfg(str(tmp_path / "config.yaml")).MODEL.ROI_HEADS.NUM_CLASSES == 1
    said = capsys.readouterr().out
    assert said.count("8 classes in the checkpoint, 1 in the model") == 2 and "Skip loading" not in said
    log = (tmp_path / "log.txt").read_text()
    assert f"NUM_CLASSES is 1, the classes of {triple[0]}" in log and "cls_score.weight: (9, 16) in" in log


def test_a_data_set_that_cannot_be_used(tmp_path, fails):
    """Two of the faults that the tests of the format have one by one."""
    two_points = {"id": 5, "image_id": 1, "category_id": 7, "bbox": [1, 1, 9, 9], "segmentation": [[1, 1, 9, 9]]}
    with fails("set.json", "5"):
        train_on(coco_set(tmp_path / "a", annotations=[{**two_points, "area": 9, "iscrowd": 0}]), tmp_path / "out")
    triple = coco_set(tmp_path / "b")
    shutil.rmtree(triple[2])
    with fails(triple[2]):
        train_on(triple, tmp_path / "out")


@pytest.mark.parametrize("workers", ["0", "1"])
@pytest.mark.parametrize("damage", ["truncated", "text"])
def test_unreadable_image(tmp_path, fails, damage, workers):
    triple = coco_set(tmp_path / "data")
    for path in Path(triple[2]).iterdir():
        path.write_bytes(path.read_bytes()[:60] if damage == "truncated" else b"no image")
    with fails(".png"):
        train_on(triple, tmp_path / "out", "DATALOADER.NUM_WORKERS", workers)


# Bad input


@pytest.mark.parametrize(
    ("model", "opts", "parts"),
    [
        (PATCHDCT, ["DATASETS.TRAIN", "('coco_2017_train',)"], ["coco_2017_train", "DETECTRON2_DATASETS"]),
        (PATCHDCT, ["DATASETS.TRAIN", "('lvis_v1_train',)"], ["lvis_v1_train.json", "DETECTRON2_DATASETS"]),
        (PATCHDCT, ["DATASETS.TRAIN", "('coco_2017_trian',)"], ["coco_2017_trian", "coco_2017_train"]),
        (PATCHDCT, ["MODEL.ROI_HEADS.NUM_CLASSES", "3"], ["MODEL.ROI_HEADS.NUM_CLASSES", "3", PATCHDCT.test_set]),
        (PATCHDCT, ["MODEL.ROI_MASK_HEAD.EVAL_GT", "True"], ["EVAL_GT"]),
        (PATCHDCT, ["MODEL.ROI_MASK_HEAD.PATCHSIZE", "8"], ["MODEL.ROI_MASK_HEAD.PATCHSIZE"]),
        (AIRM, ["DATASETS.TRAIN", "('ecssd',)"], ["ECSSD", "datasets/README.md"]),
        (AIRM, ["DATASETS.TRAIN", "('coco_2017_train',)"], ["coco_2017_train"]),
        (AIRM, ["DATASETS.TEST", "('big_pspnet',)"], ["BIG"]),
        (AIRM, ["MODEL.WEIGHTS", "nowhere.pth"], ["nowhere.pth", "MODEL.WEIGHTS"]),
        (AIRM, ["MODEL.AIRM.MAPPING", "LIIF"], ["MODEL.AIRM.MAPPING", "SIRMF"]),
        (AIRM, ["SOLVER.OPTIMIZER", "LION"], ["SOLVER.OPTIMIZER"]),
    ],
)
def test_a_config_that_cannot_be_used(tmp_path, fails, model, opts, parts):
    with fails(*parts):
        model.run("OUTPUT_DIR", tmp_path, *opts)


class Malicious:
    def __init__(self, marker: Path):
        self.marker = marker

    def __reduce__(self):
        return (Path.touch, (self.marker,))


@pytest.mark.parametrize("suffix", ["pth", "pkl"])
def test_checkpoint_that_would_run_code_is_refused(tmp_path, fails, suffix):
    marker, weights = tmp_path / "marker", tmp_path / f"bad.{suffix}"
    content = {"model": {"a": Malicious(marker)}}
    weights.write_bytes(pickle.dumps(content)) if suffix == "pkl" else torch.save(content, weights)
    with fails(str(weights)):
        PATCHDCT.evaluate(tmp_path / "out", weights)
    assert not marker.exists()


@pytest.mark.parametrize("kind", ["truncated", "text", "foreign", "missing"])
def test_checkpoint_that_cannot_be_used(tmp_path, fails, model, trained, kind):
    weights = tmp_path / "weights.pth"
    if kind == "truncated":
        weights.write_bytes((trained / "model_final.pth").read_bytes()[:5000])
    elif kind == "text":
        weights.write_text("not a checkpoint")
    elif kind == "foreign":
        torch.save({"encoder.layer.0": torch.zeros(3)}, weights)
    with fails(str(weights)):
        model.evaluate(tmp_path / "out", weights)


def test_evaluation_of_a_model_that_would_be_partly_random(tmp_path, fails, trained_patchdct):
    other = ["MODEL.ROI_MASK_HEAD.PATCH_SIZE", "16", "MODEL.ROI_MASK_HEAD.PATCH_CLASSES", "2"]
    with fails("stay random"):
        PATCHDCT.evaluate(tmp_path, trained_patchdct / "model_final.pth", *other)


@pytest.mark.parametrize(("options", "part"), [([], "MODEL.WEIGHTS"), (["--resume"], "--resume")])
def test_evaluation_without_weights(tmp_path, fails, options, part):
    with fails(part):
        PATCHDCT.run("OUTPUT_DIR", tmp_path, "MODEL.WEIGHTS", "", options=["--eval-only", *options])


def test_more_gpus_than_there_are(fails):
    with fails("--num-gpus 99", "torchrun"):
        run_train_net(["--config-file", PATCHDCT.config, "--num-gpus", "99"])


def test_error_ends_the_real_command_without_traceback(tmp_path):
    command = PATCHDCT.command("OUTPUT_DIR", tmp_path, "MODEL.MASKS", "1")
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 1
    assert result.stderr.strip().splitlines()[-1].startswith("error: the command line: unknown config key MODEL.MASKS")
    assert "Traceback" not in result.stderr
