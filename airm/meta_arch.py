"""AIRM (Fig. 3): encoder, implicit representation mapping, losses, and refinement at inference."""

from collections.abc import Callable, Sequence
from dataclasses import fields
from typing import Any, TypeVar

import torch
from detectron2.config import CfgNode, configurable
from detectron2.modeling import META_ARCH_REGISTRY
from torch import Tensor, nn

from pixelmask.errors import UserError

from .affinity import affinity_loss
from .backbone.weights import adapt_checkpoint
from .coarse_to_fine import CoarseToFine, Settings
from .encoder import AffinityEmpoweredEncoder
from .implicit_mapping import AIRMF, SIRMF, MappingParameters, pixel_centres, query_blocks, query_grid
from .losses import mapping_losses
from .query_inputs import CHANNELS, COMPUTED, colour_table, computed_inputs

# Of query inputs: a handful beside 256 channels of features, whose weights in the first layer begin alike
QUERY_GAIN = 4.0

Pass = TypeVar("Pass", bound=CoarseToFine)


@META_ARCH_REGISTRY.register()
class AIRM(nn.Module):
    """Refines a coarse mask of an image.

    Letters: B images with a mask each, (H, W) their pixels, (h, w) positions of F with D channels, R rows and C columns
    that the mapping is asked for.
    """

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
        pixel_mean: list[float],
        pixel_std: list[float],
        freeze_encoder: bool = False,
        query_inputs: Sequence[str] = (),
        band_weight: float = 0.0,
        second_pass_prob: float = 0.0,
    ):
        """
        Args:
            encoder: image and mask to feature F.
            mapping: ``AIRMF`` or ``SIRMF``.
            loss_weights: of ``l1``, ``l2``, ``ce``, ``gradient`` and ``affinity``.
            affinity_radius: see :func:`affinity_loss`.
            settings: of inference, where a call gives no others.
            pixel_mean, pixel_std: RGB, for images in [0, 255].
            freeze_encoder: whether training leaves the encoder as it is, the statistics of its norms too.
            query_inputs: what the mapping also sees at q, keys of :data:`.query_inputs.CHANNELS`.
            band_weight: see :func:`.losses.mapping_losses`.
            second_pass_prob: how often training begins with the result of a pass before.
        """
        super().__init__()
        self.encoder, self.mapping = encoder, mapping
        self.freeze_encoder, self.query_inputs = freeze_encoder, query_inputs
        self.band_weight, self.second_pass_prob = band_weight, second_pass_prob
        if freeze_encoder:
            encoder.requires_grad_(False)
        # Of a pixel of the encoder's input, which training queries; a position of F is 2. The smaller cells of pixels
        # between those of a lower ratio are unknown to the network: it is told this one
        self.cell = 2 / encoder.stride
        self._query_blocks = query_blocks
        self.loss_weights, self.affinity_radius, self.settings = loss_weights, affinity_radius, settings
        self.register_buffer("pixel_mean", torch.tensor(pixel_mean).view(-1, 1, 1), persistent=False)
        self.register_buffer("pixel_std", torch.tensor(pixel_std).view(-1, 1, 1), persistent=False)

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        airm = cfg.MODEL.AIRM
        unknown = sorted(set(airm.QUERY_INPUTS) - set(CHANNELS))
        if unknown:
            raise UserError(f"MODEL.AIRM.QUERY_INPUTS has {unknown[0]!r}; known are {', '.join(CHANNELS)}")
        maps = sum(CHANNELS[name] for name in airm.QUERY_INPUTS)
        encoder = AffinityEmpoweredEncoder(cfg)
        if airm.MAPPING == "SIRMF":
            mapping: nn.Module = SIRMF(encoder.out_channels, airm.HIDDEN_FEATURES, maps)
        elif airm.MAPPING == "AIRMF":
            widths = airm.HYPERNETWORK_CHANNELS
            mapping = AIRMF(encoder.out_channels, airm.HIDDEN_FEATURES, airm.RANK, widths, airm.NORM, maps)
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
            "settings": Settings(**{field.name: airm[field.name.upper()] for field in fields(Settings)}),
            "pixel_mean": cfg.MODEL.PIXEL_MEAN,
            "pixel_std": cfg.MODEL.PIXEL_STD,
            "freeze_encoder": bool(airm.FROZEN_ENCODER),
            "query_inputs": tuple(airm.QUERY_INPUTS),
            "band_weight": airm.BAND_WEIGHT,
            "second_pass_prob": airm.SECOND_PASS_PROB,
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
        return adapt_checkpoint(state, self.state_dict(), prefix)

    def forward(self, batched_inputs: list[dict[str, Any]]) -> Any:
        """
        Args:
            batched_inputs: of each sample ``image``, (3, H, W) RGB in [0, 255], and ``coarse_mask``, (1, H, W) in
                [0, 1]; for training all of one size, and with the truth ``mask``, (1, H, W), 0 or 1, and
                perhaps with ``colours``, (K^3,) of :func:`.query_inputs.colour_table`, of what they are crops of.

        Returns:
            in training the weighted losses ``loss_l1``, ``loss_l2``, ``loss_ce``, ``loss_gradient``,
            ``loss_affinity``; else of each sample ``{"refined_mask": (1, H, W) in [0, 1]}``.
        """
        if self.training:
            return self._losses(batched_inputs)
        return [{"refined_mask": self.refine(x["image"], x["coarse_mask"])} for x in batched_inputs]

    def refine(
        self, image: Tensor, coarse_mask: Tensor, settings: Settings | None = None, progress: bool = False
    ) -> Tensor:
        """Refine coarse masks of one image, one after the other.

        Args:
            image: (3, H, W) RGB in [0, 255], of any size.
            coarse_mask: (N, H, W) in [0, 1], any number of masks of this image.
            settings: by default those of the config.
            progress: whether to show a progress bar.

        Returns:
            (N, H, W) soft masks in [0, 1], float32; an empty coarse mask stays empty.
        """
        masks = coarse_mask.to(self.device, torch.float32)
        passes: CoarseToFine = self.coarse_to_fine(self.normalise(image)[None], settings, progress)
        return torch.cat([passes.refine(mask[None, None])[0] for mask in masks]) if len(masks) else masks

    def refine_batch(self, images: Tensor, coarse_masks: Tensor, settings: Settings | None = None) -> Tensor:
        """Refine a mask of each of several images of one size in common passes, as :meth:`refine` does one of them.

        Args:
            images: (B, 3, H, W) RGB in [0, 255].
            coarse_masks: (B, H, W) in [0, 1] or boolean.
            settings: by default those of the config.

        Returns:
            (B, H, W) soft masks in [0, 1], float32.
        """
        masks = coarse_masks.to(self.device, torch.float32)[:, None]
        return self.coarse_to_fine(self.normalise(images), settings).refine(masks)[:, 0]

    def coarse_to_fine(
        self,
        images: Tensor,
        settings: Settings | None = None,
        progress: bool = False,
        kind: Callable[..., Pass] = CoarseToFine,  # type: ignore[assignment]
    ) -> Pass:
        """Return what refines masks of normalised (B, 3, H, W) images: a ``CoarseToFine``, or a subclass of it."""
        predict = self.predict if isinstance(self.mapping, AIRMF) else None
        colours = self.colours if "colour" in self.query_inputs else None
        return kind(self.step, images, settings or self.settings, progress, predict, colours, self.step_at)

    def compile_inference(self) -> None:
        """Compile what a step does on tensors of a few shapes: encoder and, of small grids, the mapping."""
        self.encoder.compile()
        self._query_blocks = torch.compile(query_blocks, dynamic=True)

    def normalise(self, images: Tensor) -> Tensor:
        """(..., 3, H, W) RGB in [0, 255] to what the encoder takes, on the model's device."""
        return images.to(self.device, self.pixel_mean.dtype, copy=True).sub_(self.pixel_mean).div_(self.pixel_std)

    def colours(self, images: Tensor, masks: Tensor) -> Tensor:
        """Return the table of whole normalised images and masks: see :func:`.query_inputs.colour_table`."""
        return colour_table(self._unit(images), masks)

    def encoder_input(self, images: Tensor, masks: Tensor, table: Tensor | None = None) -> Tensor:
        """Join normalised (B, 3, H, W) images, (B, 1, H, W) masks in [0, 1] and what is computed of both, E channels.

        ``table`` is that of :meth:`colours` where these are windows of images.
        """
        parts = [images, 2 * masks - 1]
        if any(name in self.query_inputs for name in COMPUTED):
            parts.append(computed_inputs(self._unit(images), masks, self.query_inputs, table))
        return torch.cat(parts, dim=1)

    def _unit(self, images: Tensor) -> Tensor:
        """Undo what :meth:`normalise` does, to values in [0, 1]."""
        return (images * self.pixel_std).add_(self.pixel_mean).div_(255)

    def query_maps(self, inputs: Tensor) -> Tensor | None:
        """Return what the mapping sees at q of (B, 4 + E, H, W) inputs of the encoder; None for nothing."""
        if not self.query_inputs:
            return None
        names = ["image", "mask", *(name for name in COMPUTED if name in self.query_inputs)]
        parts = dict(zip(names, inputs.split([CHANNELS[name] for name in names], dim=1), strict=True))
        return QUERY_GAIN * torch.cat([parts[name] for name in self.query_inputs], dim=1)

    def query(
        self,
        features: Tensor,
        rows: Tensor,
        cols: Tensor,
        chunk: int | None = None,
        parameters: MappingParameters | None = None,
        maps: Tensor | None = None,
    ) -> Tensor:
        """Return (B, 1, R, C) logits that the mapping, by default F's own, has for F on a grid; see `query_grid`."""
        return query_grid(features, parameters or self.mapping(features), rows, cols, self.cell, chunk, maps)

    def predict(self, images: Tensor, masks: Tensor, table: Tensor | None = None) -> MappingParameters:
        """Encode images and masks as :meth:`step` does, and predict their mapping."""
        return self.mapping(self.encoder(self.encoder_input(images, masks, table)))

    def step(
        self,
        images: Tensor,
        masks: Tensor,
        rows: Tensor,
        cols: Tensor,
        chunk: int | None = None,
        parameters: MappingParameters | None = None,
        table: Tensor | None = None,
    ) -> Tensor:
        """Take one step of refinement, Fig. 3 from left to right: encode, predict the mapping, ask it.

        Args:
            images, masks: normalised (B, 3, H, W), and (B, 1, H, W) in [0, 1]; sides are multiples of 16.
            rows, cols: (R,) and (C,) positions to ask for, in a frame in which the images span [-1, 1].
            chunk: positions asked for at once; None for all.
            parameters: of the mapping; by default they are predicted from these images and masks.
            table: see :meth:`encoder_input`.

        Returns:
            (B, 1, R, C) refined masks in [0, 1].
        """
        inputs = self.encoder_input(images, masks, table)
        return self.query(self.encoder(inputs), rows, cols, chunk, parameters, self.query_maps(inputs)).sigmoid()

    def step_at(
        self,
        images: Tensor,
        masks: Tensor,
        window: Tensor,
        rows: Tensor,
        cols: Tensor,
        chunk: int,
        parameters: MappingParameters | None = None,
        table: Tensor | None = None,
    ) -> Tensor:
        """Take a step as :meth:`step` does, asking in place of a grid for K small ones; see `query_blocks`.

        Returns:
            (K, R, C) probabilities.
        """
        inputs = self.encoder_input(images, masks, table)
        features, maps = self.encoder(inputs), self.query_maps(inputs)
        parameters = parameters or self.mapping(features)
        where = window, rows, cols
        return self._query_blocks(features, parameters, *where, self.cell, chunk, maps).sigmoid()

    @torch.no_grad()
    def _first_pass(self, inputs: Tensor) -> Tensor:
        """Return the (B, 1, H, W) masks that the encoder's inputs are refined to."""
        rows, cols = (pixel_centres(n, inputs) for n in inputs.shape[2:])
        return self.query(self.encoder(inputs), rows, cols, maps=self.query_maps(inputs)).sigmoid()

    def _losses(self, batched_inputs: list[dict[str, Any]]) -> dict[str, Tensor]:
        images = self.normalise(torch.stack([x["image"].to(self.device) for x in batched_inputs]))
        coarse, masks = (
            torch.stack([x[key].to(self.device) for x in batched_inputs]) for key in ("coarse_mask", "mask")
        )
        tables = [x["colours"].to(self.device) for x in batched_inputs if "colours" in x]
        inputs = self.encoder_input(images, coarse, torch.stack(tables) if tables else None)
        if self.second_pass_prob and torch.rand(()).item() < self.second_pass_prob:
            inputs = self.encoder_input(images, self._first_pass(inputs))
        losses = {}
        if self.encoder.affinity is None:
            features = self.encoder(inputs)
        else:
            features, affinity, grid = self.encoder.forward_with_affinity(inputs)
            losses["affinity"] = affinity_loss(affinity, masks, grid, self.affinity_radius)
        rows, cols = (pixel_centres(n, features) for n in masks.shape[2:])
        logits = self.query(features, rows, cols, maps=self.query_maps(inputs))
        losses |= mapping_losses(logits, masks, self.band_weight)
        return {f"loss_{name}": self.loss_weights[name] * loss for name, loss in losses.items()}
