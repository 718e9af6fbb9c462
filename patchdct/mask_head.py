"""The mask heads of DCT-Mask and PatchDCT, as Detectron2 sees them."""

from typing import Any

from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling import ROI_MASK_HEAD_REGISTRY
from detectron2.structures import Instances
from torch import Tensor

from pixelmask.errors import UserError

from .losses import check_loss_type, patch_classification_loss, patch_vector_loss, vector_loss_sum
from .mask_branch import DCTMaskBranch
from .patch_branch import PatchDCTBranch, PatchPrediction
from .patches import PatchLabel
from .refinement_head import RefinementHead, common_config, instance_classes, set_masks
from .targets import PatchTargets, encode_patches, rasterize_masks


@ROI_MASK_HEAD_REGISTRY.register()
class MaskRCNNDCTHead(DCTMaskBranch):
    """DCT-Mask as a Detectron2 mask head: predicts one DCT vector of the whole mask."""

    @configurable
    def __init__(self, input_shape: ShapeSpec, *, loss_type: str = "l1", loss_weight: float = 0.007, **kwargs: Any):
        """
        Args:
            input_shape: of the RoI feature.
            loss_type: R of Eq. 4, a key of :data:`patchdct.losses.REGRESSION_LOSSES`.
            loss_weight: ``MASK_LOSS_PARA``.
            kwargs: of :class:`~patchdct.mask_branch.DCTMaskBranch`.
        """
        super().__init__(input_shape.channels, resolution=input_shape.height, **kwargs)
        self.loss_type = check_loss_type(loss_type)
        self.loss_weight = loss_weight

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: ShapeSpec) -> dict[str, Any]:
        if not isinstance(input_shape, ShapeSpec):
            raise UserError(
                "MODEL.ROI_MASK_HEAD.NAME MaskRCNNDCTHead needs pooled features: set MODEL.ROI_MASK_HEAD.POOLER_TYPE "
                "to ROIAlignV2"
            )
        return {"input_shape": input_shape, **common_config(cfg)}

    def forward(self, x: Tensor, instances: list[Instances]) -> dict[str, Tensor] | list[Instances]:
        """
        Args:
            x: (B, channels, R, R) RoI features of all images' instances.
            instances: per image, the foreground proposals with ground truth (training) or the detections (inference).

        Returns:
            the loss in training; else ``instances``, each with ``pred_masks`` (B_i, 1, K, K), soft.
        """
        vectors = self.predict(x, instance_classes(instances, self.training, self.num_classes, x.device))
        if not self.training:
            set_masks(instances, "pred_masks", self.codec.decode(vectors.float()))
            return instances
        masks = rasterize_masks(instances, self.codec.mask_size, x.device)
        loss = vector_loss_sum(vectors, self.codec.encode(masks), self.loss_type)
        return {"loss_mask": self.loss_weight * loss}


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

    def make_targets(self, masks: Tensor) -> PatchTargets:
        return encode_patches(masks, self.patch_codec)

    def stage_losses(self, prediction: PatchPrediction, targets: PatchTargets) -> dict[str, Tensor]:
        """``patch_cls``, the cross-entropy of the classifier, and ``patch_dct``, Eq. 5; those that the head has."""
        losses = {}
        mixed = targets.labels == PatchLabel.MIXED
        if prediction.logits is not None:
            labels = targets.labels if self.patch_classes == 3 else mixed.long()
            losses["patch_cls"] = patch_classification_loss(prediction.logits, labels)
        if prediction.vectors is not None:
            selected = mixed if self.patch_classes > 1 else mixed.new_ones(mixed.shape)
            losses["patch_dct"] = patch_vector_loss(prediction.vectors, targets.vectors, selected, self.loss_type)
        return losses

    def inference(self, coarse_vectors: Tensor, stage: PatchPrediction, instances: list[Instances]) -> None:
        stage = PatchPrediction(*(None if x is None else x.float() for x in stage))
        super().inference(coarse_vectors, stage, instances)
        if self.keep_stages:
            side = self.patches_per_side
            grids = self.label(stage, final=True).unflatten(1, (side, side))
            for x, grid in zip(instances, grids.split([len(x) for x in instances]), strict=True):
                x.pred_patch_labels = grid
