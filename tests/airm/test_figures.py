"""The numbers behind AIRM's figures: runs collected, maps of a position, predicted parameters in the plane."""

import json
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from airm.figures.model import (
    encoder_input,
    load_dicts,
    position_maps,
    predict_parameters,
    read_samples,
    reduce_parameters,
)
from airm.figures.runs import category_rows, distinct_parts, kernel_size_rows, read_run
from pixelmask.config import get_cfg
from pixelmask.errors import UserError
from tests.support.models import untrained_airm


def image_and_mask(height: int, width: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    mask = torch.zeros(1, height, width)
    mask[:, : height // 2] = 1
    return torch.randint(0, 256, (3, height, width), generator=generator), mask


# ---------------------------------------------------------------- runs


def make_run(folder: Path, ious: dict[str, float], mapping="SIRMF", kernel=3, train=("a", "b"), plain=True) -> Path:
    """Write what a run leaves: the config and the metrics of its test sets."""
    cfg = get_cfg("AIRM")
    cfg.MODEL.META_ARCHITECTURE = "AIRM"
    cfg.MODEL.AIRM.MAPPING = mapping
    cfg.MODEL.PLAIN_CNN.KERNEL_SIZE = kernel
    cfg.MODEL.BACKBONE.NAME = "build_plain_cnn_backbone" if plain else "build_mit_backbone"
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = train, tuple(ious)
    folder.mkdir()
    (folder / "config.yaml").write_text(cfg.dump())
    results = {name: {"refinement": {"refined_IoU": iou, "refined_mBA": iou / 2}} for name, iou in ious.items()}
    (folder / "evaluation.json").write_text(json.dumps(results if len(results) > 1 else results[next(iter(ious))]))
    return folder


def test_kernel_sizes_are_sorted_and_have_their_receptive_field(tmp_path):
    runs = [
        make_run(tmp_path / "a", {"big": 80.0}, kernel=9),
        make_run(tmp_path / "b", {"big": 70.0, "voc": 50.0}, kernel=3),
        make_run(tmp_path / "c", {"voc": 60.0, "big": 75.0}, kernel=3, mapping="AIRMF"),
    ]
    rows = kernel_size_rows([read_run(run) for run in runs], "big")
    found = [(r["mapping"], r["kernel_size"], r["receptive_field"], r["IoU"], r["mBA"]) for r in rows]
    assert found == [
        # strides 2, 2, 1, 1, 1, 1: 1 + (k - 1) (1 + 2 + 4 + 4 + 4 + 4)
        ("AIRMF", 3, 39, 75.0, 37.5),
        ("SIRMF", 3, 39, 70.0, 35.0),
        ("SIRMF", 9, 153, 80.0, 40.0),
    ]
    assert [r["dataset"] for r in kernel_size_rows([read_run(run) for run in runs])] == ["voc", "big", "big"]
    with pytest.raises(UserError, match="a was not evaluated on voc, but on big"):
        kernel_size_rows([read_run(runs[0])], "voc")
    with pytest.raises(UserError, match="build_mit_backbone"):
        kernel_size_rows([read_run(make_run(tmp_path / "mit", {"big": 80.0}, plain=False))])


def test_categories_have_three_bars(tmp_path):
    runs = [
        make_run(tmp_path / "one", {"bus_val": 80.0, "swan_val": 70.0}),
        make_run(tmp_path / "bus", {"bus_val": 85.0, "swan_val": 10.0}, train=("bus_train",)),
        make_run(tmp_path / "airmf", {"swan_val": 90.0, "bus_val": 91.0}, mapping="AIRMF"),
    ]
    assert category_rows([read_run(run) for run in runs]) == [
        {"category": "bus", "dataset": "bus_val", "one_sirmf": 80.0, "sirmf_each": 85.0, "airmf": 91.0},
        {"category": "swan", "dataset": "swan_val", "one_sirmf": 70.0, "sirmf_each": None, "airmf": 90.0},
    ]
    with pytest.raises(UserError, match="are both one_sirmf of bus_val"):
        category_rows([read_run(runs[0]), read_run(runs[0])])


@pytest.mark.parametrize(
    ("names", "parts"),
    [
        (["bus_val", "jet_aircraft_val"], ["bus", "jet_aircraft"]),
        (["synthetic_val_star_4_96x72", "synthetic_val_blob_4_96x72"], ["star", "blob"]),
        (["val", "big_val"], ["val", "big_val"]),
        (["bus_val"], ["bus_val"]),
    ],
)
def test_distinct_parts(names, parts):
    assert distinct_parts(names) == parts


def test_what_is_no_evaluated_run_is_named(tmp_path):
    run = make_run(tmp_path / "run", {"bus": 80.0})
    (run / "evaluation.json").write_text('{"segm": {"AP": 30}}')
    with pytest.raises(UserError, match=r"evaluation.json has no IoU of bus"):
        read_run(run)
    (run / "evaluation.json").unlink()
    with pytest.raises(UserError, match=r"no .*evaluation.json"):
        read_run(run)


# ---------------------------------------------------------------- inputs


@pytest.mark.parametrize(
    ("size", "max_side", "expected"),
    [((700, 1000), 512, (352, 512)), ((100, 50), 512, (96, 48)), ((5, 300), 200, (32, 192)), ((40, 40), 32, (32, 32))],
)
def test_inputs_are_limited_and_multiples_of_16(model, size, max_side, expected):
    image, mask = image_and_mask(*size)
    inputs = encoder_input(model, image, mask, max_side)
    assert inputs.shape == (1, 4, *expected)
    assert inputs[0, 3, 0].mean() == pytest.approx(1) and inputs[0, 3, -1].mean() == pytest.approx(-1)
    for wrong in (16, 4000):
        with pytest.raises(UserError, match=f"max_side is {wrong}.*32 to 1024"):
            encoder_input(model, image, mask, wrong)


def write_pair(folder: Path, name: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(folder / f"{name}.jpg"), np.full((40, 50, 3), 90, np.uint8))
    cv2.imwrite(str(folder / f"{name}.png"), np.pad(np.full((20, 30), 255, np.uint8), 10))


def test_categories_are_folders_within_a_set_or_sets(tmp_path):
    for category in ("bus", "swan"):
        write_pair(tmp_path / "fss" / category, "1")
    assert [d["category"] for d in load_dicts(str(tmp_path / "fss"))] == ["bus", "swan"]
    assert [d["category"] for d in load_dicts(str(tmp_path / "fss" / "swan"))] == ["swan"]
    (sample,) = read_samples(load_dicts(str(tmp_path / "fss" / "swan")))  # without a coarse mask, gets one
    assert sample["coarse_mask"].shape == (1, 40, 50) and sample["coarse_mask"].sum() > 0
    with pytest.raises(UserError, match="'nowhere' is neither"):
        load_dicts("nowhere")
    with pytest.raises(UserError, match="coco_2017_val is no data set for refinement"):
        load_dicts("coco_2017_val")


# ---------------------------------------------------------------- attention and affinity


def test_attention_is_the_mean_over_blocks_and_heads_of_the_row_of_the_position(model, monkeypatch):
    image, mask = image_and_mask(64, 96)  # a grid of 4 x 6
    logits = torch.randn(1, model.encoder.backbone.attention_maps, 24, 24, generator=torch.Generator().manual_seed(1))
    stages = {"mit4": torch.zeros(1, 1, 4, 6)}
    monkeypatch.setattr(model.encoder.backbone, "forward_with_attention", lambda x: (stages, logits))
    maps = position_maps(model, image, mask, (95, 33))
    assert maps.cell == (2, 5)
    exponentials = logits[0, :, 2 * 6 + 5].double().exp()
    expected = (exponentials / exponentials.sum(1, keepdim=True)).mean(0).reshape(4, 6)
    np.testing.assert_allclose(maps.attention, expected.numpy(), rtol=1e-5)
    assert maps.attention.sum() == pytest.approx(1)


def test_affinity_is_mutual_and_a_probability(model):
    image, mask = image_and_mask(64, 96)
    here, there = (position_maps(model, image, mask, position) for position in ((20, 5), (70, 60)))
    assert here.cell != there.cell and here.affinity.shape == (4, 6)
    assert here.affinity[there.cell] == pytest.approx(there.affinity[here.cell], rel=1e-5)
    assert (here.affinity > 0).all() and (here.affinity < 1).all() and np.ptp(here.affinity) > 0
    assert here.attention.sum() == pytest.approx(1, rel=1e-5)
    for outside in ((96, 0), (0, 64), (-1, 0)):
        with pytest.raises(UserError, match="outside the image, which has 96 x 64"):
            position_maps(model, image, mask, outside)


def test_a_cnn_has_affinity_alone_if_it_was_trained_for_it():
    image, mask = image_and_mask(32, 48)
    maps = position_maps(untrained_airm("plain", AFFINITY=True), image, mask, (10, 10))
    assert maps.attention is None and maps.affinity.shape == (8, 12)
    assert maps.affinity[maps.cell] == pytest.approx(np.exp(-1e-4))  # itself, at the least distance
    with pytest.raises(UserError, match="neither attention"):
        position_maps(untrained_airm("plain"), image, mask, (10, 10))


# ---------------------------------------------------------------- predicted parameters


def test_parameters_are_predicted_for_each_image_by_airmf_alone(model):
    images = [image_and_mask(48, 64, seed) for seed in (0, 1, 0)]
    vectors = predict_parameters(model, [{"image": i, "coarse_mask": m} for i, m in images])
    # D = 4 x 8 channels and 6 coordinates, hidden 8 and 8, rank 20: A, B and bias of each layer
    layers = [(8, 38), (8, 8), (1, 8)]
    assert vectors.shape == (3, sum(20 * (o + i) + o for o, i in layers)) and vectors.dtype == np.float32
    np.testing.assert_array_equal(vectors[0], vectors[2])
    assert np.abs(vectors[0] - vectors[1]).max() > 1e-6
    with pytest.raises(UserError, match="SIRMF"):
        predict_parameters(untrained_airm(MAPPING="SIRMF"), [])


def test_tsne_of_12_images_keeps_kinds_together_and_is_seeded(caplog):
    rng = np.random.default_rng(0)
    kinds = np.repeat([0, 1], 6)
    vectors = (rng.normal(0, 0.1, (12, 50)) + 3 * kinds[:, None]).astype(np.float32)
    points, perplexity = reduce_parameters(vectors, seed=4)
    assert points.shape == (12, 2) and perplexity == pytest.approx(11 / 3)
    assert "becomes 3.67" in caplog.text
    distances = np.linalg.norm(points[:, None] - points, axis=2) + np.diag([np.inf] * 12)
    assert (kinds[distances.argmin(1)] == kinds).all()
    np.testing.assert_array_equal(reduce_parameters(vectors, seed=4)[0], points)


@pytest.mark.parametrize(
    ("vectors", "perplexity", "message"),
    [
        (np.eye(3), 30, "3 images are too few"),
        (np.ones((9, 5)), 30, "all 9 images are the same"),
        (np.eye(9), 0, "perplexity is 0"),
    ],
)
def test_what_tsne_cannot_use_is_named(vectors, perplexity, message, monkeypatch):
    with pytest.raises(UserError, match=message):
        reduce_parameters(vectors, perplexity)
    monkeypatch.setitem(sys.modules, "sklearn.manifold", None)
    with pytest.raises(UserError, match="pip install scikit-learn"):
        reduce_parameters(np.eye(9))
