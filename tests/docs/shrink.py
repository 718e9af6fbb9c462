"""Small copies of the configs: the same models in kind, trained for two iterations on tiny images. Likewise tools."""

import re
from pathlib import Path
from typing import Any

import yaml

# What every config gets, if it is a root or says something else about the key
DETECTOR = {
    "MODEL": {
        "DEVICE": "cpu",
        "RESNETS": {"NORM": "BN", "STEM_OUT_CHANNELS": 8, "RES2_OUT_CHANNELS": 8},
        "FPN": {"OUT_CHANNELS": 8},
        "RPN": {
            "BATCH_SIZE_PER_IMAGE": 16,
            "PRE_NMS_TOPK_TRAIN": 50,
            "PRE_NMS_TOPK_TEST": 50,
            "POST_NMS_TOPK_TRAIN": 20,
            "POST_NMS_TOPK_TEST": 20,
        },
        # What an untrained model finds has low scores
        "ROI_HEADS": {"BATCH_SIZE_PER_IMAGE": 8, "SCORE_THRESH_TEST": 0.0},
        "ROI_BOX_HEAD": {"FC_DIM": 16},
        "ROI_MASK_HEAD": {"CONV_DIM": 8, "NUM_CONV": 1, "HIDDEN_FEATURES": 16},
    },
    "INPUT": {"MIN_SIZE_TRAIN": [96], "MIN_SIZE_TEST": 96},
    "TEST": {"DETECTIONS_PER_IMAGE": 5},
    # Divisible by the GPUs that the documentation names as SOLVER.REFERENCE_WORLD_SIZE
    "SOLVER": {"IMS_PER_BATCH": 8},
}
AIRM = {
    "MODEL": {
        "DEVICE": "cpu",
        "RESNETS": {"DEPTH": 18, "RES2_OUT_CHANNELS": 64},
        "PLAIN_CNN": {"NUM_LAYERS": 3, "CHANNELS": 8},
        "AIRM": {
            "STAGE_CHANNELS": 2,
            "HIDDEN_FEATURES": [4],
            "HYPERNETWORK_CHANNELS": [4],
            "RATIOS": [0.125, 0.25],
        },
    },
    "INPUT": {"REFINEMENT": {"CROP_SIZE": 64}},
    "SOLVER": {"IMS_PER_BATCH": 4},
}
BOTH = {
    "SOLVER": {"MAX_ITER": 2, "STEPS": [], "WARMUP_ITERS": 0, "CHECKPOINT_PERIOD": 100},
    "DATALOADER": {"NUM_WORKERS": 0},
}

# Defaults of the tools that measure, by file; what a command says itself, `blocks.adapt` reduces
MEASURED = {
    "analyze_model.py": {"PAPERS_SIZE = (1706, 2560)": "PAPERS_SIZE = (426, 640)"},
    "benchmark.py": {
        "default=[800, 1333]": "default=[200, 333]",
        "default=[20, 100]": "default=[2, 10]",
        "default=10, ": "default=2, ",
    },
    "reproduction/session.py": {
        '"800", "1333", "--instances", "20"': '"200", "333", "--instances", "2"',
        '"1706", "2560"': '"426", "640"',
    },
}


def shrink_tools(folder: Path) -> None:
    """Shrink what the tools of a folder measure by default, and `reproduction/quick.yaml`."""
    for name, replaced in MEASURED.items():
        text = (folder / name).read_text(encoding="utf-8")
        for old, new in replaced.items():
            assert old in text, f"{name} has no {old} any more"
            text = text.replace(old, new)
        (folder / name).write_text(text, encoding="utf-8")
    _shrink_quick(folder / "reproduction" / "quick.yaml")


def shrink_configs(source: Path, target: Path) -> None:
    """Write small copies of all configs below a folder."""
    for path in source.rglob("*.yaml"):
        content = yaml.safe_load(_small_sets(path.read_text(encoding="utf-8"))) or {}
        pinned = AIRM if "airm" in path.relative_to(source).parts else DETECTOR
        _pin(content, pinned, everything="_BASE_" not in content)
        _pin(content, BOTH, everything="_BASE_" not in content)
        if path.name == "Base-small.yaml":  # the others take published weights, which fit their own depth alone
            _pin(content, {"MODEL": {"MIT": {"DEPTHS": [1, 1, 1, 1]}}}, everything=True)
        _no_downloads(content.get("MODEL", {}))
        copy = target / path.relative_to(source)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_text(yaml.safe_dump(content, sort_keys=False))


def _shrink_quick(path: Path) -> None:
    content = yaml.safe_load(_small_sets(path.read_text(encoding="utf-8")))
    for overlay in content["overlays"].values():
        _pin(overlay, {"SOLVER": {"MAX_ITER": 2, "WARMUP_ITERS": 0, "CHECKPOINT_PERIOD": 100}}, everything=False)
    content["image_size"] = [96, 128]
    path.write_text(yaml.safe_dump(content, sort_keys=False))


def _pin(content: dict[str, Any], pinned: dict[str, Any], everything: bool) -> None:
    for key, value in pinned.items():
        if isinstance(value, dict):
            if everything or key in content:
                _pin(content.setdefault(key, {}), value, everything)
        elif everything or key in content:
            content[key] = value


def _no_downloads(model: dict[str, Any]) -> None:
    if "://" in model.get("WEIGHTS", ""):
        model["WEIGHTS"] = ""
    if model.get("BACKBONE", {}).get("NAME") == "build_resnet_fpn_backbone":
        # It takes any number of channels
        model["BACKBONE"]["NAME"] = "build_narrow_resnet_fpn_backbone"


def _small_sets(text: str) -> str:
    """Rename drawn data sets to the smallest ones of their kind."""
    text = re.sub(r"\bshapes_(train|val)(_\d+)?(_\d+px)?\b", r"shapes_\1_6_96px", text)
    return re.sub(r"\bsynthetic_refinement_(train|val)_\d+_\d+x\d+", r"synthetic_refinement_\1_4_96x72", text)
