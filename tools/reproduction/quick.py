"""Quick mode: the rows' configs with small models, short schedules and drawn data, as ``quick.yaml`` has them."""

from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml
from detectron2.config import CfgNode

from pixelmask.errors import UserError

FILE = Path(__file__).with_name("quick.yaml")
TITLE = (
    "QUICK MODE, NOT THE PAPER'S DATA: small models after a short training on drawn images. These figures say that the "
    "machinery works, and nothing about the methods; no difference to the paper's is given."
)


@lru_cache
def settings() -> dict[str, Any]:
    """Return the content of ``quick.yaml``."""
    return yaml.safe_load(FILE.read_text(encoding="utf-8"))


def overlay(cfg: CfgNode) -> CfgNode:
    """Return a copy of a config with what quick mode changes; the options that rows differ in stay as they are."""
    cfg = cfg.clone()
    cfg.defrost()
    names = (cfg.MODEL.META_ARCHITECTURE, cfg.MODEL.BACKBONE.NAME, cfg.MODEL.ROI_MASK_HEAD.NAME)
    for name, changes in settings()["overlays"].items():
        if name in names:
            cfg.merge_from_other_cfg(CfgNode(changes))
    cfg.freeze()
    return cfg


def test_set(name: str) -> str:
    """Return the drawn set that stands for a test set of the papers."""
    try:
        return settings()["test_sets"][name]
    except KeyError:
        raise UserError(f"quick.yaml has no drawn set that stands for {name}; add it to its test_sets") from None
