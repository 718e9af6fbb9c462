"""Python configs (Detectron2's LazyConfig): their parts in the place of those that the trainer makes of a YAML config.

A Python config has what Detectron2's own have: ``model``, ``optimizer``, ``lr_multiplier``, ``dataloader`` with
``train``, ``test`` and perhaps an ``evaluator``, and ``train``.
"""

import logging
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import detectron2
import torch
from detectron2.config import CfgNode, LazyConfig, instantiate
from detectron2.engine import HookBase
from detectron2.engine.hooks import PeriodicCheckpointer, PeriodicWriter
from detectron2.evaluation import DatasetEvaluator
from detectron2.solver import LRMultiplier
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from ..config import parse_cfg
from ..errors import UserError
from .pictures import Mapper
from .trainer import BaseTrainer

logger = logging.getLogger(__name__)

NEEDED = ("model", "optimizer.params", "lr_multiplier", "dataloader.train", "dataloader.test", "train.output_dir")
# What of a Python config the trainer, the checks of data sets and the checkpointer look up in a YAML config
PLACES = {
    "OUTPUT_DIR": "train.output_dir",
    "WANDB_PROJECT": "train.wandb_project",
    "SEED": "train.seed",
    "VIS_PERIOD": "train.vis_period",
    "MODEL.WEIGHTS": "train.init_checkpoint",
    "MODEL.DEVICE": "train.device",
    "MODEL.ROI_HEADS.NUM_CLASSES": "model.roi_heads.num_classes",
    "SOLVER.MAX_ITER": "train.max_iter",
    "SOLVER.CHECKPOINT_PERIOD": "train.checkpointer.period",
    "SOLVER.IMS_PER_BATCH": "dataloader.train.total_batch_size",
    "SOLVER.AMP.ENABLED": "train.amp.enabled",
    "SOLVER.AMP.DTYPE": "train.amp.dtype",
    "TEST.EVAL_PERIOD": "train.eval_period",
    "DATASETS.TRAIN": "dataloader.train.dataset.names",
    "DATASETS.TEST": "dataloader.test.dataset.names",
    "INPUT.MASK_FORMAT": "dataloader.train.mapper.instance_mask_format",
}


def load_lazy(config_file: str, overrides: Sequence[str] = ()) -> DictConfig:
    """Run a Python config and return what it defines, changed by overrides such as ``train.max_iter=300``.

    Raises:
        UserError: if the file is missing or raises an error, one of NEEDED is not in it, or an override is not written
            so or names a key that nothing reads. The arguments of a call may be given anew.
    """
    if not Path(config_file).is_file():
        raise UserError(f"no config file {config_file}; those of this project are in configs/")
    with _mistakes_in(config_file):
        lazy = LazyConfig.load(config_file)
    if missing := [key for key in NEEDED if OmegaConf.select(lazy, key) is None]:
        raise UserError(f"{config_file} does not define {', '.join(missing)}; compare those in configs/patchdct/lazy")
    for override in overrides:
        key, equals, _ = override.partition("=")
        parent, _, name = key.rpartition(".")
        node = OmegaConf.select(lazy, parent) if parent else lazy
        call = isinstance(node, DictConfig) and (name in node or "_target_" in node)
        if not equals or not (call or isinstance(node, ListConfig) or key in PLACES.values()):
            raise UserError(f"{config_file} has no {key}; overrides of a Python config are written key=value")
    with _mistakes_in(f"the command line, {' '.join(overrides)}"):
        return LazyConfig.apply_overrides(lazy, list(overrides))


def settings_of(lazy: DictConfig, config_file: str, datasets: Sequence[Sequence[str]] = ()) -> CfgNode:
    """Return the PLACES of a Python config as a YAML config has them, with its defaults for all else.

    ``datasets`` are [name, JSON file, image folder] triples to add to ``DATASETS.COCO_FORMAT``.

    Raises:
        UserError: for a value of another type, naming the file.
    """
    content = OmegaConf.create({"MODEL": {"META_ARCHITECTURE": "", "MASK_ON": True}})
    OmegaConf.update(content, "DATASETS.COCO_FORMAT", [list(dataset) for dataset in datasets])
    for place, key in PLACES.items():
        if (value := OmegaConf.select(lazy, key)) is not None:
            OmegaConf.update(content, place, [value] if place[:8] == "DATASETS" and isinstance(value, str) else value)
    if "ROI_HEADS" in content.MODEL:  # they tell the number of classes, to be checked against the data sets
        content.MODEL.META_ARCHITECTURE = "GeneralizedRCNN"
    return parse_cfg(OmegaConf.to_yaml(content), config_file)


def lazy_trainer(trainer: type[BaseTrainer], lazy: DictConfig) -> type[BaseTrainer]:
    """Return a trainer with the parts of a Python config, for the config that :func:`settings_of` makes."""
    parts = {"lazy": lazy, "ddp_options": OmegaConf.select(lazy, "train.ddp") or {}}
    return type(f"Lazy{trainer.__name__}", (_LazyParts, trainer), parts)


class _LazyParts(BaseTrainer):
    lazy: DictConfig

    def build_hooks(self) -> list[HookBase]:
        hooks = super().build_hooks()
        self.checkpointer.config = ""  # the Python config stands beside it, as YAML
        for hook in hooks:
            if isinstance(hook, PeriodicCheckpointer):
                hook.max_to_keep = OmegaConf.select(self.lazy, "train.checkpointer.max_to_keep")
            elif isinstance(hook, PeriodicWriter):
                hook._period = OmegaConf.select(self.lazy, "train.log_period") or hook._period
        return hooks

    @classmethod
    def build_model(cls, cfg: CfgNode) -> torch.nn.Module:
        model = cls._make("model").to(cfg.MODEL.DEVICE)
        logger.info("Model:\n%s", model)
        return model

    @classmethod
    def build_optimizer(cls, cfg: CfgNode, model: torch.nn.Module) -> torch.optim.Optimizer:
        cls.lazy.optimizer.params.model = model
        return cls._make("optimizer")

    @classmethod
    def build_lr_scheduler(cls, cfg: CfgNode, optimizer: torch.optim.Optimizer) -> LRMultiplier:
        return LRMultiplier(optimizer, cls._make("lr_multiplier"), cfg.SOLVER.MAX_ITER)

    @classmethod
    def build_mapper(cls, cfg: CfgNode, is_train: bool) -> Mapper:
        return cls._make(f"dataloader.{'train' if is_train else 'test'}.mapper")

    @classmethod
    def build_train_loader(cls, cfg: CfgNode) -> Any:
        return cls._make("dataloader.train")

    @classmethod
    def build_test_loader(cls, cfg: CfgNode, dataset_name: str) -> Any:
        cls.lazy.dataloader.test.dataset.names = dataset_name  # of several, one after the other
        return cls._make("dataloader.test")

    @classmethod
    def build_evaluator(cls, cfg: CfgNode, dataset_name: str, output_folder: str | None = None) -> DatasetEvaluator:
        if "evaluator" in cls.lazy.dataloader:
            return cls._make("dataloader.evaluator")
        return super().build_evaluator(cfg, dataset_name, output_folder)

    @classmethod
    def _make(cls, key: str) -> Any:
        try:
            return instantiate(OmegaConf.select(cls.lazy, key))
        except (TypeError, ImportError, OmegaConfBaseException) as e:  # unknown arguments, targets and references
            raise UserError(f"{key} of the Python config: {e}") from e


@contextmanager
def _mistakes_in(source: str) -> Iterator[None]:
    """Turn whatever the code of a config raises into a UserError that names the source and the line."""
    try:
        yield
    except Exception as e:
        lines = [frame.lineno for frame in traceback.extract_tb(e.__traceback__) if frame.filename == source]
        if isinstance(e.__cause__, SyntaxError):
            lines = [e.__cause__.lineno]
        message = f"{source}{f', line {lines[-1]}' if lines else ''}: {e}"
        if "Model Zoo" in message or (isinstance(e, ImportError) and str(e.name).startswith("detectron2")):
            message += f". Detectron2 {detectron2.__version__} lacks it; its main branch, built from source, has it"
        raise UserError(message) from e
