"""Swin Transformer (Liu et al., ICCV 2021) as a Detectron2 backbone, for the Swin-B rows of PatchDCT's Table 4.

Blocks and patch merging are torchvision's, under the parameter names of the published weights.
"""

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY
from detectron2.modeling.backbone import FPN, Backbone
from detectron2.modeling.backbone.fpn import LastLevelMaxPool
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.swin_transformer import PatchMerging, SwinTransformerBlock

from pixelmask.errors import UserError

from .swin_weights import adapt_checkpoint

STAGES = ("stage2", "stage3", "stage4", "stage5")  # numbered as ResNet's: a stage's stride is 2 to its number
PATCH = 4  # side in pixels of what the first layer makes one token of


class _Block(SwinTransformerBlock):
    """torchvision's block with the published names of the MLP; what can be computed is left out of its state."""

    def __init__(self, dim: int, num_heads: int, window_size: int, shift: bool, mlp_ratio: float, drop_path: float):
        shift_size = [window_size // 2 if shift else 0] * 2
        super().__init__(dim, num_heads, [window_size] * 2, shift_size, mlp_ratio, stochastic_depth_prob=drop_path)
        hidden = int(dim * mlp_ratio)
        self.mlp = nn.Sequential(OrderedDict(fc1=nn.Linear(dim, hidden), act=nn.GELU(), fc2=nn.Linear(hidden, dim)))
        index = self.attn.relative_position_index
        self.attn.register_buffer("relative_position_index", index, persistent=False)


class _PatchEmbedding(nn.Module):
    """Images (N, 3, H, W) to tokens (N, ceil(H / 4), ceil(W / 4), C)."""

    def __init__(self, embed_dim: int):
        super().__init__()
        self.proj = nn.Conv2d(3, embed_dim, PATCH, stride=PATCH)
        self.norm = nn.LayerNorm(embed_dim)

    def forward(self, images: Tensor) -> Tensor:
        height, width = images.shape[-2:]
        padded = F.pad(images, (0, -width % PATCH, 0, -height % PATCH))
        return self.norm(self.proj(padded).permute(0, 2, 3, 1))


class _Stage(nn.Module):
    def __init__(self, blocks: Sequence[nn.Module], downsample: nn.Module | None):
        super().__init__()
        self.blocks = nn.Sequential(*blocks)
        self.downsample = downsample


class SwinTransformer(Backbone):
    """Feature maps of the stages of a Swin Transformer, each behind a LayerNorm of its own (``norm0`` to ``norm3``).

    Takes images of any size: windows are padded, as are the image (to a multiple of 4 pixels) and odd sides where
    patches are merged. A feature map that fits into one window is attended to as a whole, without shift; that is the
    one difference to the published detectors, and concerns images below 224 pixels.
    """

    @configurable
    def __init__(
        self,
        *,
        embed_dim: int,
        depths: Sequence[int],
        num_heads: Sequence[int],
        window_size: int,
        mlp_ratio: float = 4.0,
        drop_path_rate: float = 0.0,
        out_features: Sequence[str] = STAGES,
        freeze_at: int = 0,
    ):
        """
        Args:
            embed_dim: channels of the first stage; each further one has twice as many.
            depths: blocks of each of the four stages.
            num_heads: attention heads of each stage.
            window_size: side of a window in tokens.
            mlp_ratio: hidden channels of a block's MLP, as a multiple of its channels.
            drop_path_rate: probability with which the last block's residuals are dropped in training; it rises
                linearly from 0 for the first block.
            out_features: some of "stage2" (stride 4) to "stage5" (stride 32). Stages after the last are not built.
            freeze_at: 1 freezes the patch embedding, 2 the first stage too, and so on, as for Detectron2's ResNets.
        """
        super().__init__()
        self._out_features = [name for name in STAGES if name in out_features]
        self._out_feature_strides = {name: PATCH * 2**i for i, name in enumerate(STAGES)}
        self._out_feature_channels = {name: embed_dim * 2**i for i, name in enumerate(STAGES)}
        count = STAGES.index(self._out_features[-1]) + 1
        rates = torch.linspace(0, drop_path_rate, sum(depths), device="cpu").tolist()
        frozen_blocks = sum(depths[: max(freeze_at - 1, 0)])
        rates[:frozen_blocks] = [0.0] * frozen_blocks
        self.patch_embed = _PatchEmbedding(embed_dim)
        self.layers = nn.ModuleList()
        for i in range(count):
            dim, first = embed_dim * 2**i, sum(depths[:i])
            blocks = [
                _Block(dim, num_heads[i], window_size, j % 2 == 1, mlp_ratio, rates[first + j])
                for j in range(depths[i])
            ]
            self.layers.append(_Stage(blocks, PatchMerging(dim) if i + 1 < count else None))
            if STAGES[i] in self._out_features:
                self.add_module(f"norm{i}", nn.LayerNorm(dim))
        self.apply(_initialise)
        for module in [self.patch_embed, *self.layers][: max(freeze_at, 0)]:
            module.requires_grad_(False)

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: ShapeSpec) -> dict[str, Any]:
        swin = cfg.MODEL.SWINT
        if swin.APE:
            raise UserError("MODEL.SWINT.APE True (absolute position embedding) is not supported; set it to False")
        if not swin.OUT_FEATURES or not set(swin.OUT_FEATURES) <= set(STAGES):
            raise UserError(f"MODEL.SWINT.OUT_FEATURES {list(swin.OUT_FEATURES)} are to be some of {list(STAGES)}")
        for key in ("DEPTHS", "NUM_HEADS"):
            if len(swin[key]) != len(STAGES):
                raise UserError(f"MODEL.SWINT.{key} {list(swin[key])} is to have {len(STAGES)} numbers, one a stage")
        if input_shape.channels != 3:
            raise UserError("a Swin backbone takes RGB images; MODEL.PIXEL_MEAN is to have 3 numbers")
        return {
            "embed_dim": swin.EMBED_DIM,
            "depths": swin.DEPTHS,
            "num_heads": swin.NUM_HEADS,
            "window_size": swin.WINDOW_SIZE,
            "mlp_ratio": swin.MLP_RATIO,
            "drop_path_rate": swin.DROP_PATH_RATE,
            "out_features": swin.OUT_FEATURES,
            "freeze_at": swin.FREEZE_AT,
        }

    def adapt_checkpoint(self, state: dict[str, Any], prefix: str) -> dict[str, Any]:
        """Called with what a checkpoint file holds: see :func:`.swin_weights.adapt_checkpoint`."""
        return adapt_checkpoint(state, self.state_dict(), prefix)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """
        Args:
            images: (N, 3, H, W), normalised RGB.

        Returns:
            (N, C, ceil(H / stride), ceil(W / stride)) of each of ``out_features``.
        """
        tokens, features = self.patch_embed(images), {}
        for i, stage in enumerate(self.layers):
            assert isinstance(stage, _Stage)
            tokens = stage.blocks(tokens)
            if STAGES[i] in self._out_features:
                features[STAGES[i]] = getattr(self, f"norm{i}")(tokens).permute(0, 3, 1, 2).contiguous()
            if stage.downsample is not None:
                tokens = stage.downsample(tokens)
        return features


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


@BACKBONE_REGISTRY.register()
def build_swin_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> FPN:
    """Build an FPN (p2 to p6) over the Swin Transformer of ``MODEL.SWINT``."""
    return FPN(
        SwinTransformer(cfg, input_shape),
        cfg.MODEL.FPN.IN_FEATURES,
        cfg.MODEL.FPN.OUT_CHANNELS,
        norm=cfg.MODEL.FPN.NORM,
        top_block=LastLevelMaxPool(),
        fuse_type=cfg.MODEL.FPN.FUSE_TYPE,
    )


@BACKBONE_REGISTRY.register()
def build_swinb_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> FPN:
    """The name in the PatchDCT authors' config."""
    return build_swin_fpn_backbone(cfg, input_shape)


@BACKBONE_REGISTRY.register()
def build_swint_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> FPN:
    """The name in other published configs, which also have it for variants other than Swin-T."""
    return build_swin_fpn_backbone(cfg, input_shape)
