"""What all refinements share: a DCT-Mask stage, and its mask fused with a fine feature (PatchDCT, Fig. 2, left).

Imports torch alone. Letters: B instances, C classes (1 if class-agnostic), R and S sides of the coarse and the fine RoI
feature, H hidden features, N length of the mask's DCT vector, K side of the mask that it encodes, M side of the refined
mask.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .dct import DCTMaskCodec, nearest_positions
from .losses import check_loss_type

Norm = Callable[[int], nn.Module]


@dataclass(frozen=True)
class MaskBranchSizes:
    """The sizes of a mask branch; the defaults are those of the published PatchDCT."""

    in_channels: int = 256
    """Of the coarse RoI feature."""
    fine_channels: int = 256
    """Of the fine RoI feature."""
    projected_from: int = 0
    """Channels of the feature maps if they are projected to ``fine_channels`` before they are pooled (ours); else 0."""
    resolution: int = 14
    """R."""
    fine_resolution: int = 42
    """S."""
    num_fusion: int = 2
    """Number of ``fusion.*``; with 0 the sum of mask and feature is all (ours)."""
    conv_dim: int = 256
    """Channels of ``mask_fcn*``."""
    num_conv: int = 4
    """Number of ``mask_fcn*``."""
    hidden_features: int = 1024
    """H."""
    vector_dim: int = 300
    """N."""
    mask_size: int = 112
    """K."""
    assembled_size: int = 112
    """M."""
    num_refinements: int = 1
    """How often the mask is refined, at least once."""
    num_classes: int = 80
    """C."""
    norm: Norm | None = None
    """Makes the normalisation of ``mask_fcn*``, ``fusion`` and ``downsample`` from a number of channels."""

    @property
    def flat_features(self) -> int:
        """Length of what ``mask_fcn*`` make of a coarse RoI feature."""
        return (self.conv_dim if self.num_conv else self.in_channels) * self.resolution**2


class ConvReLU(nn.Conv2d):
    """A convolution with an optional normalisation, followed by ReLU; its parameters carry its own name."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        norm: Norm | None = None,
        kernel_size: int = 3,
        stride: int = 1,
        padding: int = 1,
    ):
        super().__init__(in_channels, out_channels, kernel_size, stride, padding, bias=norm is None)
        self.norm = norm(out_channels) if norm else None

    def forward(self, x: Tensor) -> Tensor:
        x = super().forward(x)
        return F.relu(self.norm(x) if self.norm is not None else x)


class MaskFCN(nn.Module):
    """The 3 x 3 convolutions ``mask_fcn1``, ``mask_fcn2``, ... that start a Mask R-CNN mask head."""

    def __init__(self, sizes: MaskBranchSizes):
        super().__init__()
        self.num_classes = sizes.num_classes
        self.mask_fcn_names = [f"mask_fcn{i}" for i in range(1, sizes.num_conv + 1)]
        in_channels = sizes.in_channels
        for name in self.mask_fcn_names:
            conv = ConvReLU(in_channels, sizes.conv_dim, norm=sizes.norm)
            nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
            if conv.bias is not None:
                nn.init.zeros_(conv.bias)
            self.add_module(name, conv)
            in_channels = sizes.conv_dim

    def mask_fcn(self, x: Tensor) -> Tensor:
        """(B, in_channels, R, R) RoI features to (B, conv_dim * R * R)."""
        for name in self.mask_fcn_names:
            x = getattr(self, name)(x)
        return x.flatten(1)


class RefinementBranch(MaskFCN):
    """A DCT-Mask stage, and refinements of its mask that all have the same weights.

    A subclass says how the fused feature becomes a better mask, by :meth:`refine` and :meth:`stage_masks`, and what it
    is trained on, by :meth:`make_targets` and :meth:`stage_losses`.
    """

    coarse_positions: Tensor
    refined_positions: Tensor
    whole_positions: Tensor
    needs_previous = False
    """Whether :meth:`refine` is given the whole mask that it is to refine."""

    def __init__(self, sizes: MaskBranchSizes, *, loss_type: str = "l1"):
        """
        Args:
            sizes: of everything.
            loss_type: R of Eq. 4 and 5, a key of :data:`patchdct.losses.REGRESSION_LOSSES`.
        """
        super().__init__(sizes)
        self.sizes = sizes
        self.loss_type = check_loss_type(loss_type)
        mask_size, fine_resolution, channels = sizes.mask_size, sizes.fine_resolution, sizes.fine_channels
        self.codec = DCTMaskCodec(mask_size, sizes.vector_dim)
        for name, positions in {
            "coarse_positions": nearest_positions(mask_size, fine_resolution),
            "refined_positions": nearest_positions(sizes.assembled_size, fine_resolution),
            "whole_positions": nearest_positions(mask_size, sizes.assembled_size),
        }.items():
            self.register_buffer(name, positions, persistent=False)
        self.predictor = vector_predictor(sizes.flat_features, sizes)
        self.projection = nn.Conv2d(sizes.projected_from, channels, 1) if sizes.projected_from else nn.Identity()
        self.reshape = ConvReLU(1, channels)
        self.fusion = nn.Sequential(*(ConvReLU(channels, channels, norm=sizes.norm) for _ in range(sizes.num_fusion)))

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

    def stage_details(self, prediction: Any) -> dict[str, Tensor]:
        """What else to show of the last refinement: (B, ...) by the name of a field of Detectron2's instances."""
        return {}

    def make_targets(self, masks: Tensor) -> Any:
        """What :meth:`stage_losses` compares with, from (B, M, M) boolean true masks: here the masks as numbers."""
        return masks.float()

    def stage_losses(self, prediction: Any, targets: Any) -> dict[str, Tensor]:
        """The parts of one refinement's loss, unweighted, by name."""
        raise NotImplementedError

    def predict(self, x: Tensor, fine: Tensor, classes: Tensor) -> tuple[Tensor, list[Any]]:
        """Run the DCT-Mask stage and every refinement (Sec. 3.3).

        Args:
            x: (B, in_channels, R, R) coarse RoI features.
            fine: (B, fine_channels, S, S) fine RoI features.
            classes: (B,) int64 class of each instance, all 0 if class-agnostic.

        Returns:
            the (B, N) coarse DCT vectors, and the prediction of each refinement.
        """
        coarse_vectors = self.predictor(self.mask_fcn(x))
        masks = self.codec.decode(coarse_vectors, self.coarse_positions)
        previous = self.codec.decode(coarse_vectors, self.whole_positions) if self.needs_previous else None
        stages = [self.refine(masks, fine, classes, previous)]
        while len(stages) < self.sizes.num_refinements:
            previous = self.stage_masks(stages[-1])
            masks = previous[:, self.refined_positions][:, :, self.refined_positions]
            stages.append(self.refine(masks, fine, classes, previous))
        return coarse_vectors, stages

    def infer(self, x: Tensor, fine: Tensor, classes: Tensor) -> Tensor:
        """The (B, M, M) soft masks of inference; for the arguments see :meth:`predict`."""
        return self.stage_masks(self.predict(x, fine, classes)[1][-1], final=True)

    def fuse(self, masks: Tensor, fine: Tensor) -> Tensor:
        """(B, S, S) soft masks and (B, fine_channels, S, S) features to a feature of the latter's shape."""
        return self.fusion(self.reshape(masks[:, None].to(fine.dtype)) + fine)


class Downsample(nn.Sequential):
    """Two convolutions, whose first takes a (B, channels, S, S) feature to a grid of side G; the second is 3 x 3.

    Where G divides S, the first has windows of S / G that lie side by side, as the published models have. Where it does
    not, which nobody has published (patches of 4 pixels in Table 11), the feature is resized to the next multiple of G,
    and the windows are 3 x 3.
    """

    def __init__(self, in_channels: int, channels: int, in_size: int, out_size: int, norm: Norm | None = None):
        stride = math.ceil(in_size / out_size)
        kernel_size, padding = (3, 1 if stride < 3 else 0) if in_size % out_size else (stride, 0)
        first = ConvReLU(in_channels, channels, norm=norm, kernel_size=kernel_size, stride=stride, padding=padding)
        super().__init__(first, ConvReLU(channels, channels, norm=norm))
        self.in_size = stride * out_size

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[-1] != self.in_size:
            x = F.interpolate(x, size=(self.in_size, self.in_size), mode="bilinear", align_corners=False)
        return super().forward(x)


def vector_predictor(in_features: int, sizes: MaskBranchSizes) -> nn.Sequential:
    """Three fully connected layers from a flat feature to a DCT vector."""
    hidden = sizes.hidden_features
    return nn.Sequential(
        nn.Linear(in_features, hidden),
        nn.ReLU(),
        nn.Linear(hidden, hidden),
        nn.ReLU(),
        nn.Linear(hidden, sizes.vector_dim),
    )


def predict_class(layer: nn.Conv2d, x: Tensor, classes: Tensor, num_classes: int) -> Tensor:
    """Apply the rows of a 1 x 1 convolution that belong to each instance's class: (B, H, P) to (B, P, rows)."""
    assert layer.bias is not None
    weight = layer.weight.reshape(num_classes, -1, x.shape[1])
    bias = layer.bias.reshape(num_classes, -1)
    if num_classes == 1:
        return F.linear(x.transpose(1, 2), weight[0], bias[0])
    return torch.baddbmm(bias[classes][:, None], x.transpose(1, 2), weight[classes].transpose(1, 2))
