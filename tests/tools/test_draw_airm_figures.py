"""Fig. 2 from training to picture on synthetic categories, and Fig. 6 and 7 of a trained model."""

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from detectron2.modeling import build_model

from airm.data.synthetic_dataset import make_synthetic
from patchdct.checkpoint import SafeCheckpointer
from patchdct.checkpoint_files import read_torch
from patchdct.cli import run
from tests.testing import load_tool, tiny_airm_cfg

TINY = [
    "MODEL.PLAIN_CNN.CHANNELS", "8", "MODEL.PLAIN_CNN.NUM_LAYERS", "3", "MODEL.AIRM.STAGE_CHANNELS", "8",
    "MODEL.AIRM.HIDDEN_FEATURES", "[8,8]", "MODEL.AIRM.HYPERNETWORK_CHANNELS", "[8,8]",
    "INPUT.REFINEMENT.CROP_SIZE", "64", "SOLVER.IMS_PER_BATCH", "2", "SOLVER.MAX_ITER", "3", "SOLVER.STEPS", "()",
    "DATASETS.REFINEMENT", "[]", "DATALOADER.NUM_WORKERS", "0",
]  # fmt: skip
KINDS = ("star", "blob")

train_net, tool = load_tool("train_net"), load_tool("draw_airm_figures")


def sets(split: str, kinds=KINDS) -> str:
    return str(tuple(f"synthetic_refinement_{split}_{kind}_4_96x72" for kind in kinds))


def train(config: str, output: Path, *opts: str, kinds=KINDS, resume=False) -> Path:
    data = ["DATASETS.TRAIN", sets("train", kinds), "DATASETS.TEST", sets("val", kinds)]
    options = ["--config-file", f"configs/airm/figure_2/{config}.yaml", *(["--resume"] if resume else [])]
    arguments = [*options, *TINY, *data, "OUTPUT_DIR", str(output), *opts]
    run(train_net.launch, train_net.main, train_net.argument_parser().parse_args(arguments))
    return output


def draw(*arguments: object):
    return tool.main(tool.argument_parser().parse_args([str(a) for a in arguments]))


def check_files(picture: Path, numbers: object) -> None:
    pixels = cv2.imread(str(picture))
    assert pixels is not None and np.ptp(pixels) > 100
    assert json.loads(picture.with_suffix(".json").read_text()) == json.loads(json.dumps(numbers))


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("datasets")


@pytest.fixture(autouse=True)
def environment(monkeypatch, root):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(root))


@pytest.fixture(scope="module")
def trained(tmp_path_factory, root) -> dict[str, Path]:
    """The runs of Fig. 2 in small: an encoder, and on it one SIRMF, one for stars, one for blobs, and an AIRMF."""
    output = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DETECTRON2_DATASETS", str(root))
        runs = {"kernel_3_sirmf": train("kernel_3_sirmf", output / "kernel_3_sirmf")}
        frozen = ["MODEL.AIRM.FROZEN_ENCODER", str(runs["kernel_3_sirmf"] / "model_final.pth")]
        frozen += ["MODEL.PLAIN_CNN.KERNEL_SIZE", "3"]
        for name in ("categories_sirmf", "categories_airmf"):
            runs[name] = train(name, output / name, *frozen)
        for kind in KINDS:
            runs[kind] = train("categories_sirmf", output / kind, *frozen, kinds=(kind,))
    return runs


@pytest.mark.slow
def test_figure_2_from_training_to_picture(trained, tmp_path, capsys):
    rows = draw("kernel-sizes", trained["kernel_3_sirmf"], trained["categories_airmf"], "--output", tmp_path / "a.png")
    assert [(row["mapping"], row["receptive_field"]) for row in rows] == [("AIRMF", 15), ("SIRMF", 15)]
    check_files(tmp_path / "a.png", rows)
    assert f"Wrote {tmp_path}/a.png and {tmp_path}/a.json" in capsys.readouterr().out

    runs = [trained[name] for name in ("categories_sirmf", "categories_airmf", *KINDS)]
    rows = draw("categories", *runs, "--output", tmp_path / "b.png")
    assert [row["category"] for row in rows] == ["star", "blob"]
    for row, kind in zip(rows, KINDS, strict=True):
        own = json.loads((trained[kind] / "evaluation.json").read_text())["refinement"]["refined_IoU"]
        shared = json.loads((trained["categories_sirmf"] / "evaluation.json").read_text())[row["dataset"]]
        assert row["sirmf_each"] == own
        assert row["one_sirmf"] == shared["refinement"]["refined_IoU"]
        assert row["airmf"] is not None
    check_files(tmp_path / "b.png", rows)


@pytest.mark.slow
def test_the_encoder_of_a_category_is_the_frozen_one_and_resuming_needs_it_no_more(trained, tmp_path, capsys):
    states = {name: read_torch(str(trained[name] / "model_final.pth"))["model"] for name in trained}
    for name, value in states["kernel_3_sirmf"].items():
        same = [(states[run][name] == value).all().item() for run in ("star", "blob", "categories_sirmf")]
        assert all(same) if name.startswith("encoder.") else not any(same), name
    options = ["MODEL.AIRM.FROZEN_ENCODER", "gone.pth", "MODEL.PLAIN_CNN.KERNEL_SIZE", "3", "SOLVER.MAX_ITER", "4"]
    train("categories_sirmf", trained["star"], *options, kinds=("star",), resume=True)
    with pytest.raises(SystemExit):
        train("categories_sirmf", tmp_path, *options, kinds=("star",), resume=True)
    assert "MODEL.AIRM.FROZEN_ENCODER: no checkpoint gone.pth" in capsys.readouterr().err


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> Path:
    """A checkpoint of a Mix Transformer with AIRMF, not trained."""
    torch.manual_seed(0)
    cfg, folder = tiny_airm_cfg(), tmp_path_factory.mktemp("weights")
    checkpointer = SafeCheckpointer(build_model(cfg), str(folder))
    checkpointer.config = cfg.dump()
    checkpointer.save("model")
    return folder / "model.pth"


def test_figure_6(weights, root, tmp_path):
    folder = make_synthetic("synthetic_refinement_val_2_96x72")
    files = [folder / "000001_im.jpg", folder / "000001_seg.png"]
    options = ["--weights", weights, "--device", "cpu", "--output", tmp_path / "maps.png"]
    numbers = draw("attention", *files, *options, "--position", 95, 0, "--max-side", 64)
    assert numbers["cell"] == (0, 3)  # 72 x 96 pixels shrunk to 48 x 64, a grid of 3 x 4
    assert np.shape(numbers["attention"]) == np.shape(numbers["affinity"]) == (3, 4)
    check_files(tmp_path / "maps.png", numbers)
    assert draw("attention", *files, *options)["position"] == (48, 36)


@pytest.mark.parametrize("dots", [[], ["--dots"]])
def test_figure_7(weights, root, tmp_path, dots):
    names = ["synthetic_refinement_val_star_4_96x72", "synthetic_refinement_val_blob_4_96x72"]
    output = tmp_path / "new" / "points.png"
    options = ["--weights", weights, "--device", "cpu", "--max-side", 64, "--output", output, *dots]
    numbers = draw("parameters", *names, *options)
    assert [point["category"] for point in numbers["points"]] == [name for name in names for _ in range(4)]
    assert numbers["perplexity"] == pytest.approx(7 / 3)
    check_files(output, numbers)
    assert len(draw("parameters", *names, "--limit", 4, *options)["points"]) == 4


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["kernel-sizes", "nowhere"], "no nowhere/config.yaml"),
        (["attention", "a.jpg", "b.png", "--weights", "c.pth"], "cannot read image a.jpg"),
        (["parameters", "nowhere", "--weights", "c.pth"], "'nowhere' is neither"),
        (["parameters", "synthetic_refinement_val_2_96x72", "--weights", "c.pth"], "no weights c.pth"),
    ],
)
def test_bad_input_ends_in_one_message(arguments, message, capsys):
    with pytest.raises(SystemExit) as e:
        run(tool.main, tool.argument_parser().parse_args(arguments))
    assert e.value.code == 1 and message in capsys.readouterr().err


def test_a_figure_of_an_unknown_kind_is_refused(weights, tmp_path, root):
    folder = make_synthetic("synthetic_refinement_val_2_96x72")
    files = [folder / "000001_im.jpg", folder / "000001_seg.png"]
    with pytest.raises(ValueError, match=r"one of .png, .pdf"):
        draw("attention", *files, "--weights", weights, "--output", tmp_path / "maps.txt")
