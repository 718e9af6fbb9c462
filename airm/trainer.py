"""The project's trainer on refinement data."""

from pathlib import Path

import torch
from detectron2.config import CfgNode
from detectron2.evaluation import DatasetEvaluator
from detectron2.layers.batch_norm import NaiveSyncBatchNorm
from detectron2.utils import comm
from torch import Tensor, nn

from pixelmask.checkpoint.checkpointer import load_trained
from pixelmask.engine import BaseTrainer
from pixelmask.errors import UserError

from .data.dataset_mapper import RefinementDatasetMapper
from .data.prepare import prepare_refinement_datasets
from .evaluation import RefinementEvaluator
from .figures.side_by_side import draw_refinement
from .meta_arch import AIRM


class RefinementTrainer(BaseTrainer):
    """Trains AIRM on pairs of image and mask, and evaluates IoU and mBA of coarse and refined masks."""

    draw_prediction = staticmethod(draw_refinement)

    def resume_or_load(self, resume: bool = True) -> None:
        """Load the last checkpoint, or else ``MODEL.WEIGHTS`` and what ``MODEL.AIRM.FROZEN_ENCODER`` has."""
        super().resume_or_load(resume)
        frozen = self.cfg.MODEL.AIRM.FROZEN_ENCODER
        if frozen and not (resume and self.checkpointer.has_checkpoint()):
            load_encoder(self.checkpointer.model, frozen)

    @classmethod
    def build_model(cls, cfg: CfgNode) -> nn.Module:
        model = super().build_model(cfg)
        return synchronized(model) if comm.get_world_size() > 1 else model

    @classmethod
    def prepare_datasets(cls, cfg: CfgNode, train: bool) -> None:
        prepare_refinement_datasets(cfg, train)

    @classmethod
    def build_mapper(cls, cfg: CfgNode, is_train: bool) -> RefinementDatasetMapper:
        return RefinementDatasetMapper(cfg, is_train=is_train)

    @classmethod
    def build_evaluator(cls, cfg: CfgNode, dataset_name: str) -> DatasetEvaluator:
        return RefinementEvaluator(dataset_name, output_dir=str(Path(cfg.OUTPUT_DIR) / "inference" / dataset_name))


class _SyncBatchNorm(NaiveSyncBatchNorm):
    """Detectron2's, for any device, with float32 statistics of bfloat16 features too."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input.to(torch.promote_types(input.dtype, torch.float32))).to(input.dtype)


def synchronized(model: nn.Module) -> nn.Module:
    """Let batch norms take their statistics over the images of all processes.

    A process has 3 of the paper's 12 crops on 4 GPUs, which is few for statistics. Names and values stay; an evaluation
    is not concerned. PyTorch's own synchronised norm is for accelerators alone.
    """
    if next(model.parameters()).device.type != "cpu":
        return nn.SyncBatchNorm.convert_sync_batchnorm(model)
    for parent in list(model.modules()):
        for name, norm in parent.named_children():
            if isinstance(norm, nn.BatchNorm2d):
                synced = _SyncBatchNorm(norm.num_features, norm.eps, norm.momentum)
                synced.load_state_dict(norm.state_dict())
                setattr(parent, name, synced)
    return model


def load_encoder(model: AIRM, weights: str) -> None:
    """Load the encoder, and nothing else, from the checkpoint of an AIRM, as data.

    Raises:
        UserError: if it cannot be read, or is of another encoder.
    """
    try:
        if not Path(weights).is_file():
            raise UserError(f"no checkpoint {weights}; train its config first, or name another one")
        load_trained(nn.ModuleDict({"encoder": model.encoder}), weights)
    except UserError as e:
        raise UserError(f"MODEL.AIRM.FROZEN_ENCODER: {e}") from None
