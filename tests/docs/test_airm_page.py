"""What docs/airm.md and docs/refining_images.md say in tables: config keys, shapes, numbers; and their pictures."""

import ast
import re
from functools import reduce
from pathlib import Path

import pytest
import torch
from detectron2.modeling import build_model
from PIL import Image

from airm.affinity import pairs_within
from airm.cost import num_parameters as count
from airm.implicit_mapping import pixel_centres
from airm.refine.memory import SMALLEST_CHUNK, SMALLEST_TILE, estimate_peak
from airm.tiles import grid_axis
from pixelmask.config import get_cfg, load_cfg

AIRM, REFINING = (Path("docs", f"{name}.md").read_text() for name in ("airm", "refining_images"))
NODES = ("MODEL.MIT", "MODEL.PLAIN_CNN", "MODEL.AIRM", "INPUT.REFINEMENT")


def rows(text: str, header: str) -> list[list[str]]:
    """Return the cells of the table below a header line."""
    lines = text.split(f"\n{header}\n")[1].splitlines()[1:]
    end = next(i for i, line in enumerate([*lines, ""]) if not line.startswith("|"))
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[:end]]


def test_every_key_has_its_default_and_there_are_no_others():
    cfg = get_cfg("AIRM")
    described = {key.strip("`"): value for key, value, *_ in rows(AIRM, "| key | default | meaning | varied in |")}
    nodes = {name: reduce(getattr, name.split("."), cfg) for name in NODES}
    expected = {f"{name}.{key}": value for name, node in nodes.items() for key, value in node.items()}
    expected["DATASETS.REFINEMENT"] = cfg.DATASETS.REFINEMENT
    assert {key: ast.literal_eval(value.strip("`")) for key, value in described.items()} == expected


@pytest.fixture(scope="module")
def models():
    names = ("airm_mit_b1", "sirmf_mit_b1")
    return [build_model(load_cfg(f"configs/airm/{name}.yaml", ["MODEL.DEVICE", "cpu"])).eval() for name in names]


@torch.no_grad()
def test_shapes(models):
    model, inputs = models[0], torch.zeros(1, 4, 224, 224)
    stages, attention = model.encoder.backbone.forward_with_attention(inputs)
    features, affinity, _ = model.encoder.forward_with_affinity(inputs)
    centres = pixel_centres(224, features)
    found = {f"`{name}`": x for name, x in stages.items()} | {"ATT": attention, "Aff": affinity.same, "F": features}
    found["parameters"] = model.mapping.embed(features)
    found["logits"] = model.query(features, centres, centres)
    described = {name: shape for name, shape, _ in rows(AIRM, "| tensor | shape | made by |")}
    assert described == {name: f"(B, {', '.join(map(str, x.shape[1:]))})" for name, x in found.items()}
    assert all(shape in AIRM.split("```text")[1].split("```")[0] for shape in described.values())


def test_parameters(models):
    adaptive, shared = models
    encoder, text = adaptive.encoder, " ".join(AIRM.split())
    millions = [count(x) / 1e6 for x in (adaptive, encoder.backbone, shared)]
    assert "Of the {:.2f} M parameters the backbone has {:.2f} M".format(*millions) in text
    assert f"{millions[2]:.2f} M in all" in text
    rest = count(encoder.projections) / 1e3, count(encoder.affinity), count(adaptive.mapping) / 1e3
    assert "the projections to F {:.0f} k, the affinity {}, and the hypernetwork {:.0f} k".format(*rest) in text
    assert f"mapping's own {count(shared.mapping) / 1e3:.0f} k" in text


def test_pairs_within_a_radius():
    header = "| R | 6 | 10 | 14 | 18 | 20 |"
    (shares, _) = rows(AIRM, header)
    for radius, share in zip(header.strip("| ").split(" | ")[1:], shares[1:], strict=True):
        pairs = pairs_within(float(radius), 14, 14, torch.device("cpu")).sum().item()
        assert share == f"{100 * pairs / (196 * 195):.1f} %"


def test_memory_estimates():
    tiles = (100_000, 1024, 512)
    for name, *peaks, least in rows(REFINING, "| image | whole | tiles of 1024 | tiles of 512 | the least possible |"):
        width, height = map(int, name.split(" x "))
        padded = [grid_axis(n, 1.0, get_cfg("AIRM").MODEL.AIRM.PADDING).padded for n in (height, width)]
        for tile, peak in zip(tiles, peaks, strict=True):
            encoded = min(tile, padded[0]) * min(tile, padded[1])
            estimate = estimate_peak((height, width), 1, encoded, get_cfg("AIRM").MODEL.AIRM.QUERY_CHUNK)
            assert peak == f"{estimate / 2**30:.1f} GiB"
        assert least == f"{estimate_peak((height, width), 1, SMALLEST_TILE**2, SMALLEST_CHUNK) / 2**30:.2f} GiB"


@pytest.mark.parametrize("text", [AIRM, REFINING])
def test_pictures_are_there_and_not_too_large(text):
    names = re.findall(r"!\[[^]]+\]\(([^)]+)\)", text)
    assert names
    for name in names:
        path = Path("docs", name)
        with Image.open(path) as picture:
            assert picture.width <= 1600
        assert path.stat().st_size < 250_000
