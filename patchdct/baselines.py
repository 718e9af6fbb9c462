"""What PatchDCT is compared with: DCT-Mask (Shen et al., CVPR 2021), and refinement without patches (Table 5).

Imports torch alone. Letters as in :mod:`patchdct.mask_branch`.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pixelmask.errors import UserError

from .dct import DCTMaskCodec
from .losses import vector_loss
from .mask_branch import Downsample, MaskBranchSizes, MaskFCN, RefinementBranch, predict_class, vector_predictor


class DCTMaskBranch(MaskFCN):
    """DCT-Mask: a RoI feature to one DCT vector. What its sizes say of refinement is not used."""

    def __init__(self, sizes: MaskBranchSizes):
        super().__init__(sizes)
        hidden = sizes.hidden_features
        self.codec = DCTMaskCodec(sizes.mask_size, sizes.vector_dim)
        self.predictor_fc1 = nn.Linear(sizes.flat_features, hidden)
        self.predictor_fc2 = nn.Linear(hidden, hidden)
        self.predictor_fc3 = nn.Linear(hidden, sizes.num_classes * sizes.vector_dim)
        for layer in (self.predictor_fc1, self.predictor_fc2):
            nn.init.kaiming_uniform_(layer.weight, a=1)
            nn.init.zeros_(layer.bias)
        nn.init.normal_(self.predictor_fc3.weight, std=0.001)
        nn.init.zeros_(self.predictor_fc3.bias)

    def predict(self, x: Tensor, classes: Tensor) -> Tensor:
        """(B, in_channels, R, R) features and (B,) classes to (B, N) DCT vectors."""
        x = F.relu(self.predictor_fc2(F.relu(self.predictor_fc1(self.mask_fcn(x)))))
        vectors = self.predictor_fc3(x)
        if self.num_classes == 1:
            return vectors
        vectors = vectors.unflatten(1, (self.num_classes, self.codec.vector_dim))
        return vectors[torch.arange(len(classes), device=classes.device), classes]


class TwoStageDCTBranch(RefinementBranch):
    """Two-stage DCT: a second DCT vector of the whole mask.

    The fused feature strides to (R, R), where layers of the DCT-Mask stage's sizes follow.
    """

    def __init__(self, sizes: MaskBranchSizes, *, loss_type: str = "l1"):
        super().__init__(sizes, loss_type=loss_type)
        self.refined_codec = DCTMaskCodec(sizes.assembled_size, sizes.vector_dim)
        self.downsample = Downsample(
            sizes.fine_channels, sizes.conv_dim, sizes.fine_resolution, sizes.resolution, sizes.norm
        )
        self.refined_predictor = vector_predictor(sizes.conv_dim * sizes.resolution**2, sizes)

    def refine(self, masks: Tensor, fine: Tensor, classes: Tensor, previous: Tensor | None = None) -> Tensor:
        """Predict (B, N) DCT vectors of the whole masks."""
        return self.refined_predictor(self.downsample(self.fuse(masks, fine)).flatten(1))

    def stage_masks(self, prediction: Tensor, final: bool = False) -> Tensor:
        return self.refined_codec.decode(prediction)

    def make_targets(self, masks: Tensor) -> Tensor:
        return self.refined_codec.encode(masks)

    def stage_losses(self, prediction: Tensor, targets: Tensor) -> dict[str, Tensor]:
        """``refined_dct``, Eq. 4 of the second vector."""
        return {"refined_dct": vector_loss(prediction, targets, self.loss_type)}


class BinaryGridBranch(RefinementBranch):
    """Binary grid refinement: each pixel of the mask is predicted, from the fused feature after a deconvolution."""

    def __init__(self, sizes: MaskBranchSizes, *, loss_type: str = "l1"):
        """Raise :class:`UserError` if the mask's side is no multiple of the fine feature's."""
        super().__init__(sizes, loss_type=loss_type)
        if sizes.assembled_size % sizes.fine_resolution:
            raise UserError(
                f"MODEL.ROI_MASK_HEAD.MASK_SIZE_ASSEMBLE {sizes.assembled_size} is no multiple of "
                f"FINE_FEATURES_RESOLUTION {sizes.fine_resolution}, as the binary grid needs"
            )
        factor = sizes.assembled_size // sizes.fine_resolution
        self.upsample = nn.ConvTranspose2d(sizes.fine_channels, sizes.fine_channels, factor, stride=factor)
        self.grid_predictor = nn.Conv2d(sizes.fine_channels, sizes.num_classes, 1)

    def refine(self, masks: Tensor, fine: Tensor, classes: Tensor, previous: Tensor | None = None) -> Tensor:
        """Predict the (B, M, M) logits of the masks."""
        x = F.relu(self.upsample(self.fuse(masks, fine))).flatten(2)
        logits = predict_class(self.grid_predictor, x, classes, self.num_classes)
        return logits[..., 0].unflatten(1, (self.sizes.assembled_size, self.sizes.assembled_size))

    def stage_masks(self, prediction: Tensor, final: bool = False) -> Tensor:
        return prediction.sigmoid()

    def stage_losses(self, prediction: Tensor, targets: Tensor) -> dict[str, Tensor]:
        """``grid``, the mean binary cross-entropy of the pixels."""
        loss = F.binary_cross_entropy_with_logits(prediction.float(), targets, reduction="sum")
        return {"grid": loss / max(targets.numel(), 1)}
