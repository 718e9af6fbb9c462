"""AIRM through the launcher and the demo: training, evaluation, several processes, the tools behind a checkpoint."""

import csv
import json
import subprocess
import sys
from pathlib import Path

import pytest

from airm import Refiner
from airm.data.synthetic_dataset import make_synthetic
from pixelmask.cli import run
from tests.support.models import load_tool

CONFIG = "configs/airm/small/airm_synthetic.yaml"
TINY = [
    "MODEL.MIT.EMBED_DIMS", "[8,16,24,32]", "MODEL.MIT.NUM_HEADS", "[1,2,3,4]", "MODEL.MIT.DEPTHS", "[1,1,1,1]",
    "MODEL.AIRM.STAGE_CHANNELS", "8", "MODEL.AIRM.HIDDEN_FEATURES", "[8,8]",
    "MODEL.AIRM.HYPERNETWORK_CHANNELS", "[8,8]", "INPUT.REFINEMENT.CROP_SIZE", "64", "MODEL.AIRM.AFFINITY", "True",
    "SOLVER.IMS_PER_BATCH", "2", "SOLVER.MAX_ITER", "4", "SOLVER.CHECKPOINT_PERIOD", "2", "SOLVER.WARMUP_ITERS", "0",
    "DATASETS.TRAIN", "('synthetic_refinement_train_6_96x72',)",
    "DATASETS.TEST", "('synthetic_refinement_val_5_96x72',)", "DATALOADER.NUM_WORKERS", "0",
]  # fmt: skip

train_net = load_tool("train_net")


def call(*args: str):
    """Run train_net in this process, as its command line does."""
    options = [a for a in args if a.startswith("--")]
    keys = [a for a in args if not a.startswith("--")]
    arguments = ["--config-file", CONFIG, *options, *TINY, *keys]
    return run(train_net.launch, train_net.main, train_net.argument_parser().parse_args(arguments))


@pytest.fixture(scope="session")
def root(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("datasets")


@pytest.fixture(autouse=True)
def environment(monkeypatch, root):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(root))


@pytest.fixture(scope="session")
def trained(tmp_path_factory, root) -> Path:
    """The output folder of a short training."""
    output = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DETECTRON2_DATASETS", str(root))
        call("OUTPUT_DIR", str(output))
    return output


def results_of(folder: Path) -> dict:
    return json.loads((folder / "evaluation.json").read_text())


def test_training_leaves_checkpoint_log_and_metrics(trained):
    logged = {key for line in (trained / "metrics.json").read_text().splitlines() for key in json.loads(line)}
    losses = {f"loss_{name}" for name in ("l1", "l2", "ce", "gradient", "affinity")}
    assert losses | {"lr", "refinement/refined_IoU", "refinement/gain_mBA"} <= logged
    results = results_of(trained)["refinement"]
    assert results["images"] == 5 and 0 < results["coarse_IoU"] < 100
    table = trained / "inference" / "synthetic_refinement_val_5_96x72" / "per_image.csv"
    assert len(list(csv.DictReader(table.open()))) == 5


def test_evaluation_alone_is_digit_for_digit_that_of_training(trained, tmp_path):
    call("--eval-only", "OUTPUT_DIR", str(tmp_path), "MODEL.WEIGHTS", str(trained / "model_final.pth"))
    assert results_of(tmp_path) == results_of(trained)


def test_two_processes_evaluate_like_one(trained, tmp_path):
    opts = [*TINY, "OUTPUT_DIR", str(tmp_path), "MODEL.WEIGHTS", str(trained / "model_final.pth")]
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    command = [*launcher, "tools/train_net.py", "--config-file", CONFIG, "--eval-only", *opts]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-3000:]
    assert results_of(tmp_path) == results_of(trained)


def test_training_resumes(trained, tmp_path):
    call("OUTPUT_DIR", str(tmp_path))
    call("--resume", "OUTPUT_DIR", str(tmp_path), "SOLVER.MAX_ITER", "6")
    assert "Starting training from iteration 4" in (tmp_path / "log.txt").read_text()


def test_a_checkpoint_alone_is_enough_to_refine(trained, tmp_path):
    weights = tmp_path / "alone.pth"
    weights.write_bytes((trained / "model_final.pth").read_bytes())
    folder = make_synthetic("synthetic_refinement_val_5_96x72")
    refined = Refiner(weights).refine(folder / "000001_im.jpg", folder / "000001_seg.png")
    assert refined.shape == (72, 96) and refined.dtype == bool


@pytest.mark.parametrize(
    ("opts", "parts"),
    [
        (["DATASETS.TRAIN", "('ecssd',)"], ["ECSSD", "datasets/README.md"]),
        (["DATASETS.TRAIN", "('coco_2017_train',)"], ["coco_2017_train"]),
        (["DATASETS.TEST", "('big_pspnet',)"], ["BIG"]),
        (["MODEL.WEIGHTS", "nowhere.pth"], ["nowhere.pth", "MODEL.WEIGHTS"]),
        (["MODEL.AIRM.MAPPING", "LIIF"], ["MODEL.AIRM.MAPPING", "SIRMF"]),
        (["SOLVER.OPTIMIZER", "LION"], ["SOLVER.OPTIMIZER"]),
    ],
)
def test_bad_input_ends_in_one_message(tmp_path, capsys, opts, parts):
    with pytest.raises(SystemExit) as e:
        call("OUTPUT_DIR", str(tmp_path), *opts)
    assert e.value.code == 1
    error = capsys.readouterr().err
    assert "Traceback" not in error and all(part in error for part in parts), error
