"""The Affinity Empowered Encoder (AEE) of Fig. 3: image and coarse mask to feature F, in training also to affinity."""

from collections.abc import Sequence

import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import Conv2d, ShapeSpec, get_norm
from detectron2.modeling import BACKBONE_REGISTRY, Backbone
from torch import Tensor, nn
from torch.nn import functional as F

from .affinity import AttentionAffinity, FeatureAffinity, LogAffinity
from .backbone.mix_transformer import MixTransformer

INPUT_CHANNELS = 4  # red, green, blue, coarse mask


class AffinityEmpoweredEncoder(nn.Module):
    """A backbone whose stages are projected, brought to one size and concatenated (Eq. 3)."""

    @configurable
    def __init__(
        self,
        *,
        backbone: Backbone,
        in_features: Sequence[str],
        stage_channels: int,
        norm: str = "BN",
        affinity: bool = True,
    ):
        """
        Args:
            backbone: takes 4 channels.
            in_features: its stages that make up F, the finest first.
            stage_channels: channels that each of them gives to F.
            norm: of the projections, a name of Detectron2's ``get_norm``.
            affinity: whether training predicts the affinity of the last stage's positions.
        """
        super().__init__()
        self.backbone = backbone
        self.in_features = list(in_features)
        shapes = [backbone.output_shape()[name] for name in self.in_features]
        self.projections = nn.ModuleList(
            Conv2d(
                shape.channels,
                stage_channels,
                1,
                bias=norm == "",
                norm=get_norm(norm, stage_channels),
                activation=F.relu,
            )
            for shape in shapes
        )
        self.affinity: nn.Module | None = None
        if affinity and isinstance(backbone, MixTransformer):
            self.affinity = AttentionAffinity(backbone.attention_maps)
        elif affinity:
            self.affinity = FeatureAffinity(shapes[-1].channels)
        self.out_channels, self.stride = stage_channels * len(shapes), shapes[0].stride

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict:
        backbone = BACKBONE_REGISTRY.get(cfg.MODEL.BACKBONE.NAME)(cfg, ShapeSpec(channels=INPUT_CHANNELS))
        return {
            "backbone": backbone,
            "in_features": cfg.MODEL.AIRM.IN_FEATURES,
            "stage_channels": cfg.MODEL.AIRM.STAGE_CHANNELS,
            "norm": cfg.MODEL.AIRM.NORM,
            "affinity": cfg.MODEL.AIRM.AFFINITY,
        }

    def forward(self, x: Tensor) -> Tensor:
        """(B, 4, H, W) normalised image and mask to F, (B, D, h, w) at the first stage's stride."""
        # A ResNet is faster on the CPU in this format; the tokens of a Mix Transformer have it anyway
        return self._fuse(self.backbone(x.contiguous(memory_format=torch.channels_last)))

    def forward_with_affinity(self, x: Tensor) -> tuple[Tensor, LogAffinity, tuple[int, int]]:
        """Also return the affinity of the last stage's positions, and the (h, w) of their grid."""
        assert self.affinity is not None, "the encoder was built without affinity"
        if isinstance(self.backbone, MixTransformer):
            stages, attention = self.backbone.forward_with_attention(x)
            affinity = self.affinity(attention)
        else:
            stages = self.backbone(x)
            affinity = self.affinity(stages[self.in_features[-1]])
        h, w = stages[self.in_features[-1]].shape[2:]
        return self._fuse(stages), affinity, (h, w)

    def _fuse(self, stages: dict[str, Tensor]) -> Tensor:
        projected = [proj(stages[name]) for name, proj in zip(self.in_features, self.projections, strict=True)]
        size = projected[0].shape[2:]
        rest = [F.interpolate(x, size, mode="bilinear", align_corners=False) for x in projected[1:]]
        return torch.cat([projected[0], *rest], dim=1)
