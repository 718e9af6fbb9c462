"""The losses of the mask branch (PatchDCT, Eq. 3 to 5). Imports torch alone.

All of them are zero with gradients intact, never NaN, where there is nothing to average over.
"""

from torch import Tensor
from torch.nn import functional as F

from pixelmask.errors import UserError

REGRESSION_LOSSES = {"l1": F.l1_loss, "sl1": F.smooth_l1_loss, "l2": F.mse_loss}


def vector_loss(pred: Tensor, target: Tensor, loss_type: str) -> Tensor:
    """Mean of R(pred - target) over the elements of (B, N) DCT vectors (Eq. 4); R is one of REGRESSION_LOSSES."""
    return vector_loss_sum(pred, target, loss_type) / max(pred.shape[1], 1)


def vector_loss_sum(pred: Tensor, target: Tensor, loss_type: str) -> Tensor:
    """Sum of R(pred - target) over the elements of (B, N) DCT vectors, averaged over the B instances (DCT-Mask)."""
    loss = REGRESSION_LOSSES[loss_type](pred.float(), target.float(), reduction="sum")
    return loss / max(pred.shape[0], 1)


def patch_vector_loss(pred: Tensor, target: Tensor, selected: Tensor, loss_type: str) -> Tensor:
    """Mean of R(pred - target) over the elements of the selected patches' vectors (Eq. 5).

    Args:
        pred: (B, P, n) predicted vectors.
        target: (B, P, n) vectors of the truth.
        selected: (B, P) boolean, the mixed patches.
        loss_type: a key of REGRESSION_LOSSES.
    """
    loss = REGRESSION_LOSSES[loss_type](pred.float(), target.float(), reduction="none").mean(-1)
    return (loss * selected).sum() / selected.sum().clamp(min=1)


def patch_classification_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean cross-entropy of (B, P, L) logits against (B, P) labels."""
    loss = F.cross_entropy(logits.float().flatten(0, 1), labels.flatten(), reduction="sum")
    return loss / max(labels.numel(), 1)


def check_loss_type(loss_type: str) -> str:
    """Return ``loss_type`` if it is known.

    Raises:
        UserError: if it is not, naming the config key.
    """
    if loss_type not in REGRESSION_LOSSES:
        raise UserError(
            f"MODEL.ROI_MASK_HEAD.DCT_LOSS_TYPE is {loss_type!r}; known are {', '.join(map(repr, REGRESSION_LOSSES))}"
        )
    return loss_type
