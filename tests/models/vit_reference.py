"""A second Vision Transformer, in float64 NumPy and with loops, that the real one is measured against."""

import math
from collections.abc import Mapping

import numpy as np

Params = Mapping[str, np.ndarray]


def random_params(shapes: Mapping[str, object], seed: int = 0) -> dict[str, np.ndarray]:
    """Values of which none is special: biases are not 0, scales not 1, attention not uniform."""
    generator = np.random.default_rng(seed)
    return {
        name: (name.endswith("scale") + generator.normal(0, 0.3, shape.shape)).astype(np.float32)
        for name, shape in shapes.items()
    }


def head_logits(
    params: Params, images: np.ndarray, *, heads: int, pool: str = "token", prefix: int = 1, eps: float = 1e-6
) -> list[np.ndarray]:
    """The logits of each head, or the pooled features where there is no head.

    `prefix` tokens are read by the heads of `pool="token"`, and left out of the mean of "avg", which is normalised, or
    where there is no `fc_norm`, of what is.
    """
    p, x, _ = encode(params, images, heads=heads, eps=eps)
    if pool == "avg" and "fc_norm.scale" not in p:
        pooled = [norm(p, "norm", x[:, prefix:], eps).mean(axis=1)]
    elif pool == "avg":
        pooled = [norm(p, "fc_norm", x[:, prefix:].mean(axis=1), eps)]
    else:
        pooled = [norm(p, "norm", x[:, i], eps) for i in range(prefix)]
    if "pre_logits.fc.kernel" in p:
        pooled = [np.tanh(dense(p, "pre_logits.fc", f)) for f in pooled]
    names = ("head", "head_dist")[: len(pooled)]
    return [dense(p, name, f) if f"{name}.kernel" in p else f for name, f in zip(names, pooled, strict=True)]


def encode(
    params: Params, images: np.ndarray, *, heads: int, eps: float = 1e-6
) -> tuple[Params, np.ndarray, np.ndarray]:
    """The parameters in float64, the tokens after the last block, and the attention weights of every block."""
    p = {name: np.asarray(value, np.float64) for name, value in params.items()}
    x = np.stack([embed(p, image) for image in np.asarray(images, np.float64)])
    depth = 1 + max(int(name.split(".")[1]) for name in p if name.startswith("blocks."))
    maps = []
    for i in range(depth):
        mixed, weights = attention(p, f"blocks.{i}.attn", norm(p, f"blocks.{i}.norm1", x, eps), heads)
        maps.append(weights)
        x = x + gamma(p, f"blocks.{i}.ls1") * mixed
        hidden = gelu(dense(p, f"blocks.{i}.mlp.fc1", norm(p, f"blocks.{i}.norm2", x, eps)))
        x = x + gamma(p, f"blocks.{i}.ls2") * dense(p, f"blocks.{i}.mlp.fc2", hidden)
    return p, x, np.stack(maps)


def embed(p: Params, image: np.ndarray) -> np.ndarray:
    kernel, bias = p["patch_embed.proj.kernel"], p["patch_embed.proj.bias"]
    size = kernel.shape[0]
    tokens = [p[name][0, 0] for name in ("cls_token", "dist_token") if name in p]
    for top in range(0, image.shape[0], size):
        for left in range(0, image.shape[1], size):
            patch = image[top : top + size, left : left + size]
            tokens.append(np.tensordot(patch, kernel, axes=3) + bias)
    rows, columns = image.shape[0] // size, image.shape[1] // size
    positions = p["pos_embed"][0] if "pos_embed" in p else sincos(rows, columns, len(bias))
    without = len(tokens) - len(positions)  # DeiT-III: the tokens before the patches have no position
    return np.stack(tokens) + np.concatenate([np.zeros((without, len(bias))), positions])


def sincos(rows: int, columns: int, width: int) -> np.ndarray:
    """arXiv:2205.01580's fixed positions, a number at a time."""
    table = np.zeros((rows * columns, width))
    for patch, channel in np.ndindex(*table.shape):
        part, index = divmod(channel, width // 4)
        place = [patch % columns, patch % columns, patch // columns, patch // columns][part]
        angle = place / 10_000 ** (index / (width // 4 - 1))
        table[patch, channel] = [math.sin, math.cos][part % 2](angle)
    return table


def attention(p: Params, name: str, x: np.ndarray, heads: int) -> tuple[np.ndarray, np.ndarray]:
    """The output `[batch, tokens, width]` and the weights `[batch, heads, tokens, tokens]`."""
    dim = x.shape[-1] // heads
    qkv = dense(p, f"{name}.qkv", x)
    outputs, weights = [], []
    for head in range(heads):
        q, k, v = (qkv[..., (part * heads + head) * dim :][..., :dim] for part in range(3))
        scores = np.exp(q @ k.swapaxes(1, 2) / math.sqrt(dim))
        weights.append(scores / scores.sum(axis=-1, keepdims=True))
        outputs.append(weights[-1] @ v)
    return dense(p, f"{name}.proj", np.concatenate(outputs, axis=-1)), np.stack(weights, axis=1)


def gamma(p: Params, name: str) -> np.ndarray:
    """The factors of a branch, 1 where the model has none."""
    return p[f"{name}.gamma"] if f"{name}.gamma" in p else np.ones(1)


def dense(p: Params, name: str, x: np.ndarray) -> np.ndarray:
    return x @ p[f"{name}.kernel"] + p[f"{name}.bias"]


def norm(p: Params, name: str, x: np.ndarray, eps: float) -> np.ndarray:
    centred = x - x.mean(axis=-1, keepdims=True)
    return centred / np.sqrt((centred**2).mean(axis=-1, keepdims=True) + eps) * p[f"{name}.scale"] + p[f"{name}.bias"]


def gelu(x: np.ndarray) -> np.ndarray:
    return x * 0.5 * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))
