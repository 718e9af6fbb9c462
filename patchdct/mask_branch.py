"""The networks of the mask branches up to what refines a mask, from RoI features to DCT vectors. Imports torch alone.

Letters: B instances, C classes (1 if class-agnostic), R and S sides of the coarse and the fine RoI feature, H hidden
features, N length of the mask's DCT vector, M side of the refined mask.
"""

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .dct import DCTMaskCodec, nearest_positions
from .layers import ConvReLU, MaskFCN, Norm


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


class RefinementBranch(MaskFCN):
    """What PatchDCT and the methods beside it share: a DCT-Mask stage, and its mask fused with a fine feature.

    A subclass says how the fused feature becomes a better mask, by :meth:`refine` and :meth:`stage_masks`. All
    refinements of a model have the same weights.
    """

    coarse_positions: Tensor
    refined_positions: Tensor
    whole_positions: Tensor
    needs_previous = False
    """Whether :meth:`refine` is given the whole mask that it is to refine."""

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
        num_refinements: int = 1,
        num_classes: int = 80,
        norm: Norm | None = None,
    ):
        """
        Args:
            in_channels: of the coarse RoI feature.
            fine_channels: of the fine RoI feature.
            resolution: R.
            fine_resolution: S.
            conv_dim: channels of ``mask_fcn*``.
            num_conv: number of ``mask_fcn*``.
            hidden_features: H.
            vector_dim: N.
            mask_size: side of the mask that the N elements encode.
            assembled_size: M.
            num_refinements: how often the mask is refined, at least once.
            num_classes: C.
            norm: makes the normalisation of ``mask_fcn*`` from a number of channels.
        """
        super().__init__(in_channels, conv_dim, num_conv, norm)
        self.assembled_size = assembled_size
        self.num_refinements = num_refinements
        self.num_classes = num_classes
        self.codec = DCTMaskCodec(mask_size, vector_dim)
        self.register_buffer("coarse_positions", nearest_positions(mask_size, fine_resolution), persistent=False)
        self.register_buffer("refined_positions", nearest_positions(assembled_size, fine_resolution), persistent=False)
        self.register_buffer("whole_positions", nearest_positions(mask_size, assembled_size), persistent=False)
        channels = conv_dim if num_conv else in_channels
        self.predictor = vector_predictor(channels * resolution**2, hidden_features, vector_dim)
        self.reshape = ConvReLU(1, fine_channels)
        self.fusion = nn.Sequential(ConvReLU(fine_channels, fine_channels), ConvReLU(fine_channels, fine_channels))

    def refine(self, masks: Tensor, fine: Tensor, classes: Tensor, previous: Tensor | None = None) -> Any:
        """Predict a better mask.

        Args:
            masks: (B, S, S) soft masks to refine.
            fine: (B, fine_channels, S, S) fine RoI features.
            classes: (B,) int64 class of each instance, all 0 if class-agnostic.
            previous: the same masks as (B, M, M), if ``needs_previous``.
        """
        raise NotImplementedError

    def stage_masks(self, prediction: Any, final: bool = False) -> Tensor:
        """Return the (B, M, M) soft masks of what :meth:`refine` returned; ``final`` is that of the last refinement."""
        raise NotImplementedError

    def predict(self, x: Tensor, fine: Tensor, classes: Tensor) -> tuple[Tensor, list[Any]]:
        """Run the DCT-Mask stage and every refinement.

        Args:
            x: (B, in_channels, R, R) coarse RoI features.
            fine: (B, fine_channels, S, S) fine RoI features.
            classes: (B,) int64 class of each instance, all 0 if class-agnostic.

        Returns:
            the (B, N) coarse DCT vectors, and the prediction of each refinement.
        """
        coarse_vectors = self.predict_coarse(x)
        masks = self.codec.decode(coarse_vectors, self.coarse_positions)
        previous = self.codec.decode(coarse_vectors, self.whole_positions) if self.needs_previous else None
        stages = [self.refine(masks, fine, classes, previous)]
        while len(stages) < self.num_refinements:
            previous = self.stage_masks(stages[-1])
            masks = previous[:, self.refined_positions][:, :, self.refined_positions]
            stages.append(self.refine(masks, fine, classes, previous))
        return coarse_vectors, stages

    def infer(self, x: Tensor, fine: Tensor, classes: Tensor) -> Tensor:
        """The (B, M, M) soft masks of inference; for the arguments see :meth:`predict`."""
        return self.stage_masks(self.predict(x, fine, classes)[1][-1], final=True)

    def predict_coarse(self, x: Tensor) -> Tensor:
        """(B, in_channels, R, R) features to the (B, N) DCT vectors of the DCT-Mask stage."""
        return self.predictor(self.mask_fcn(x).flatten(1))

    def fuse(self, masks: Tensor, fine: Tensor) -> Tensor:
        """(B, S, S) soft masks and (B, fine_channels, S, S) features to a feature of the latter's shape."""
        return self.fusion(self.reshape(masks[:, None].to(fine.dtype)) + fine)


class Downsample(nn.Sequential):
    """Two 3 x 3 convolutions, whose first strides a (B, channels, S, S) feature to a grid of side G.

    Where G does not divide S, the feature is first resized to the next multiple of G.
    """

    def __init__(self, in_channels: int, channels: int, in_size: int, out_size: int):
        stride = math.ceil(in_size / out_size)
        # Windows of three rows that lie side by side or further apart need no padding; the published models have none
        first = ConvReLU(in_channels, channels, stride=stride, padding=0 if stride >= 3 else 1)
        super().__init__(first, ConvReLU(channels, channels))
        self.in_size = stride * out_size

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[-1] != self.in_size:
            x = F.interpolate(x, size=(self.in_size, self.in_size), mode="bilinear", align_corners=False)
        return super().forward(x)


def vector_predictor(in_features: int, hidden_features: int, vector_dim: int) -> nn.Sequential:
    """Three fully connected layers from a flat feature to a DCT vector."""
    return nn.Sequential(
        nn.Linear(in_features, hidden_features),
        nn.ReLU(),
        nn.Linear(hidden_features, hidden_features),
        nn.ReLU(),
        nn.Linear(hidden_features, vector_dim),
    )


def predict_class(layer: nn.Conv2d, x: Tensor, classes: Tensor, num_classes: int) -> Tensor:
    """Apply the rows of a 1 x 1 convolution that belong to each instance's class: (B, H, P) to (B, P, rows)."""
    assert layer.bias is not None
    weight = layer.weight.reshape(num_classes, -1, x.shape[1])
    bias = layer.bias.reshape(num_classes, -1)
    if num_classes == 1:
        return F.linear(x.transpose(1, 2), weight[0], bias[0])
    return torch.baddbmm(bias[classes][:, None], x.transpose(1, 2), weight[classes].transpose(1, 2))
