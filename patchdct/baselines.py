"""Refinement without patches, which PatchDCT is compared with (Sec. 4.4, Table 5). Imports torch alone.

Letters: B instances, S side of the fine RoI feature, N length of the mask's DCT vector, M side of the refined mask.
"""

from typing import Any

from detectron2.modeling import ROI_MASK_HEAD_REGISTRY
from torch import Tensor, nn
from torch.nn import functional as F

from patchdct.losses import vector_loss
from patchdct.refinement_head import RefinementHead
from pixelmask.errors import UserError

from .dct import DCTMaskCodec
from .mask_branch import Downsample, RefinementBranch, predict_class, vector_predictor


class TwoStageDCTBranch(RefinementBranch):
    """Two-stage DCT: a second DCT vector of the whole mask, from the fused feature."""

    def __init__(
        self,
        in_channels: int,
        fine_channels: int,
        *,
        resolution: int = 14,
        fine_resolution: int = 42,
        conv_dim: int = 256,
        hidden_features: int = 1024,
        vector_dim: int = 300,
        assembled_size: int = 112,
        **kwargs: Any,
    ):
        """For the arguments see :class:`~patchdct.mask_branch.RefinementBranch`.

        The fused feature strides to (resolution, resolution), where layers of the DCT-Mask stage's sizes follow.
        """
        super().__init__(
            in_channels,
            fine_channels,
            resolution=resolution,
            fine_resolution=fine_resolution,
            conv_dim=conv_dim,
            hidden_features=hidden_features,
            vector_dim=vector_dim,
            assembled_size=assembled_size,
            **kwargs,
        )
        self.refined_codec = DCTMaskCodec(assembled_size, vector_dim)
        self.downsample = Downsample(fine_channels, conv_dim, fine_resolution, resolution)
        self.refined_predictor = vector_predictor(conv_dim * resolution**2, hidden_features, vector_dim)

    def refine(self, masks: Tensor, fine: Tensor, classes: Tensor, previous: Tensor | None = None) -> Tensor:
        """Predict (B, N) DCT vectors of the whole masks."""
        return self.refined_predictor(self.downsample(self.fuse(masks, fine)).flatten(1))

    def stage_masks(self, prediction: Tensor, final: bool = False) -> Tensor:
        return self.refined_codec.decode(prediction)


class BinaryGridBranch(RefinementBranch):
    """Binary grid refinement: each pixel of the mask is predicted, from the fused feature after a deconvolution."""

    def __init__(
        self,
        in_channels: int,
        fine_channels: int,
        *,
        fine_resolution: int = 56,
        assembled_size: int = 112,
        **kwargs: Any,
    ):
        """For the arguments see :class:`~patchdct.mask_branch.RefinementBranch`.

        Raises:
            UserError: if the mask's side is no multiple of the fine feature's.
        """
        super().__init__(
            in_channels, fine_channels, fine_resolution=fine_resolution, assembled_size=assembled_size, **kwargs
        )
        if assembled_size % fine_resolution:
            raise UserError(
                f"MODEL.ROI_MASK_HEAD.MASK_SIZE_ASSEMBLE {assembled_size} is no multiple of FINE_FEATURES_RESOLUTION "
                f"{fine_resolution}, as the binary grid needs"
            )
        factor = assembled_size // fine_resolution
        self.upsample = nn.ConvTranspose2d(fine_channels, fine_channels, factor, stride=factor)
        self.grid_predictor = nn.Conv2d(fine_channels, self.num_classes, 1)

    def refine(self, masks: Tensor, fine: Tensor, classes: Tensor, previous: Tensor | None = None) -> Tensor:
        """Predict the (B, M, M) logits of the masks."""
        x = F.relu(self.upsample(self.fuse(masks, fine))).flatten(2)
        logits = predict_class(self.grid_predictor, x, classes, self.num_classes)
        return logits[..., 0].unflatten(1, (self.assembled_size, self.assembled_size))

    def stage_masks(self, prediction: Tensor, final: bool = False) -> Tensor:
        return prediction.sigmoid()


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
