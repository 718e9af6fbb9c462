"""Names and shapes of published Mix Transformers, written out."""

import torch

B1 = ([64, 128, 320, 512], [2, 2, 2, 2])
TINY = ([8, 16, 24, 32], [1, 1, 1, 2])
SR_RATIOS = (8, 4, 2, 1)


def with_bias(name, *shape):
    return {f"{name}.weight": shape, f"{name}.bias": shape[:1]}


def published_shapes(dims, depths):
    """Names and shapes of a mit_b*.pth."""
    shapes = {}
    for i in range(4):
        c, s = dims[i], i + 1
        shapes |= with_bias(f"patch_embed{s}.proj", c, *((dims[i - 1], 3, 3) if i else (3, 7, 7)))
        shapes |= with_bias(f"patch_embed{s}.norm", c)
        for j in range(depths[i]):
            block = f"block{s}.{j}"
            shapes |= with_bias(f"{block}.norm1", c) | with_bias(f"{block}.norm2", c)
            shapes |= with_bias(f"{block}.attn.q", c, c) | with_bias(f"{block}.attn.kv", 2 * c, c)
            shapes |= with_bias(f"{block}.attn.proj", c, c)
            if SR_RATIOS[i] > 1:
                shapes |= with_bias(f"{block}.attn.sr", c, c, SR_RATIOS[i], SR_RATIOS[i])
                shapes |= with_bias(f"{block}.attn.norm", c)
            shapes |= with_bias(f"{block}.mlp.fc1", 4 * c, c) | with_bias(f"{block}.mlp.fc2", c, 4 * c)
            shapes |= with_bias(f"{block}.mlp.dwconv.dwconv", 4 * c, 1, 3, 3)
        shapes |= with_bias(f"norm{s}", c)
    return shapes | with_bias("head", 1000, dims[3])


def hugging_face_shapes(dims, depths, prefix="segformer.encoder."):
    """Names and shapes of a pytorch_model.bin of nvidia/mit-b*."""
    shapes = {}
    for i in range(4):
        c = dims[i]
        shapes |= with_bias(f"patch_embeddings.{i}.proj", c, *((dims[i - 1], 3, 3) if i else (3, 7, 7)))
        shapes |= with_bias(f"patch_embeddings.{i}.layer_norm", c)
        for j in range(depths[i]):
            block = f"block.{i}.{j}"
            shapes |= with_bias(f"{block}.layer_norm_1", c) | with_bias(f"{block}.layer_norm_2", c)
            for name in ("self.query", "self.key", "self.value", "output.dense"):
                shapes |= with_bias(f"{block}.attention.{name}", c, c)
            if SR_RATIOS[i] > 1:
                shapes |= with_bias(f"{block}.attention.self.sr", c, c, SR_RATIOS[i], SR_RATIOS[i])
                shapes |= with_bias(f"{block}.attention.self.layer_norm", c)
            shapes |= with_bias(f"{block}.mlp.dense1", 4 * c, c) | with_bias(f"{block}.mlp.dense2", c, 4 * c)
            shapes |= with_bias(f"{block}.mlp.dwconv.dwconv", 4 * c, 1, 3, 3)
        shapes |= with_bias(f"layer_norm.{i}", c)
    return {prefix + name: shape for name, shape in shapes.items()} | with_bias("classifier", 1000, dims[3])


def random_state(shapes):
    generator = torch.Generator().manual_seed(0)
    return {name: 0.1 * torch.randn(shape, generator=generator) for name, shape in shapes.items()}
