"""The optimizers that a config can ask for."""

import torch
from detectron2.config import CfgNode
from detectron2.solver import build_optimizer as build_sgd
from detectron2.solver.build import get_default_optimizer_params, maybe_add_gradient_clipping

from .errors import UserError


def build_optimizer(cfg: CfgNode, model: torch.nn.Module) -> torch.optim.Optimizer:
    """Build the optimizer that ``SOLVER.OPTIMIZER`` names: "SGD" as Detectron2 does, "ADAM" or "ADAMW".

    All take BASE_LR, WEIGHT_DECAY, WEIGHT_DECAY_NORM and CLIP_GRADIENTS of SOLVER.

    Raises:
        UserError: for another name.
    """
    if cfg.SOLVER.OPTIMIZER == "SGD":
        return build_sgd(cfg, model)
    adaptive = {"ADAM": torch.optim.Adam, "ADAMW": torch.optim.AdamW}
    if cfg.SOLVER.OPTIMIZER not in adaptive:
        raise UserError(f"SOLVER.OPTIMIZER is {cfg.SOLVER.OPTIMIZER!r}; known are 'SGD', 'ADAM' and 'ADAMW'")
    params = get_default_optimizer_params(model, weight_decay_norm=cfg.SOLVER.WEIGHT_DECAY_NORM)
    optimizer = adaptive[cfg.SOLVER.OPTIMIZER](params, lr=cfg.SOLVER.BASE_LR, weight_decay=cfg.SOLVER.WEIGHT_DECAY)
    return maybe_add_gradient_clipping(cfg, optimizer)
