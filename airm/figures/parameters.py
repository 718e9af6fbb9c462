"""The parameters that AIRMF's hypernetwork predicts for each image, brought to the plane by t-SNE (AIRM, Fig. 7)."""

import logging
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch

from pixelmask.errors import UserError

from ..implicit_mapping import AIRMF
from ..meta_arch import AIRM
from .inputs import MAX_SIDE, encoder_input

FEWEST = 4  # images; the perplexity, a number of neighbours, is then 1

logger = logging.getLogger(__name__)


@torch.no_grad()
def predict_parameters(model: AIRM, samples: Iterable[dict[str, Any]], max_side: int = MAX_SIDE) -> np.ndarray:
    """Return the (n, P) float32 parameters that the hypernetwork predicts: A, B and bias of each layer (Eq. 6).

    Args:
        model: in evaluation mode.
        samples: "image" (3, H, W) RGB in [0, 255] and "coarse_mask" (1, H, W) in [0, 1] of each image.
        max_side: see :func:`~airm.figures.inputs.encoder_input`.

    Raises:
        UserError: if the model predicts none: its mapping is SIRMF.
    """
    if not isinstance(model.mapping, AIRMF):
        raise UserError("this model has a SIRMF, which is the same for all images; MODEL.AIRM.MAPPING is to be AIRMF")
    rows = [
        model.mapping.embed(model.encoder(encoder_input(model, sample["image"], sample["coarse_mask"], max_side)))[0]
        for sample in samples
    ]
    return torch.stack(rows).float().cpu().numpy()


def reduce_parameters(parameters: np.ndarray, perplexity: float = 30.0, seed: int = 0) -> tuple[np.ndarray, float]:
    """Bring (n, P) parameters to the plane by t-SNE.

    Args:
        parameters: one row for each image.
        perplexity: how many neighbours each image has, about; at most (n - 1) / 3.
        seed: of t-SNE.

    Returns:
        (n, 2) float32 coordinates, without unit, and the perplexity that was used.

    Raises:
        UserError: if scikit-learn is missing, there are fewer than four images, all of them have the same parameters,
            or the perplexity is not positive.
    """
    try:
        from sklearn.manifold import TSNE
    except ImportError:
        raise UserError("t-SNE needs scikit-learn: pip install scikit-learn") from None
    if perplexity <= 0:
        raise UserError(f"perplexity is {perplexity}; it is a number of neighbours, above 0")
    n = len(parameters)
    if n < FEWEST:
        raise UserError(f"{n} images are too few for t-SNE; give {FEWEST} or more")
    if (parameters == parameters[0]).all():
        raise UserError(f"the parameters of all {n} images are the same; is the model trained, are these copies?")
    used = min(perplexity, (n - 1) / 3)
    if used < perplexity:
        logger.warning("Perplexity %.3g is too large for %d images: it becomes %.3g", perplexity, n, used)
    return TSNE(perplexity=used, random_state=seed, init="pca").fit_transform(parameters), used
