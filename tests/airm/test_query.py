"""The mapping on a grid against Eq. 2 and 5 written out, one position at a time."""

import pytest
import torch
from torch import Tensor

from airm.implicit_mapping import AIRMF, SIRMF, MappingParameters, layer_shapes
from airm.query import Axis, neighbours, pixel_centres, query_grid


def literal_refined_mask(
    features: Tensor, parameters: MappingParameters, sample: int, q: tuple[float, float], cell: tuple[float, float]
) -> float:
    """M_q of Eq. 2: the sum over the four nearest p of S_p / sum(S_p) f(z_p, p - q)."""
    h, w = features.shape[2:]
    # The corners of the square of feature positions around q; beyond the border there is none, the last one stands in
    around = []
    for n, position in zip((h, w), q, strict=True):
        at = (position + 1) / 2 * n - 0.5  # in feature positions
        before = int(at // 1)
        around.append([(min(max(k, 0), n - 1), at) for k in (before, before + 1)])
    answers, areas = [], []
    for i in range(2):
        for j in range(2):
            (row, y), (col, x) = around[0][i], around[1][j]
            relative = [2 * (row - y), 2 * (col - x)]
            z = torch.cat([features[sample, :, row, col], torch.tensor([*relative, *q, *cell])])
            for layer, (weight, bias) in enumerate(parameters):
                k = min(sample, len(weight) - 1)
                z = weight[k] @ z + bias[k]
                if layer < len(parameters) - 1:
                    z = z.relu()
            answers.append(z.item())
            # S_p is the rectangle between q and the corner opposite to p: the nearer p, the larger
            (other_row, _), (other_col, _) = around[0][1 - i], around[1][1 - j]
            areas.append(abs(other_row - y) * abs(other_col - x))
    if sum(areas) == 0:  # q is on a border line of positions, where opposite corners coincide with it
        areas = [1.0] * 4 if len(set(answers)) == 1 else areas
    return sum(s * f for s, f in zip(areas, answers, strict=True)) / sum(areas)


@pytest.mark.parametrize("adaptive", [False, True])
def test_grid_equals_the_equation(adaptive):
    torch.manual_seed(0)
    features = torch.randn(2, 6, 5, 7)
    mapping = AIRMF(6, [8, 8], rank=4, channels=[4]) if adaptive else SIRMF(6, [8, 8])
    parameters = mapping.eval()(features)
    # Beyond the outermost positions (at 0.8 and 6/7), between two, unevenly spaced
    rows = Axis(torch.tensor([-0.97, -0.5, -0.11, 0.3, 0.93]), 0.25)
    cols = Axis(torch.tensor([-0.99, -0.62, 0.05, 0.41, 0.77, 0.98]), 0.5)
    for chunk in (1, 13, 1000):
        logits = query_grid(features, parameters, rows, cols, chunk)
        assert logits.shape == (2, 1, 5, 6)
        for sample in range(2):
            for i, y in enumerate(rows.positions.tolist()):
                for j, x in enumerate(cols.positions.tolist()):
                    expected = literal_refined_mask(features, parameters, sample, (y, x), (rows.cell, cols.cell))
                    assert logits[sample, 0, i, j].item() == pytest.approx(expected, abs=1e-5)


def test_answer_at_a_feature_position_is_that_positions():
    torch.manual_seed(0)
    features = torch.randn(1, 3, 4, 4)
    parameters = SIRMF(3, [8])(features)
    axis = Axis(pixel_centres(4, features), 0.5)
    logits = query_grid(features, parameters, axis, axis, 100)
    (first, b1), (second, b2) = parameters
    inputs = torch.cat([features[0, :, 2, 3], torch.tensor([0.0, 0.0, 0.25, 0.75, 0.5, 0.5])])
    expected = second[0] @ (first[0] @ inputs + b1[0]).relu() + b2[0]
    torch.testing.assert_close(logits[0, 0, 2, 3], expected[0])


def test_outermost_position_itself_has_two_like_neighbours():
    # Both neighbours of q are the only position, at no distance: the weights are no 0/0
    near = neighbours(torch.tensor([0.0]), 1)
    assert near.indices.tolist() == [[0], [0]] and near.weights.sum() == 1 and near.offsets.tolist()[0] == [0]


def test_neighbours_by_hand():
    # Four positions at -0.75, -0.25, 0.25, 0.75; q = -0.125 is a quarter of the way from the second to the third
    near = neighbours(torch.tensor([-0.125, -1.0]), 4)
    assert near.indices.tolist() == [[1, 0], [2, 0]]
    torch.testing.assert_close(near.offsets, torch.tensor([[-0.5, 1.0], [1.5, 1.0]]))
    torch.testing.assert_close(near.weights, torch.tensor([[0.75, 0.5], [0.25, 0.5]]))


def test_gradients_reach_features_and_parameters():
    torch.manual_seed(0)
    features = torch.randn(2, 4, 3, 3, requires_grad=True)
    mapping = AIRMF(4, [8, 8], rank=2, channels=[4])
    axis = Axis(pixel_centres(12, features), 0.5)
    query_grid(features, mapping(features), axis, axis, 50).sum().backward()
    assert features.grad.abs().sum() > 0
    assert all(p.grad is not None and p.grad.isfinite().all() for p in mapping.parameters())


def test_bfloat16_autocast_is_near_float32():
    torch.manual_seed(0)
    features = torch.randn(1, 16, 8, 8)
    parameters = SIRMF(16, [32, 32])(features)
    axis = Axis(pixel_centres(64, features), 0.5)
    exact = query_grid(features, parameters, axis, axis, 500)
    with torch.autocast("cpu", torch.bfloat16):
        near = query_grid(features, parameters, axis, axis, 500)
    assert (exact - near).abs().max() < 0.1 and (exact - near).abs().max() > 0


def test_first_layer_takes_features_and_six_coordinates():
    assert layer_shapes(256, [32, 32, 32, 32]) == [(32, 262), (32, 32), (32, 32), (32, 32), (1, 32)]
