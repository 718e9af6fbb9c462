import math

import numpy as np
import pytest
import torch
from scipy import ndimage

from airm.losses import gradient_magnitude, mapping_losses
from tests.support.models import disc


def test_undecided_prediction_by_hand():
    masks = disc(20, 20, (9, 9), 5).float()[None, None]
    losses = mapping_losses(torch.zeros(1, 1, 20, 20), masks)
    assert losses["l1"].item() == pytest.approx(0.5)
    assert losses["l2"].item() == pytest.approx(0.25)
    assert losses["ce"].item() == pytest.approx(math.log(2))
    assert losses["gradient"].item() == pytest.approx(gradient_magnitude(masks).mean().item(), rel=1e-4)


def test_right_prediction_costs_nothing():
    masks = disc(20, 20, (9, 9), 5).float()[None, None]
    assert all(loss < 1e-5 for loss in mapping_losses(200 * masks - 100, masks).values())


def test_gradient_is_sobel_of_the_mean():
    masks = np.random.default_rng(0).random((11, 17)).astype(np.float32)
    smooth = ndimage.uniform_filter(masks, 3, mode="nearest")
    expected = np.hypot(*(ndimage.sobel(smooth, axis, mode="nearest") for axis in (0, 1)))
    torch.testing.assert_close(
        gradient_magnitude(torch.from_numpy(masks)[None, None])[0, 0], torch.from_numpy(expected)
    )


def test_gradient_is_finite_on_a_flat_mask():
    logits = torch.zeros(1, 1, 8, 8, requires_grad=True)
    mapping_losses(logits, torch.zeros(1, 1, 8, 8))["gradient"].backward()
    assert logits.grad.isfinite().all()


def test_half_precision_logits_are_summed_in_float32():
    assert all(
        loss.dtype == torch.float32
        for loss in mapping_losses(torch.zeros(1, 1, 4, 4).bfloat16(), torch.ones(1, 1, 4, 4)).values()
    )
