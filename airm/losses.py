"""The losses between a refined mask and the truth (Eq. 7); that of the affinity is in ``affinity.py``.

Masks are (B, 1, H, W), 0 or 1 for the truth.
"""

import torch
from torch import Tensor
from torch.nn import functional as F


def mapping_losses(logits: Tensor, masks: Tensor) -> dict[str, Tensor]:
    """Return the four unweighted parts of Eq. 7.

    Returns:
        ``l1`` and ``l2`` between probabilities and truth, ``ce``, the cross-entropy of the logits, and ``gradient``.
    """
    logits = logits.float()
    probabilities = logits.sigmoid()
    return {
        "l1": F.l1_loss(probabilities, masks),
        "l2": F.mse_loss(probabilities, masks),
        "ce": F.binary_cross_entropy_with_logits(logits, masks),
        "gradient": F.l1_loss(gradient_magnitude(probabilities), gradient_magnitude(masks)),
    }


def gradient_magnitude(masks: Tensor) -> Tensor:
    """Sobel magnitude of (B, 1, H, W) masks after a 3 x 3 mean; the border is repeated outwards."""
    smooth = F.avg_pool2d(F.pad(masks, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
    across = masks.new_tensor([[-1.0, 0.0, 1.0], [-2.0, 0.0, 2.0], [-1.0, 0.0, 1.0]])
    kernels = torch.stack([across, across.T])[:, None]
    gradients = F.conv2d(F.pad(smooth, (1, 1, 1, 1), mode="replicate"), kernels)
    # The root has no derivative at 0
    return gradients.square().sum(1, keepdim=True).add(1e-12).sqrt()
