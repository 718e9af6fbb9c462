"""The mask heads of Table 5 that refine without patches, as Detectron2 sees them."""

from detectron2.modeling import ROI_MASK_HEAD_REGISTRY
from torch import Tensor
from torch.nn import functional as F

from .losses import vector_loss
from .refinement_head import RefinementHead
from .unpatched_branch import BinaryGridBranch, TwoStageDCTBranch


@ROI_MASK_HEAD_REGISTRY.register()
class MaskRCNNTwoStageDCTHead(RefinementHead, TwoStageDCTBranch):
    """Two-stage DCT (Table 5) as a Detectron2 mask head."""

    def make_targets(self, masks: Tensor) -> Tensor:
        return self.refined_codec.encode(masks)

    def stage_losses(self, prediction: Tensor, targets: Tensor) -> dict[str, Tensor]:
        """``refined_dct``, Eq. 4 of the second vector."""
        return {"refined_dct": vector_loss(prediction, targets, self.loss_type)}


@ROI_MASK_HEAD_REGISTRY.register()
class MaskRCNNBinaryGridHead(RefinementHead, BinaryGridBranch):
    """Binary grid refinement (Table 5) as a Detectron2 mask head."""

    def make_targets(self, masks: Tensor) -> Tensor:
        return masks.float()

    def stage_losses(self, prediction: Tensor, targets: Tensor) -> dict[str, Tensor]:
        """``grid``, the mean binary cross-entropy of the pixels."""
        loss = F.binary_cross_entropy_with_logits(prediction.float(), targets, reduction="sum")
        return {"grid": loss / max(targets.numel(), 1)}
