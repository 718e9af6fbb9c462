"""Mixed precision: in training, where ``SOLVER.AMP.ENABLED`` asks for it (AMP), and at inference."""

import logging
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.engine import AMPTrainer, SimpleTrainer
from detectron2.modeling.poolers import ROIPooler
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


PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
"""What inference may compute in, by the names of options."""


def inference_autocast(precision: str, device: torch.device) -> Callable[[], AbstractContextManager]:
    """Return what makes the context in which a model infers: autocast, or none for "fp32".

    Raises:
        UserError: for another name, and if PyTorch cannot autocast to this precision on this device.
    """
    if precision not in PRECISIONS:
        raise UserError(f"precision is {precision!r}; known are {', '.join(PRECISIONS)}")
    if precision == "fp32":
        return nullcontext
    dtype = PRECISIONS[precision]
    make = partial(torch.autocast, device.type, dtype)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # PyTorch warns, and stays in float32
            x = torch.ones(1, 1, 1, 1, device=device)
            with make():
                works = torch.nn.functional.conv2d(x, x).dtype == dtype == (x[0, 0] @ x[0, 0]).dtype
    except RuntimeError:
        works = False
    if not works:
        way_out = "give bf16 or fp32" if precision == "fp16" else "give fp32"
        raise UserError(f"PyTorch {torch.__version__} does not infer in {precision} on {device.type}; {way_out}")
    return make


def set_precision(model: torch.nn.Module, precision: str) -> None:
    """Have a detector, or another model that is called, infer under autocast; its parameters stay in float32.

    Raises:
        UserError: see :func:`inference_autocast`.
    """
    make, forward = inference_autocast(precision, next(model.parameters()).device), model.forward
    if make is nullcontext:
        return

    def forward_in_precision(*args: Any) -> Any:
        with nullcontext() if model.training else make():
            return forward(*args)

    model.forward = forward_in_precision
    pool_exactly(model)


def pool_exactly(model: torch.nn.Module) -> None:
    """Have RoIAlign pool in float32: it rounds boxes to the type of the maps, in bfloat16 by whole pixels."""
    for module in model.modules():
        if isinstance(module, ROIPooler):
            module.register_forward_pre_hook(lambda _, args: ([x.float() for x in args[0]], *args[1:]))
