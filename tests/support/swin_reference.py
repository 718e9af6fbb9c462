"""What the tests of the Swin backbone hold it against: published names and shapes, and its arithmetic spelled out."""

import torch
from torch import Tensor
from torch.nn import functional as F

TINY = {"embed_dim": 8, "depths": (2, 2, 2, 2), "num_heads": (1, 2, 4, 8), "window_size": 3}
SWIN_B = {"embed_dim": 128, "depths": (2, 2, 18, 2), "num_heads": (4, 8, 16, 32), "window_size": 7}


def published_shapes(
    embed_dim: int, depths: tuple[int, ...], num_heads: tuple[int, ...], window_size: int, classes: int = 21841
) -> dict[str, tuple[int, ...]]:
    """Every name and shape of a published classifier's file, buffers and head included, for images of 32 windows."""
    tokens, table = window_size**2, (2 * window_size - 1) ** 2
    side = 8 * window_size  # of the first stage's tokens
    shapes: dict[str, tuple[int, ...]] = {
        "patch_embed.proj.weight": (embed_dim, 3, 4, 4),
        "patch_embed.proj.bias": (embed_dim,),
        "patch_embed.norm.weight": (embed_dim,),
        "patch_embed.norm.bias": (embed_dim,),
    }
    for i, (depth, heads) in enumerate(zip(depths, num_heads, strict=True)):
        dim = embed_dim * 2**i
        for j in range(depth):
            block = f"layers.{i}.blocks.{j}."
            if j % 2 and side // 2**i > window_size:
                shapes[block + "attn_mask"] = ((side // 2**i // window_size) ** 2, tokens, tokens)
            for name, shape in {
                "norm1.weight": (dim,),
                "norm1.bias": (dim,),
                "attn.relative_position_bias_table": (table, heads),
                "attn.relative_position_index": (tokens, tokens),
                "attn.qkv.weight": (3 * dim, dim),
                "attn.qkv.bias": (3 * dim,),
                "attn.proj.weight": (dim, dim),
                "attn.proj.bias": (dim,),
                "norm2.weight": (dim,),
                "norm2.bias": (dim,),
                "mlp.fc1.weight": (4 * dim, dim),
                "mlp.fc1.bias": (4 * dim,),
                "mlp.fc2.weight": (dim, 4 * dim),
                "mlp.fc2.bias": (dim,),
            }.items():
                shapes[block + name] = shape
        if i < 3:
            shapes[f"layers.{i}.downsample.reduction.weight"] = (2 * dim, 4 * dim)
            shapes[f"layers.{i}.downsample.norm.weight"] = (4 * dim,)
            shapes[f"layers.{i}.downsample.norm.bias"] = (4 * dim,)
    top = embed_dim * 8
    return {
        **shapes,
        "norm.weight": (top,),
        "norm.bias": (top,),
        "head.weight": (classes, top),
        "head.bias": (classes,),
    }


def position_index(window: int) -> Tensor:
    """(M * M, M * M) row of the table for each query and key, one by one."""
    index = torch.empty(window**2, window**2, dtype=torch.long)
    for query in range(window**2):
        for key in range(window**2):
            dy, dx = query // window - key // window, query % window - key % window
            index[query, key] = (dy + window - 1) * (2 * window - 1) + dx + window - 1
    return index


def random_state(shapes: dict[str, tuple[int, ...]], seed: int = 0) -> dict[str, Tensor]:
    """Random tensors, large enough for attention to be far from uniform; the index as published."""
    generator = torch.Generator().manual_seed(seed)
    state = {name: 0.1 * torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    for name in state:
        if name.endswith("relative_position_bias_table"):
            state[name] *= 20
        elif name.endswith("relative_position_index"):
            state[name] = position_index(round(len(state[name]) ** 0.5))
    return state


def _norm(state: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], state[f"{name}.weight"], state[f"{name}.bias"], 1e-5)


def _linear(state: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    return F.linear(x, state[f"{name}.weight"], state.get(f"{name}.bias"))


def _attention(state: dict[str, Tensor], name: str, x: Tensor, heads: int, window: int, shift: int) -> Tensor:
    """Shifted-window attention of (H, W, C) tokens, H and W multiples of the window, one window and head at a time."""
    height, width, channels = x.shape
    per_head = channels // heads
    # Tokens that the shift brings together from opposite sides of the map do not see each other
    rolled = torch.roll(x, (-shift, -shift), (0, 1))
    wrapped_y = (torch.arange(height) + shift >= height)[:, None].expand(height, width)
    wrapped_x = (torch.arange(width) + shift >= width)[None].expand(height, width)
    table, index = state[f"{name}.relative_position_bias_table"], position_index(window)
    result = torch.empty_like(x)
    for top in range(0, height, window):
        for left in range(0, width, window):
            part = (slice(top, top + window), slice(left, left + window))
            tokens = rolled[part].reshape(window**2, channels)
            sides = torch.stack([wrapped_y[part].flatten(), wrapped_x[part].flatten()], 1)
            apart = (sides[:, None] != sides[None]).any(2)
            query, key, value = _linear(state, f"{name}.qkv", tokens).split(channels, 1)
            outputs = []
            for head in range(heads):
                own = slice(head * per_head, (head + 1) * per_head)
                scores = query[:, own] @ key[:, own].T / per_head**0.5 + table[index, head]
                outputs.append(scores.masked_fill(apart, -torch.inf).softmax(1) @ value[:, own])
            merged = _linear(state, f"{name}.proj", torch.cat(outputs, 1))
            result[part] = merged.reshape(window, window, channels)
    return torch.roll(result, (shift, shift), (0, 1))


def stages(
    state: dict[str, Tensor], image: Tensor, depths: tuple[int, ...], num_heads: tuple[int, ...], window_size: int
) -> list[Tensor]:
    """(H, W, C) tokens after each stage, before the norms of the outputs, of a (3, H, W) image.

    Sides of all stages are to be multiples of the window and more than one, or one window.
    """
    x = F.conv2d(image[None], state["patch_embed.proj.weight"], state["patch_embed.proj.bias"], stride=4)[0]
    x = _norm(state, "patch_embed.norm", x.permute(1, 2, 0))
    outputs = []
    for i, depth in enumerate(depths):
        for j in range(depth):
            block = f"layers.{i}.blocks.{j}"
            shift = window_size // 2 if j % 2 and min(x.shape[:2]) > window_size else 0
            x = x + _attention(
                state, f"{block}.attn", _norm(state, f"{block}.norm1", x), num_heads[i], window_size, shift
            )
            hidden = F.gelu(_linear(state, f"{block}.mlp.fc1", _norm(state, f"{block}.norm2", x)))
            x = x + _linear(state, f"{block}.mlp.fc2", hidden)
        outputs.append(x)
        if i < len(depths) - 1:
            corners = [x[0::2, 0::2], x[1::2, 0::2], x[0::2, 1::2], x[1::2, 1::2]]
            merged = _norm(state, f"layers.{i}.downsample.norm", torch.cat(corners, 2))
            x = _linear(state, f"layers.{i}.downsample.reduction", merged)
    return outputs
