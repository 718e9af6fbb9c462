"""The mask heads as Detectron2 sees them: with a config, RoI pooling, targets, and losses put together."""

from functools import partial
from typing import Any

import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec, get_norm
from detectron2.modeling import ROI_HEADS_REGISTRY, ROI_MASK_HEAD_REGISTRY
from detectron2.modeling.poolers import ROIPooler
from detectron2.modeling.roi_heads import StandardROIHeads
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import get_event_storage
from torch import Tensor

from pixelmask.errors import UserError

from .baselines import BinaryGridBranch, DCTMaskBranch, TwoStageDCTBranch
from .losses import check_loss_type, vector_loss, vector_loss_sum
from .mask_branch import MaskBranchSizes, RefinementBranch
from .patch_branch import PatchDCTBranch
from .targets import rasterize_masks, send_boxes


class RefinementHead(RefinementBranch):
    """A mask head over a :class:`~patchdct.mask_branch.RefinementBranch`, to be inherited from before the branch.

    It pools for itself, so ``POOLER_TYPE`` is to be "" (as PointRend has it).
    """

    @configurable
    def __init__(
        self,
        sizes: MaskBranchSizes,
        *,
        in_features: list[str],
        fine_features: list[str],
        coarse_pooler: ROIPooler,
        fine_pooler: ROIPooler,
        loss_weight: float = 1.0,
        stage_loss_weights: tuple[float, ...] = (1.0, 1.0),
        **kwargs: Any,
    ):
        """
        Args:
            sizes: of the branch.
            in_features: maps that the coarse RoI feature is pooled from.
            fine_features: maps that the fine RoI feature is pooled from.
            coarse_pooler, fine_pooler: of these maps.
            loss_weight: ``MASK_LOSS_PARA``, scales the whole of Eq. 3.
            stage_loss_weights: lambda of Eq. 3, the first for the DCT-Mask stage.
            kwargs: of the branch.
        """
        super().__init__(sizes, **kwargs)
        self.in_features, self.fine_features = in_features, fine_features
        self.coarse_pooler, self.fine_pooler = coarse_pooler, fine_pooler
        self.loss_weight, self.stage_loss_weights = loss_weight, stage_loss_weights
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
        fine_channels = input_shape[head.FINE_FEATURES[0]].channels

        def make_pooler(names: list[str], resolution: int) -> ROIPooler:
            scales = tuple(1.0 / input_shape[name].stride for name in names)
            return ROIPooler(resolution, scales, head.POOLER_SAMPLING_RATIO, "ROIAlignV2")

        return {
            "sizes": _sizes(
                cfg,
                in_channels=input_shape[head.IN_FEATURES[0]].channels,
                resolution=head.POOLER_RESOLUTION,
                fine_channels=head.FINE_PROJECTION or fine_channels,
                projected_from=fine_channels if head.FINE_PROJECTION else 0,
                fine_resolution=head.FINE_FEATURES_RESOLUTION,
                num_fusion=head.NUM_FUSION,
                assembled_size=head.MASK_SIZE_ASSEMBLE,
                num_refinements=head.NUM_STAGE - 1,
            ),
            "in_features": list(head.IN_FEATURES),
            "fine_features": list(head.FINE_FEATURES),
            "coarse_pooler": make_pooler(head.IN_FEATURES, head.POOLER_RESOLUTION),
            "fine_pooler": make_pooler(head.FINE_FEATURES, head.FINE_FEATURES_RESOLUTION),
            "loss_type": head.DCT_LOSS_TYPE,
            "loss_weight": head.MASK_LOSS_PARA,
            "stage_loss_weights": tuple(head.MASK_LOSS_PARA_EACH_STAGE),
        }

    def forward(self, features: dict[str, Tensor], instances: list[Instances]) -> dict[str, Tensor] | list[Instances]:
        """
        Args:
            features: the feature maps of the batch, by name.
            instances: per image, the foreground proposals with ground truth (training) or the detections (inference).

        Returns:
            the loss in training; else ``instances``, each with ``pred_masks`` (B_i, 1, M, M), soft.
        """
        boxes = [x.proposal_boxes if self.training else x.pred_boxes for x in instances]
        arrive = send_boxes(instances) if self.training else None
        x = _pool(self.coarse_pooler, [features[f] for f in self.in_features], boxes)
        fine = _pool(self.fine_pooler, [self.projection(features[f]) for f in self.fine_features], boxes)
        classes = instance_classes(instances, self.training, self.num_classes, x.device)
        coarse_vectors, stages = self.predict(x, fine, classes)
        if arrive is not None:
            return {"loss_mask": self.losses(coarse_vectors, stages, instances, arrive())}
        _share_out(instances, "pred_masks", self.stage_masks(stages[-1], final=True).float()[:, None])
        if self.keep_stages:
            _share_out(instances, "pred_coarse_masks", self.codec.decode(coarse_vectors.float())[:, None])
            for field, values in self.stage_details(stages[-1]).items():
                _share_out(instances, field, values)
        return instances

    def losses(
        self,
        coarse_vectors: Tensor,
        stages: list[Any],
        instances: list[Instances],
        boxes: list[Tensor] | None = None,
    ) -> Tensor:
        """Compute Eq. 3 and log its parts, unweighted, under ``patchdct/``; boxes as in :func:`.rasterize_masks`."""
        masks = rasterize_masks(instances, self.codec.mask_size, coarse_vectors.device, boxes)
        losses = {"loss_dct": vector_loss(coarse_vectors, self.codec.encode(masks), self.loss_type)}
        total = self.stage_loss_weights[0] * losses["loss_dct"]
        if self.sizes.assembled_size != self.codec.mask_size:
            masks = rasterize_masks(instances, self.sizes.assembled_size, coarse_vectors.device, boxes)
        targets = self.make_targets(masks)
        for i, (stage, weight) in enumerate(zip(stages, self.stage_loss_weights[1:], strict=True), start=1):
            suffix = f"_stage{i}" if len(stages) > 1 else ""
            for name, loss in self.stage_losses(stage, targets).items():
                losses[f"loss_{name}{suffix}"] = loss
                total = total + weight * loss
        values = torch.stack(list(losses.values())).tolist()  # at once: each wait for the device costs
        scalars = {f"patchdct/{name}": value for name, value in zip(losses, values, strict=True)}
        get_event_storage().put_scalars(**scalars, smoothing_hint=True)
        return self.loss_weight * total


@ROI_MASK_HEAD_REGISTRY.register()
class MaskRCNNPatchDCTHead(RefinementHead, PatchDCTBranch):
    """PatchDCT as a Detectron2 mask head."""

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict[str, Any]:
        head = cfg.MODEL.ROI_MASK_HEAD
        return {
            **super().from_config(cfg, input_shape),
            "patch_size": head.PATCH_SIZE,
            "patch_vector_dim": head.PATCH_DCT_VECTOR_DIM,
            "patch_classes": head.PATCH_CLASSES,
            "patch_regressor": head.PATCH_REGRESSOR,
            "patch_threshold": head.PATCH_THRESHOLD,
        }


@ROI_MASK_HEAD_REGISTRY.register()
class MaskRCNNTwoStageDCTHead(RefinementHead, TwoStageDCTBranch):
    """Two-stage DCT (Table 5) as a Detectron2 mask head."""


@ROI_MASK_HEAD_REGISTRY.register()
class MaskRCNNBinaryGridHead(RefinementHead, BinaryGridBranch):
    """Binary grid refinement (Table 5) as a Detectron2 mask head."""


@ROI_MASK_HEAD_REGISTRY.register()
class MaskRCNNDCTHead(DCTMaskBranch):
    """DCT-Mask as a Detectron2 mask head: predicts one DCT vector of the whole mask."""

    @configurable
    def __init__(self, sizes: MaskBranchSizes, *, loss_type: str = "l1", loss_weight: float = 0.007):
        """
        Args:
            sizes: of the branch.
            loss_type: R of Eq. 4, a key of :data:`patchdct.losses.REGRESSION_LOSSES`.
            loss_weight: ``MASK_LOSS_PARA``.
        """
        super().__init__(sizes)
        self.loss_type, self.loss_weight = check_loss_type(loss_type), loss_weight

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: ShapeSpec) -> dict[str, Any]:
        if not isinstance(input_shape, ShapeSpec):
            raise UserError(
                "MODEL.ROI_MASK_HEAD.NAME MaskRCNNDCTHead needs pooled features: set MODEL.ROI_MASK_HEAD.POOLER_TYPE "
                "to ROIAlignV2"
            )
        return {
            "sizes": _sizes(cfg, in_channels=input_shape.channels, resolution=input_shape.height),
            "loss_type": cfg.MODEL.ROI_MASK_HEAD.DCT_LOSS_TYPE,
            "loss_weight": cfg.MODEL.ROI_MASK_HEAD.MASK_LOSS_PARA,
        }

    def forward(self, x: Tensor, instances: list[Instances]) -> dict[str, Tensor] | list[Instances]:
        """
        Args:
            x: (B, channels, R, R) RoI features of all images' instances.
            instances: per image, the foreground proposals with ground truth (training) or the detections (inference).

        Returns:
            the loss in training; else ``instances``, each with ``pred_masks`` (B_i, 1, K, K), soft.
        """
        arrive = send_boxes(instances) if self.training else None
        vectors = self.predict(x, instance_classes(instances, self.training, self.num_classes, x.device))
        if arrive is None:
            _share_out(instances, "pred_masks", self.codec.decode(vectors.float())[:, None])
            return instances
        masks = rasterize_masks(instances, self.codec.mask_size, x.device, arrive())
        loss = vector_loss_sum(vectors, self.codec.encode(masks), self.loss_type)
        return {"loss_mask": self.loss_weight * loss}


@ROI_HEADS_REGISTRY.register()
class PatchDCTROIHeads(StandardROIHeads):
    """StandardROIHeads that hands the feature maps themselves to a mask head that pools for itself.

    Differs only in taking ``POOLER_TYPE`` as "" for such heads, which the published configs leave at its default.
    """

    @classmethod
    def _init_mask_head(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict[str, Any]:
        if cfg.MODEL.MASK_ON and issubclass(ROI_MASK_HEAD_REGISTRY.get(cfg.MODEL.ROI_MASK_HEAD.NAME), RefinementHead):
            cfg = cfg.clone()
            cfg.defrost()
            cfg.MODEL.ROI_MASK_HEAD.POOLER_TYPE = ""
        return super()._init_mask_head(cfg, input_shape)


def _sizes(cfg: CfgNode, **sizes: int) -> MaskBranchSizes:
    """What all heads read from a config, and the sizes that they take from elsewhere."""
    head = cfg.MODEL.ROI_MASK_HEAD
    if head.EVAL_GT:
        raise UserError(
            "MODEL.ROI_MASK_HEAD.EVAL_GT True is not supported: models here never see ground truth at inference. "
            "Set it to False; tools/upper_bound.py measures the upper bound of every codec without a model"
        )
    return MaskBranchSizes(
        conv_dim=head.CONV_DIM,
        num_conv=head.NUM_CONV,
        hidden_features=head.HIDDEN_FEATURES,
        vector_dim=head.DCT_VECTOR_DIM,
        mask_size=head.MASK_SIZE,
        num_classes=1 if head.CLS_AGNOSTIC_MASK else cfg.MODEL.ROI_HEADS.NUM_CLASSES,
        norm=partial(get_norm, head.NORM) if head.NORM else None,
        **sizes,
    )


def _check_config(head: CfgNode, input_shape: dict[str, ShapeSpec]) -> None:
    for key in ("FINE_PROJECTION", "NUM_FUSION"):
        if head[key] < 0:
            raise UserError(f"MODEL.ROI_MASK_HEAD.{key} is {head[key]}; it is a number, and 0 stands for none")
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


def _pool(pooler: ROIPooler, maps: list[Tensor], boxes: list[Boxes]) -> Tensor:
    """Pool in float32: RoIAlign rounds the boxes to the type of the maps, by whole pixels where that is bfloat16."""
    return pooler([x.float() for x in maps], boxes).to(maps[0].dtype)


def instance_classes(instances: list[Instances], training: bool, num_classes: int, device: torch.device) -> Tensor:
    """The class whose predictions each instance uses: its ground truth in training, its prediction at inference."""
    field = "gt_classes" if training else "pred_classes"
    classes = [x.get(field) for x in instances if len(x)]
    if not classes:
        return torch.zeros(0, dtype=torch.int64, device=device)
    return torch.cat(classes) if num_classes > 1 else torch.zeros_like(torch.cat(classes))


def _share_out(instances: list[Instances], field: str, values: Tensor) -> None:
    """Give each image's instances their share of (B, ...) values."""
    for x, part in zip(instances, values.split([len(x) for x in instances]), strict=True):
        x.set(field, part)
