"""Both losses of a training: the mapping's (Eq. 7) and the affinity's (Eq. 8)."""

import itertools
import math

import numpy as np
import pytest
import torch

from airm.affinity import AttentionAffinity, FeatureAffinity, LogAffinity, affinity_loss, pairs_within
from airm.losses import gradient_magnitude, mapping_losses, pixel_weights
from tests.support.equations import gradient_of
from tests.support.models import disc


def test_undecided_prediction_by_hand_and_right_one_costs_nothing():
    masks = disc(20, 20, (9, 9), 5).float()[None, None]
    losses = mapping_losses(torch.zeros(1, 1, 20, 20), masks)
    assert losses["l1"].item() == pytest.approx(0.5)
    assert losses["l2"].item() == pytest.approx(0.25)
    assert losses["ce"].item() == pytest.approx(math.log(2))
    assert losses["gradient"].item() == pytest.approx(gradient_magnitude(masks).mean().item() - 0.01, rel=1e-4)
    assert all(loss < 1e-5 for loss in mapping_losses(200 * masks - 100, masks).values())


def test_gradient_is_sobel_of_the_mean():
    masks = np.random.default_rng(0).random((11, 17)).astype(np.float32)
    ours = gradient_magnitude(torch.from_numpy(masks)[None, None])[0, 0]
    torch.testing.assert_close(ours, torch.from_numpy(gradient_of(masks)))


def test_gradient_is_finite_on_a_flat_mask():
    logits = torch.zeros(1, 1, 8, 8, requires_grad=True)
    mapping_losses(logits, torch.zeros(1, 1, 8, 8))["gradient"].backward()
    assert logits.grad.isfinite().all()


def test_half_precision_logits_are_summed_in_float32():
    losses = mapping_losses(torch.zeros(1, 1, 4, 4).bfloat16(), torch.ones(1, 1, 4, 4))
    assert {loss.dtype for loss in losses.values()} == {torch.float32}


def literal_loss(affinity: torch.Tensor, labels: list[int], width: int, radius: float) -> float:
    """Eq. 8 over all ordered pairs of different positions, S+ and S- from the truth."""
    same, different = [], []
    for i, j in itertools.permutations(range(len(labels)), 2):
        if math.hypot(i // width - j // width, i % width - j % width) <= radius:
            if labels[i] == labels[j]:
                same.append(math.log(affinity[i, j]))
            else:
                different.append(math.log(1 - affinity[i, j]))
    return -sum(-0.0 if not s else sum(s) / len(s) for s in (same, different))


def random_affinity(n: int) -> tuple[torch.Tensor, LogAffinity]:
    affinity = torch.rand(1, n, n, generator=torch.Generator().manual_seed(0)) * 0.98 + 0.01
    return affinity[0], LogAffinity(affinity.log(), (1 - affinity).log())


@pytest.mark.parametrize("radius", [1.0, 1.5, 2.0, 14.0])
def test_loss_is_the_equation(radius):
    labels = [0, 0, 1, 0, 1, 1, 0, 0, 1, 1, 1, 0]  # 3 x 4
    masks = torch.tensor(labels, dtype=torch.float32).view(1, 1, 3, 4)
    affinity, logs = random_affinity(12)
    loss = affinity_loss(logs, masks, (3, 4), radius)
    assert loss.item() == pytest.approx(literal_loss(affinity, labels, 4, radius), rel=1e-5)


def test_sets_come_from_the_truth_resized_by_nearest_neighbour_and_an_empty_one_contributes_nothing():
    affinity, logs = random_affinity(4)
    masks = torch.zeros(1, 1, 32, 32)
    masks[..., 16:] = 1
    assert affinity_loss(logs, masks, (2, 2), 9).item() == pytest.approx(literal_loss(affinity, [0, 1, 0, 1], 2, 9))
    off_diagonal = ~torch.eye(4, dtype=torch.bool)
    mean = affinity[off_diagonal].log().mean().item()
    assert affinity_loss(logs, torch.ones(1, 1, 8, 8), (2, 2), 5).item() == pytest.approx(-mean, rel=1e-5)
    assert affinity_loss(logs, torch.ones(1, 1, 8, 8), (2, 2), 0.5) == 0


def test_pairs_are_within_a_circle():
    near = pairs_within(1.0, 2, 2, torch.device("cpu"))
    assert near.int().tolist() == [[0, 1, 1, 0], [1, 0, 0, 1], [1, 0, 0, 1], [0, 1, 1, 0]]


def test_attention_affinity_is_symmetric_and_the_equation():
    torch.manual_seed(0)
    head, attention = AttentionAffinity(3), torch.randn(2, 3, 5, 5)
    logs = head(attention)
    weight, bias = head.proj.weight[0, :, 0, 0], head.proj.bias
    expected = torch.einsum("c,bcij->bij", weight, attention + attention.transpose(2, 3)) + bias
    torch.testing.assert_close(logs.same.exp(), expected.sigmoid())
    torch.testing.assert_close(logs.different.exp(), 1 - expected.sigmoid())
    torch.testing.assert_close(logs.same, logs.same.transpose(1, 2))


def test_feature_affinity_falls_with_the_l1_distance():
    head = FeatureAffinity(2, channels=2)
    with torch.no_grad():
        head.proj.weight.copy_(torch.eye(2)[:, :, None, None])
        head.proj.bias.zero_()
    features = torch.tensor([[0.0, 1.0], [0.0, 3.0]])[None, :, None]  # positions (0, 0) and (1, 3)
    logs = head(features)
    assert logs.same[0, 0, 1].item() == pytest.approx(-2.0)  # mean of 1 and 3
    assert logs.different[0, 0, 1].item() == pytest.approx(math.log(1 - math.exp(-2.0)))


def test_positions_alike_give_finite_losses_and_gradients():
    head = FeatureAffinity(4, channels=8)
    masks = torch.zeros(1, 1, 3, 3)
    masks[..., 1:] = 1
    loss = affinity_loss(head(torch.ones(1, 4, 3, 3)), masks, (3, 3), 5)
    loss.backward()
    assert loss.isfinite() and all(p.grad.isfinite().all() for p in head.parameters())


def test_pixels_near_the_contour_count_more():
    masks = torch.zeros(1, 1, 20, 40)
    masks[..., 20:] = 1
    weights = pixel_weights(masks, 3.0)
    assert weights.mean() == pytest.approx(1) and weights.max() / weights.min() == pytest.approx(4)
    assert (weights[0, 0, 0] == weights.max()).nonzero().flatten().tolist() == list(range(16, 24))
    near, far = masks.clone(), masks.clone()
    near[..., 18:20], far[..., 4:6] = 1, 1
    losses = [[mapping_losses(20 * x - 10, masks, weight) for x in (near, far)] for weight in (0.0, 3.0)]
    for name in ("l1", "l2", "ce"):
        assert losses[0][0][name] == pytest.approx(losses[0][1][name].item())
        assert losses[1][0][name] / losses[1][1][name] == pytest.approx(4, rel=0.01)
    assert torch.equal(losses[0][0]["gradient"], losses[1][0]["gradient"])
