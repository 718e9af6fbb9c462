"""Fig. 2 from training to picture on synthetic categories; Fig. 6, Fig. 7 and the steps of a refinement of a model."""

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from pycocotools import mask as mask_util

from airm import AIRM, Refiner
from airm.coarse_to_fine import Settings
from airm.data.synthetic_dataset import make_synthetic
from airm.figures.model import refinement_steps, score_mask, zoom_windows
from pixelmask.checkpoint.files import read_torch
from pixelmask.cli import run
from pixelmask.errors import UserError
from pixelmask.images import read_mask
from tests.support.models import load_tool

TINY = [
    "MODEL.PLAIN_CNN.CHANNELS", "8", "MODEL.PLAIN_CNN.NUM_LAYERS", "3", "MODEL.AIRM.STAGE_CHANNELS", "8",
    "MODEL.AIRM.HIDDEN_FEATURES", "[8,8]", "MODEL.AIRM.HYPERNETWORK_CHANNELS", "[8,8]",
    "INPUT.REFINEMENT.CROP_SIZE", "64", "SOLVER.IMS_PER_BATCH", "2", "SOLVER.MAX_ITER", "3", "SOLVER.STEPS", "()",
    "DATASETS.REFINEMENT", "[]", "DATALOADER.NUM_WORKERS", "0",
]  # fmt: skip
KINDS = ("star", "blob")

pytestmark = pytest.mark.usefixtures("data_root")
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
def trained(tmp_path_factory, drawn_data) -> dict[str, Path]:
    """The runs of Fig. 2 in small: an encoder, and on it one SIRMF, one for stars, one for blobs, and an AIRMF."""
    output = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DETECTRON2_DATASETS", str(drawn_data))
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
def test_the_encoder_of_a_category_is_the_frozen_one_and_resuming_needs_it_no_more(trained, tmp_path, fails):
    states = {name: read_torch(str(trained[name] / "model_final.pth"))["model"] for name in trained}
    for name, value in states["kernel_3_sirmf"].items():
        same = [(states[run][name] == value).all().item() for run in ("star", "blob", "categories_sirmf")]
        assert all(same) if name.startswith("encoder.") else not any(same), name
    options = ["MODEL.AIRM.FROZEN_ENCODER", "gone.pth", "MODEL.PLAIN_CNN.KERNEL_SIZE", "3", "SOLVER.MAX_ITER", "4"]
    train("categories_sirmf", trained["star"], *options, kinds=("star",), resume=True)
    with fails("MODEL.AIRM.FROZEN_ENCODER: no checkpoint gone.pth"):
        train("categories_sirmf", tmp_path, *options, kinds=("star",), resume=True)


def test_figure_6(airm_weights, tmp_path):
    folder = make_synthetic("synthetic_refinement_val_2_96x72")
    files = [folder / "000001_im.jpg", folder / "000001_seg.png"]
    options = ["--weights", airm_weights, "--device", "cpu", "--output", tmp_path / "maps.png"]
    numbers = draw("attention", *files, *options, "--position", 95, 0, "--max-side", 64)
    assert numbers["cell"] == (0, 3)  # 72 x 96 pixels shrunk to 48 x 64, a grid of 3 x 4
    assert np.shape(numbers["attention"]) == np.shape(numbers["affinity"]) == (3, 4)
    check_files(tmp_path / "maps.png", numbers)
    assert draw("attention", *files, *options)["position"] == (48, 36)


@pytest.mark.parametrize("dots", [[], ["--dots"]])
def test_figure_7(airm_weights, tmp_path, dots):
    names = ["synthetic_refinement_val_star_4_96x72", "synthetic_refinement_val_blob_4_96x72"]
    output = tmp_path / "new" / "points.png"
    options = ["--weights", airm_weights, "--device", "cpu", "--max-side", 64, "--output", output, *dots]
    numbers = draw("parameters", *names, *options)
    assert [point["category"] for point in numbers["points"]] == [name for name in names for _ in range(4)]
    assert numbers["perplexity"] == pytest.approx(7 / 3)
    check_files(output, numbers)
    assert len(draw("parameters", *names, "--limit", 4, *options)["points"]) == 4


class LeftQuarter:
    """In place of a model: whatever it encodes, its answer is the left quarter of that."""

    device, mapping, query_inputs, step_at = torch.device("cpu"), None, (), None
    coarse_to_fine = AIRM.coarse_to_fine

    def __init__(self, settings: Settings):
        self.settings = settings

    def normalise(self, image):
        return image

    def step(self, images, masks, rows, cols, chunk):
        return (cols < -0.5).float().expand(1, 1, len(rows), -1)


def test_steps_have_the_answer_and_the_encoded_tiles_of_each_ratio():
    model = LeftQuarter(Settings(ratios=(0.5, 1.0), min_size_test=0, padding=0, tile_size=64, tile_halo=16))
    first, last = refinement_steps(model, torch.zeros(3, 128, 128), torch.ones(1, 128, 128))
    assert (first.size, first.tiles, first.encoded) == ((64, 64), 1, [(0, 0, 128, 128)])
    assert first.mask.shape == (128, 128) and first.mask[:, :32].all() and not first.mask[:, 32:].any()
    # Windows of 64 of which 32 count, 48 at the image's edges. The mask's edge at 32 is between two blocks of 4 pixels,
    # which ask a window that begins at 0, whose left quarter ends at 16
    assert (last.size, last.tiles) == ((128, 128), 9)
    assert last.encoded == [(28, 0, 36, 48), (28, 48, 36, 80), (28, 80, 36, 128)]
    assert last.mask[:, :28].all() and not last.mask[:, 28:].any()
    assert refinement_steps(model, torch.zeros(3, 128, 128), torch.zeros(1, 128, 128)) == []


def test_tiles_of_a_bordered_image_cover_the_image_and_no_more():
    model = LeftQuarter(Settings(ratios=(0.5,), padding=32, tile_size=32, tile_halo=8))
    (step,) = refinement_steps(model, torch.zeros(3, 101, 71), torch.ones(1, 101, 71))
    assert len(step.encoded) > 4
    assert sum((x1 - x0) * (y1 - y0) for x0, y0, x1, y1 in step.encoded) == pytest.approx(101 * 71)


def test_a_mask_is_scored_in_percent():
    mask, truth = np.zeros((20, 20), bool), np.zeros((20, 20), bool)
    mask[5:10, 5:15] = truth[5:15, 5:15] = True
    assert score_mask(mask, truth)["IoU"] == 50
    assert score_mask(truth, truth) == {"IoU": 100, "mBA": 100}
    assert score_mask(mask, np.zeros_like(mask)) == {"IoU": 0, "mBA": None}


def test_enlarged_parts_are_a_tenth_of_the_image_and_within_it():
    masks = np.zeros((2, 400, 600), bool)
    assert zoom_windows(*masks, [(300, 200), (599, 0)]) == [
        (slice(180, 220), slice(270, 330)),
        (slice(0, 40), slice(540, 600)),
    ]
    assert zoom_windows(*masks) == []
    masks[1, 100, 50] = True
    ((rows, cols),) = zoom_windows(*masks)
    assert masks[1, rows, cols].any()
    with pytest.raises(UserError, match="zoom 600 0 is outside the image, which has 600 x 400 pixels"):
        zoom_windows(*masks, [(600, 0)])


@pytest.mark.parametrize("zoom", [[], ["--zoom", 20, 30, "--zoom", 0, 71]])
def test_coarse_to_fine(airm_weights, tmp_path, zoom):
    folder = make_synthetic("synthetic_refinement_val_2_96x72")
    files = [str(folder / f"000001_{kind}") for kind in ("im.jpg", "seg.png", "gt.png")]
    options = ["--weights", airm_weights, "--device", "cpu", "--output", tmp_path / "steps.png", *zoom]
    numbers = draw("coarse-to-fine", *files[:2], "--truth", files[2], *options)
    truth, coarse = read_mask(files[2]), read_mask(files[1])
    refined = Refiner(airm_weights, guard=None).refine(*files[:2])
    for found, mask in ((numbers["coarse"], coarse), (numbers["steps"][-1], refined)):
        a, b = (mask_util.encode(np.asfortranarray(m, np.uint8)) for m in (mask, truth))
        assert found["IoU"] == pytest.approx(100 * mask_util.iou([a], [b], [0])[0, 0])
    assert [step["size"] for step in numbers["steps"]] == [(72, 96)]  # at lower ratios it is smaller than 224 pixels
    assert numbers["steps"][0]["encoded"] == [(0, 0, 96, 72)]
    check_files(tmp_path / "steps.png", numbers)
    assert "IoU" not in draw("coarse-to-fine", *files[:2], *options)["steps"][0]


def test_empty_masks_and_figures_of_an_unknown_kind_are_refused(airm_weights, tmp_path):
    folder = make_synthetic("synthetic_refinement_val_2_96x72")
    cv2.imwrite(str(tmp_path / "empty.png"), np.zeros((72, 96), np.uint8))
    with pytest.raises(UserError, match=r"empty.png: an empty mask has nothing to refine"):
        files = [folder / "000001_im.jpg", tmp_path / "empty.png"]
        draw("coarse-to-fine", *files, "--device", "cpu", "--weights", airm_weights)
    files = [folder / "000001_im.jpg", folder / "000001_seg.png"]
    with pytest.raises(UserError, match=r"maps\.txt: a figure is written as one of \.jpg, "):
        draw("attention", *files, "--weights", airm_weights, "--output", tmp_path / "maps.txt")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["kernel-sizes", "nowhere"], "no folder nowhere"),
        (["attention", "a.jpg", "b.png", "--weights", "c.pth"], "cannot read image a.jpg"),
        (["parameters", "nowhere", "--weights", "c.pth"], "'nowhere' is neither"),
        (["parameters", "synthetic_refinement_val_2_96x72", "--weights", "c.pth"], "no weights c.pth"),
    ],
)
def test_bad_input_ends_in_one_message(arguments, message, fails):
    with fails(message):
        run(tool.main, tool.argument_parser().parse_args(arguments))
