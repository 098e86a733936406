"""Training speed on CPU beside an equal torch model, in one process, in alternating blocks.

    python benchmarks/cpu_against_torch.py

Both sides run the core of a training step (forward, backward, AdamW, drop path 0.1) of DeiT-Ti distilled in float32 on
all cores. The torch side is what its users run: eager mode, `scaled_dot_product_attention` (faster here than matrix
products and a softmax), fused AdamW. Ours leaves out what no head reads, the patch tokens after the last block's
attention: about 7 % of the work. The weights are copied from JAX first and the losses of two steps compared, so that
both are known to compute the same thing. The last line of stdout is one JSON object. Run it on an idle machine: torch's
threads wait for each other at every operation, so that other programs slow it more.
"""

import argparse
import json
import os
import shlex
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import torch
from flax import nnx
from torch import Tensor
from torch.nn import functional as F

from deit_jax.models import abstract_model, bind, create_model, flatten

MODEL = "deit_tiny_distilled_patch16_224"
WIDTH, DEPTH, HEADS, PATCH, CLASSES = 192, 12, 3, 16, 1000
RATE, WEIGHT_DECAY = 5e-4, 0.05

Params = dict[str, jax.Array]
Step = Callable[[], float]


class TorchAttention(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.qkv = torch.nn.Linear(WIDTH, 3 * WIDTH)
        self.proj = torch.nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, _ = x.shape
        q, k, v = self.qkv(x).reshape(batch, tokens, 3, HEADS, -1).permute(2, 0, 3, 1, 4)
        return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(x.shape))


class TorchBlock(torch.nn.Module):
    def __init__(self, drop_path: float) -> None:
        super().__init__()
        self.norm1 = torch.nn.LayerNorm(WIDTH, eps=1e-6)
        self.attn = TorchAttention()
        self.norm2 = torch.nn.LayerNorm(WIDTH, eps=1e-6)
        self.mlp = torch.nn.ModuleDict(
            {"fc1": torch.nn.Linear(WIDTH, 4 * WIDTH), "fc2": torch.nn.Linear(4 * WIDTH, WIDTH)}
        )
        self.drop_path = drop_path

    def drop(self, x: Tensor) -> Tensor:
        if self.drop_path == 0 or not self.training:
            return x
        keep = 1 - self.drop_path
        return x * x.new_empty(len(x), 1, 1).bernoulli_(keep).div_(keep)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.drop(self.attn(self.norm1(x)))
        return x + self.drop(self.mlp["fc2"](F.gelu(self.mlp["fc1"](self.norm2(x)))))


class TorchDeiT(torch.nn.Module):
    def __init__(self, drop_path: float) -> None:
        super().__init__()
        self.patch_embed = torch.nn.ModuleDict({"proj": torch.nn.Conv2d(3, WIDTH, PATCH, PATCH)})
        self.cls_token = torch.nn.Parameter(torch.zeros(1, 1, WIDTH))
        self.dist_token = torch.nn.Parameter(torch.zeros(1, 1, WIDTH))
        self.pos_embed = torch.nn.Parameter(torch.zeros(1, 2 + (224 // PATCH) ** 2, WIDTH))
        self.blocks = torch.nn.ModuleList(TorchBlock(float(rate)) for rate in np.linspace(0, drop_path, DEPTH))
        self.norm = torch.nn.LayerNorm(WIDTH, eps=1e-6)
        self.head = torch.nn.Linear(WIDTH, CLASSES)
        self.head_dist = torch.nn.Linear(WIDTH, CLASSES)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        patches = self.patch_embed["proj"](images).flatten(2).transpose(1, 2)
        tokens = [token.expand(len(images), -1, -1) for token in (self.cls_token, self.dist_token)]
        x = torch.cat([*tokens, patches], dim=1) + self.pos_embed
        for block in self.blocks:
            x = block(x)
        x = self.norm(x)
        return self.head(x[:, 0]), self.head_dist(x[:, 1])


def torch_step(params: Params, images: np.ndarray, labels: np.ndarray, drop_path: float) -> Step:
    """`() -> loss` that trains a torch model from these weights."""
    model = TorchDeiT(drop_path)
    model.load_state_dict({torch_name(name): torch_value(value) for name, value in params.items()})
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=WEIGHT_DECAY, fused=True)
    x, y = torch.from_numpy(images).permute(0, 3, 1, 2).contiguous(), torch.from_numpy(labels)

    def step() -> float:
        optimizer.zero_grad()
        cls_logits, dist_logits = model(x)
        loss = (F.cross_entropy(cls_logits, y) + F.cross_entropy(dist_logits, y)) / 2
        loss.backward()
        optimizer.step()
        return loss.item()

    return step


def jax_step(params: Params, images: np.ndarray, labels: np.ndarray, drop_path: float, options: dict) -> Step:
    """`() -> loss` that trains our model from these weights."""
    abstract = abstract_model(MODEL, num_classes=CLASSES, drop_path=drop_path, **options)
    optimizer = optax.adamw(RATE, weight_decay=WEIGHT_DECAY)
    x, y = jnp.asarray(images), jnp.asarray(labels)

    def loss_of(params, x, y, key):
        logits = bind(abstract, params).head_logits(x, key=key)
        losses = [optax.softmax_cross_entropy_with_integer_labels(one, y).mean() for one in logits]
        return sum(losses) / 2

    def update(state, x, y, key):
        params, moments = state
        loss, grads = jax.value_and_grad(loss_of)(params, x, y, key)
        updates, moments = optimizer.update(grads, moments, params)
        return (optax.apply_updates(params, updates), moments), loss

    state = jax.tree.map(jnp.copy, (params, optimizer.init(params)))
    train = jax.jit(update, donate_argnums=0)
    count = 0

    def step() -> float:
        nonlocal state, count
        count += 1
        state, loss = train(state, x, y, jax.random.key(count) if drop_path else None)
        return float(loss)

    return step


def torch_name(name: str) -> str:
    return name.replace(".kernel", ".weight").replace(".scale", ".weight")


def torch_value(value: jax.Array) -> Tensor:
    order = {1: (0,), 2: (1, 0), 3: (0, 1, 2), 4: (3, 2, 0, 1)}[value.ndim]
    return torch.from_numpy(np.array(value)).permute(order).contiguous()


def check_equal(params: Params, images: np.ndarray, labels: np.ndarray, options: dict) -> dict[str, float]:
    """Losses of two steps without drop path on both sides; the second loss stands on the first step's update."""
    ours = jax_step(params, images, labels, 0.0, options)
    theirs = torch_step(params, images, labels, 0.0)
    losses = {f"loss_difference_step_{i}": abs(ours() - theirs()) for i in (1, 2)}
    if max(losses.values()) > 1e-4:
        raise SystemExit(f"the two models differ: {losses}")
    return losses


def seconds(step: Step, steps: int) -> float:
    start = time.perf_counter()
    for _ in range(steps):
        step()
    return (time.perf_counter() - start) / steps


def measure(steps: dict[str, Step], blocks: int, steps_per_block: int) -> dict[str, list[float]]:
    """Seconds per step of each block, the sides taking turns."""
    for step in steps.values():
        seconds(step, 2)
    times: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(blocks):
        for name, step in steps.items():
            times[name].append(seconds(step, steps_per_block))
            print(f"{name:9s} {times[name][-1]:.3f} s/step", file=sys.stderr)
    return times


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--blocks", type=int, default=9, help="measured blocks on each side")
    parser.add_argument("--steps", type=int, default=2, help="steps in a block")
    parser.add_argument("--model_options", default="{}", help="JSON of our model's overrides")
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/cpu_against_torch.json"))
    args = parser.parse_args()
    load = os.getloadavg()[0]

    rng = np.random.default_rng(0)
    images = rng.normal(size=(args.batch_size, 224, 224, 3)).astype(np.float32)
    labels = rng.integers(0, CLASSES, args.batch_size)
    params = jax.jit(lambda key: flatten(create_model(MODEL, rngs=nnx.Rngs(key), num_classes=CLASSES)))(
        jax.random.key(0)
    )
    options = json.loads(args.model_options)
    checks = check_equal(params, images, labels, options)

    steps = {
        "deit_jax": jax_step(params, images, labels, 0.1, options),
        "torch": torch_step(params, images, labels, 0.1),
    }
    times = measure(steps, args.blocks, args.steps)
    median = {name: statistics.median(values) for name, values in times.items()}
    fastest = {name: min(values) for name, values in times.items()}
    result = {
        "command": shlex.join(["python", *sys.argv]),
        "model": MODEL,
        "batch_size": args.batch_size,
        "cores": torch.get_num_threads(),
        "load_average": round(load, 2),
        "jax": jax.__version__,
        "torch": torch.__version__,
        **checks,
        "images_per_second": {name: round(args.batch_size / value, 2) for name, value in median.items()},
        "seconds_per_step": {name: [round(value, 4) for value in values] for name, values in times.items()},
        "speed_ratio": round(median["torch"] / median["deit_jax"], 3),
        "speed_ratio_of_fastest_blocks": round(fastest["torch"] / fastest["deit_jax"], 3),
    }
    args.output.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
