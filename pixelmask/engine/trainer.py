"""Detectron2's trainer with this project's data checks, checkpoints and evaluation."""

import logging
import signal
import weakref
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from detectron2.config import CfgNode
from detectron2.data import build_detection_test_loader, build_detection_train_loader
from detectron2.engine import DefaultTrainer, HookBase, defaults, train_loop
from detectron2.engine.hooks import EvalHook
from detectron2.utils import comm
from detectron2.utils.events import EventWriter

from ..checkpoint import SafeCheckpointer
from ..config import changed
from ..errors import UserError
from ..files import write_json
from ..interruption import Interrupted, check_interrupted, signals_wait, stay_with_parent, was_interrupted
from .build import build_model
from .compat import StatefulTrainer, replaced
from .optimizer import build_optimizer
from .pictures import Mapper, PredictionPictures, random_numbers_kept
from .precision import amp_trainer
from .wandb_writer import build_wandb_writers

logger = logging.getLogger(__name__)


class StopAtSignal(HookBase):
    """Ends a training after an iteration in which SIGTERM or SIGINT came, on all processes after the same one."""

    def after_step(self) -> None:
        if any(comm.all_gather(was_interrupted())) and self.trainer.iter + 1 < self.trainer.max_iter:
            check_interrupted()
            raise Interrupted(signal.SIGTERM)  # of another process


class _PatientMapper:
    """A mapper whose process does not end before its trainer."""

    def __init__(self, mapper: Mapper):
        self.mapper = mapper

    def __call__(self, dataset_dict: dict[str, Any]) -> dict[str, Any]:
        stay_with_parent()
        return self.mapper(dataset_dict)


class _WithoutExpected(logging.Filter):
    """Leaves out the traceback that Detectron2 logs of what is to end in one sentence."""

    def filter(self, record: logging.LogRecord) -> bool:
        return not (record.exc_info and isinstance(record.exc_info[1], (UserError, OSError)))


class BaseTrainer(StatefulTrainer):
    """DefaultTrainer that checks data, loads checkpoints as data, draws predictions, and can use AMP on any device.

    SIGTERM and SIGINT end a training after the iteration, at once in an evaluation, with a checkpoint to resume from.

    A kind of model gives ``draw_prediction``, ``prepare_datasets``, ``build_mapper`` and ``build_evaluator``.
    """

    checkpointer: SafeCheckpointer
    ddp_options: Mapping[str, Any] = {}
    """Of DistributedDataParallel, and Detectron2's ``fp16_compression``."""

    @staticmethod
    def draw_prediction(
        model: torch.nn.Module, record: dict[str, Any], mapper: Mapper, dataset_name: str
    ) -> np.ndarray:
        """Draw a prediction for VIS_PERIOD; see :data:`~pixelmask.engine.pictures.Draw`."""
        raise NotImplementedError

    @classmethod
    def prepare_datasets(cls, cfg: CfgNode, train: bool) -> None:
        """Register and check the data sets of a config, those of DATASETS.TRAIN only if ``train``."""
        raise NotImplementedError

    @classmethod
    def build_mapper(cls, cfg: CfgNode, is_train: bool) -> Mapper:
        """Build what makes a sample of a data set's dict."""
        raise NotImplementedError

    def __init__(self, cfg: CfgNode):
        # DefaultTrainer gives DDP a device id, which DDP refuses for a model on the CPU; its AMP is in float16 only
        with (
            replaced(defaults, "create_ddp_model", partial(_create_ddp_model, **self.ddp_options)),
            replaced(defaults, "AMPTrainer", amp_trainer(cfg)),
        ):
            super().__init__(log_scaled_schedule(cfg))

    def build_hooks(self) -> list[HookBase]:
        # The first place after DefaultTrainer has made its own checkpointer and before a hook holds on to it
        self.checkpointer = SafeCheckpointer(self.checkpointer.model, self.cfg.OUTPUT_DIR, trainer=weakref.proxy(self))
        self.checkpointer.config = self.cfg.dump()
        hooks = super().build_hooks()
        evaluation = next(i for i, hook in enumerate(hooks) if isinstance(hook, EvalHook))
        hooks.insert(evaluation, StopAtSignal())  # when all of an iteration is done that a checkpoint keeps
        if comm.is_main_process():
            hooks.insert(-1, self.build_pictures(self.cfg, self.checkpointer.model))  # before what writes the events
        return hooks

    def build_writers(self) -> list[EventWriter]:
        return [*build_wandb_writers(self.cfg), *super().build_writers()]

    def train(self) -> Any:
        loop, expected = logging.getLogger(train_loop.__name__), _WithoutExpected()
        loop.addFilter(expected)
        try:
            with signals_wait():
                return super().train()
        except Interrupted as e:
            if self.iter < self.max_iter:
                self.checkpointer.save(f"model_{self.iter:07d}", iteration=self.iter)
            e.kept = f"{min(self.iter + 1, self.max_iter)} of {self.max_iter} iterations are done and kept in "
            e.kept += f"{self.cfg.OUTPUT_DIR}; --resume goes on"
            raise
        finally:
            loop.removeFilter(expected)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up what a checkpoint keeps of a training; what an older one lacks starts anew, with a warning.

        Raises:
            UserError: if the optimizer's state is that of other parameters.
        """
        own = self._trainer.state_dict()
        # Without loss scaling AMP's state is empty
        saved = {name: state for name, state in state_dict.get("_trainer", {}).items() if state != {}}
        missing = sorted(name for name in own.keys() - saved.keys() - {"iteration"} if own[name])
        if missing:
            logger.warning("The checkpoint has no state of the %s, which starts anew", " and ".join(missing))
        keys = self._trainer.optimizer.param_groups[0].keys() - {"params"}
        try:
            super().load_state_dict({**state_dict, "_trainer": {**own, **saved}})
            if lost := keys - self._trainer.optimizer.param_groups[0].keys():
                raise ValueError(f"the optimizer's state in the checkpoint has no {' and '.join(sorted(lost))}")
        except ValueError as e:
            raise UserError(
                f"cannot resume in {self.cfg.OUTPUT_DIR}: {e}. SOLVER, MODEL or the version of Detectron2 has "
                "changed since; put it back, or start another training with its checkpoint as MODEL.WEIGHTS and "
                "another OUTPUT_DIR"
            ) from None

    @classmethod
    def build_pictures(cls, cfg: CfgNode, model: torch.nn.Module) -> PredictionPictures:
        """Build the hook that draws predictions on the first test set (or training set) each VIS_PERIOD iterations.

        A detector without masks has none to draw.
        """
        name = (*cfg.DATASETS.TEST, *cfg.DATASETS.TRAIN)[0]
        has_masks = getattr(getattr(model, "roi_heads", None), "mask_on", True)
        period = cfg.VIS_PERIOD if has_masks else 0
        return PredictionPictures(model, name, cls.build_mapper(cfg, is_train=False), cls.draw_prediction, period)

    @classmethod
    def build_model(cls, cfg: CfgNode) -> torch.nn.Module:
        model = build_model(cfg)
        logger.info("Model:\n%s", model)
        return model

    @classmethod
    def build_optimizer(cls, cfg: CfgNode, model: torch.nn.Module) -> torch.optim.Optimizer:
        return build_optimizer(cfg, model)

    @classmethod
    def build_train_loader(cls, cfg: CfgNode) -> Any:
        if cfg.SEED < 0:  # newer versions of Detectron2 would take it as the seed of the order of images
            cfg = changed(cfg, "SEED", comm.shared_random_seed())
        return build_detection_train_loader(cfg, mapper=_PatientMapper(cls.build_mapper(cfg, is_train=True)))

    @classmethod
    def build_test_loader(cls, cfg: CfgNode, dataset_name: str) -> Any:
        return build_detection_test_loader(cfg, dataset_name, mapper=cls.build_mapper(cfg, is_train=False))

    @classmethod
    def test(cls, cfg: CfgNode, model: torch.nn.Module, evaluators: Any = None) -> dict[str, Any]:
        """Evaluate on every data set of DATASETS.TEST, and write the metrics to ``evaluation.json`` in OUTPUT_DIR."""
        if comm.get_world_size() > 1:
            # Each process has seen other images; the checkpoint has the first one's statistics
            for name, buffer in model.named_buffers():
                if name.endswith(("running_mean", "running_var")):
                    dist.broadcast(buffer, 0)
        # Loaders draw a number: a training is the same, however often it is evaluated
        with random_numbers_kept(model), signals_wait(False):
            results = cls.evaluate(cfg, model, evaluators)
        if comm.is_main_process():
            path = Path(cfg.OUTPUT_DIR) / "evaluation.json"
            write_json(path, results, indent=2)
            logger.info("Wrote the metrics to %s", path)
        return results

    @classmethod
    def evaluate(cls, cfg: CfgNode, model: torch.nn.Module, evaluators: Any = None) -> dict[str, Any]:
        """Return the metrics of the data sets of DATASETS.TEST, by their names if there are several."""
        return super().test(cfg, model, evaluators)


def log_scaled_schedule(cfg: CfgNode) -> CfgNode:
    """Scale batch, learning rate and schedule to the number of processes if SOLVER.REFERENCE_WORLD_SIZE asks for it.

    The rule is Detectron2's (``DefaultTrainer.auto_scale_workers``); each key that it changes is logged.

    Raises:
        UserError: if the batch cannot be divided among the processes that the config was made for, or that there are.
    """
    reference, batch, processes = cfg.SOLVER.REFERENCE_WORLD_SIZE, cfg.SOLVER.IMS_PER_BATCH, comm.get_world_size()
    if reference and batch % reference:
        raise UserError(
            f"SOLVER.REFERENCE_WORLD_SIZE {reference} does not divide SOLVER.IMS_PER_BATCH {batch}; it is to be the "
            "number of GPUs that the config was made for, or 0 for no scaling"
        )
    if not reference and batch % processes:
        raise UserError(
            f"SOLVER.IMS_PER_BATCH {batch} cannot be divided among {processes} processes; set it to a multiple of them"
        )
    scaled = DefaultTrainer.auto_scale_workers(cfg, processes)
    for node, keys in (
        ("SOLVER", ("IMS_PER_BATCH", "BASE_LR", "MAX_ITER", "WARMUP_ITERS", "STEPS", "CHECKPOINT_PERIOD")),
        ("TEST", ("EVAL_PERIOD",)),
    ):
        for key in keys:
            if scaled[node][key] != cfg[node][key]:
                logger.info("Scaled %s.%s from %s to %s", node, key, cfg[node][key], scaled[node][key])
    return scaled


def _create_ddp_model(model: torch.nn.Module, **kwargs: Any) -> torch.nn.Module:
    if next(model.parameters()).device.type == "cpu":
        kwargs["device_ids"] = None
    return _detectron2_create_ddp_model(model, **kwargs)


_detectron2_create_ddp_model = defaults.create_ddp_model
