"""The networks of both mask branches, from RoI features to DCT vectors and masks. Imports torch alone.

Letters: B instances, C classes (1 if class-agnostic), R and S sides of the coarse and the fine RoI feature, H hidden
features, N and n lengths of the mask's and a patch's DCT vector, M side of the mask, P patches of a mask.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .dct import DCTMaskCodec, nearest_positions
from .errors import UserError
from .layers import ConvReLU, MaskFCN, Norm
from .patches import PatchLabel, assemble_patches, fill_uniform_patches


class PatchPrediction(NamedTuple):
    """What one PatchDCT module says about the patches of B masks."""

    logits: Tensor
    """(B, P, 3) scores of the :class:`~patchdct.patches.PatchLabel` classes."""
    vectors: Tensor
    """(B, P, n) DCT vectors, meaningful where the patch is mixed."""


class DCTMaskBranch(MaskFCN):
    """DCT-Mask (Shen et al., CVPR 2021): a RoI feature to one DCT vector."""

    def __init__(
        self,
        in_channels: int,
        *,
        resolution: int = 14,
        conv_dim: int = 256,
        num_conv: int = 4,
        hidden_features: int = 1024,
        vector_dim: int = 300,
        mask_size: int = 128,
        num_classes: int = 1,
        norm: Norm | None = None,
    ):
        """
        Args:
            in_channels: of the RoI feature.
            resolution: R.
            conv_dim: channels of ``mask_fcn*``.
            num_conv: number of ``mask_fcn*``.
            hidden_features: H.
            vector_dim: N.
            mask_size: side of the mask that the N elements encode.
            num_classes: C; the published models have 1.
            norm: makes the normalisation of ``mask_fcn*`` from a number of channels.
        """
        super().__init__(in_channels, conv_dim, num_conv, norm)
        self.vector_dim = vector_dim
        self.num_classes = num_classes
        self.codec = DCTMaskCodec(mask_size, vector_dim)
        channels = conv_dim if num_conv else in_channels
        self.predictor_fc1 = nn.Linear(channels * resolution**2, hidden_features)
        self.predictor_fc2 = nn.Linear(hidden_features, hidden_features)
        self.predictor_fc3 = nn.Linear(hidden_features, num_classes * vector_dim)
        for layer in (self.predictor_fc1, self.predictor_fc2):
            nn.init.kaiming_uniform_(layer.weight, a=1)
            nn.init.zeros_(layer.bias)
        nn.init.normal_(self.predictor_fc3.weight, std=0.001)
        nn.init.zeros_(self.predictor_fc3.bias)

    def predict(self, x: Tensor, classes: Tensor) -> Tensor:
        """(B, in_channels, R, R) features and (B,) classes to (B, N) DCT vectors."""
        x = self.mask_fcn(x).flatten(1)
        x = F.relu(self.predictor_fc2(F.relu(self.predictor_fc1(x))))
        vectors = self.predictor_fc3(x)
        if self.num_classes == 1:
            return vectors
        vectors = vectors.unflatten(1, (self.num_classes, self.vector_dim))
        return vectors[torch.arange(len(classes), device=classes.device), classes]


class PatchDCTBranch(MaskFCN):
    """PatchDCT (Wen et al., ICLR 2023, Fig. 2): a coarse DCT vector, then patches refined by classifier and regressor.

    Every PatchDCT module has the same weights. Only the scores and vectors of each instance's class are computed.
    """

    coarse_positions: Tensor
    refined_positions: Tensor

    def __init__(
        self,
        in_channels: int,
        fine_channels: int,
        *,
        resolution: int = 14,
        fine_resolution: int = 42,
        conv_dim: int = 256,
        num_conv: int = 4,
        hidden_features: int = 1024,
        vector_dim: int = 300,
        mask_size: int = 112,
        assembled_size: int = 112,
        patch_size: int = 8,
        patch_vector_dim: int = 6,
        num_refinements: int = 1,
        num_classes: int = 80,
        patch_threshold: float = 0.3,
        norm: Norm | None = None,
    ):
        """
        Args:
            in_channels: of the coarse RoI feature.
            fine_channels: of the fine RoI feature.
            resolution: R.
            fine_resolution: S; a PatchDCT module strides from it to the grid of patches.
            conv_dim: channels of ``mask_fcn*``.
            num_conv: number of ``mask_fcn*``.
            hidden_features: H.
            vector_dim: N.
            mask_size: side of the mask that the N elements encode.
            assembled_size: M.
            patch_size: m, a divisor of M.
            patch_vector_dim: n.
            num_refinements: PatchDCT modules, at least 1.
            num_classes: C.
            patch_threshold: probability above which foreground or background beats mixed at inference.
            norm: makes the normalisation of ``mask_fcn*`` from a number of channels.

        Raises:
            UserError: if the sizes do not fit together.
        """
        super().__init__(in_channels, conv_dim, num_conv, norm)
        if assembled_size % patch_size:
            raise UserError(
                f"MODEL.ROI_MASK_HEAD.MASK_SIZE_ASSEMBLE {assembled_size} is no multiple of PATCH_SIZE {patch_size}"
            )
        self.patches_per_side = assembled_size // patch_size
        self.num_refinements = num_refinements
        self.num_classes = num_classes
        self.patch_threshold = patch_threshold
        self.codec = DCTMaskCodec(mask_size, vector_dim)
        self.patch_codec = DCTMaskCodec(patch_size, patch_vector_dim)
        self.register_buffer("coarse_positions", nearest_positions(mask_size, fine_resolution), persistent=False)
        self.register_buffer("refined_positions", nearest_positions(assembled_size, fine_resolution), persistent=False)

        hidden = hidden_features
        self.predictor = nn.Sequential(
            nn.Linear((conv_dim if num_conv else in_channels) * resolution**2, hidden),
            nn.ReLU(),
            nn.Linear(hidden, hidden),
            nn.ReLU(),
            nn.Linear(hidden, vector_dim),
        )
        stride = _downsample_stride(fine_resolution, self.patches_per_side)
        self.reshape = ConvReLU(1, fine_channels)
        self.fusion = nn.Sequential(ConvReLU(fine_channels, fine_channels), ConvReLU(fine_channels, fine_channels))
        self.downsample = nn.Sequential(
            ConvReLU(fine_channels, hidden, stride=stride, padding=0), ConvReLU(hidden, hidden)
        )
        self.predictor1 = nn.Conv2d(hidden, num_classes * patch_vector_dim, 1)
        self.predictor_bfg = nn.Conv2d(hidden, num_classes * len(PatchLabel), 1)

    def predict_coarse(self, x: Tensor) -> Tensor:
        """(B, in_channels, R, R) features to the (B, N) DCT vectors of the DCT-Mask stage."""
        return self.predictor(self.mask_fcn(x).flatten(1))

    def predict(self, x: Tensor, fine: Tensor, classes: Tensor) -> tuple[Tensor, list[PatchPrediction]]:
        """Run the DCT-Mask stage and every PatchDCT module.

        Args:
            x: (B, in_channels, R, R) coarse RoI features.
            fine: (B, fine_channels, S, S) fine RoI features.
            classes: (B,) int64 class of each instance, all 0 if class-agnostic.

        Returns:
            the (B, N) coarse DCT vectors, and the prediction of each module.
        """
        coarse_vectors = self.predict_coarse(x)
        masks = self.codec.decode(coarse_vectors, self.coarse_positions)
        stages = [self.refine(masks, fine, classes)]
        while len(stages) < self.num_refinements:
            refined = self.assemble(stages[-1], stages[-1].logits.argmax(-1))
            masks = refined[:, self.refined_positions][:, :, self.refined_positions]
            stages.append(self.refine(masks, fine, classes))
        return coarse_vectors, stages

    def refine(self, masks: Tensor, fine: Tensor, classes: Tensor) -> PatchPrediction:
        """One PatchDCT module: (B, S, S) soft masks, fine features and classes to a prediction for each patch."""
        x = self.reshape(masks[:, None].to(fine.dtype)) + fine
        x = self.downsample(self.fusion(x)).flatten(2)
        return PatchPrediction(
            logits=_predict_class(self.predictor_bfg, x, classes, self.num_classes),
            vectors=_predict_class(self.predictor1, x, classes, self.num_classes),
        )

    def assemble(self, prediction: PatchPrediction, labels: Tensor) -> Tensor:
        """Decode the mixed patches, fill the others, and put all together: (B, P) labels to (B, M, M) soft masks."""
        return assemble_patches(fill_uniform_patches(self.patch_codec.decode(prediction.vectors), labels))

    def final_labels(self, logits: Tensor) -> Tensor:
        """Label patches at inference: a foreground or background probability above the threshold beats mixed.

        Args:
            logits: (B, P, 3) of the last module.

        Returns:
            (B, P) int64 :class:`~patchdct.patches.PatchLabel` values.
        """
        probs = logits.float().softmax(-1)
        background, foreground = probs[..., PatchLabel.BACKGROUND], probs[..., PatchLabel.FOREGROUND]
        uniform = torch.where(foreground > background, PatchLabel.FOREGROUND.value, PatchLabel.BACKGROUND.value)
        sure = torch.maximum(background, foreground) > self.patch_threshold
        return torch.where(sure, uniform, probs.argmax(-1))


def _downsample_stride(fine_resolution: int, patches_per_side: int) -> int:
    stride = fine_resolution // patches_per_side
    if stride < 1 or (fine_resolution - 3) // stride + 1 != patches_per_side:
        raise UserError(
            f"MODEL.ROI_MASK_HEAD.FINE_FEATURES_RESOLUTION {fine_resolution} does not stride to {patches_per_side} "
            f"patches a side (MASK_SIZE_ASSEMBLE / PATCH_SIZE); {3 * patches_per_side} does"
        )
    return stride


def _predict_class(layer: nn.Conv2d, x: Tensor, classes: Tensor, num_classes: int) -> Tensor:
    """Apply the rows of a 1 x 1 convolution that belong to each instance's class: (B, H, P) to (B, P, rows)."""
    assert layer.bias is not None
    weight = layer.weight.reshape(num_classes, -1, x.shape[1])
    bias = layer.bias.reshape(num_classes, -1)
    if num_classes == 1:
        return F.linear(x.transpose(1, 2), weight[0], bias[0])
    return torch.baddbmm(bias[classes][:, None], x.transpose(1, 2), weight[classes].transpose(1, 2))
