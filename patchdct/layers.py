"""Layers that both mask branches are made of. Imports torch alone."""

from collections.abc import Callable

from torch import Tensor, nn
from torch.nn import functional as F

Norm = Callable[[int], nn.Module]


class ConvReLU(nn.Conv2d):
    """A convolution with an optional normalisation, followed by ReLU; its parameters carry its own name."""

    def __init__(
        self, in_channels: int, out_channels: int, *, norm: Norm | None = None, stride: int = 1, padding: int = 1
    ):
        super().__init__(in_channels, out_channels, 3, stride=stride, padding=padding, bias=norm is None)
        self.norm = norm(out_channels) if norm else None

    def forward(self, x: Tensor) -> Tensor:
        x = super().forward(x)
        return F.relu(self.norm(x) if self.norm is not None else x)


class MaskFCN(nn.Module):
    """The 3 x 3 convolutions ``mask_fcn1``, ``mask_fcn2``, ... that start a Mask R-CNN mask head."""

    def __init__(self, in_channels: int, conv_dim: int, num_conv: int, norm: Norm | None = None):
        super().__init__()
        self.mask_fcn_names = [f"mask_fcn{i}" for i in range(1, num_conv + 1)]
        for name in self.mask_fcn_names:
            conv = ConvReLU(in_channels, conv_dim, norm=norm)
            nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
            if conv.bias is not None:
                nn.init.zeros_(conv.bias)
            self.add_module(name, conv)
            in_channels = conv_dim

    def mask_fcn(self, x: Tensor) -> Tensor:
        """(B, in_channels, R, R) RoI features to (B, conv_dim, R, R)."""
        for name in self.mask_fcn_names:
            x = getattr(self, name)(x)
        return x
