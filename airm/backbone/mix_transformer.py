"""Mix Transformer (MiT), the encoder of SegFormer (Xie et al., NeurIPS 2021), as a Detectron2 backbone.

Parameters have the names of the published ImageNet weights. Shapes below: B images, N = h w tokens, C channels.
"""

import math
from collections.abc import Sequence

import torch
from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, Backbone
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import StochasticDepth

MLP_RATIO = 4
FIRST_KERNEL, OTHER_KERNELS = 7, 3


class OverlapPatchEmbed(nn.Module):
    """A strided convolution whose windows overlap, and a norm: a feature map to the tokens of the next stage."""

    def __init__(self, kernel_size: int, stride: int, in_channels: int, dim: int):
        super().__init__()
        self.proj = nn.Conv2d(in_channels, dim, kernel_size, stride, kernel_size // 2)
        self.norm = nn.LayerNorm(dim)

    def forward(self, x: Tensor) -> tuple[Tensor, int, int]:
        x = self.proj(x)
        return self.norm(x.flatten(2).transpose(1, 2)), x.shape[2], x.shape[3]


class EfficientSelfAttention(nn.Module):
    """Self-attention whose keys and values are taken at a resolution lower by ``sr_ratio`` (SegFormer, Sec. 3.1)."""

    def __init__(self, dim: int, num_heads: int, sr_ratio: int):
        super().__init__()
        self.num_heads, self.sr_ratio = num_heads, sr_ratio
        self.q = nn.Linear(dim, dim)
        self.kv = nn.Linear(dim, 2 * dim)
        self.proj = nn.Linear(dim, dim)
        if sr_ratio > 1:
            self.sr = nn.Conv2d(dim, dim, sr_ratio, sr_ratio)
            self.norm = nn.LayerNorm(dim)

    def forward(self, x: Tensor, h: int, w: int, need_logits: bool = False) -> tuple[Tensor, Tensor | None]:
        """Attend over (B, N, C) tokens; with ``need_logits`` also return the (B, heads, N, keys) logits.

        Without them no such matrix is ever made.
        """
        b, n, c = x.shape
        q = self._split_heads(self.q(x))
        if self.sr_ratio > 1:
            x = self.sr(_to_map(x, h, w))
            x = self.norm(x.flatten(2).transpose(1, 2))
        k, v = (self._split_heads(t) for t in self.kv(x).chunk(2, dim=-1))
        logits = None
        if need_logits:
            logits = q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1])
            x = logits.softmax(dim=-1) @ v
        else:
            x = F.scaled_dot_product_attention(q, k, v)
        return self.proj(x.transpose(1, 2).reshape(b, n, c)), logits

    def _split_heads(self, x: Tensor) -> Tensor:
        """(B, N, C) to (B, heads, N, C / heads)."""
        return x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)


class DepthwiseConv(nn.Module):
    """The 3 x 3 depthwise convolution that gives the tokens their sense of position."""

    def __init__(self, dim: int):
        super().__init__()
        self.dwconv = nn.Conv2d(dim, dim, 3, 1, 1, groups=dim)

    def forward(self, x: Tensor, h: int, w: int) -> Tensor:
        return self.dwconv(_to_map(x, h, w)).flatten(2).transpose(1, 2)


class MixFFN(nn.Module):
    """Feed-forward network with a depthwise convolution in between (SegFormer, Eq. 3)."""

    def __init__(self, dim: int):
        super().__init__()
        self.fc1 = nn.Linear(dim, MLP_RATIO * dim)
        self.dwconv = DepthwiseConv(MLP_RATIO * dim)
        self.fc2 = nn.Linear(MLP_RATIO * dim, dim)

    def forward(self, x: Tensor, h: int, w: int) -> Tensor:
        return self.fc2(F.gelu(self.dwconv(self.fc1(x), h, w)))


class Block(nn.Module):
    """Attention and feed-forward network, each with its norm and its residual branch."""

    def __init__(self, dim: int, num_heads: int, sr_ratio: int, drop_path: float):
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=1e-6)
        self.attn = EfficientSelfAttention(dim, num_heads, sr_ratio)
        self.norm2 = nn.LayerNorm(dim, eps=1e-6)
        self.mlp = MixFFN(dim)
        self.drop_path = StochasticDepth(drop_path, "row")

    def forward(self, x: Tensor, h: int, w: int, need_logits: bool = False) -> tuple[Tensor, Tensor | None]:
        attended, logits = self.attn(self.norm1(x), h, w, need_logits)
        x = x + self.drop_path(attended)
        return x + self.drop_path(self.mlp(self.norm2(x), h, w)), logits


class MixTransformer(Backbone):
    """Four stages of overlapping patch embedding and transformer blocks; outputs ``mit1`` to ``mit4``."""

    def __init__(
        self,
        in_channels: int,
        embed_dims: Sequence[int],
        depths: Sequence[int],
        num_heads: Sequence[int],
        sr_ratios: Sequence[int],
        patch_strides: Sequence[int],
        drop_path: float = 0.0,
    ):
        """
        Args:
            in_channels: of the input; the coarse mask is the fourth.
            embed_dims, depths, num_heads, sr_ratios, patch_strides: of each stage: channels, blocks, attention heads,
                factor between queries and keys, stride of its patch embedding.
            drop_path: probability of skipping a residual branch of the last block; earlier ones have less.
        """
        super().__init__()
        total = sum(depths)
        skip = [drop_path * i / max(total - 1, 1) for i in range(total)]
        stride, self._shapes = 1, dict[str, ShapeSpec]()
        self.attention_maps = depths[-1] * num_heads[-1]
        for i, (dim, depth, heads) in enumerate(zip(embed_dims, depths, num_heads, strict=True)):
            kernel = FIRST_KERNEL if i == 0 else OTHER_KERNELS
            embed = OverlapPatchEmbed(kernel, patch_strides[i], embed_dims[i - 1] if i else in_channels, dim)
            blocks = [Block(dim, heads, sr_ratios[i], skip.pop(0)) for _ in range(depth)]
            self.add_module(f"patch_embed{i + 1}", embed)
            self.add_module(f"block{i + 1}", nn.ModuleList(blocks))
            self.add_module(f"norm{i + 1}", nn.LayerNorm(dim, eps=1e-6))
            stride *= patch_strides[i]
            self._shapes[f"mit{i + 1}"] = ShapeSpec(channels=dim, stride=stride)
        self.apply(_init_weights)

    def output_shape(self) -> dict[str, ShapeSpec]:
        return self._shapes

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """(B, in_channels, H, W), sides of at least 32, to the (B, C, h, w) feature map of each stage."""
        return self._forward(x, need_logits=False)[0]

    def forward_with_attention(self, x: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """Also return ATT of the paper's Eq. 3: (B, c, N, N) attention logits of the last stage's blocks and heads."""
        features, logits = self._forward(x, need_logits=True)
        return features, torch.cat(logits, dim=1)

    def _forward(self, x: Tensor, need_logits: bool) -> tuple[dict[str, Tensor], list[Tensor]]:
        features: dict[str, Tensor] = {}
        logits: list[Tensor] = []
        for i, name in enumerate(self._shapes, 1):
            x, h, w = getattr(self, f"patch_embed{i}")(x)
            for block in getattr(self, f"block{i}"):
                x, of_block = block(x, h, w, need_logits and i == len(self._shapes))
                if of_block is not None:
                    logits.append(of_block)
            x = features[name] = _to_map(getattr(self, f"norm{i}")(x), h, w)
        return features, logits


@BACKBONE_REGISTRY.register()
def build_mit_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> MixTransformer:
    """Build the Mix Transformer that MODEL.MIT describes."""
    mit = cfg.MODEL.MIT
    return MixTransformer(
        in_channels=input_shape.channels,
        embed_dims=mit.EMBED_DIMS,
        depths=mit.DEPTHS,
        num_heads=mit.NUM_HEADS,
        sr_ratios=mit.SR_RATIOS,
        patch_strides=mit.PATCH_STRIDES,
        drop_path=mit.DROP_PATH,
    )


def _to_map(tokens: Tensor, h: int, w: int) -> Tensor:
    """View (B, h w, C) tokens as a (B, C, h, w) map in channels_last format.

    Of one image alone, tokens transposed before they are unflattened would not count as such: convolutions would copy.
    """
    return tokens.unflatten(1, (h, w)).permute(0, 3, 1, 2)


def _init_weights(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        nn.init.zeros_(module.bias)
    elif isinstance(module, nn.Conv2d):
        fan_out = module.kernel_size[0] * module.kernel_size[1] * module.out_channels // module.groups
        nn.init.normal_(module.weight, 0, math.sqrt(2.0 / fan_out))
        if module.bias is not None:
            nn.init.zeros_(module.bias)
