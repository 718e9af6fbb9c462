"""Configs: the keys that all models share, and the one function that makes a config from a file.

A package registers the keys of its models when it is imported (:func:`register_keys`); a config gets those of its own
meta-architecture only.
"""

import difflib
import io
import itertools
import json
import logging
import math
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
_NULLABLE = {"SOLVER.WEIGHT_DECAY_BIAS"}  # after v0.5
# A config that a training writes has 10,000 characters and 500 values
_MOST_CHARACTERS, _MOST_VALUES, _MOST_FILES = 2**17, 2**15, 32
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
    # Project of Weights & Biases that a training is shown in, beside TensorBoard; "" for none
    cfg.WANDB_PROJECT = ""


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


def says(config_file: str, opts: Sequence[str], key: str) -> bool:
    """Tell whether overrides, or a config file itself, set a key; what its ``_BASE_`` sets was meant for other data."""
    content = yaml.safe_load(Path(config_file).read_text(encoding="utf-8")) if config_file else None
    return key in opts[::2] or key in flat(CfgNode(content or {}))


def parse_cfg(text: str, source: str, opts: Sequence[str] = ()) -> CfgNode:
    """Return the frozen config that a whole config's YAML, such as that in a checkpoint, and overrides make.

    Raises:
        UserError: as in :func:`load_cfg`; the message names the ``source``.
    """
    with _mistakes_in(source):
        content = _with_keys(yaml.safe_load(_bounded(text)))
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
        content = _read_with_base(config_file) if config_file else {}
        return content, get_cfg(_architecture(content, opts))


def _read_with_base(config_file: str) -> dict[str, Any]:
    """Read a YAML file over those that ``_BASE_`` names.

    Raises:
        ValueError: if these are too many or too large, or have no keys.
    """
    opened = []

    class Bounded(CfgNode):
        @classmethod
        def _open_cfg(cls, filename: str) -> io.StringIO:
            opened.append(filename)
            if len(opened) > _MOST_FILES:
                raise ValueError(f"_BASE_ leads to more than {_MOST_FILES} files, such as {filename}: to itself again?")
            with super()._open_cfg(filename) as f:
                text = f.read(_MOST_CHARACTERS + 1)
            return io.StringIO(_bounded(text))

    try:
        return _with_keys(Bounded.load_yaml_with_base(config_file, allow_unsafe=False))
    except (TypeError, AttributeError, AssertionError) as e:
        raise ValueError(f"it holds what is not keys and values, or _BASE_ names such a file: {e}") from None


def _with_keys(content: Any) -> dict[str, Any]:
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        raise ValueError("it does not hold keys, which are words, and their values")
    return content


def _bounded(text: str) -> str:
    """Return a YAML text if it is of a config's size, also with its aliases written out; else raise ValueError."""
    if len(text) > _MOST_CHARACTERS:
        raise ValueError(f"it has more than {_MOST_CHARACTERS:,} characters, and is no config")
    values: dict[yaml.Node, float] = {}

    def count(node: Any) -> float:
        if node not in values:
            values[node] = math.inf  # until all of its parts are counted: for one that has itself among them
            pairs = isinstance(node, yaml.MappingNode)
            parts = itertools.chain.from_iterable(node.value) if pairs else node.value
            values[node] = 1 + (0 if isinstance(node, yaml.ScalarNode) else sum(map(count, parts)))
        return values[node]

    if "*" in text and count(yaml.compose(text, yaml.SafeLoader)) > _MOST_VALUES:
        raise ValueError(f"with its aliases written out, it has more than {_MOST_VALUES:,} values; use fewer of them")
    return text


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
    with _mistakes_in("the config"):
        for key, value in flat(cfg).items():
            if value is None and key not in _NULLABLE:
                raise ValueError(f"{key} is null; give it a value, or leave it out")
            if type(value) is int and abs(value) >= 2**63:
                raise ValueError(f"{key} is {value:.3g}, beyond PyTorch's numbers; correct it")
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
    except RecursionError:
        raise UserError(f"{source}: groups within groups, deeper than any config has; write it flatter") from None
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
