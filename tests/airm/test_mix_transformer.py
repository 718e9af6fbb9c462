"""The Mix Transformer against its formulas written out, PyTorch's own attention, and published figures."""

import pytest
import torch
from torch.nn import functional as F

from airm.backbone.mix_transformer import Block, EfficientSelfAttention, MixTransformer

B0_DIMS = (32, 64, 160, 256)
B1_DIMS = (64, 128, 320, 512)


def build(dims=B0_DIMS, depths=(1, 1, 1, 2), strides=(4, 2, 2, 1), in_channels=4, drop_path=0.0):
    torch.manual_seed(0)
    return MixTransformer(in_channels, dims, depths, (1, 2, 5, 8), (8, 4, 2, 1), strides, drop_path).eval()


def randomize(module):
    """Move all parameters from their initial values, which hide mistakes: norms are one and biases zero."""
    torch.manual_seed(1)
    for parameter in module.parameters():
        parameter.data = parameter.data + 0.1 * torch.randn_like(parameter)
    return module.eval()


@pytest.mark.parametrize(
    ("strides", "expected"),
    [
        ((4, 2, 2, 1), [(4, 16, 24), (8, 8, 12), (16, 4, 6), (16, 4, 6)]),
        ((4, 2, 2, 2), [(4, 16, 24), (8, 8, 12), (16, 4, 6), (32, 2, 3)]),
    ],
)
def test_shapes_and_strides(strides, expected):
    model = build(strides=strides)
    with torch.no_grad():
        features = model(torch.randn(2, 4, 64, 96))
    assert list(features) == ["mit1", "mit2", "mit3", "mit4"]
    for (name, x), channels, (stride, h, w) in zip(features.items(), B0_DIMS, expected, strict=True):
        assert x.shape == (2, channels, h, w)
        assert model.output_shape()[name].stride == stride
        assert model.output_shape()[name].channels == channels


@pytest.mark.parametrize(("h", "w"), [(32, 32), (67, 45), (33, 130)])
def test_small_and_odd_inputs(h, w):
    model, x = randomize(build()), torch.randn(1, 4, h, w)
    with torch.no_grad():
        plain, (features, logits) = model(x), model.forward_with_attention(x)
    assert features["mit1"].shape[2:] == (-(-h // 4), -(-w // 4))
    assert features["mit4"].shape[2:] == (-(-h // 16), -(-w // 16))
    assert all(x.isfinite().all() for x in (*features.values(), logits))
    # Without attention maps the features are the same
    for name, value in plain.items():
        torch.testing.assert_close(features[name], value, rtol=1e-5, atol=1e-5)


def test_parameters_of_b1():
    # The published 13.7 M has a classifier of 512 x 1000 + 1000
    assert 13_151_424 + 513_000 == 13_664_424
    model = build(B1_DIMS, (2, 2, 2, 2), in_channels=3)
    assert sum(p.numel() for p in model.parameters()) == 13_151_424
    # Stage 1: embedding 64 x 3 x 49 + 64, its norm; two blocks of norms 2 x 128, q 4160, kv 8320, proj 4160,
    # sr 64 x 64 x 64 + 64 and its norm 128, fc1 16640, dwconv 256 x 9 + 256, fc2 16448; norm
    stage = 9472 + 128 + 2 * (256 + 4160 + 8320 + 4160 + 262208 + 128 + 16640 + 2560 + 16448) + 128
    parts = (model.patch_embed1, model.block1, model.norm1)
    assert sum(p.numel() for part in parts for p in part.parameters()) == stage


def test_one_image_alone_is_not_copied_to_another_memory_format():
    model, channel_strides = build(), []
    for module in model.modules():
        if isinstance(module, torch.nn.Conv2d):
            module.register_forward_hook(lambda _module, _inputs, y: channel_strides.append(y.stride(1)))
    with torch.no_grad():
        features = model(torch.randn(1, 4, 64, 96))
    # All but the first, whose input is no map of tokens: 3 embeddings, 5 depthwise, 3 between queries and keys
    assert channel_strides[1:] == [1] * 11
    assert all(x.stride(1) == 1 for x in features.values())


def test_attention_maps_of_b1():
    model = build(B1_DIMS, (2, 2, 2, 2))
    with torch.no_grad():
        _, logits = model.forward_with_attention(torch.randn(2, 4, 64, 96))
    assert model.attention_maps == 16  # 2 blocks of 8 heads
    assert logits.shape == (2, 16, 4 * 6, 4 * 6)
    assert logits.min() < 0  # not yet through a softmax


@pytest.mark.parametrize("sr_ratio", [1, 2])
@pytest.mark.parametrize("need_logits", [False, True])
def test_attention_is_that_of_pytorch(sr_ratio, need_logits):
    attention = randomize(EfficientSelfAttention(12, 3, sr_ratio))
    b, c, h, w = 2, 12, 4, 6
    x = torch.randn(b, h * w, c)
    keys = x
    if sr_ratio > 1:
        image = x.transpose(1, 2).reshape(b, c, h, w)
        keys = F.conv2d(image, attention.sr.weight, attention.sr.bias, stride=2).flatten(2).transpose(1, 2)
        keys = F.layer_norm(keys, (c,), attention.norm.weight, attention.norm.bias, 1e-5)
    theirs = torch.nn.MultiheadAttention(c, 3, batch_first=True).eval()
    theirs.in_proj_weight.data = torch.cat([attention.q.weight, attention.kv.weight])  # query, key, value
    theirs.in_proj_bias.data = torch.cat([attention.q.bias, attention.kv.bias])
    theirs.out_proj.load_state_dict(attention.proj.state_dict())
    with torch.no_grad():
        expected, weights = theirs(x, keys, keys, average_attn_weights=False)
        result, logits = attention(x, h, w, need_logits)
    torch.testing.assert_close(result, expected, rtol=1e-5, atol=1e-5)
    assert (logits is not None) == need_logits
    if need_logits:
        torch.testing.assert_close(logits.softmax(-1), weights, rtol=1e-5, atol=1e-5)


def test_block_written_out():
    block = randomize(Block(6, 2, 1, drop_path=0.3))
    h, w = 3, 4
    x = torch.randn(1, h * w, 6)

    def norm(y, module):
        mean, variance = y.mean(-1, keepdim=True), y.var(-1, keepdim=True, unbiased=False)
        return (y - mean) / (variance + 1e-6).sqrt() * module.weight + module.bias

    with torch.no_grad():
        y = x + block.attn(norm(x, block.norm1), h, w)[0]
        hidden = norm(y, block.norm2) @ block.mlp.fc1.weight.T + block.mlp.fc1.bias
        padded = torch.zeros(h + 2, w + 2, 24)
        padded[1:-1, 1:-1] = hidden.reshape(h, w, 24)
        kernel = block.mlp.dwconv.dwconv.weight[:, 0]  # (24, 3, 3)
        mixed = sum(padded[i : i + h, j : j + w] * kernel[:, i, j] for i in range(3) for j in range(3))
        mixed = mixed.reshape(1, h * w, 24) + block.mlp.dwconv.dwconv.bias
        activated = mixed * 0.5 * (1 + torch.erf(mixed / 2**0.5))
        expected = y + activated @ block.mlp.fc2.weight.T + block.mlp.fc2.bias
        result, _ = block(x, h, w)
    torch.testing.assert_close(result, expected, rtol=1e-5, atol=1e-5)


def test_stages_without_blocks_are_convolution_and_norms():
    model = randomize(build((8, 16, 24, 32), (0, 0, 0, 0), strides=(4, 2, 2, 2)))
    x = torch.randn(2, 4, 32, 64)

    def norm(y, module, eps):
        return F.layer_norm(y.permute(0, 2, 3, 1), y.shape[1:2], module.weight, module.bias, eps).permute(0, 3, 1, 2)

    with torch.no_grad():
        features = model(x)
        for i, (name, stride, padding) in enumerate(zip(features, (4, 2, 2, 2), (3, 1, 1, 1), strict=True), 1):
            embed = getattr(model, f"patch_embed{i}")
            x = F.conv2d(x, embed.proj.weight, embed.proj.bias, stride, padding)
            # PyTorch's usual epsilon in embeddings, a smaller one behind stages, as in the published model
            x = norm(norm(x, embed.norm, 1e-5), getattr(model, f"norm{i}"), 1e-6)
            torch.testing.assert_close(features[name], x, rtol=1e-5, atol=1e-5)


def test_branches_are_skipped_in_training_only_and_more_of_them_with_depth():
    block = randomize(Block(6, 2, 1, drop_path=1.0))
    x = torch.randn(3, 12, 6)
    with torch.no_grad():
        assert not torch.allclose(block(x, 3, 4)[0], x, atol=0.1)
        assert torch.equal(block.train()(x, 3, 4)[0], x)
    model = build(depths=(1, 1, 1, 2), drop_path=0.4)
    blocks = [model.block1[0], model.block2[0], model.block3[0], *model.block4]
    assert [block.drop_path.p for block in blocks] == pytest.approx([0, 0.1, 0.2, 0.3, 0.4])
