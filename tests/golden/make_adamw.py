"""Writes adamw.npz: what torch.optim.AdamW makes of parameters and gradients drawn here. Needs torch, reading does not:

    python tests/golden/make_adamw.py

Keys: `rates` [steps]; `hyper/CASE`, b1, b2, epsilon and weight decay; `decays/NAME`, whether timm would decay the
parameter; `params/NAME`, `grads/STEP/NAME`; `after/CASE/STEP/NAME`, the parameter after one step and after all.
"""

from pathlib import Path

import numpy as np
import torch

# timm's name, this package's name, shape
PARAMETERS = [
    ("cls_token", "cls_token", (1, 1, 7)),
    ("dist_token", "dist_token", (1, 1, 7)),
    ("pos_embed", "pos_embed", (1, 5, 7)),
    ("patch_embed.proj.weight", "patch_embed.proj.kernel", (2, 3, 5, 7)),
    ("patch_embed.proj.bias", "patch_embed.proj.bias", (7,)),
    ("blocks.0.norm1.weight", "blocks.0.norm1.scale", (7,)),
    ("blocks.0.norm1.bias", "blocks.0.norm1.bias", (7,)),
    ("blocks.10.attn.qkv.weight", "blocks.10.attn.qkv.kernel", (7, 21)),
    ("blocks.10.attn.qkv.bias", "blocks.10.attn.qkv.bias", (21,)),
    ("head.weight", "head.kernel", (7, 11)),
    ("head.bias", "head.bias", (11,)),
    ("head_dist.weight", "head_dist.kernel", (7, 1)),
]
CASES = {
    "no_decay": (0.9, 0.999, 1e-8, 0.0),
    "decay": (0.9, 0.999, 1e-8, 0.05),
    "large_epsilon": (0.8, 0.95, 1e-2, 0.3),
}
RATES = (1e-2, 2e-2, 5e-3)
SKIP = {"pos_embed", "cls_token", "dist_token"}  # timm's VisionTransformer.no_weight_decay()


def decays(name: str, shape: tuple[int, ...]) -> bool:
    """The rule of timm.optim.optim_factory.add_weight_decay, by which facebook's main.py groups parameters."""
    return not (len(shape) == 1 or name.endswith(".bias") or name in SKIP)


def gradient(random: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Entries from 1e-9, where epsilon counts, to 10; a tenth of them exactly 0."""
    values = random.normal(size=shape) * 10 ** random.uniform(-9, 1, shape)
    return np.where(random.random(shape) < 0.1, 0, values).astype(np.float32)


def main() -> None:
    random = np.random.default_rng(0)
    params = {ours: random.normal(size=shape).astype(np.float32) for _, ours, shape in PARAMETERS}
    grads = [{ours: gradient(random, shape) for _, ours, shape in PARAMETERS} for _ in RATES]
    arrays: dict[str, np.ndarray] = {"rates": np.array(RATES)}
    arrays |= {f"decays/{ours}": np.array(decays(timm, shape)) for timm, ours, shape in PARAMETERS}
    arrays |= {f"params/{ours}": value for ours, value in params.items()}
    arrays |= {f"grads/{t}/{ours}": value for t, step in enumerate(grads, 1) for ours, value in step.items()}
    for case, (b1, b2, epsilon, weight_decay) in CASES.items():
        arrays[f"hyper/{case}"] = np.array([b1, b2, epsilon, weight_decay])
        tensors = {ours: torch.nn.Parameter(torch.tensor(value)) for ours, value in params.items()}
        groups = [
            {
                "params": [tensors[ours] for timm, ours, shape in PARAMETERS if decays(timm, shape) == decay],
                "weight_decay": weight_decay * decay,
            }
            for decay in (False, True)
        ]
        optimizer = torch.optim.AdamW(groups, betas=(b1, b2), eps=epsilon)
        for t, (rate, step) in enumerate(zip(RATES, grads, strict=True), 1):
            for group in optimizer.param_groups:
                group["lr"] = rate
            for ours, tensor in tensors.items():
                tensor.grad = torch.tensor(step[ours])
            optimizer.step()
            if t in (1, len(RATES)):
                after = {ours: tensor.detach().numpy().copy() for ours, tensor in tensors.items()}
                arrays |= {f"after/{case}/{t}/{ours}": value for ours, value in after.items()}
    np.savez_compressed(Path(__file__).with_name("adamw.npz"), **arrays)


if __name__ == "__main__":
    main()
