"""Automatic mixed precision (AMP) in training, where ``SOLVER.AMP.ENABLED`` asks for it."""

import logging
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.engine import AMPTrainer, SimpleTrainer
from torch.nn.parallel import DistributedDataParallel

from ..errors import UserError
from .compat import AMP_TAKES_PRECISION

logger = logging.getLogger(__name__)


class Bfloat16Trainer(SimpleTrainer):
    """Trains with the forward pass under autocast to bfloat16, on any device; no loss scaling is needed.

    Arguments are those of :class:`SimpleTrainer`. The model's evaluation is left in its own precision.
    """

    def __init__(self, model: torch.nn.Module, data_loader: Any, optimizer: torch.optim.Optimizer):
        super().__init__(model, data_loader, optimizer)
        inner = model.module if isinstance(model, DistributedDataParallel) else model
        device, forward = next(inner.parameters()).device.type, inner.forward

        def forward_in_bfloat16(*args: Any) -> Any:
            with torch.autocast(device, torch.bfloat16, enabled=inner.training):
                return forward(*args)

        # On the instance: whoever holds the model, a DDP around it or a hook, still holds the same
        inner.forward = forward_in_bfloat16


def amp_trainer(cfg: CfgNode) -> Callable[..., SimpleTrainer]:
    """Return what makes a trainer, of :class:`SimpleTrainer`'s arguments, with AMP as ``SOLVER.AMP.DTYPE`` has it.

    On CUDA it is Detectron2's AMPTrainer where that can be. Without CUDA "float16" trains in float32, with a warning.

    Raises:
        UserError: for another name.
    """
    dtype, on_cuda = cfg.SOLVER.AMP.DTYPE, cfg.MODEL.DEVICE.startswith("cuda")
    if dtype not in ("float16", "bfloat16"):
        raise UserError(f"SOLVER.AMP.DTYPE is {dtype!r}; known are 'float16' and 'bfloat16'")
    if dtype == "bfloat16":
        if not (on_cuda and AMP_TAKES_PRECISION):
            return Bfloat16Trainer
        unscaled = torch.amp.GradScaler("cuda", enabled=False)  # bfloat16 has the range of float32
        return partial(AMPTrainer, precision=torch.bfloat16, grad_scaler=unscaled)
    if on_cuda:
        return AMPTrainer
    if cfg.SOLVER.AMP.ENABLED:
        logger.warning("SOLVER.AMP in float16 needs CUDA: training in float32 (SOLVER.AMP.DTYPE bfloat16 works here)")
    return SimpleTrainer
