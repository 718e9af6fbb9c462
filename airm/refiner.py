"""Refinement of the masks of single images with trained weights.

In short:

    from airm import Refiner

    refiner = Refiner()  # the weights that come with the project; Refiner("model_final.pth") for others
    mask = refiner.refine("photo.jpg", "mask.png")  # (H, W) bool
"""

import logging
import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from torch import nn

from pixelmask.checkpoint.checkpointer import SafeCheckpointer, load_trained
from pixelmask.checkpoint.files import by_name, read_torch
from pixelmask.config import find_device, load_cfg, parse_cfg
from pixelmask.engine.build import build_model
from pixelmask.engine.precision import inference_autocast
from pixelmask.errors import UserError
from pixelmask.images import ImageLike, to_rgb

from .guard import GUARD, Guard, guard_mask
from .meta_arch import AIRM
from .refine.inputs import MaskLike, check_size, to_soft
from .refine.memory import SMALLEST_TILE, limit_memory

PRETRAINED = Path(__file__).with_name("pretrained") / "airm_photo.pth"
"""The weights that come with the project, for photos; the README.md beside them says from what, and what they reach."""
DEFAULT_TILE = 512
LARGE = 1_000_000  # pixels from which on progress is worth showing
WAY_OUT = "Give the YAML file that the model was trained with (config=..., --config)"

logger = logging.getLogger(__name__)


class Refiner:
    """A trained AIRM, from an image and its coarse masks to refined masks; several threads may use one."""

    model: AIRM

    def __init__(
        self,
        weights: str | os.PathLike | None = None,
        device: str | torch.device = "cpu",
        config: str | os.PathLike | None = None,
        tile_size: int | None = None,
        max_memory: float | None = None,
        min_confidence: float | None = None,
        guard: Guard | None = GUARD,
        resolution: int | None = None,
        precision: str = "fp32",
        compile: bool = False,
    ):
        """
        Args:
            weights: a .pth checkpoint of an AIRM, or the folder of a training: its model_final.pth, else its last
                checkpoint; read as data, never run. By default the one that comes with the project.
            device: where the model runs.
            config: its YAML file; by default the one in the checkpoint, else ``config.yaml`` beside it.
            tile_size: side in pixels of the tiles in which larger images are encoded, 0 for whole images; by default
                MODEL.AIRM.TILE_SIZE of the config, or 512 where that is 0, as in the paper.
            max_memory: GiB that refining may take beyond what the process (on a GPU: the device) holds before. Tiles
                become as small as that needs; see :func:`airm.refine.memory.limit_memory`.
            min_confidence: the coarse mask is kept where ``|2 p - 1|`` of the refined probability p is below this, in
                [0, 1]; by default MODEL.AIRM.MIN_CONFIDENCE of the config, 0 if it does not say.
            guard: keeps what is far from the coarse contour, and refuses refinements that do harm; None for none; see
                :mod:`airm.guard`.
            resolution: cells of a side of the grid in its box that a coarse mask was made of, such as 28, by which the
                guard knows what is far; 0 or None for a mask of native resolution.
            precision: "fp32", "bf16" or "fp16", to which the network is autocast.
            compile: whether encoder and mapping are compiled (``torch.compile``), which takes a minute for the first
                image and for others of a size of their own, and a compiler.

        Raises:
            UserError: if the weights are missing, damaged, have no config, or leave a part of the model random, if
                there is no such device or the device not this precision, or for a value out of range.
        """
        device, weights = find_device(device), find_weights(weights)
        cfg = find_config(weights, config, str(device))
        if cfg.MODEL.META_ARCHITECTURE != "AIRM":
            raise UserError(
                f"{config or weights} is of a {cfg.MODEL.META_ARCHITECTURE}; masks are refined by an AIRM, as "
                "configs/airm/*.yaml train it"
            )
        if tile_size is not None and (tile_size != int(tile_size) or 0 != tile_size < SMALLEST_TILE):
            raise UserError(
                f"tile_size is {tile_size}; it is a whole number from {SMALLEST_TILE} up, or 0 for no tiles"
            )
        if max_memory is not None and not max_memory > 0:
            raise UserError(f"max_memory is {max_memory}; it is a number of GiB above 0")
        if min_confidence is not None and not 0 <= min_confidence <= 1:
            raise UserError(f"min_confidence is {min_confidence}; it lies in [0, 1]")
        if resolution is not None and (resolution != int(resolution) or resolution < 0):
            raise UserError(f"resolution is {resolution}; it is a number of cells, such as 28, or 0 for native masks")
        self.guard, self.resolution, self.cfg, self.weights = guard, resolution, cfg, weights
        self.model = build_model(cfg).eval()
        load_trained(self.model, str(weights))
        self.settings, self.max_memory = self.model.settings, max_memory
        self.autocast = inference_autocast(precision, device)
        if compile:
            self.model.compile_inference()
        tile_size = self.settings.tile_size or DEFAULT_TILE if tile_size is None else int(tile_size)
        self.settings = replace(self.settings, tile_size=tile_size)
        if min_confidence is not None:
            self.settings = replace(self.settings, min_confidence=min_confidence)

    @classmethod
    def from_pretrained(cls, path: str | os.PathLike, **options: Any) -> "Refiner":
        """Return the refiner of a checkpoint, or of a training's folder; ``options`` are those of the constructor."""
        return cls(path, **options)

    def refine(
        self,
        image: ImageLike,
        mask: MaskLike | Sequence[MaskLike],
        soft: bool = False,
        return_change: bool = False,
        progress: bool = False,
    ) -> Any:
        """Refine one coarse mask of an image, or several, which share what depends on the image alone.

        Args:
            image: a path, a Pillow image or a uint8 RGB array; see :func:`~pixelmask.images.to_rgb`.
            mask: a path, a Pillow image or an (H, W) array of the image's size, hard or soft; see
                :func:`~airm.refine.inputs.to_soft`. Several as a list of these, or as an (N, H, W) array.
            soft: whether to return probabilities.
            return_change: whether to return how far each pixel was moved, too.
            progress: whether to show a progress bar of the tiles, of an image of a megapixel or more.

        Returns:
            the refined mask, 1 from a probability of 0.5 on, of the type of ``mask``: a Pillow image (L, 0 and 255), an
            array of the same type and range, a boolean array for a path; for a list a list. With ``soft`` always
            float32 arrays in [0, 1]. An empty mask stays empty. With ``return_change`` a tuple of this and of float32
            arrays in [-1, 1] of the same shape: refined probability minus coarse mask. A mask whose refinement is
            refused by the guard stays as it is, with a warning.

        Raises:
            UserError: if an image or mask cannot be used, a mask has another size than the image, or memory runs out.
        """
        sources: list[MaskLike] = list(mask) if isinstance(mask, (list, tuple)) else [mask]  # type: ignore[list-item]
        pixels = to_rgb(image)
        masks = [to_soft(source) for source in sources]
        for source, soft_mask in zip(sources, masks, strict=True):
            check_size(soft_mask, source, pixels, image)
        stacks = [soft_mask.values.reshape(-1, *pixels.shape[:2]) for soft_mask in masks]
        coarse = np.concatenate([np.zeros((0, *pixels.shape[:2]), np.float32), *stacks])
        refined = self.refine_unguarded(pixels, coarse, progress)
        if self.guard is not None:
            for k, given in enumerate(coarse):
                refined[k], refusal, _ = guard_mask(given, refined[k], self.guard, self.resolution or 0)
                if refusal:
                    logger.warning("A mask stays as it is: its refinement would be %s", refusal)
        parts = np.split(refined, np.cumsum([len(stack) for stack in stacks], dtype=int))  # and an empty one
        parts = [part.reshape(m.values.shape) for part, m in zip(parts, masks, strict=False)]
        results = [part if soft else m.restore(part >= 0.5) for part, m in zip(parts, masks, strict=True)]
        answers: tuple[Any, ...] = (results,)
        if return_change:
            answers = results, [part - m.values for part, m in zip(parts, masks, strict=True)]
        if not isinstance(mask, (list, tuple)):
            answers = tuple(answer[0] for answer in answers)
        return answers if return_change else answers[0]

    def refine_unguarded(self, pixels: np.ndarray, coarse: np.ndarray, progress: bool = False) -> np.ndarray:
        """(H, W, 3) uint8 and (N, H, W) float32 in [0, 1] to what the network makes of them, float32 in [0, 1]."""
        for mask in coarse:
            if 0 < mask.max() < 0.5:
                logger.warning(
                    "No pixel of the coarse mask is foreground, its largest value is %.3g. If it holds labels, give "
                    "`labels == k`",
                    mask.max(),
                )
        size, settings = pixels.shape[:2], self.settings
        if self.max_memory is not None:
            settings = limit_memory(self.max_memory, size, len(coarse), settings)
        progress = progress and size[0] * size[1] >= LARGE
        image, masks = torch.from_numpy(pixels.transpose(2, 0, 1).copy()), torch.from_numpy(coarse)
        return self._run(size, lambda: self.model.refine(image, masks, settings, progress))

    def refine_batch(self, images: Sequence[np.ndarray], masks: Sequence[np.ndarray]) -> np.ndarray:
        """Refine one mask of each of several images of one size in common passes, without guard and memory limit.

        Args:
            images: B arrays of (H, W, 3) uint8 RGB.
            masks: B arrays of (H, W), boolean or in [0, 1].

        Returns:
            (B, H, W) float32 probabilities.

        Raises:
            UserError: if memory runs out.
        """
        pixels = torch.from_numpy(np.stack(images).transpose(0, 3, 1, 2).copy())
        coarse = torch.from_numpy(np.stack(masks))
        return self._run(masks[0].shape, lambda: self.model.refine_batch(pixels, coarse, self.settings))

    def _run(self, size: tuple[int, ...], refine: Callable[[], torch.Tensor]) -> np.ndarray:
        """Return what refining images of (H, W) gives, or say that it takes too much memory."""
        try:
            with self.autocast():
                return refine().cpu().numpy()
        except RuntimeError as e:
            if not isinstance(e, torch.OutOfMemoryError) and "allocate memory" not in str(e):
                raise
            raise UserError(
                f"no memory left for an image of {size[1]} x {size[0]} pixels; set max_memory (--max-memory) or a "
                "smaller tile_size (--tile-size)"
            ) from None


def find_weights(path: str | os.PathLike | None) -> Path:
    """Return the file of weights: of None the project's own, of a training's folder its final or last checkpoint.

    Raises:
        UserError: if there is none.
    """
    weights = PRETRAINED if path is None else Path(path)
    if weights.is_dir():
        last = SafeCheckpointer(nn.Module(), str(weights))
        final = weights / "model_final.pth"
        weights = Path(last.get_checkpoint_file()) if not final.is_file() and last.has_checkpoint() else final
    if not weights.is_file():
        raise UserError(f"no weights {weights}; tools/train_net.py writes them, model_final.pth, in OUTPUT_DIR")
    return weights


def find_config(weights: Path, config: str | os.PathLike | None = None, device: str = "cpu") -> CfgNode:
    """Return the config of a checkpoint for a device: the file ``config``, the checkpoint's own, or the one beside it.

    Raises:
        UserError: if there is none, or it cannot be used.
    """
    opts = ["MODEL.DEVICE", device]
    if config is not None:
        return load_cfg(os.fspath(config), opts)
    text = None if weights.suffix == ".pkl" else by_name(str(weights), read_torch(str(weights))).get("config")
    if isinstance(text, str):
        try:
            return parse_cfg(text, f"{weights}", opts)
        except UserError as e:
            raise UserError(f"{e}. {WAY_OUT}") from None
    beside = weights.with_name("config.yaml")
    if not beside.is_file():
        raise UserError(f"no config for {weights}: it brings none along and there is no {beside}. {WAY_OUT}")
    return load_cfg(str(beside), opts)
