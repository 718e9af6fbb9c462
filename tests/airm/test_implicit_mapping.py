"""The mapping's weights, and its evaluation on a grid against Eq. 2 and 5 written out, one position at a time."""

import pytest
import torch

from airm.implicit_mapping import AIRMF, SIRMF, layer_shapes, neighbours, pixel_centres, query_blocks, query_grid
from tests.support.equations import literal_logit

WIDTHS = [32, 32, 32, 32]


def make_airmf() -> AIRMF:
    torch.manual_seed(0)
    return AIRMF(256, WIDTHS, rank=20, channels=[32, 64, 64])


def features(batch: int) -> torch.Tensor:
    """What batch norm and ReLU leave; each sample has its own mean in each channel."""
    generator = torch.Generator().manual_seed(1)
    means = torch.randn(batch, 256, 1, 1, generator=generator)
    return (0.7 * torch.randn(batch, 256, 14, 14, generator=generator) + 0.7 * means).relu()


def test_weights_are_products_of_rank_r():
    mapping = make_airmf().eval()
    numbers = mapping.embed(features(2))
    # Eq. 6, layer by layer: A (out x r), B (r x in), bias (out), in the order in which the linear layer emits them
    sizes = [32 * 20, 20 * 262, 32] + 3 * [32 * 20, 20 * 32, 32] + [20, 20 * 32, 1]
    assert numbers.shape == (2, sum(sizes))
    parts = list(numbers.split(sizes, dim=1))
    parameters = mapping(features(2))
    for layer, (weight, bias) in enumerate(parameters):
        a, b, expected_bias = parts[3 * layer : 3 * layer + 3]
        for sample in range(2):
            product = a[sample].view(-1, 20) @ b[sample].view(20, -1)
            torch.testing.assert_close(weight[sample], product)
        torch.testing.assert_close(bias, expected_bias)
    assert torch.linalg.matrix_rank(parameters[0][0][0]) == 20


def test_each_sample_has_its_own_weights():
    mapping = make_airmf()
    first, second, _ = mapping(features(3))[0][0]  # batch norm has the statistics of these samples, as in training
    assert (first - second).square().mean() > 0.01 * first.square().mean()
    together = mapping.eval()(features(3))
    alone = mapping(features(3)[1:2])
    torch.testing.assert_close(together[2][0][1], alone[2][0][0])


def test_activations_start_of_order_one():
    x = features(4)
    for mapping in (make_airmf(), SIRMF(256, WIDTHS)):
        layers = mapping(x)
        z = torch.cat([x[:, :, 3, 3], torch.rand(4, 6) * 2 - 1], dim=1)[..., None]
        for i, (weight, bias) in enumerate(layers):
            z = weight @ (z if i == 0 else z.relu()) + bias[..., None]
            assert 0.1 < z.square().mean().sqrt() < 4, f"layer {i} of {type(mapping).__name__}"


def test_shared_weights_do_not_depend_on_the_features():
    mapping = SIRMF(256, WIDTHS)
    first, second = mapping(features(2)), mapping(torch.zeros(1, 256, 4, 4))
    assert all(torch.equal(a, b) for p, q in zip(first, second, strict=True) for a, b in zip(p, q, strict=True))
    assert first[0][0].shape == (1, 32, 262)
    # The first layer takes features and six coordinates
    assert layer_shapes(256, WIDTHS) == [(32, 262), (32, 32), (32, 32), (32, 32), (1, 32)]


@pytest.mark.parametrize("adaptive", [False, True])
def test_grid_equals_the_equation(adaptive):
    torch.manual_seed(0)
    features = torch.randn(2, 6, 5, 7)
    mapping = AIRMF(6, [8, 8], rank=4, channels=[4]) if adaptive else SIRMF(6, [8, 8])
    parameters = mapping.eval()(features)
    # Beyond the outermost positions (at 0.8 and 6/7), between two, unevenly spaced
    rows = torch.tensor([-0.97, -0.5, -0.11, 0.3, 0.93])
    cols = torch.tensor([-0.99, -0.62, 0.05, 0.41, 0.77, 0.98])
    expected = [
        literal_logit(features, parameters, sample, (y, x), 0.25)
        for sample in range(2)
        for y in rows.tolist()
        for x in cols.tolist()
    ]
    for chunk in (1, 13, 1000, None):
        logits = query_grid(features, parameters, rows, cols, 0.25, chunk)
        torch.testing.assert_close(logits, torch.tensor(expected).view(2, 1, 5, 6), rtol=0, atol=1e-5)


def test_answer_at_a_feature_position_is_that_positions():
    torch.manual_seed(0)
    features = torch.randn(1, 3, 4, 4)
    parameters = SIRMF(3, [8])(features)
    centres = pixel_centres(4, features)
    logits = query_grid(features, parameters, centres, centres, 0.5, 100)
    (first, b1), (second, b2) = parameters
    inputs = torch.cat([features[0, :, 2, 3], torch.tensor([0.0, 0.0, 0.25, 0.75, 0.5, 0.5])])
    expected = second[0] @ (first[0] @ inputs + b1[0]).relu() + b2[0]
    torch.testing.assert_close(logits[0, 0, 2, 3], expected[0])


def test_neighbours_by_hand():
    # Four positions at -0.75, -0.25, 0.25, 0.75; q = -0.125 is a quarter of the way from the second to the third
    near = neighbours(torch.tensor([-0.125, -1.0]), 4)
    assert near.indices.tolist() == [[1, 0], [2, 0]]
    torch.testing.assert_close(near.offsets, torch.tensor([[-0.5, 1.0], [1.5, 1.0]]))
    torch.testing.assert_close(near.weights, torch.tensor([[0.75, 0.5], [0.25, 0.5]]))
    # Both neighbours of q are the only position, at no distance: the weights are no 0/0
    near = neighbours(torch.tensor([0.0]), 1)
    assert near.indices.tolist() == [[0], [0]] and near.weights.sum() == 1 and near.offsets.tolist()[0] == [0]


def test_gradients_reach_features_and_parameters():
    torch.manual_seed(0)
    features = torch.randn(2, 4, 3, 3, requires_grad=True)
    mapping = AIRMF(4, [8, 8], rank=2, channels=[4])
    centres = pixel_centres(12, features)
    query_grid(features, mapping(features), centres, centres, 0.5, 50).sum().backward()
    assert features.grad.abs().sum() > 0
    assert all(p.grad is not None and p.grad.isfinite().all() for p in mapping.parameters())


def test_bfloat16_autocast_is_near_float32():
    torch.manual_seed(0)
    features = torch.randn(1, 16, 8, 8)
    parameters = SIRMF(16, [32, 32])(features)
    centres = pixel_centres(64, features)
    exact = query_grid(features, parameters, centres, centres, 0.5, 500)
    with torch.autocast("cpu", torch.bfloat16):
        near = query_grid(features, parameters, centres, centres, 0.5, 500)
    assert (exact - near).abs().max() < 0.1 and (exact - near).abs().max() > 0


@pytest.mark.parametrize("of_each", [False, True], ids=["shared", "of each window"])
@torch.no_grad()
def test_small_grids_are_parts_of_a_large_one(of_each):
    torch.manual_seed(0)
    features, maps = torch.randn(3, 12, 7, 9), torch.randn(3, 2, 28, 36)
    mapping = AIRMF(12, [8, 8], 4, [8], "", 2) if of_each else SIRMF(12, [8, 8], 2)
    rows, cols = torch.rand(20) * 2 - 1, torch.rand(15) * 2 - 1
    whole = query_grid(features, mapping(features), rows, cols, 0.5, maps=maps)[:, 0]
    windows = torch.tensor([2, 0, 2, 1, 0])
    y, x = torch.randint(20, (5, 4)), torch.randint(15, (5, 6))
    found = query_blocks(features, mapping(features), windows, rows[y], cols[x], 0.5, 50, maps)
    torch.testing.assert_close(found, whole[windows[:, None, None], y[:, :, None], x[:, None]])
