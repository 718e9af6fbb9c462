"""AIRM (Fig. 3): encoder, implicit representation mapping, losses, and refinement at inference."""

from typing import Any

import torch
from detectron2.config import CfgNode, configurable
from detectron2.modeling import META_ARCH_REGISTRY
from torch import Tensor, nn

from pixelmask.errors import UserError

from .affinity import affinity_loss
from .backbone.weights import adapt_checkpoint
from .coarse_to_fine import CoarseToFine, Settings
from .encoder import AffinityEmpoweredEncoder
from .implicit_mapping import AIRMF, SIRMF
from .losses import mapping_losses
from .query import Axis, pixel_centres, query_grid


@META_ARCH_REGISTRY.register()
class AIRM(nn.Module):
    """Refines a coarse mask of an image."""

    pixel_mean: Tensor
    pixel_std: Tensor

    @configurable
    def __init__(
        self,
        *,
        encoder: AffinityEmpoweredEncoder,
        mapping: nn.Module,
        loss_weights: dict[str, float],
        affinity_radius: float,
        settings: Settings,
        query_chunk: int,
        min_confidence: float,
        pixel_mean: list[float],
        pixel_std: list[float],
        freeze_encoder: bool = False,
    ):
        """
        Args:
            encoder: image and mask to feature F.
            mapping: ``AIRMF`` or ``SIRMF``.
            loss_weights: of ``l1``, ``l2``, ``ce``, ``gradient`` and ``affinity``.
            affinity_radius: see :func:`affinity_loss`.
            settings: of inference.
            query_chunk: pixels for which the mapping is evaluated at once, at inference.
            min_confidence: the coarse mask is kept where ``|2 p - 1|`` of the refined probability is below this.
            pixel_mean, pixel_std: RGB, for images in [0, 255].
            freeze_encoder: whether training leaves the encoder as it is, the statistics of its norms too.
        """
        super().__init__()
        self.encoder, self.mapping = encoder, mapping
        self.freeze_encoder = freeze_encoder
        if freeze_encoder:
            encoder.requires_grad_(False)
        self.cell = 2 / encoder.stride
        self.loss_weights, self.affinity_radius = loss_weights, affinity_radius
        self.settings, self.query_chunk, self.min_confidence = settings, query_chunk, min_confidence
        self.register_buffer("pixel_mean", torch.tensor(pixel_mean).view(-1, 1, 1), persistent=False)
        self.register_buffer("pixel_std", torch.tensor(pixel_std).view(-1, 1, 1), persistent=False)

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        airm = cfg.MODEL.AIRM
        encoder = AffinityEmpoweredEncoder(cfg)
        if airm.MAPPING == "SIRMF":
            mapping: nn.Module = SIRMF(encoder.out_channels, airm.HIDDEN_FEATURES)
        elif airm.MAPPING == "AIRMF":
            widths = airm.HYPERNETWORK_CHANNELS
            mapping = AIRMF(encoder.out_channels, airm.HIDDEN_FEATURES, airm.RANK, widths, airm.NORM)
        else:
            raise UserError(f"MODEL.AIRM.MAPPING is {airm.MAPPING!r}; known are 'AIRMF' and 'SIRMF'")
        half, weights = airm.MAPPING_LOSS_WEIGHT, {"affinity": airm.AFFINITY_LOSS_WEIGHT}
        for part in ("l1", "l2", "ce", "gradient"):
            weights[part] = half * airm[f"{part.upper()}_WEIGHT"]
        return {
            "encoder": encoder,
            "mapping": mapping,
            "loss_weights": weights,
            "affinity_radius": airm.AFFINITY_RADIUS,
            "settings": Settings(**{name: airm[name.upper()] for name in Settings._fields}),
            "query_chunk": airm.QUERY_CHUNK,
            "min_confidence": airm.MIN_CONFIDENCE,
            "pixel_mean": cfg.MODEL.PIXEL_MEAN,
            "pixel_std": cfg.MODEL.PIXEL_STD,
            "freeze_encoder": bool(airm.FROZEN_ENCODER),
        }

    @property
    def device(self) -> torch.device:
        return self.pixel_mean.device

    def train(self, mode: bool = True) -> "AIRM":
        super().train(mode)
        if self.freeze_encoder:
            self.encoder.eval()
        return self

    def adapt_checkpoint(self, state: dict[str, Any], prefix: str = "") -> dict[str, Any]:
        """Called with what a checkpoint file holds: see :func:`airm.backbone.weights.adapt_checkpoint`."""
        return adapt_checkpoint(state, self.state_dict())

    def forward(self, batched_inputs: list[dict[str, Any]]) -> Any:
        """
        Args:
            batched_inputs: of each sample ``image``, (3, H, W) RGB in [0, 255], and ``coarse_mask``, (1, H, W) in
                [0, 1]; for training all of one size, and with the truth ``mask``, (1, H, W), 0 or 1.

        Returns:
            in training the weighted losses ``loss_l1``, ``loss_l2``, ``loss_ce``, ``loss_gradient``,
            ``loss_affinity``; else of each sample ``{"refined_mask": (1, H, W) in [0, 1]}``.
        """
        if self.training:
            return self._losses(batched_inputs)
        return [{"refined_mask": self.refine(x["image"], x["coarse_mask"])} for x in batched_inputs]

    def refine(self, image: Tensor, coarse_mask: Tensor, progress: bool = False) -> Tensor:
        """Refine coarse masks of one image.

        Args:
            image: (3, H, W) RGB in [0, 255], of any size.
            coarse_mask: (N, H, W) in [0, 1], any number of masks of this image.
            progress: whether to show a progress bar.

        Returns:
            (N, H, W) soft masks in [0, 1], float32; an empty coarse mask stays empty.
        """
        masks = coarse_mask.to(self.device, torch.float32)
        coarse_to_fine = CoarseToFine(self._normalise(image), self._encode, self.settings, self.cell, progress)
        refined = torch.cat([coarse_to_fine.refine(mask[None]) for mask in masks]) if len(masks) else masks
        if self.min_confidence > 0:
            refined = torch.where((2 * refined - 1).abs() < self.min_confidence, masks, refined)
        return refined

    def _normalise(self, image: Tensor) -> Tensor:
        return (image.to(self.device, torch.float32) - self.pixel_mean) / self.pixel_std

    def _encode(self, image: Tensor, mask: Tensor) -> Any:
        features = self.encoder(torch.cat([image, 2 * mask - 1], dim=1))
        parameters = self.mapping(features)
        return lambda rows, cols: query_grid(features, parameters, rows, cols, self.query_chunk).sigmoid()

    def _losses(self, batched_inputs: list[dict[str, Any]]) -> dict[str, Tensor]:
        images = torch.stack([self._normalise(x["image"]) for x in batched_inputs])
        coarse, masks = (
            torch.stack([x[key].to(self.device) for x in batched_inputs]) for key in ("coarse_mask", "mask")
        )
        inputs = torch.cat([images, 2 * coarse - 1], dim=1)
        losses = {}
        if self.encoder.affinity is None:
            features = self.encoder(inputs)
        else:
            features, affinity, grid = self.encoder.forward_with_affinity(inputs)
            losses["affinity"] = affinity_loss(affinity, masks, grid, self.affinity_radius)
        rows, cols = (Axis(pixel_centres(n, features), self.cell) for n in masks.shape[2:])
        pixels = masks.shape[2] * masks.shape[3]
        logits = query_grid(features, self.mapping(features), rows, cols, pixels)
        losses |= mapping_losses(logits, masks)
        return {f"loss_{name}": self.loss_weights[name] * loss for name, loss in losses.items()}
