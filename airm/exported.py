"""One refinement step of AIRM as a network that is exported, and whole images refined with the exported file.

A step is encoder, hypernetwork and mapping: image and coarse mask in, refined mask out. Refinement from coarse to fine
calls it once for each ratio, and tile; what lies between these calls is resizing, done by :class:`CoarseToFine`.
"""

import copy
import os
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.export import Dim

from pixelmask.errors import UserError
from pixelmask.export import Export, ExportedFile, export_module, largest_difference
from pixelmask.images import ImageLike, to_rgb

from .coarse_to_fine import CoarseToFine, Settings
from .implicit_mapping import pixel_centres
from .meta_arch import AIRM
from .query_inputs import colour_table
from .refine.inputs import MaskLike, check_size, to_soft
from .tiles import ALIGNMENT, SMALLEST_SIDE

SMALLEST_DYNAMIC = 64
"""From this side on, a .pt2 of dynamic size can be used: below, the last attention has a single key along an axis."""


class RefinementStep(nn.Module):
    """What :func:`export_refiner` exports: :meth:`AIRM.step` of one image and mask, for all positions at once."""

    def __init__(self, model: AIRM, queries: bool = False):
        """
        Args:
            model: is copied, to the CPU and for inference.
            queries: whether the positions that are asked for are inputs, too, as refinement from coarse to fine needs.
        """
        super().__init__()
        self.model, self.queries = copy.deepcopy(model).cpu().eval(), queries

    @property
    def takes_colours(self) -> bool:
        """Whether a table of colours is an input, too: with ``queries``, which come with windows of an image."""
        return self.queries and "colour" in self.model.query_inputs

    def forward(
        self,
        image: Tensor,
        mask: Tensor,
        rows: Tensor | None = None,
        cols: Tensor | None = None,
        colours: Tensor | None = None,
    ) -> Tensor:
        """
        Args:
            image: (1, 3, H, W) float32 RGB in [0, 255].
            mask: (1, 1, H, W) float32 coarse mask in [0, 1].
            rows, cols: (R,) and (C,) float32 positions to ask for, in a frame in which the image spans [-1, 1]; with
                ``queries`` only. Else R is H and C is W, and they are the centres of the pixels.
            colours: (1, K^3) of the whole image, see :func:`.query_inputs.colour_table`; only where it is an input.

        Returns:
            (1, 1, R, C) refined mask in [0, 1].
        """
        if rows is None or cols is None:
            rows, cols = (pixel_centres(n, image) for n in image.shape[2:])
        return self.model.step(self.model.normalise(image), mask, rows, cols, table=colours)


def export_refiner(step: RefinementStep, size: tuple[int, int] | None = None) -> Export:
    """Export one step of refinement.

    Args:
        step: the network.
        size: (H, W) of the image, multiples of 16 and at least 32; None for any such size.

    Raises:
        UserError: for another size.
    """
    if size is not None and any(n % ALIGNMENT or n < SMALLEST_SIDE for n in size):
        raise UserError(
            f"the refiner takes images whose sides are multiples of {ALIGNMENT} and at least {SMALLEST_SIDE} pixels, "
            f"not {size[0]} x {size[1]}"
        )
    dynamic = dims = None
    if size is None:
        side = {"min": SMALLEST_DYNAMIC // ALIGNMENT}
        dims = {"height": ALIGNMENT * Dim("h", **side), "width": ALIGNMENT * Dim("w", **side)}
    sides = {2: "height", 3: "width"} if dims else {}
    queries = [{0: "rows"}, {0: "cols"}] if step.queries else []
    if dims or queries:
        dynamic = [sides, sides, *queries, *([{}] if step.takes_colours else [])]
    shape = size or (6 * ALIGNMENT, 10 * ALIGNMENT)  # unequal sides, so that they are not taken for one
    image, mask = 255 * torch.rand(1, 3, *shape), (torch.rand(1, 1, *shape) > 0.5).float()
    others = [pixel_centres(2 * n, image) for n in shape] if step.queries else []
    if step.takes_colours:
        others.append(_colours(image, mask))
    metadata = {"part": "refiner", "queries": step.queries, "size": size, "settings": asdict(step.model.settings)}
    metadata["colours"] = step.takes_colours
    return export_module(step, (image, mask, *others), metadata, "refined_mask", dynamic, dims)


def check_refiner(file: ExportedFile, model: AIRM, size: tuple[int, int] | None = None) -> float:
    """Return the largest difference between a file and the model's own refinement at ratio 1, of a random image.

    Args:
        file: what was written.
        model: what it was made of.
        size: that it was exported for; None: several are tried.
    """
    settings = Settings(ratios=[1.0], padding=0)
    inputs = []
    for height, width in [size] if size else [(SMALLEST_DYNAMIC, SMALLEST_DYNAMIC), (96, 208), (176, 112)]:
        image, mask = torch.randint(256, (1, 3, height, width)).float(), torch.rand(1, 1, height, width)
        others = [pixel_centres(n, image) for n in (height, width)] if file.metadata["queries"] else []
        if file.metadata["colours"]:
            others.append(_colours(image, mask))
        inputs.append((image, mask, *others))
    return largest_difference(file, lambda image, mask, *_: model.refine(image[0], mask[0], settings)[None], inputs)


def _colours(images: Tensor, masks: Tensor) -> Tensor:
    """As :meth:`AIRM.colours`, of images in [0, 255]."""
    return colour_table(images / 255, masks)


class ExportedRefiner:
    """Refines masks of whole images with a file of ``tools/export.py --part refiner --queries``.

    As :class:`~airm.refiner.Refiner`, with the settings that the model was exported with; here PyTorch only resizes.
    Except that in tiles AIRMF's weights are predicted for each, as a file is one step.
    """

    def __init__(self, path: str | os.PathLike, tile_size: int | None = None):
        """
        Args:
            path: an .onnx or .pt2 file.
            tile_size: side of the tiles in which large images are encoded, 0 for whole images; by default what the
                model was exported with, or the side of images that a file of fixed size takes.

        Raises:
            UserError: if the file cannot be used, or takes no queries.
        """
        self.file = ExportedFile(Path(path))
        about = self.file.metadata
        if about["part"] != "refiner" or not about["queries"]:
            raise UserError(
                f"{path} is no refiner with queries; write it with tools/export.py --part refiner --queries"
            )
        # Files of version 0.1.0 have it beside the other settings
        settings = {"min_confidence": about.get("min_confidence", 0.0), **about["settings"]}
        self.size, self.settings = about["size"], Settings(**settings)
        self._colours = _colours if about.get("colours") else None
        if tile_size is None and self.size:
            tile_size = max(self.size)
        if tile_size is not None:
            self.settings = replace(self.settings, tile_size=tile_size)

    def refine(self, image: ImageLike, mask: MaskLike) -> np.ndarray:
        """Refine a coarse mask of an image.

        Args:
            image: see :func:`~pixelmask.images.to_rgb`.
            mask: see :func:`~airm.refine.inputs.to_soft`; several as one (N, H, W) array.

        Returns:
            float32 probabilities of the mask's shape; an empty mask stays empty.

        Raises:
            UserError: if image or mask cannot be used, or need windows of another size than the file's.
        """
        pixels, soft = to_rgb(image), to_soft(mask)
        check_size(soft, mask, pixels, image)
        whole = torch.from_numpy(pixels.transpose(2, 0, 1).astype(np.float32))
        coarse = torch.from_numpy(soft.values.astype(np.float32)).reshape(-1, 1, 1, *whole.shape[1:])
        passes = CoarseToFine(self._step, whole[None], self.settings, colours=self._colours)
        refined = [passes.refine(mask).numpy() for mask in coarse]
        return np.reshape(refined, soft.values.shape).astype(np.float32)

    def _step(
        self, images: Tensor, masks: Tensor, rows: Tensor, cols: Tensor, chunk: int, _: None = None, *colours: Tensor
    ) -> Tensor:
        size = list(images.shape[2:])
        if self.size and size != list(self.size):
            raise UserError(
                f"{self.file.path} takes images of {self.size[0]} x {self.size[1]} pixels alone, and this one is to be "
                f"encoded at {size[0]} x {size[1]}; export with --dynamic"
            )
        return self.file(images.contiguous(), masks.contiguous(), rows, cols, *colours)
