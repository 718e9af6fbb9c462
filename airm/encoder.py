"""The Affinity Empowered Encoder (AEE) of Fig. 3: image and coarse mask to feature F, in training also to affinity."""

from collections.abc import Sequence

import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import Conv2d, ShapeSpec, get_norm
from detectron2.modeling import BACKBONE_REGISTRY, Backbone
from torch import Tensor, nn
from torch.nn import functional as F

from pixelmask.errors import UserError

from .affinity import AttentionAffinity, FeatureAffinity, LogAffinity
from .backbone.mix_transformer import MixTransformer
from .query_inputs import num_computed

INPUT_CHANNELS = 4  # red, green, blue, coarse mask; what is computed of them may follow


class AffinityEmpoweredEncoder(nn.Module):
    """A backbone whose stages are projected, brought to one size and concatenated (Eq. 3)."""

    @configurable
    def __init__(
        self,
        *,
        backbone: Backbone,
        in_features: Sequence[str],
        stage_channels: Sequence[int],
        fusion: bool = False,
        norm: str = "BN",
        affinity: bool = True,
    ):
        """
        Args:
            backbone: takes 4 channels, and those of computed inputs (see :mod:`.query_inputs`).
            in_features: its stages that make up F, the finest first.
            stage_channels: channels that each of them gives to F.
            fusion: whether a 3 x 3 convolution follows where they are joined.
            norm: of all these convolutions, a name of Detectron2's ``get_norm``.
            affinity: whether training predicts the affinity of the last stage's positions.
        """
        super().__init__()
        self.backbone = backbone
        self.in_features = list(in_features)
        shapes = [backbone.output_shape()[name] for name in self.in_features]
        if len(stage_channels) != len(shapes):
            raise UserError(
                f"MODEL.AIRM.STAGE_WIDTHS has {len(stage_channels)} numbers, but IN_FEATURES {len(shapes)} stages"
            )
        self.projections = nn.ModuleList(
            _conv(shape.channels, channels, 1, norm) for shape, channels in zip(shapes, stage_channels, strict=True)
        )
        self.out_channels, self.stride = sum(stage_channels), shapes[0].stride
        self.fusion = _conv(self.out_channels, self.out_channels, 3, norm) if fusion else nn.Identity()
        self.affinity: nn.Module | None = None
        if affinity and isinstance(backbone, MixTransformer):
            self.affinity = AttentionAffinity(backbone.attention_maps)
        elif affinity:
            self.affinity = FeatureAffinity(shapes[-1].channels)

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict:
        airm = cfg.MODEL.AIRM
        backbone = BACKBONE_REGISTRY.get(cfg.MODEL.BACKBONE.NAME)(
            cfg, ShapeSpec(channels=INPUT_CHANNELS + num_computed(airm.QUERY_INPUTS))
        )
        return {
            "backbone": backbone,
            "in_features": airm.IN_FEATURES,
            "stage_channels": airm.STAGE_WIDTHS or [airm.STAGE_CHANNELS] * len(airm.IN_FEATURES),
            "fusion": airm.FUSION,
            "norm": airm.NORM,
            "affinity": airm.AFFINITY,
        }

    def forward(self, x: Tensor) -> Tensor:
        """What ``AIRM.encoder_input`` makes of image and mask to F, (B, D, h, w) at the first stage's stride."""
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
        return self.fusion(torch.cat([projected[0], *rest], dim=1))


def _conv(in_channels: int, out_channels: int, kernel_size: int, norm: str) -> Conv2d:
    """Return a convolution that keeps the size, with norm and ReLU."""
    return Conv2d(
        in_channels,
        out_channels,
        kernel_size,
        padding=kernel_size // 2,
        bias=norm == "",
        norm=get_norm(norm, out_channels),
        activation=F.relu,
    )
