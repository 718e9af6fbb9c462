"""A plain CNN as encoder, whose kernel size alone sets its receptive field (AIRM, Sec. 3.1, Fig. 2a).

The paper says "several convolutional layers, followed by ReLU and batch normalization". Their number, channels and
strides are our choice: the first layers halve the resolution until the stride is reached, the others keep it.
"""

import torch.nn.functional as F
from detectron2.config import CfgNode, configurable
from detectron2.layers import Conv2d, ShapeSpec, get_norm
from detectron2.modeling import BACKBONE_REGISTRY, Backbone
from torch import Tensor, nn

from pixelmask.errors import UserError

STAGE = "plain"


def layer_strides(num_layers: int, stride: int) -> list[int]:
    """Return the stride of each layer: 2 until their product is ``stride``, then 1.

    Raises:
        UserError: if that needs more layers than there are, or ``stride`` is no power of two.
    """
    halvings = max(stride, 1).bit_length() - 1
    if stride != 2**halvings or halvings > num_layers:
        raise UserError(
            f"MODEL.PLAIN_CNN.STRIDE is {stride}; it is a power of two, at most {2**num_layers} with NUM_LAYERS "
            f"{num_layers}"
        )
    return [2] * halvings + [1] * (num_layers - halvings)


def receptive_field(kernel_size: int, num_layers: int, stride: int) -> int:
    """Return the side in pixels of the square that one position of the last layer depends on."""
    side, jump = 1, 1
    for layer_stride in layer_strides(num_layers, stride):
        side += (kernel_size - 1) * jump
        jump *= layer_stride
    return side


class PlainCNN(Backbone):
    """Convolutions of one kernel size and one width, each with its norm and ReLU; the last one's output is `plain`."""

    @configurable
    def __init__(
        self, *, in_channels: int, channels: int, kernel_size: int, num_layers: int, stride: int, norm: str = "BN"
    ):
        """
        Args:
            in_channels: of the input; the coarse mask is the fourth.
            channels: of every layer.
            kernel_size: of every layer, odd.
            num_layers: convolutions.
            stride: of the last layer's output, a power of two.
            norm: a name of Detectron2's ``get_norm``.

        Raises:
            UserError: for a kernel size or stride that cannot be used.
        """
        super().__init__()
        if kernel_size < 1 or kernel_size % 2 == 0:
            raise UserError(
                f"MODEL.PLAIN_CNN.KERNEL_SIZE is {kernel_size}; it is odd, so that positions stay in their places"
            )
        self.layers = nn.Sequential(
            *(
                Conv2d(
                    channels if i else in_channels,
                    channels,
                    kernel_size,
                    layer_stride,
                    kernel_size // 2,
                    bias=norm == "",
                    norm=get_norm(norm, channels),
                    activation=F.relu,
                )
                for i, layer_stride in enumerate(layer_strides(num_layers, stride))
            )
        )
        self._shape = ShapeSpec(channels=channels, stride=stride)

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: ShapeSpec) -> dict:
        plain = cfg.MODEL.PLAIN_CNN
        return {
            "in_channels": input_shape.channels,
            "channels": plain.CHANNELS,
            "kernel_size": plain.KERNEL_SIZE,
            "num_layers": plain.NUM_LAYERS,
            "stride": plain.STRIDE,
            "norm": plain.NORM,
        }

    def output_shape(self) -> dict[str, ShapeSpec]:
        return {STAGE: self._shape}

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """(B, in_channels, H, W) to the (B, channels, ceil(H / stride), ceil(W / stride)) feature map of `plain`."""
        return {STAGE: self.layers(x)}


@BACKBONE_REGISTRY.register()
def build_plain_cnn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> PlainCNN:
    """Build the plain CNN that MODEL.PLAIN_CNN describes."""
    return PlainCNN(cfg, input_shape)
