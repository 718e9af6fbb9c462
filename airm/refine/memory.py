"""How much memory refinement takes, and settings that keep it below a limit."""

from dataclasses import replace

from pixelmask.errors import UserError

from ..coarse_to_fine import Settings
from ..tiles import ALIGNMENT, grid_axis

SMALLEST_TILE = 128
"""Tiles below this are mostly halo: the work grows, and what the network sees of the object shrinks."""
SMALLEST_CHUNK, QUERY_SHARE = 4096, 8  # with limited memory a chunk is at most an eighth of what is encoded

# Bytes at the peak, above what resident memory showed on the CPU with MiT-b1 and ResNet-50: 42 per pixel of the image
# with one mask, 7 more per mask, 390 to 490 per encoded pixel, 1,400 per query
PER_IMAGE_PIXEL, PER_MASK_PIXEL = 40, 16
PER_ENCODED_PIXEL, PER_FEATURE_PIXEL = 500, 100  # while encoding, and while querying
PER_QUERY = 1536
FIXED = 16 * 2**20


def estimate_peak(size: tuple[int, int], masks: int, encoded: int, query_chunk: int) -> int:
    """Return the bytes that refining takes at its peak, beyond the model itself; an estimate from above.

    Args:
        size: (H, W) of the image.
        masks: of it that are refined in one call.
        encoded: pixels that are encoded at once, those of a tile or of the whole image with its border.
        query_chunk: pixels for which the mapping is evaluated at once.
    """
    image = size[0] * size[1] * (PER_IMAGE_PIXEL + PER_MASK_PIXEL * masks)
    return FIXED + image + max(PER_ENCODED_PIXEL * encoded, PER_FEATURE_PIXEL * encoded + PER_QUERY * query_chunk)


def limit_memory(max_memory: float, size: tuple[int, int], masks: int, settings: Settings) -> Settings:
    """Choose the largest tiles, whole images first, whose estimated peak stays within ``max_memory``.

    Args:
        max_memory: GiB.
        size, masks: see :func:`estimate_peak`.
        settings: neither tiles nor chunk become larger than theirs.

    Raises:
        UserError: if the smallest tiles would take more; it names the least that is enough.
    """
    padded = [grid_axis(n, settings.ratios[-1], settings.padding).padded for n in size]
    largest = min(settings.tile_size or max(padded), max(padded)) // ALIGNMENT * ALIGNMENT
    sides = range(largest, min(largest, SMALLEST_TILE) - 1, -ALIGNMENT)
    for side in sides:
        encoded = min(side, padded[0]) * min(side, padded[1])
        chunk = min(settings.query_chunk, max(encoded // QUERY_SHARE, SMALLEST_CHUNK))
        peak = estimate_peak(size, masks, encoded, chunk)
        if peak <= max_memory * 2**30:
            return replace(settings, tile_size=0 if side >= max(padded) else side, query_chunk=chunk)
    several = f" and {masks} masks" if masks > 1 else ""
    raise UserError(
        f"max_memory is {max_memory:g} GiB, but an image of {size[1]} x {size[0]} pixels{several} takes at least "
        f"{-(-peak * 100 // 2**30) / 100:.2f} GiB" + ("; refine fewer masks at once" if masks > 1 else "")
    )
