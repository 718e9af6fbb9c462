"""Pictures and masks in image files of any kind."""

import io
import os
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from PIL import Image, ImageOps

from .errors import UserError
from .files import whole_or_not_at_all

RANGES = (1, 255, 65535)
MOST_PIXELS = 2 * (Image.MAX_IMAGE_PIXELS or 2**30)
"""Of an image: Pillow refuses larger ones as decompression bombs."""
VOID = 255  # the label of PASCAL VOC for what is not annotated


def read_mask(path: str | Path) -> np.ndarray:
    """Read a mask: what :func:`read_soft_mask` gives, foreground from half on (of 8 bits: from 128).

    Returns:
        (H, W) bool.

    Raises:
        UserError: if the file is missing, no image, or damaged.
    """
    return read_soft_mask(path) >= 0.5


def read_soft_mask(path: str | Path) -> np.ndarray:
    """Read a mask with its grey values, from a file of any mode that Pillow knows.

    Values are divided by 1, 255 or 65535, whichever is the first not below the largest of them: masks of 0 and 1 count
    as masks of 0 and 255, and values of 8 bits in a file of 16 as those of 8. Of colours the largest channel counts,
    so that any bright colour on black is foreground; what is transparent is background. In a palette with colours (not
    only greys) the indices are labels, as in PASCAL VOC: 0 and 255 (void) are background, all others foreground. The
    mask is turned upright as its EXIF data say; of several frames, the first is taken.

    Returns:
        (H, W) float32 in [0, 1].

    Raises:
        UserError: if the file is missing, no image, or damaged.
    """
    try:
        with Image.open(path) as image:
            values = read_values(ImageOps.exif_transpose(image))
    except Exception as e:  # whatever a damaged file makes Pillow stumble over
        raise UserError(f"cannot read mask {path}: {e}") from None
    largest = values.max()
    for full in RANGES:
        if largest <= full:
            return (values.clip(0) * np.float32(1 / full)).astype(np.float32, copy=False)
    raise UserError(f"cannot read mask {path}: its largest value is {largest}; masks have values up to 1, 255 or 65535")


def read_values(image: Image.Image) -> np.ndarray:
    """Return (H, W) values of the image's own range, boolean, integer or float."""
    if image.mode in ("1", "L") or image.mode.startswith(("I", "F")):
        return np.asarray(image)
    if image.mode == "P":
        labels, colors = np.asarray(image), np.asarray(image.convert("RGB"))
        is_grey = (colors == colors[..., :1]).all()
        return colors[..., 0] if is_grey else (labels != 0) & (labels != VOID)
    if image.mode.endswith("A"):
        pixels = np.asarray(image.convert("RGBA"))
        return pixels[..., :3].max(axis=2) * (pixels[..., 3] / np.float32(255))
    return np.asarray(image.convert("RGB")).max(axis=2)


ImageLike: TypeAlias = str | os.PathLike | Image.Image | np.ndarray


def read_picture(path: str | Path) -> np.ndarray:
    """Read an image of whatever kind Pillow knows: grayscale, palette, CMYK, with an alpha channel, of 16 bits.

    It is turned upright as its EXIF data say; alpha is dropped; values of 16 bits are cut to their upper 8; of several
    frames, the first is taken.

    Returns:
        (H, W, 3) uint8, RGB.

    Raises:
        UserError: if the file is missing, no image, or damaged.
    """
    try:
        with Image.open(path) as image:
            return as_rgb(ImageOps.exif_transpose(image))
    except Exception as e:  # whatever a damaged file makes Pillow stumble over
        raise UserError(f"cannot read image {path}: {e}") from None


def as_rgb(image: Image.Image) -> np.ndarray:
    """Convert an image of any mode as :func:`read_picture` does, but not turned: (H, W, 3) uint8, RGB."""
    if not image.mode.startswith("I"):
        return np.array(image.convert("RGB"))
    # Pillow's own conversion of integers would clip them at 255
    grey = (np.asarray(image).clip(0, 65535) >> 8).astype(np.uint8)
    return np.repeat(grey[:, :, None], 3, axis=2)


def to_rgb(image: ImageLike) -> np.ndarray:
    """Convert an image to (H, W, 3) uint8 RGB.

    Args:
        image: a file of any kind (:func:`~pixelmask.images.read_picture`), a Pillow image of any mode, taken as it
            lies in memory (not turned as its EXIF data say), or an array: (H, W, 3) RGB or (H, W), uint8.

    Raises:
        UserError: for anything else, and what cannot be read or has no pixels.
    """
    if isinstance(image, np.ndarray):
        pixels = np.repeat(image[..., None], 3, axis=2) if image.ndim == 2 else image
        if pixels.dtype != np.uint8 or pixels.shape[2:] != (3,):
            raise UserError(f"an image array is uint8 of (H, W, 3) or (H, W), not {image.dtype} of {image.shape}")
    elif isinstance(image, Image.Image):
        try:
            pixels = as_rgb(image)
        except Exception as e:  # Pillow decodes an opened file only here
            raise UserError(f"cannot read the image: {e}") from None
    elif isinstance(image, (str, os.PathLike)):
        pixels = read_picture(os.fspath(image))
    else:
        raise UserError(f"an image is a path, a Pillow image or a numpy array, not {type(image).__name__}")
    if pixels.size == 0:
        raise UserError(f"the image has no pixels: its shape is {pixels.shape}")
    return pixels


def write_picture(path: str | Path, pixels: np.ndarray, **options: Any) -> None:
    """Write a picture or mask, whole or not at all, as the kind of file that the name's ending says.

    Args:
        path: its folder is made if missing.
        pixels: (H, W, 3) or (H, W) uint8, or (H, W) boolean.
        options: of Pillow, such as ``quality``.

    Raises:
        UserError: if files of this kind cannot hold it, or the name is too long.
    """
    path, content = Path(path), io.BytesIO()
    try:  # not into the file: of what a disk says Pillow keeps no more than that it failed
        Image.fromarray(pixels).save(content, Image.registered_extensions()[path.suffix.lower()], **options)
    except (OSError, ValueError, KeyError) as e:
        raise UserError(f"cannot write {path}: {e}") from None
    with whole_or_not_at_all(path) as temporary:
        temporary.write_bytes(content.getvalue())
