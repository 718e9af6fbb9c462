"""The ROI heads that the published PatchDCT configs name."""

from typing import Any

from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import ROI_HEADS_REGISTRY, ROI_MASK_HEAD_REGISTRY
from detectron2.modeling.roi_heads import StandardROIHeads

from .refinement_head import RefinementHead


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
