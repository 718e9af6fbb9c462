"""The losses between a refined mask and the truth (Eq. 7); that of the affinity is in ``affinity.py``.

Masks are (B, 1, H, W), 0 or 1 for the truth.
"""

from torch import Tensor
from torch.nn import functional as F

EPSILON = 1e-4  # as CRM's
BAND = 4  # pixels on each side of a contour


def mapping_losses(logits: Tensor, masks: Tensor, band_weight: float = 0.0) -> dict[str, Tensor]:
    """Return the four unweighted parts of Eq. 7.

    Args:
        logits, masks: of the refined mask, and the truth.
        band_weight: what a pixel within 4 of the truth's contour counts more than another does, in all but
            ``gradient``; not of the paper.

    Returns:
        ``l1`` and ``l2`` between probabilities and truth, ``ce``, the cross-entropy of the logits, and ``gradient``.
    """
    logits = logits.float()
    probabilities = logits.sigmoid()
    weights = pixel_weights(masks, band_weight)
    return {
        "l1": (weights * F.l1_loss(probabilities, masks, reduction="none")).mean(),
        "l2": (weights * F.mse_loss(probabilities, masks, reduction="none")).mean(),
        "ce": F.binary_cross_entropy_with_logits(logits, masks, weights),
        "gradient": F.l1_loss(gradient_magnitude(probabilities), gradient_magnitude(masks)),
    }


def pixel_weights(masks: Tensor, band_weight: float) -> Tensor:
    """Return weights of a mean of 1 that are ``1 + band_weight`` times as large near the contours of the masks."""
    size = 2 * BAND + 1
    near = F.max_pool2d(masks, size, 1, BAND) + F.max_pool2d(-masks, size, 1, BAND)  # largest less smallest
    weights = 1 + band_weight * near
    return weights / weights.mean()


def gradient_magnitude(masks: Tensor) -> Tensor:
    """Sobel magnitude / 4 of (B, 1, H, W) masks after a 3 x 3 mean, in CRM's scale; the border is repeated outwards."""
    border = (1, 1, 1, 1)
    smooth = F.avg_pool2d(F.pad(masks, border, mode="replicate"), 3, stride=1)
    padded = F.pad(smooth, border, mode="replicate")
    across, down = _sobel(padded), _sobel(padded.mT).mT
    # The root has no derivative at 0; and where nothing changes, its slope is to be small
    return (across.square() + down.square() + EPSILON).sqrt()


def _sobel(x: Tensor) -> Tensor:
    """(B, 1, H + 2, W + 2) to the (B, 1, H, W) slope along the width, by a quarter of Sobel's kernel."""
    columns = x[:, :, :-2] + 2 * x[:, :, 1:-1] + x[:, :, 2:]
    return (columns[..., 2:] - columns[..., :-2]) / 4
