"""Every YAML of the repository parses, merges and builds; so do the published ones."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml
from detectron2.config import CfgNode
from detectron2.modeling import build_model

import airm  # noqa: F401 - registers its keys
from patchdct import MaskRCNNPatchDCTHead
from pixelmask.config import get_cfg, load_cfg, load_cfgs, parse_cfg
from pixelmask.errors import UserError

CONFIGS = sorted(Path("configs").rglob("*.yaml"))
RESULTS = [p for p in CONFIGS if not p.name.startswith("Base")]


class StrictLoader(yaml.SafeLoader):
    """Refuses a key that stands twice, of which YAML silently takes the last."""

    def construct_mapping(self, node, deep=False):
        keys = [self.construct_object(key) for key, _ in node.value]
        assert len(keys) == len(set(keys)), f"a key stands twice among {keys}"
        return super().construct_mapping(node, deep)


def build_without_memory(cfg: CfgNode) -> torch.nn.Module:
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.DEVICE = "meta"
    with torch.device("meta"):
        return build_model(cfg)


@pytest.mark.parametrize("path", CONFIGS, ids=str)
def test_parses_merges_and_builds_and_its_output_folder_is_named_after_it(path):
    assert len(RESULTS) >= 14
    yaml.load(path.read_text(), StrictLoader)
    cfg = load_cfg(str(path))
    build_without_memory(cfg)
    assert path not in RESULTS or Path(cfg.OUTPUT_DIR).name == path.stem


# The published PatchDCT config, key by key; the values of its R50-FPN 1x file
PUBLISHED_MASK_HEAD = {
    "NAME": "MaskRCNNPatchDCTHead",
    "NUM_CONV": 4,
    "CLS_AGNOSTIC_MASK": False,
    "IN_FEATURES": ["p2", "p3", "p4", "p5"],
    "POOLER_RESOLUTION": 14,
    "FINE_FEATURES": ["p2"],
    "FINE_FEATURES_RESOLUTION": 42,
    "MASK_SIZE": 112,
    "DCT_VECTOR_DIM": 300,
    "MASK_SIZE_ASSEMBLE": 112,
    "PATCH_SIZE": 8,
    "PATCH_DCT_VECTOR_DIM": 6,
    "MASK_LOSS_PARA": 1.0,
    "HIDDEN_FEATURES": 1024,
    "PATCH_THRESHOLD": 0.30,
    "NUM_STAGE": 2,
    "MASK_LOSS_PARA_EACH_STAGE": [1.0, 1.0],
    "EVAL_GT": False,
    "DCT_LOSS_TYPE": "l1",
}
PUBLISHED_DCT_MASK_HEAD = {
    "NAME": "MaskRCNNDCTHead",
    "NUM_CONV": 4,
    "POOLER_RESOLUTION": 14,
    "CLS_AGNOSTIC_MASK": True,
    "DCT_VECTOR_DIM": 300,
    "MASK_SIZE": 128,
    "MASK_LOSS_PARA": 0.007,
    "DCT_LOSS_TYPE": "l1",
}


def published_config(tmp_path: Path, roi_heads: str, mask_head: dict) -> str:
    model = {
        "MASK_ON": True,
        "BACKBONE": {"NAME": "build_resnet_fpn_backbone"},
        "RESNETS": {"DEPTH": 50, "OUT_FEATURES": ["res2", "res3", "res4", "res5"]},
        "FPN": {"IN_FEATURES": ["res2", "res3", "res4", "res5"]},
        "ANCHOR_GENERATOR": {"SIZES": [[32], [64], [128], [256], [512]], "ASPECT_RATIOS": [[0.5, 1.0, 2.0]]},
        "RPN": {"IN_FEATURES": ["p2", "p3", "p4", "p5", "p6"]},
        "ROI_HEADS": {"NAME": roi_heads, "IN_FEATURES": ["p2", "p3", "p4", "p5"], "NUM_CLASSES": 80},
        "ROI_BOX_HEAD": {"NAME": "FastRCNNConvFCHead", "NUM_FC": 2, "POOLER_RESOLUTION": 7},
        "ROI_MASK_HEAD": mask_head,
    }
    path = tmp_path / "published.yaml"
    path.write_text(yaml.safe_dump({"MODEL": model, "VERSION": 2}))
    return str(path)


def test_published_configs_are_ours(tmp_path):
    ours = build_without_memory(load_cfg("configs/patchdct/patchdct_R_50_FPN_1x_coco.yaml")).state_dict()
    for stages in ({}, {"NUM_STAGE": 3, "MASK_LOSS_PARA_EACH_STAGE": [0.5, 0.5, 0.8]}):
        published = load_cfg(published_config(tmp_path, "PatchDCTROIHeads", {**PUBLISHED_MASK_HEAD, **stages}))
        model = build_without_memory(published)
        assert isinstance(model.roi_heads.mask_head, MaskRCNNPatchDCTHead)
        shapes = {k: v.shape for k, v in model.state_dict().items()}
        assert shapes == {k: v.shape for k, v in ours.items()}
    published = load_cfg(published_config(tmp_path, "StandardROIHeads", PUBLISHED_DCT_MASK_HEAD))
    ours = load_cfg("configs/patchdct/dct_mask_R_50_FPN_1x_coco.yaml")
    assert published.MODEL.ROI_MASK_HEAD == ours.MODEL.ROI_MASK_HEAD
    build_without_memory(published)


def whole_config(path: Path, architecture: str, change: Callable[[dict], object]) -> str:
    """Write the config that a training of the model would dump, changed."""
    content = yaml.safe_load(get_cfg(architecture).dump())
    content["MODEL"]["DEVICE"] = "cpu"
    change(content)
    path.write_text(yaml.safe_dump(content))
    return str(path)


def add_both_models(content: dict) -> None:
    """What a run of this project had when a config had the keys of all its models."""
    both = yaml.safe_load(get_cfg("AIRM").dump())
    merge(both, yaml.safe_load(get_cfg().dump()))
    merge(both, content)
    content.update(both)


def become_newer(content: dict) -> None:
    """Keys that Detectron2 got after v0.5, and one that it may get."""
    box_head = {"USE_FED_LOSS": False, "FED_LOSS_FREQ_WEIGHT_POWER": 0.5, "FED_LOSS_NUM_CLASSES": 50}
    box_head["USE_SIGMOID_CE"] = False
    solver = {"BASE_LR_END": 0.0, "NUM_DECAYS": 3, "RESCALE_INTERVAL": False, "WEIGHT_DECAY_BIAS": None}
    merge(content, {"SOLVER": solver, "DATALOADER": {"REPEAT_SQRT": True}, "MODEL": {"ROI_BOX_HEAD": box_head}})
    merge(content, {"FLOAT32_PRECISION": "", "OF_LATER": {"A": 1}})


def become_older(content: dict) -> None:
    """Keys that a Detectron2 before v0.5 lacks."""
    del content["SOLVER"]["AMP"], content["MODEL"]["RPN"]["CONV_DIMS"]


def merge(into: dict, other: dict) -> None:
    for key, value in other.items():
        if isinstance(value, dict) and key in into:
            merge(into[key], value)
        else:
            into[key] = value


@pytest.mark.parametrize("architecture", ["AIRM", "GeneralizedRCNN"])
@pytest.mark.parametrize("change", [add_both_models, become_newer, become_older])
def test_whole_configs_of_other_models_and_versions_load(tmp_path, caplog, architecture, change):
    def use(content):
        content["MODEL"]["META_ARCHITECTURE"], content["SOLVER"]["BASE_LR"] = architecture, 0.125
        change(content)

    path = whole_config(tmp_path / "config.yaml", architecture, use)
    expected = get_cfg(architecture)
    expected.MODEL.META_ARCHITECTURE, expected.MODEL.DEVICE, expected.SOLVER.BASE_LR = architecture, "cpu", 0.125
    for load in (load_cfg, lambda path: parse_cfg(Path(path).read_text(), path)):
        caplog.clear()
        cfg = load(path).clone()
        cfg.defrost()
        if change is become_newer:
            assert cfg.SOLVER.WEIGHT_DECAY_BIAS is None
            cfg.SOLVER.WEIGHT_DECAY_BIAS = expected.SOLVER.WEIGHT_DECAY_BIAS
            assert all(message.endswith(": OF_LATER") for message in caplog.messages if "left out" in message)
        assert json.dumps(cfg, indent=0).splitlines() == json.dumps(expected, indent=0).splitlines()
        messages = [message for message in caplog.messages if "left out" in message]
        assert len(messages) == (change is not become_older) and all(path in message for message in messages)
        if change is add_both_models:
            assert ("MODEL.AIRM" in messages[0]) == (architecture != "AIRM")
            assert ("MODEL.ROI_MASK_HEAD.PATCH_SIZE" in messages[0]) == (architecture == "AIRM")


def test_a_newer_detectron2_that_scores_otherwise_is_not_passed_over(tmp_path):
    path = whole_config(
        tmp_path / "config.yaml", "", lambda content: content["MODEL"]["ROI_BOX_HEAD"].update(USE_SIGMOID_CE=True)
    )
    if "USE_SIGMOID_CE" in get_cfg().MODEL.ROI_BOX_HEAD:
        assert load_cfg(path).MODEL.ROI_BOX_HEAD.USE_SIGMOID_CE
        return
    with pytest.raises(UserError, match="config.yaml: .*USE_SIGMOID_CE needs a newer Detectron2"):
        load_cfg(path)


def test_overrides_of_one_kind_are_left_out_of_the_other_where_there_are_both(caplog):
    files = ["configs/airm/airm_mit_b1.yaml", "configs/patchdct/patchdct_R_50_FPN_1x_coco.yaml"]
    opts = ["MODEL.AIRM.RANK", "3", "MODEL.ROI_MASK_HEAD.PATCH_SIZE", "16", "MODEL.DEVICE", "cpu"]
    refiner, detector = load_cfgs(files, opts)
    assert (refiner.MODEL.AIRM.RANK, detector.MODEL.ROI_MASK_HEAD.PATCH_SIZE) == (3, 16)
    assert (refiner.MODEL.DEVICE, detector.MODEL.DEVICE) == ("cpu", "cpu") and "AIRM" not in detector.MODEL
    (message,) = caplog.messages
    assert f"{files[0]}: MODEL.ROI_MASK_HEAD.PATCH_SIZE; {files[1]}: MODEL.AIRM.RANK" in message
    for one, wrong in (([files[1]], opts), (files, ["MODEL.AIRM.RANKS", "3"]), (files, ["MODEL.AIRM.RANK"])):
        with pytest.raises(UserError, match=r"MODEL\.AIRM\.RANK"):
            load_cfgs(one, wrong)


@pytest.mark.parametrize(("key", "renamed"), [("MAX_ITERATIONS", True), ("MAX_ITERS", False)])
def test_a_typing_mistake_in_an_edited_config_of_a_training(tmp_path, key, renamed):
    def change(content):
        content["SOLVER"][key] = content["SOLVER"].pop("MAX_ITER") if renamed else 7

    path = whole_config(tmp_path / "config.yaml", "AIRM", change)
    message = rf"config.yaml: unknown config key SOLVER\.{key}; did you mean SOLVER\.MAX_ITER\?"
    with pytest.raises(UserError, match=message):
        load_cfg(path)
    with pytest.raises(UserError, match=message):
        parse_cfg(Path(path).read_text(), path)


@pytest.mark.parametrize(
    ("opts", "message"),
    [
        (["MODEL.ROI_MASK_HEAD.PATCH_SIZES", "8"], r"PATCH_SIZES; did you mean .*PATCH_SIZE"),
        (["SOLVER.BASE_LR"], "no value"),
        (["SOLVER.STEPS", "often"], "STEPS"),
        (["SOLVER.MAX_ITER.A", "3"], "command line"),
    ],
)
def test_bad_overrides_are_named(opts, message):
    with pytest.raises(UserError, match=message):
        load_cfg("", opts)


def laughs(repeated):
    """Names that each stand for the one before twice: 2**40 values."""
    return "a0: &a0 {x: 1}\n" + "".join(f"a{i}: &a{i} {repeated.format(i - 1)}\n" for i in range(1, 40))


@pytest.mark.parametrize("content", [laughs("[*a{0}, *a{0}]"), "a: " + "[" * 1500, "", "5", "- a", "MODEL: 3"])
def test_a_bad_config_of_a_checkpoint(content):
    with pytest.raises(UserError, match="^bad.pth: "):
        parse_cfg(content, "bad.pth")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("MODEL:\n  MASK_OFF: True\n", "MODEL.MASK_OFF"),
        ("MODEL: [\n", "bad.yaml"),
        ("VERSION: 2\nx: !!python/name:os.system\n", "bad.yaml"),
        ("MODEL:\n  AIRM:\n    RANK: 3\n", "bad.yaml: unknown config key MODEL.AIRM.*import"),
        ("SOLVER:\n  MAX_ITERS: 3\n", "MAX_ITERS; did you mean SOLVER.MAX_ITER"),
        ("- a\n", "bad.yaml"),
        ("", "bad.yaml"),
        ("MODEL: 3\n", "bad.yaml"),
        ("# nothing\n", "bad.yaml: it holds what is not keys and values"),
        ("5\n", "bad.yaml: it holds what is not keys and values"),
        ("1: 2\n", "bad.yaml: it does not hold keys, which are words"),
        ("_BASE_: bad.yaml\n", "bad.yaml: _BASE_ leads to more than 32 files, such as .*bad.yaml"),
        ("_BASE_: [bad.yaml, bad.yaml]\n", "bad.yaml: _BASE_ leads to more than 32 files"),
        ("_BASE_: 3\n", "bad.yaml: it holds what is not keys and values"),
        ("MODEL: " + "[" * 1500, "bad.yaml: groups within groups, deeper than any config"),
        ("".join(" " * i + "a:\n" for i in range(400)), "bad.yaml: groups within groups, deeper than any config"),
        (laughs("[*a{0}, *a{0}]"), "bad.yaml: with its aliases written out, it has more than 32,768 values"),
        (laughs("{{<<: [*a{0}, *a{0}]}}"), "bad.yaml: with its aliases written out"),
        ("a: &a [*a]\n", "bad.yaml: with its aliases written out"),
        ("x: " + "y" * 300_000, "bad.yaml: it has more than 131,072 characters"),
        ("MODEL:\n  DEVICE: null\n", "MODEL.DEVICE is null"),
        ("SOLVER:\n  MAX_ITER: " + "9" * 30, "MAX_ITER is 1e\\+30, beyond"),
        ("SOLVER:\n  MAX_ITER: 0b" + "1" * 100_000, "digits"),
        ("DATASETS:\n  TRAIN: [2001-01-01]\n", "date"),
    ],
)
def test_bad_files_are_named(tmp_path, content, message):
    path = tmp_path / "bad.yaml"
    path.write_text(content)
    with pytest.raises(UserError, match=message):
        load_cfg(str(path))
    with pytest.raises(UserError, match="nowhere.yaml"):
        load_cfg("nowhere.yaml")
