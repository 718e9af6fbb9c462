"""Overlap and boundary accuracy of a mask.  See AIRM (Zhao et al.), Sec. 5.1, "Metrics".

Both compare a mask with the truth after thresholding each at half of its range (:func:`binarize`). Mean boundary
accuracy (mBA) looks only at pixels near the truth's boundary, within distances that grow with the image.
"""

from collections.abc import Sequence

import cv2
import numpy as np

NUM_RADII = 5
# What rounding in half precision may add to a probability
_SLACK = 0.01


def binarize(mask: np.ndarray) -> np.ndarray:
    """Threshold a mask at half of its range; half itself is inside.

    Args:
        mask: boolean, returned as it is; uint8 in [0, 255], inside from 128; or floating point in [0, 1], inside from
            0.5. A soft mask stored in 8 bits (value / 255) so gives the same answer in both forms.

    Returns:
        A boolean array of the same shape.

    Raises:
        TypeError: if the mask is of another type.
        ValueError: if a floating-point mask holds NaN or leaves [0, 1].
    """
    if mask.dtype == np.bool_:
        return mask
    if mask.dtype == np.uint8:
        return mask >= 128
    if not np.issubdtype(mask.dtype, np.floating):
        raise TypeError(f"a mask is boolean, uint8 or floating point, not {mask.dtype}")
    if mask.size:
        low, high = mask.min(), mask.max()
        if np.isnan(low):
            raise ValueError("the mask holds NaN")
        if low < -_SLACK or high > 1 + _SLACK:
            raise ValueError(f"the mask has values from {low:.4g} to {high:.4g}, outside [0, 1]")
    return mask >= 0.5


def intersection_and_union(prediction: np.ndarray, truth: np.ndarray) -> tuple[int, int]:
    """Count the pixels inside both masks, and those inside at least one.

    Args:
        prediction, truth: masks of one shape, of the types that :func:`binarize` takes.

    Raises:
        ValueError: if the shapes differ.
    """
    _check_shapes(prediction, truth)
    a, b = binarize(prediction), binarize(truth)
    return int(np.count_nonzero(a & b)), int(np.count_nonzero(a | b))


def boundary_radii(height: int, width: int) -> list[int]:
    """The five radii of mBA in pixels: 1 + int((max_r - 1) / 5 * k) for k = 0..4, where max_r = (height + width) / 300.

    Each is at least 1, in the smallest image too, as int() rounds towards zero. In small images several are equal, and
    each of them counts in the mean.
    """
    largest = (height + width) / 300
    return [1 + int((largest - 1) / NUM_RADII * k) for k in range(NUM_RADII)]


def _gradient(mask: np.ndarray, radius: int) -> np.ndarray:
    """Pixels whose elliptical neighbourhood has both values, as far as it is in the image; (H, W) uint8 in {0, 1}."""
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * radius + 1, 2 * radius + 1))
    return cv2.morphologyEx(mask, cv2.MORPH_GRADIENT, kernel)


def _boundary_box(mask: np.ndarray, margin: int) -> tuple[slice, slice] | None:
    """Rows and columns of the pixels on both sides of the mask's contour and of ``margin`` more; None without one.

    Morphology inside this box alone gives the same gradient for all radii up to ``margin``: a neighbourhood of both
    values holds the path from its centre to a pixel of the other value, first along a column, then along a row. On it
    lie two adjacent pixels that differ, and these are in the box.
    """
    edges = _gradient(mask, 1)
    if not edges.any():
        return None
    left, top, width, height = cv2.boundingRect(edges)
    return (
        slice(max(0, top - margin), top + height + margin),
        slice(max(0, left - margin), left + width + margin),
    )


def mean_boundary_accuracies(predictions: Sequence[np.ndarray], truth: np.ndarray) -> list[float] | None:
    """:func:`mean_boundary_accuracy` of several masks of one image, at little more than the cost of one.

    Raises:
        ValueError: if the shapes differ.
    """
    for prediction in predictions:
        _check_shapes(prediction, truth)
    inside = np.ascontiguousarray(binarize(truth))
    radii = boundary_radii(*inside.shape)
    box = _boundary_box(inside.view(np.uint8), margin=max(radii))
    if box is None:
        return None
    near = inside[box]
    agreements = [binarize(prediction)[box] == near for prediction in predictions]
    totals = np.zeros(len(predictions))
    for radius in sorted(set(radii)):
        # Never empty: from radius 1 on, the neighbourhood holds the four adjacent pixels
        region = _gradient(near.view(np.uint8), radius).view(np.bool_)
        shares = [np.count_nonzero(agreement & region) / np.count_nonzero(region) for agreement in agreements]
        totals += radii.count(radius) * np.array(shares)
    return (totals / NUM_RADII).tolist()


def mean_boundary_accuracy(prediction: np.ndarray, truth: np.ndarray) -> float | None:
    """Share of pixels near the truth's boundary at which the prediction is right, averaged over five distances.

    For each radius r of :func:`boundary_radii`, it is the share of agreeing pixels within the truth's morphological
    gradient (dilation minus erosion, OpenCV's elliptical kernel of size 2 r + 1, pixels outside the image ignored).

    Args:
        prediction, truth: (H, W) masks of the whole image, of the types that :func:`binarize` takes.

    Returns:
        A value in [0, 1]; None where the truth has no boundary, as it is empty or fills the image.

    Raises:
        ValueError: if the shapes differ.
    """
    values = mean_boundary_accuracies([prediction], truth)
    return None if values is None else values[0]


def _check_shapes(prediction: np.ndarray, truth: np.ndarray) -> None:
    if prediction.shape != truth.shape:
        raise ValueError(f"the masks differ in shape: {prediction.shape} and {truth.shape}")
