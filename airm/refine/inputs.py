"""Images and masks as users have them (files, Pillow images, arrays), to what the model takes and back."""

import os
from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from PIL import Image

from pixelmask.errors import UserError
from pixelmask.images import RANGES, ImageLike, read_soft_mask, read_values

MaskLike: TypeAlias = str | os.PathLike | Image.Image | np.ndarray
ROUNDING = 1e-3  # by which resampled probabilities may leave [0, 1]


class SoftMask(NamedTuple):
    """One mask, (H, W), or several of one array, (N, H, W)."""

    values: np.ndarray
    """float32 in [0, 1]."""
    restore: Callable[[np.ndarray], Any]
    """From a boolean array of that shape to what was given: its type, and its values for background and foreground."""


def to_soft(mask: MaskLike) -> SoftMask:
    """Convert a mask, or an (N, H, W) array of several.

    Integers are divided by 1, 255 or 65535, the first not below the largest of the array; modes and files are
    understood as :func:`~pixelmask.images.read_soft_mask` does. Files come back as boolean arrays, Pillow images as
    Pillow images of mode L (0 and 255), arrays as arrays of their type: booleans, 0 and 1 if integers did not go beyond
    1, else 0 and 255 or 65535, and floats of 0 and 1.

    Raises:
        UserError: for another type or shape, NaN, values out of range, and what cannot be read.
    """
    if isinstance(mask, (str, os.PathLike)):
        return SoftMask(read_soft_mask(os.fspath(mask)), lambda refined: refined)
    if isinstance(mask, Image.Image):
        try:
            values, _ = _scale_to_range(read_values(mask))
        except OSError as e:  # Pillow decodes an opened file only here
            raise UserError(f"cannot read the mask: {e}") from None
        return SoftMask(values, lambda refined: Image.fromarray(refined.astype(np.uint8) * 255))
    if mask is None:
        raise UserError("no mask to refine: give a coarse mask of the image, of the same size")
    if not isinstance(mask, np.ndarray):
        raise UserError(f"a mask is a path, a Pillow image or a numpy array, not {type(mask).__name__}")
    if mask.ndim not in (2, 3):
        raise UserError(f"a mask array is (H, W), or (N, H, W) for several masks of the image, not {mask.shape}")
    if mask.dtype.kind == "f":
        low, high = _limits(mask)
        if low < -ROUNDING or high > 1 + ROUNDING:
            raise UserError(f"a mask of floats lies in [0, 1]; this one goes from {low:g} to {high:g}")
        values, full = mask.astype(np.float32).clip(0, 1), 1
    else:
        values, full = _scale_to_range(mask)
    return SoftMask(values, lambda refined: refined.astype(mask.dtype) * mask.dtype.type(full))


def check_size(soft_mask: SoftMask, mask: MaskLike, pixels: np.ndarray, image: ImageLike) -> None:
    """Raise a :class:`UserError` that names both sizes if a mask has not the size of its (H, W, 3) image."""
    (height, width), (rows, columns) = soft_mask.values.shape[-2:], pixels.shape[:2]
    if (height, width) != (rows, columns):
        names = [
            f"{kind} {os.fspath(x)}" if isinstance(x, (str, os.PathLike)) else f"the {kind}"
            for kind, x in (("mask", mask), ("image", image))
        ]
        raise UserError(
            f"{names[0]} is {width} x {height} pixels (width x height), but {names[1]} is {columns} x {rows}; a coarse "
            "mask has the size of its image"
        )


def _scale_to_range(values: np.ndarray) -> tuple[np.ndarray, int]:
    """Return values as float32 in [0, 1], and by what they were divided."""
    if values.dtype.kind not in "buif":
        raise UserError(f"a mask array holds booleans, integers or floats, not {values.dtype}")
    low, high = _limits(values)
    largest = np.iinfo(values.dtype).max if values.dtype.kind in "ui" else RANGES[-1]
    full = next((full for full in RANGES if high <= full <= largest), None)
    if low < 0 or full is None:
        raise UserError(f"a mask of {values.dtype} lies in 0..1, 0..255 or 0..65535, not in {low:g}..{high:g}")
    return (values * np.float32(1 / full)).astype(np.float32, copy=False), full


def _limits(values: np.ndarray) -> tuple[float, float]:
    """Return the lowest and the highest value, 0 among them."""
    low, high = float(values.min(initial=0)), float(values.max(initial=0))
    if not np.isfinite([low, high]).all():  # a NaN makes both NaN
        raise UserError("the mask has values that are NaN or infinite")
    return low, high
