"""The optimizers that a config can ask for."""

import torch
from detectron2.config import CfgNode
from detectron2.solver import build_optimizer as build_sgd
from detectron2.solver.build import get_default_optimizer_params, maybe_add_gradient_clipping

from ..errors import UserError

# Parameters without weight decay, by the last part of their name: Swin's recipe
NO_WEIGHT_DECAY = ("relative_position_bias_table",)


def build_optimizer(cfg: CfgNode, model: torch.nn.Module) -> torch.optim.Optimizer:
    """Build the optimizer that ``SOLVER.OPTIMIZER`` names: "SGD" as Detectron2 does, "ADAM" or "ADAMW".

    All take BASE_LR, WEIGHT_DECAY, WEIGHT_DECAY_NORM and CLIP_GRADIENTS of SOLVER. ADAM and ADAMW decay biases as
    weights, but not the relative position tables of Swin Transformers.

    Raises:
        UserError: for another name.
    """
    name = optimizer_name(cfg)
    if name == "SGD":
        return build_sgd(cfg, model)
    adaptive = {"ADAM": torch.optim.Adam, "ADAMW": torch.optim.AdamW}
    if name not in adaptive:
        raise UserError(f"SOLVER.OPTIMIZER is {cfg.SOLVER.OPTIMIZER!r}; known are 'SGD', 'ADAM' and 'ADAMW'")
    params = get_default_optimizer_params(
        model,
        weight_decay_norm=cfg.SOLVER.WEIGHT_DECAY_NORM,
        overrides={parameter: {"weight_decay": 0.0} for parameter in NO_WEIGHT_DECAY},
    )
    optimizer = adaptive[name](params, lr=cfg.SOLVER.BASE_LR, weight_decay=cfg.SOLVER.WEIGHT_DECAY)
    return maybe_add_gradient_clipping(cfg, optimizer)


def optimizer_name(cfg: CfgNode) -> str:
    """Return the optimizer's name in capitals; without one it is ADAMW for a Swin backbone, else SGD."""
    is_swin = cfg.MODEL.BACKBONE.NAME.startswith("build_swin")
    return cfg.SOLVER.OPTIMIZER.upper() or ("ADAMW" if is_swin else "SGD")
