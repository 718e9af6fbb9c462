import torch

from airm.implicit_mapping import AIRMF, SIRMF

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
