"""Boundary regions of masks and the IoU behind Boundary AP.  See Boundary IoU (Cheng et al., CVPR 2021), Sec. 4.

The boundary of a mask is the mask minus its erosion by a 3x3 kernel, repeated :func:`boundary_width` times, after one
pixel of zero padding, so that a mask cut off by the image border has a boundary there too.
"""

import math
from typing import Any

import cv2
import numpy as np
from pycocotools import mask as mask_util

DILATION_RATIO = 0.02
_KERNEL = np.ones((3, 3), np.uint8)


def boundary_width(height: int, width: int, dilation_ratio: float = DILATION_RATIO) -> int:
    """Width in pixels of the boundary region in an image of this size: dilation_ratio of its diagonal, at least 1.

    A fraction of exactly one half is rounded to the even neighbour, as Python's ``round`` does.
    """
    return max(1, round(dilation_ratio * math.sqrt(height**2 + width**2)))


def subtract_erosion(mask: np.ndarray, times: int) -> np.ndarray:
    """Take from an (H, W) uint8 mask of zeros and ones, or a part of one that has all its ones, the boundary.

    ``times`` is the :func:`boundary_width` of the whole image.
    """
    padded = cv2.copyMakeBorder(mask, 1, 1, 1, 1, cv2.BORDER_CONSTANT, value=0)
    return mask - cv2.erode(padded, _KERNEL, iterations=times)[1:-1, 1:-1]


def mask_to_boundary(mask: np.ndarray, dilation_ratio: float = DILATION_RATIO) -> np.ndarray:
    """Pixels of a mask that lie within the boundary width of its contour.

    Args:
        mask: (H, W) whole image, boolean or of any number type; non-zero is inside.
        dilation_ratio: boundary width as a fraction of the image diagonal.

    Returns:
        (H, W) boolean, a subset of the mask.
    """
    binary = np.ascontiguousarray(mask != 0, dtype=np.uint8)
    height, width = mask.shape
    return subtract_erosion(binary, boundary_width(height, width, dilation_ratio)).astype(bool)


def rle_to_boundary(rle: dict[str, Any], dilation_ratio: float = DILATION_RATIO) -> dict[str, Any]:
    """:func:`mask_to_boundary` from one compressed COCO RLE of a whole image to another.

    Only the mask's bounding box is eroded. The zeros around it stand for all that lie further away, so the result
    is the same as on the whole image, several times faster.
    """
    image_height, image_width = rle["size"]
    times = boundary_width(image_height, image_width, dilation_ratio)
    left, top, width, height = (int(v) for v in mask_util.toBbox(rle))
    if min(width, height) <= 2 * times:
        return rle  # too thin for anything to be left by the erosion
    pixels = mask_util.decode(rle)
    box = pixels[top : top + height, left : left + width]
    box[...] = subtract_erosion(box, times)
    return mask_util.encode(pixels)


def mask_iou(a: np.ndarray, b: np.ndarray, if_empty: float = 0.0) -> float:
    """Return the IoU of two boolean masks of one shape; ``if_empty`` where neither has a pixel."""
    union = np.count_nonzero(a | b)
    return np.count_nonzero(a & b) / union if union else if_empty


def boundary_iou(gt: np.ndarray, pred: np.ndarray, dilation_ratio: float = DILATION_RATIO) -> float:
    """Overlap of two masks as Boundary AP measures it: the smaller of mask IoU and IoU of their boundaries.

    The boundaries alone do not see what a mask does far from its contour; the minimum does.

    Args:
        gt, pred: (H, W) whole image, boolean or of any number type; non-zero is inside.
        dilation_ratio: boundary width as a fraction of the image diagonal.

    Returns:
        A value in [0, 1]; 0 where both masks are empty.
    """
    of_boundaries = mask_iou(mask_to_boundary(gt, dilation_ratio), mask_to_boundary(pred, dilation_ratio))
    return min(mask_iou(gt != 0, pred != 0), of_boundaries)
