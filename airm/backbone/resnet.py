"""CRM's ResNet (Shen et al., CVPR 2022): three features, of stride 2, 4 and 8, and no res5."""

from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, Backbone, ResNet, build_resnet_backbone
from torch import Tensor, nn
from torch.nn import functional as F


class DilatedResNet(Backbone):
    """A ResNet whose stem is a feature before its pooling, and whose res4 keeps res3's stride by dilated convolutions.

    Parameters have the names of Detectron2's, so that their ImageNet weights load.
    """

    def __init__(self, resnet: ResNet):
        """
        Args:
            resnet: what this is made of; up to res4 at least.
        """
        super().__init__()
        self.stem, self.res2, self.res3, self.res4 = resnet.stem, resnet.res2, resnet.res3, resnet.res4
        for i, block in enumerate(self.res4):
            for conv in (m for m in block.modules() if isinstance(m, nn.Conv2d)):
                conv.stride = (1, 1)
                if i and conv.kernel_size == (3, 3):  # the first block still sees what is side by side
                    conv.dilation = conv.padding = (2, 2)

    def output_shape(self) -> dict[str, ShapeSpec]:
        return {
            "stem": ShapeSpec(channels=self.stem.out_channels, stride=2),
            "res2": ShapeSpec(channels=self.res2[-1].out_channels, stride=4),
            "res4": ShapeSpec(channels=self.res4[-1].out_channels, stride=8),
        }

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """(B, in_channels, H, W) to the (B, C, h, w) feature map of each of stem, res2 and res4."""
        stem = F.relu(self.stem.conv1(x))
        res2 = self.res2(F.max_pool2d(stem, 3, 2, 1))
        return {"stem": stem, "res2": res2, "res4": self.res4(self.res3(res2))}


@BACKBONE_REGISTRY.register()
def build_dilated_resnet_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> DilatedResNet:
    """Build the ResNet that MODEL.RESNETS describes, dilated; of its OUT_FEATURES the last has to be res4."""
    return DilatedResNet(build_resnet_backbone(cfg, input_shape))
