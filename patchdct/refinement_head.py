"""What the mask heads that refine a DCT mask have in common: config, pooling, targets and losses."""

from functools import partial
from typing import Any

import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec, get_norm
from detectron2.modeling.poolers import ROIPooler
from detectron2.structures import Instances
from detectron2.utils.events import get_event_storage
from torch import Tensor

from pixelmask.errors import UserError

from .losses import check_loss_type, vector_loss
from .mask_branch import RefinementBranch
from .targets import rasterize_masks


class RefinementHead(RefinementBranch):
    """A mask head over a :class:`~patchdct.mask_branch.RefinementBranch`, to be inherited from before the branch.

    It pools for itself, so ``POOLER_TYPE`` is to be "" (as PointRend has it). A subclass adds :meth:`make_targets` and
    :meth:`stage_losses`, and to ``from_config`` what its branch needs.
    """

    @configurable
    def __init__(
        self,
        input_shape: dict[str, ShapeSpec],
        *,
        in_features: list[str],
        fine_features: list[str],
        resolution: int = 14,
        fine_resolution: int = 42,
        sampling_ratio: int = 0,
        loss_type: str = "l1",
        loss_weight: float = 1.0,
        stage_loss_weights: tuple[float, ...] = (1.0, 1.0),
        **kwargs: Any,
    ):
        """
        Args:
            input_shape: of the feature maps, by name.
            in_features: maps that the coarse RoI feature is pooled from.
            fine_features: maps that the fine RoI feature is pooled from.
            resolution: R, side of the coarse RoI feature.
            fine_resolution: S, side of the fine RoI feature.
            sampling_ratio: of RoIAlign, 0 for adaptive.
            loss_type: R of Eq. 4 and 5, a key of :data:`patchdct.losses.REGRESSION_LOSSES`.
            loss_weight: ``MASK_LOSS_PARA``, scales the whole of Eq. 3.
            stage_loss_weights: lambda of Eq. 3, the first for the DCT-Mask stage.
            kwargs: of the branch.
        """
        super().__init__(
            input_shape[in_features[0]].channels,
            input_shape[fine_features[0]].channels,
            resolution=resolution,
            fine_resolution=fine_resolution,
            **kwargs,
        )
        self.in_features = list(in_features)
        self.fine_features = list(fine_features)
        self.coarse_pooler = _make_pooler(input_shape, in_features, resolution, sampling_ratio)
        self.fine_pooler = _make_pooler(input_shape, fine_features, fine_resolution, sampling_ratio)
        self.loss_type = check_loss_type(loss_type)
        self.loss_weight = loss_weight
        self.stage_loss_weights = tuple(stage_loss_weights)
        self.keep_stages = False
        """Whether inference also sets ``pred_coarse_masks`` (and ``pred_patch_labels``), for pictures."""

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict[str, Any]:
        head = cfg.MODEL.ROI_MASK_HEAD
        if isinstance(input_shape, ShapeSpec):
            raise UserError(
                f'MODEL.ROI_MASK_HEAD.NAME {head.NAME} pools for itself: set MODEL.ROI_MASK_HEAD.POOLER_TYPE to "" or '
                "MODEL.ROI_HEADS.NAME to PatchDCTROIHeads"
            )
        _check_config(head, input_shape)
        return {
            "input_shape": input_shape,
            **common_config(cfg),
            "in_features": head.IN_FEATURES,
            "fine_features": head.FINE_FEATURES,
            "resolution": head.POOLER_RESOLUTION,
            "fine_resolution": head.FINE_FEATURES_RESOLUTION,
            "sampling_ratio": head.POOLER_SAMPLING_RATIO,
            "assembled_size": head.MASK_SIZE_ASSEMBLE,
            "num_refinements": head.NUM_STAGE - 1,
            "stage_loss_weights": tuple(head.MASK_LOSS_PARA_EACH_STAGE),
        }

    def make_targets(self, masks: Tensor) -> Any:
        """What :meth:`stage_losses` compares with, from (B, M, M) boolean true masks."""
        raise NotImplementedError

    def stage_losses(self, prediction: Any, targets: Any) -> dict[str, Tensor]:
        """The parts of one refinement's loss, unweighted, by name."""
        raise NotImplementedError

    def forward(self, features: dict[str, Tensor], instances: list[Instances]) -> dict[str, Tensor] | list[Instances]:
        """
        Args:
            features: the feature maps of the batch, by name.
            instances: per image, the foreground proposals with ground truth (training) or the detections (inference).

        Returns:
            the loss in training; else ``instances``, each with ``pred_masks`` (B_i, 1, M, M), soft.
        """
        boxes = [x.proposal_boxes if self.training else x.pred_boxes for x in instances]
        x = self.coarse_pooler([features[f] for f in self.in_features], boxes)
        fine = self.fine_pooler([features[f] for f in self.fine_features], boxes)
        classes = instance_classes(instances, self.training, self.num_classes, x.device)
        coarse_vectors, stages = self.predict(x, fine, classes)
        if self.training:
            return {"loss_mask": self.losses(coarse_vectors, stages, instances)}
        self.inference(coarse_vectors, stages[-1], instances)
        return instances

    def losses(self, coarse_vectors: Tensor, stages: list[Any], instances: list[Instances]) -> Tensor:
        """Compute Eq. 3 and log its parts, unweighted, under ``patchdct/``."""
        masks = rasterize_masks(instances, self.codec.mask_size, coarse_vectors.device)
        losses = {"loss_dct": vector_loss(coarse_vectors, self.codec.encode(masks), self.loss_type)}
        total = self.stage_loss_weights[0] * losses["loss_dct"]
        if self.assembled_size != self.codec.mask_size:
            masks = rasterize_masks(instances, self.assembled_size, coarse_vectors.device)
        targets = self.make_targets(masks)
        for i, (stage, weight) in enumerate(zip(stages, self.stage_loss_weights[1:], strict=True), start=1):
            suffix = f"_stage{i}" if len(stages) > 1 else ""
            for name, loss in self.stage_losses(stage, targets).items():
                losses[f"loss_{name}{suffix}"] = loss
                total = total + weight * loss
        storage = get_event_storage()
        storage.put_scalars(**{f"patchdct/{k}": v.item() for k, v in losses.items()}, smoothing_hint=True)
        return self.loss_weight * total

    def inference(self, coarse_vectors: Tensor, stage: Any, instances: list[Instances]) -> None:
        """Set ``pred_masks`` of all images' instances."""
        set_masks(instances, "pred_masks", self.stage_masks(stage, final=True).float())
        if self.keep_stages:
            set_masks(instances, "pred_coarse_masks", self.codec.decode(coarse_vectors.float()))


def common_config(cfg: CfgNode) -> dict[str, Any]:
    """What DCT-Mask and the heads that refine it read from a config."""
    head = cfg.MODEL.ROI_MASK_HEAD
    if head.EVAL_GT:
        raise UserError(
            "MODEL.ROI_MASK_HEAD.EVAL_GT True is not supported: models here never see ground truth at inference. "
            "Set it to False; tools/upper_bound.py measures the upper bound of every codec without a model"
        )
    return {
        "conv_dim": head.CONV_DIM,
        "num_conv": head.NUM_CONV,
        "norm": partial(get_norm, head.NORM) if head.NORM else None,
        "hidden_features": head.HIDDEN_FEATURES,
        "vector_dim": head.DCT_VECTOR_DIM,
        "mask_size": head.MASK_SIZE,
        "num_classes": 1 if head.CLS_AGNOSTIC_MASK else cfg.MODEL.ROI_HEADS.NUM_CLASSES,
        "loss_type": head.DCT_LOSS_TYPE,
        "loss_weight": head.MASK_LOSS_PARA,
    }


def _check_config(head: CfgNode, input_shape: dict[str, ShapeSpec]) -> None:
    if head.NUM_STAGE < 2:
        raise UserError(
            f"MODEL.ROI_MASK_HEAD.NUM_STAGE is {head.NUM_STAGE}; it counts the DCT-Mask stage, so 2 is one PatchDCT "
            "module. For none set MODEL.ROI_MASK_HEAD.NAME to MaskRCNNDCTHead"
        )
    if len(head.MASK_LOSS_PARA_EACH_STAGE) != head.NUM_STAGE:
        raise UserError(
            f"MODEL.ROI_MASK_HEAD.MASK_LOSS_PARA_EACH_STAGE {list(head.MASK_LOSS_PARA_EACH_STAGE)} is to have one "
            f"weight for each of the NUM_STAGE {head.NUM_STAGE} stages"
        )
    for key in ("IN_FEATURES", "FINE_FEATURES"):
        if not head[key] or not set(head[key]) <= set(input_shape):
            raise UserError(
                f"MODEL.ROI_MASK_HEAD.{key} {list(head[key])} is to name some of MODEL.ROI_HEADS.IN_FEATURES "
                f"{sorted(input_shape)}"
            )


def _make_pooler(shapes: dict[str, ShapeSpec], names: list[str], resolution: int, sampling_ratio: int) -> ROIPooler:
    return ROIPooler(
        output_size=resolution,
        scales=tuple(1.0 / shapes[name].stride for name in names),
        sampling_ratio=sampling_ratio,
        pooler_type="ROIAlignV2",
    )


def instance_classes(instances: list[Instances], training: bool, num_classes: int, device: torch.device) -> Tensor:
    """The class whose predictions each instance uses: its ground truth in training, its prediction at inference."""
    field = "gt_classes" if training else "pred_classes"
    classes = [x.get(field) for x in instances if len(x)]
    if not classes:
        return torch.zeros(0, dtype=torch.int64, device=device)
    return torch.cat(classes) if num_classes > 1 else torch.zeros_like(torch.cat(classes))


def set_masks(instances: list[Instances], field: str, masks: Tensor) -> None:
    """Give each image's instances their share of (B, K, K) masks, as (B_i, 1, K, K)."""
    for x, part in zip(instances, masks[:, None].split([len(x) for x in instances]), strict=True):
        x.set(field, part)
