"""Configs: the keys that all models share, and the one function that makes a config from a file.

A package registers the keys of its models when it is imported (:func:`register_keys`); a config gets those of its own
meta-architecture only.
"""

import difflib
import json
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
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
# Detectron2's keys after v0.5, with the values by which it does what v0.5 does; newer versions write them into configs
_NEWER = {
    "DATALOADER.REPEAT_SQRT": True,
    "FLOAT32_PRECISION": "",
    "MODEL.ROI_BOX_HEAD.FED_LOSS_FREQ_WEIGHT_POWER": 0.5,
    "MODEL.ROI_BOX_HEAD.FED_LOSS_NUM_CLASSES": 50,
    "MODEL.ROI_BOX_HEAD.USE_FED_LOSS": False,
    "MODEL.ROI_BOX_HEAD.USE_SIGMOID_CE": False,
    "SOLVER.BASE_LR_END": 0.0,
    "SOLVER.NUM_DECAYS": 3,
    "SOLVER.RESCALE_INTERVAL": False,
}
# Top-level keys by which a whole config, as a training writes it, is known: nobody writes all of these by hand
_WHOLE = {"CUDNN_BENCHMARK", "DATALOADER", "DATASETS", "INPUT", "MODEL", "OUTPUT_DIR", "SOLVER", "TEST", "VERSION"}


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

    A whole config, as a training writes it, may have keys that are not known here, of another model or another version
    of Detectron2. They are left out, and the log says so. In any other, an unknown key is a mistake.

    Args:
        config_file: a YAML file, or "" for the defaults.
        opts: ``KEY VALUE`` pairs.
        datasets: [name, JSON file, image folder] triples to add to ``DATASETS.COCO_FORMAT``.

    Raises:
        UserError: if the file is missing or no YAML, or a key or value does not fit. A config that asks for CUDA on a
            machine without it is not an error: the model goes to the CPU, with a warning.
    """
    content, cfg = _read(config_file, opts)
    with _mistakes_in(config_file, cfg):
        if set(content) >= _WHOLE:
            _merge_known(cfg, content, config_file)
        elif config_file:
            cfg.merge_from_file(config_file, allow_unsafe=False)
    return _finish(cfg, opts, datasets)


def load_cfgs(config_files: Sequence[str], opts: Sequence[str] = ()) -> list[CfgNode]:
    """Return the configs of several files with the same overrides, as :func:`load_cfg` does for one.

    Those of keys that only another kind of model has (see :func:`fitting`) are left out, and the log says so. Of one
    file alone they are mistakes.
    """
    if len(config_files) == 1:
        return [load_cfg(config_files[0], opts)]
    fits = {config_file: fitting(config_file, opts) for config_file in config_files}
    others = [
        f"{file}: {' '.join(key for key in opts[::2] if key not in fit)}"
        for file, fit in fits.items()
        if len(fit) < len(opts)
    ]
    if others:
        logger.warning("Left out overrides that only another kind of model has. %s", "; ".join(others))
    return [load_cfg(config_file, fits[config_file]) for config_file in config_files]


def fitting(config_file: str, opts: Sequence[str]) -> list[str]:
    """Return the ``KEY VALUE`` pairs without those that a config cannot have, but another kind of model can.

    For a detector MODEL.AIRM.RATIOS is left out, while a key that no model has stays, for :func:`load_cfg` to refuse.

    Raises:
        UserError: as in :func:`load_cfg`, for a file that cannot be read.
    """
    own = flat(_read(config_file, opts)[1]).keys()
    foreign = {key for architecture in _ADD_KEYS for key in flat(get_cfg(architecture))} - own
    return [part for i, part in enumerate(opts) if opts[i - i % 2] not in foreign]


def parse_cfg(text: str, source: str, opts: Sequence[str] = ()) -> CfgNode:
    """Return the frozen config that a whole config's YAML, such as that in a checkpoint, and overrides make.

    Raises:
        UserError: as in :func:`load_cfg`; the message names the ``source``.
    """
    with _mistakes_in(source):
        content = yaml.safe_load(text)
        cfg = get_cfg(_architecture(content, opts))
        _merge_known(cfg, content, source)
    return _finish(cfg, opts)


def changed(cfg: CfgNode, *opts: Any) -> CfgNode:
    """Return a frozen copy of a config with other values: a key and its value in turn."""
    cfg = cfg.clone()
    cfg.defrost()
    cfg.merge_from_list(list(opts))
    cfg.freeze()
    return cfg


def _read(config_file: str, opts: Sequence[str]) -> tuple[dict[str, Any], CfgNode]:
    """Return a file's content, and the defaults of the kind of model that it and overrides make."""
    if config_file and not Path(config_file).is_file():
        raise UserError(f"no config file {config_file}; those of this project are in configs/")
    if config_file.endswith(".py"):
        raise UserError(f"{config_file} is a Python config, which tools/train_net.py alone takes; give a YAML file")
    with _mistakes_in(config_file):
        content = CfgNode.load_yaml_with_base(config_file, allow_unsafe=False) if config_file else {}
        return content, get_cfg(_architecture(content, opts))


def _architecture(content: dict[str, Any], opts: Sequence[str]) -> str:
    """Return the MODEL.META_ARCHITECTURE that a config's content and overrides name, "" if they do not."""
    model = content.get("MODEL")
    named = model.get("META_ARCHITECTURE", "") if isinstance(model, dict) else ""
    return dict(zip(opts[::2], opts[1::2], strict=False)).get("MODEL.META_ARCHITECTURE", named)


def _merge_known(cfg: CfgNode, content: dict[str, Any], source: str) -> None:
    unknown = _take_out_unknown(content, cfg)
    if unknown.get("MODEL.ROI_BOX_HEAD.USE_SIGMOID_CE"):
        raise UserError(
            f"{source}: MODEL.ROI_BOX_HEAD.USE_SIGMOID_CE needs a newer Detectron2, which it was trained on"
        )
    if names := [name for name, value in unknown.items() if name not in _NEWER or value != _NEWER[name]]:
        logger.warning("%s: left out what other models or versions have: %s", source, ", ".join(names))
    cfg.merge_from_other_cfg(CfgNode(content))


def _take_out_unknown(content: dict[str, Any], known: CfgNode, prefix: str = "") -> dict[str, Any]:
    """Take the keys and nodes that ``known`` does not have out of a whole config, and return them by their full names.

    Raises:
        UserError: for one that stands in the place of a known key, or nearly has the name of one: a typing mistake.
    """
    unknown = [name for name in content if name not in known]
    missing = [name for name in known if name not in content]
    for name in unknown:
        close = difflib.get_close_matches(name, missing) or difflib.get_close_matches(name, known, cutoff=0.85)
        if close:
            raise UserError(_describe_unknown(prefix + name, [prefix + other for other in close]))
    taken = {prefix + name: content.pop(name) for name in unknown}
    for name, value in content.items():
        if isinstance(value, dict) and isinstance(known[name], CfgNode):
            taken |= _take_out_unknown(value, known[name], f"{prefix}{name}.")
    return taken


def _finish(cfg: CfgNode, opts: Sequence[str], datasets: Sequence[Sequence[str]] = ()) -> CfgNode:
    if len(opts) % 2:
        raise UserError(f"overrides come as KEY VALUE pairs; {opts[-1]!r} has no value")
    with _mistakes_in("the command line", cfg):
        cfg.merge_from_list(list(opts))
        cfg.DATASETS.COCO_FORMAT = [*cfg.DATASETS.COCO_FORMAT, *map(list, datasets)]
    if cfg.MODEL.DEVICE.startswith("cuda") and not torch.cuda.is_available():
        logger.warning("No CUDA device here: MODEL.DEVICE %s becomes cpu", cfg.MODEL.DEVICE)
        cfg.MODEL.DEVICE = "cpu"
    cfg.freeze()
    return cfg


def find_device(device: str | torch.device) -> torch.device:
    """Return a device that can be computed on.

    Raises:
        UserError: if there is none of that name.
    """
    try:
        found = torch.device(device)
    except (RuntimeError, TypeError):
        raise UserError(f"unknown device {device!r}; give 'cpu', 'cuda' or 'cuda:1'") from None
    if found.type == "cuda":
        is_there = (found.index or 0) < torch.cuda.device_count()
    else:
        try:
            is_there = torch.zeros(1, device=found).tolist() == [0.0]
        except (RuntimeError, AssertionError):  # each backend has its own
            is_there = False
    if not is_there:
        raise UserError(f"no device {device} here: PyTorch finds {torch.cuda.device_count()} CUDA devices; give 'cpu'")
    return found


@contextmanager
def _mistakes_in(source: str, cfg: CfgNode | None = None) -> Iterator[None]:
    """Turn what yacs and YAML raise into a UserError that names the source, and keys of ``cfg`` for an unknown one."""
    try:
        yield
    except (KeyError, AssertionError, AttributeError, TypeError, ValueError, yaml.YAMLError, OSError) as e:
        message = str(e).strip("'\"")
        if isinstance(e, (AttributeError, TypeError)):
            message = f"keys and values, and groups of them, are not where they belong: {message}"
        # yacs says "Non-existent config key: ..." of a file's keys, "Non-existent key: ..." of the command line's
        if cfg is not None and message.startswith("Non-existent"):
            key = message.rpartition(" ")[2]
            message = _describe_unknown(key, difflib.get_close_matches(key, flat(cfg), cutoff=0.75))
        raise UserError(f"{source}: {message}") from None


def _describe_unknown(key: str, close: Sequence[str]) -> str:
    hint = f"did you mean {' or '.join(close)}?" if close else "if it is of another package, import that first"
    return f"unknown config key {key}; {hint}"


def flat(node: CfgNode, prefix: str = "") -> dict[str, Any]:
    """Return a config's values by their full keys."""
    values: dict[str, Any] = {}
    for key, value in node.items():
        if isinstance(value, CfgNode):
            values |= flat(value, f"{prefix}{key}.")
        else:
            values[prefix + key] = json.loads(json.dumps(value))  # a tuple comes back from YAML as a list
    return values
