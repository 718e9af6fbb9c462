"""Backbones that Detectron2 lacks."""

from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY
from detectron2.modeling.backbone import FPN, BasicStem, ResNet
from detectron2.modeling.backbone.fpn import LastLevelMaxPool
from detectron2.modeling.backbone.resnet import BasicBlock


@BACKBONE_REGISTRY.register()
def build_narrow_resnet_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> FPN:
    """Build an FPN over a ResNet-18 of any width, for models that are trained from scratch on a CPU.

    Detectron2's own ResNet-18 insists on ``RES2_OUT_CHANNELS`` 64; this one has as many channels as that key says in
    its first stage, and twice as many in each further one. Nothing is frozen.
    """
    width, norm = cfg.MODEL.RESNETS.RES2_OUT_CHANNELS, cfg.MODEL.RESNETS.NORM
    stem = BasicStem(input_shape.channels, cfg.MODEL.RESNETS.STEM_OUT_CHANNELS, norm)
    stages, in_channels = [], cfg.MODEL.RESNETS.STEM_OUT_CHANNELS
    for i in range(4):
        stages.append(
            ResNet.make_stage(
                BasicBlock,
                2,
                stride_per_block=[1 if i == 0 else 2, 1],
                in_channels=in_channels,
                out_channels=width * 2**i,
                norm=norm,
            )
        )
        in_channels = width * 2**i
    return FPN(
        ResNet(stem, stages, out_features=cfg.MODEL.RESNETS.OUT_FEATURES),
        cfg.MODEL.FPN.IN_FEATURES,
        cfg.MODEL.FPN.OUT_CHANNELS,
        norm=cfg.MODEL.FPN.NORM,
        top_block=LastLevelMaxPool(),
        fuse_type=cfg.MODEL.FPN.FUSE_TYPE,
    )
