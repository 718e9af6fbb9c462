"""FLOPs and parameters of mask branches: the paper's figures, and an independent count; the tables of both kinds."""

import json

import pytest
import torch
from detectron2.modeling import build_model
from torch.utils.flop_counter import FlopCounterMode

from patchdct.mask_network import MaskNetwork, mask_branch_cost
from pixelmask.cli import run
from tests.support.checkpoints import save_model
from tests.support.models import load_tool, tiny_airm_cfg, tiny_cfg

# The mask branch is that of the config; the backbone is irrelevant to it
SMALL_BACKBONE = ["MODEL.RESNETS.DEPTH", "18", "MODEL.RESNETS.RES2_OUT_CHANNELS", "64"]


@pytest.fixture(scope="module")
def tool():
    return load_tool("analyze_model")


@pytest.fixture(scope="module")
def rows(tool, tmp_path_factory):
    """The tool's rows for its default configs, by config."""
    path = tmp_path_factory.mktemp("cost") / "cost.json"
    run(tool.main, tool.argument_parser().parse_args(["--json", str(path), *SMALL_BACKBONE]))
    return {row["config"]: row for row in json.loads(path.read_text())}


def test_table_shows_the_figures_of_the_paper(tool, rows, capsys):
    tool.show_mask_branches(list(rows.values()))
    text = capsys.readouterr().out
    assert "as in the paper" in text and "Spent here" in text
    for name, count in (("patchdct", "5.1 G"), ("patchdct_2stage", "9.6 G"), ("patchdct_3stage", "14.1 G")):
        name = name.replace("patchdct", "patchdct_R_50_FPN_1x") + "_coco"
        (line,) = [line for line in text.splitlines() if f" {name} " in line]
        assert line.split(name)[1].split()[:2] == count.split()


def test_layers_are_counted_for_every_class_and_for_what_is_spent(rows):
    convs = 4 * 256 * 256 * 9 * 14**2
    coarse = convs + 256 * 14**2 * 1024 + 1024 * 1024 + 1024 * 300
    fuse = 256 * 9 * 42**2 + 2 * 256 * 256 * 9 * 42**2
    module = fuse + (256 + 1024) * 1024 * 9 * 14**2 + 1024 * 80 * (6 + 3) * 14**2
    assert rows["mask_rcnn_R_50_FPN_1x_coco"]["every_class"] == convs + 256 * 256 * 4 * 14**2 + 256 * 80 * 28**2
    assert rows["dct_mask_R_50_FPN_1x_coco"]["every_class"] == coarse
    assert rows["patchdct_R_50_FPN_1x_coco"]["every_class"] == coarse + module
    assert rows["patchdct_R_50_FPN_1x_2stage_coco"]["every_class"] == coarse + 2 * module
    assert rows["patchdct_R_50_FPN_1x_3stage_coco"]["every_class"] == coarse + 3 * module
    row = rows["patchdct_R_50_FPN_1x_coco"]
    # 24 x 24 frequencies to 42 x 42 pixels, and 3 x 3 to 8 x 8 in each of the 14 x 14 patches
    codec = 24 * 24 * 42 + 42 * 24 * 42 + 14**2 * (3 * 3 * 8 + 8 * 3 * 8)
    assert row["every_class"] - row["spent"] == 79 * 1024 * (6 + 3) * 14**2 - codec


def test_parameters(rows):
    millions = [round(row["parameters"] / 1e6, 1) for row in rows.values()]
    assert millions == [2.6, 55.1, 68.8, 68.8, 68.8]
    others = {row["model_parameters"] - row["parameters"] for row in rows.values()}
    assert len(others) == 1 and others.pop() > 10e6


@pytest.mark.parametrize(
    ("head", "options"),
    [
        ("mask_rcnn", {}),
        ("dct_mask", {}),
        ("dct_mask", {"CLS_AGNOSTIC_MASK": False}),
        ("patchdct", {"NUM_STAGE": 3, "MASK_LOSS_PARA_EACH_STAGE": [1.0, 1.0, 1.0]}),
        ("patchdct", {"CLS_AGNOSTIC_MASK": True}),
        ("patchdct", {"FINE_PROJECTION": 4, "NUM_FUSION": 0}),
    ],
)
def test_spent_is_what_torch_itself_counts(head, options):
    model = build_model(tiny_cfg(head, **options)).eval()
    network = MaskNetwork(model)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        network(*network.example_inputs(1))
    # torch counts a multiply-add as two
    assert mask_branch_cost(model.train()).spent == counter.get_total_flops() / 2
    assert all(m.training for m in model.modules())  # the caller's model is left as it is


def test_class_agnostic_costs_the_same_in_both_counts():
    cost = mask_branch_cost(build_model(tiny_cfg("patchdct", CLS_AGNOSTIC_MASK=True)))
    specific = mask_branch_cost(build_model(tiny_cfg("patchdct")))
    predictors_of_two_classes = 2 * 16 * (6 + 3) * 14**2
    assert specific.every_class - cost.every_class == predictors_of_two_classes
    assert specific.spent == cost.spent


def test_network_computes_what_the_head_does():
    model = build_model(tiny_cfg("patchdct")).eval()
    network = MaskNetwork(model)
    classes, x, fine = network.example_inputs(4)
    assert x.shape == (4, 16, 14, 14) and fine.shape == (4, 16, 42, 42)
    with torch.no_grad():
        masks = network(classes, x, fine)
        _, stages = network.head.predict(x, fine, classes)
    assert masks.shape == (4, 112, 112)
    assert torch.equal(masks, network.head.assemble(stages[0], network.head.final_labels(stages[0].logits)))


def test_model_without_mask_branch_is_an_error(tool, config_file, fails):
    path = config_file("mask_rcnn", lambda cfg: cfg.merge_from_list(["MODEL.MASK_ON", False]))
    with fails("MODEL.MASK_ON"):
        run(tool.main, tool.argument_parser().parse_args(["--config-file", path]))


def test_airm_has_a_table_of_its_own(tool, config_file, tmp_path, capsys):
    airm, path = tmp_path / "refiner.yaml", tmp_path / "cost.json"
    airm.write_text(tiny_airm_cfg().dump())
    files = ["--config-file", str(airm), "--config-file", config_file("patchdct")]
    options = ["--size", "96", "160", "--tile-size", "64", "--json", str(path)]
    keys = ["MODEL.AIRM.RATIOS", "[0.5, 1.0]", "MODEL.AIRM.MIN_SIZE_TEST", "0", "MODEL.AIRM.TILE_HALO", "0"]
    run(tool.main, tool.argument_parser().parse_args([*files, *options, *keys]))
    mask_branch, whole, tiled = json.loads(path.read_text())
    assert mask_branch["config"] == "patchdct" and mask_branch["head"] == "MaskRCNNPatchDCTHead"
    assert [(row["config"], row["tile_size"]) for row in (whole, tiled)] == [("refiner", 0), ("refiner", 64)]
    for row in (whole, tiled):
        assert (row["height"], row["width"]) == (96, 160)
        assert row["total"] == row["attention"] + row["encoder"] + row["hypernetwork"] + row["query"]
    # 80 x 112 padded pixels at ratio 0.5, of which those of the image are in 1 x 2 windows of 64
    assert whole["tiles"] == [[1, 1], [1, 1]] and tiled["tiles"][0] == [2, 2]
    text = capsys.readouterr().out
    assert text.index("Mask branch") < text.index("one image of 160 x 96") < text.index("tiles of 64")
    assert "1/1 1/1" in text and f"{whole['total'] / 1e9:.1f} G" in text


def test_adaptation_is_what_mean_weights_change(tool, tmp_path, capsys, data_root):
    data, path = "synthetic_refinement_val_4_96x72", tmp_path / "scores.json"
    changes = {}
    for mapping in ("AIRMF", "SIRMF"):
        weights = save_model(tiny_airm_cfg(MAPPING=mapping, RATIOS=[0.5, 1.0], MIN_SIZE_TEST=0), tmp_path / mapping)
        args = ["--adaptation", data, "--weights", str(weights), "--json", str(path)]
        run(tool.main, tool.argument_parser().parse_args(args))
        (scores,) = json.loads(path.read_text())
        assert scores["images"] == 4
        for name, change in scores["change"].items():
            assert change == pytest.approx(scores["mean"][name] - scores["own"][name])
        changes[mapping] = scores["change"]
    assert changes["SIRMF"] == {"IoU": 0, "mBA": 0} and changes["AIRMF"]["mBA"] != 0
    assert "mean of the set" in capsys.readouterr().out


def test_airm_option_stands_for_the_four_models_of_table_4(tool, tmp_path, capsys):
    path = tmp_path / "cost.json"
    args = ["--airm", "--size", "64", "64", "--tile-size", "0", "--json", str(path)]
    run(tool.main, tool.argument_parser().parse_args(args))
    rows = json.loads(path.read_text())
    assert [row["config"] for row in rows] == ["sirmf_R_50", "airm_R_50", "sirmf_mit_b1", "airm_mit_b1"]
    parameters = [row["model_parameters"] for row in rows]
    # The same hypernetwork, whatever the encoder, and near the paper's 9.27 M and 13.21 M
    assert parameters[1] - parameters[0] == parameters[3] - parameters[2] > 0
    assert [round(n / 1e6) for n in parameters] == [9, 10, 13, 14]
    assert [row["hypernetwork"] > 0 for row in rows] == [False, True, False, True]
    assert [row["attention"] > 0 for row in rows] == [False, False, True, True]
    assert "Mask branch" not in capsys.readouterr().out


def test_size_of_nothing_is_an_error(tool, capsys):
    with pytest.raises(SystemExit):
        tool.argument_parser().parse_args(["--airm", "--size", "0", "64"])
    assert "0 is not at least 1" in capsys.readouterr().err
