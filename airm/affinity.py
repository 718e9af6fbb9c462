"""Semantic affinity: which positions of the encoder's last stage belong together (Sec. 4.1, Eq. 4 and 8 to 10).

Affinities are handled as logarithms, of ``Aff`` and of ``1 - Aff``, since that is what the loss takes and where
float32 does not end at 0 or 1. Shapes: B samples, N = h w positions.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

SMALLEST_DISTANCE = 1e-4


class LogAffinity(NamedTuple):
    """(B, N, N) logarithms of the predicted affinity and of its complement, each at most 0."""

    same: Tensor
    different: Tensor


class AttentionAffinity(nn.Module):
    """Affinity from attention: ATT plus its transpose, projected to one map, through a sigmoid (Eq. 4)."""

    def __init__(self, attention_maps: int):
        """
        Args:
            attention_maps: maps in ATT, parameter ``c`` of Eq. 3.
        """
        super().__init__()
        self.proj = nn.Conv2d(attention_maps, 1, 1)

    def forward(self, attention: Tensor) -> LogAffinity:
        """(B, c, N, N) attention logits to the affinity of all pairs of positions."""
        logits = self.proj(attention + attention.transpose(-2, -1))[:, 0].float()
        return LogAffinity(F.logsigmoid(logits), F.logsigmoid(-logits))


class FeatureAffinity(nn.Module):
    """Affinity of a CNN's features: exp(-d), d the mean absolute difference of two embeddings (Ahn and Kwak, 2018)."""

    def __init__(self, in_channels: int, channels: int = 256):
        super().__init__()
        self.proj = nn.Conv2d(in_channels, channels, 1)

    def forward(self, features: Tensor) -> LogAffinity:
        """(B, C, h, w) features to the affinity of all pairs of positions."""
        embeddings = self.proj(features).flatten(2).transpose(1, 2).float()
        distance = torch.cdist(embeddings, embeddings, p=1.0) / embeddings.shape[-1]
        distance = distance.clamp(min=SMALLEST_DISTANCE)  # at 0 the complement has no logarithm
        return LogAffinity(-distance, torch.log(-torch.expm1(-distance)))


def pairs_within(radius: float, h: int, w: int, device: torch.device) -> Tensor:
    """(N, N) boolean: the pairs of different positions of an h x w grid that are at most ``radius`` cells apart."""
    y, x = torch.meshgrid(torch.arange(h, device=device), torch.arange(w, device=device), indexing="ij")
    positions = torch.stack([y.flatten(), x.flatten()], dim=1).float()
    offsets = positions[:, None] - positions
    distance = offsets.square().sum(-1)
    return (distance <= radius**2) & (distance > 0)


def affinity_loss(affinity: LogAffinity, masks: Tensor, size: tuple[int, int], radius: float) -> Tensor:
    """The affinity loss of Eq. 8, with S+ and S- from the truth; a set without pairs contributes nothing.

    Args:
        affinity: of all pairs of the N = h w positions.
        masks: (B, 1, H, W) true masks, 0 or 1.
        size: (h, w) of the grid.
        radius: largest distance of a pair in that grid, parameter ``R``.
    """
    labels = F.interpolate(masks, size, mode="nearest").flatten(1)
    near = pairs_within(radius, *size, masks.device)
    agree = labels[:, :, None] == labels[:, None, :]
    return -(_mean_over(affinity.same, agree & near) + _mean_over(affinity.different, ~agree & near))


def _mean_over(values: Tensor, chosen: Tensor) -> Tensor:
    return values.masked_fill(~chosen, 0).sum() / chosen.sum().clamp(min=1)
