"""Configs: the keys that all models share, and the one function that makes a config from a file.

A package registers the keys of its models when it is imported (:func:`register_keys`); a config gets those of its own
meta-architecture only.
"""

import difflib
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from detectron2.config import CfgNode
from detectron2.config import get_cfg as get_detectron2_cfg

from .errors import UserError

logger = logging.getLogger(__name__)

AddKeys = Callable[[CfgNode], None]

_ADD_KEYS: dict[str, AddKeys] = {}
# Top-level keys by which a config is known to be a whole one, as a training writes it: nobody writes these by hand
_WHOLE = {"CUDNN_BENCHMARK", "DATALOADER", "DATASETS", "INPUT", "MODEL", "OUTPUT_DIR", "SEED", "SOLVER", "VIS_PERIOD"}


def register_keys(add_keys: AddKeys, architecture: str = "") -> None:
    """Register what adds the keys of a MODEL.META_ARCHITECTURE to a config; "" stands for all that have none."""
    _ADD_KEYS[architecture] = add_keys


def add_common_config(cfg: CfgNode) -> None:
    """Add the keys that all models of this project share, with their defaults, to a Detectron2 config."""
    # "SGD", "ADAM" or "ADAMW"; "" is ADAMW for a Swin backbone, as the published configs take for granted, else SGD
    cfg.SOLVER.OPTIMIZER = ""
    # What SOLVER.AMP.ENABLED trains in: "float16", which needs CUDA, or "bfloat16"
    cfg.SOLVER.AMP.DTYPE = "float16"
    # Data sets in COCO format to register: [name, JSON file, image folder] each
    cfg.DATASETS.COCO_FORMAT = []


def get_cfg(architecture: str = "") -> CfgNode:
    """Return Detectron2's default config with the keys of a meta-architecture."""
    cfg = get_detectron2_cfg()
    add_keys = _ADD_KEYS.get(architecture) or _ADD_KEYS.get("", add_common_config)
    add_keys(cfg)
    return cfg


def load_cfg(config_file: str = "", opts: Sequence[str] = (), datasets: Sequence[Sequence[str]] = ()) -> CfgNode:
    """Return the frozen config that a config file and command-line overrides make.

    A whole config, which a training wrote, may have keys that are not known here: those of another version of
    Detectron2, or of another model. They are left out, and the log says so.

    Args:
        config_file: a YAML file, or "" for the defaults.
        opts: ``KEY VALUE`` pairs.
        datasets: [name, JSON file, image folder] triples to add to ``DATASETS.COCO_FORMAT``.

    Raises:
        UserError: if the file is missing or no YAML, or a key or value does not fit. A config that asks for CUDA on a
            machine without it is not an error: the model goes to the CPU, with a warning.
    """
    content: dict[str, Any] = {}
    if config_file:
        if not Path(config_file).is_file():
            raise UserError(f"no config file {config_file}; those of this project are in configs/")
        try:
            content = CfgNode.load_yaml_with_base(config_file, allow_unsafe=False)
        except (KeyError, AssertionError, AttributeError, ValueError, yaml.YAMLError, OSError) as e:
            raise UserError(f"{config_file}: {e}") from None
    return _make_cfg(content, config_file, opts, datasets)


def parse_cfg(text: str, source: str, opts: Sequence[str] = ()) -> CfgNode:
    """Return the frozen config that a YAML text, such as that in a checkpoint, and overrides make; see load_cfg.

    Raises:
        UserError: if it cannot be used; the message names the ``source``.
    """
    try:
        content = yaml.safe_load(text)
    except yaml.YAMLError as e:
        raise UserError(f"the config in {source} is no YAML: {e}") from None
    return _make_cfg(content, source, opts)


def _make_cfg(
    content: dict[str, Any], source: str, opts: Sequence[str], datasets: Sequence[Sequence[str]] = ()
) -> CfgNode:
    opts = list(opts)
    cfg = get_cfg(_architecture(content, opts))
    place = source
    try:
        _merge_content(cfg, content, source)
        place = "the command line"
        if len(opts) % 2:
            raise UserError(f"overrides come as KEY VALUE pairs; {opts[-1]!r} has no value")
        cfg.merge_from_list(opts)
        cfg.DATASETS.COCO_FORMAT = [*cfg.DATASETS.COCO_FORMAT, *map(list, datasets)]
    except UserError:
        raise
    except (KeyError, AssertionError, AttributeError, ValueError, yaml.YAMLError) as e:
        # yacs says "Non-existent config key: ..." of a file's keys, "Non-existent key: ..." of the command line's
        unknown = str(e).strip("'\"").startswith("Non-existent")
        raise UserError(f"{place}: {_unknown_key_message(cfg, str(e)) if unknown else e}") from None
    if cfg.MODEL.DEVICE.startswith("cuda") and not torch.cuda.is_available():
        logger.warning("No CUDA device here: MODEL.DEVICE %s becomes cpu", cfg.MODEL.DEVICE)
        cfg.MODEL.DEVICE = "cpu"
    cfg.freeze()
    return cfg


def _architecture(content: Any, opts: Sequence[str]) -> str:
    """Return the MODEL.META_ARCHITECTURE that a config's content and overrides name, "" if they do not."""
    key = "MODEL.META_ARCHITECTURE"
    if key in opts[::2]:
        return str(dict(zip(opts[::2], opts[1::2], strict=False))[key])
    model = content.get("MODEL") if isinstance(content, dict) else None
    return str(model.get("META_ARCHITECTURE", "")) if isinstance(model, dict) else ""


def _merge_content(cfg: CfgNode, content: dict[str, Any], source: str) -> None:
    if not content:
        return
    loaded = CfgNode(content)
    known, given = set(_all_keys(cfg)), set(_all_keys(loaded))
    unknown, missing = given - known, known - given
    if set(content) >= _WHOLE and not any(difflib.get_close_matches(key, missing) for key in unknown):
        for key in unknown:
            _remove(loaded, key)
        if unknown:
            logger.info("%s: %d keys of other models or versions are left out", source, len(unknown))
    cfg.merge_from_other_cfg(loaded)


def _remove(node: CfgNode, key: str) -> None:
    *parents, name = key.split(".")
    for parent in parents:
        node = node[parent]
    del node[name]


def _unknown_key_message(cfg: CfgNode, message: str) -> str:
    key = message.rpartition(" ")[2].strip("'\"")
    close = difflib.get_close_matches(key, _all_keys(cfg), n=3)
    return f"unknown config key {key}" + (f"; did you mean {' or '.join(close)}?" if close else "")


def _all_keys(node: CfgNode, prefix: str = "") -> list[str]:
    keys: list[str] = []
    for name, value in node.items():
        keys += _all_keys(value, f"{prefix}{name}.") if isinstance(value, CfgNode) else [prefix + name]
    return keys
