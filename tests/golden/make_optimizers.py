"""Writes optimizers.npz: parameters after steps of timm's LAMB and SGD. Needs torch and timm, reading does not:

    python tests/golden/make_optimizers.py

`parameters` and `gradients` draw what goes in, for the tests, too. Keys: `CASE/NAME`, the parameter after all steps;
for LAMB `CASE-reference/NAME`, after those of `lamb` below, in float64.
"""

from pathlib import Path

import numpy as np

STEPS, RATE = 20, 1e-2
SHAPES = {
    "cls_token": (1, 1, 7),
    "pos_embed": (1, 5, 7),
    "patch_embed.proj.kernel": (2, 3, 5, 7),
    "blocks.0.norm1.scale": (7,),
    "blocks.10.attn.qkv.kernel": (7, 21),
    "blocks.10.attn.qkv.bias": (21,),
    "blocks.10.mlp.fc1.kernel": (5, 3),  # begins as zeros, without a norm to go by
    "head.kernel": (7, 11),
}
ZEROS = "blocks.10.mlp.fc1.kernel"
DECAYED = [name for name in SHAPES if name.endswith("kernel")]
# epsilon, weight decay, size of the gradients: below the norm of 1 that LAMB clips to, around it and far above.
LAMB = {"lamb": (1e-6, 0.05, 0.1), "lamb-small": (1e-6, 0.02, 1e-3), "lamb-apex": (1e-8, 0.05, 30.0)}
LAMB |= {"lamb-no-decay": (1e-6, 0.0, 0.1)}
SGD = {"sgd": (0.9, 0.05), "sgd-no-decay": (0.7, 0.0)}  # momentum, weight decay


def parameters() -> dict[str, np.ndarray]:
    random = np.random.default_rng(0)
    drawn = {name: random.normal(size=shape).astype(np.float32) for name, shape in SHAPES.items()}
    return drawn | {ZEROS: np.zeros((5, 3), np.float32)}


def gradients(step: int, size: float) -> dict[str, np.ndarray]:
    random = np.random.default_rng([1, step])
    return {name: (size * random.normal(size=shape)).astype(np.float32) for name, shape in SHAPES.items()}


def lamb(epsilon: float, decay: float, size: float) -> dict[str, np.ndarray]:
    """Of a few lines, from the paper (arXiv:1904.00962, algorithm 2) and what timm adds."""
    params = {name: value.astype(np.float64) for name, value in parameters().items()}
    m, v = ({name: np.zeros(shape) for name, shape in SHAPES.items()} for _ in range(2))
    for t in range(1, STEPS + 1):
        grads = gradients(t, size)
        clip = max(1.0, np.sqrt(sum((g.astype(np.float64) ** 2).sum() for g in grads.values())))
        for name, p in params.items():
            g = grads[name] / clip
            m[name] = 0.9 * m[name] + 0.1 * g
            v[name] = 0.999 * v[name] + 0.001 * g**2
            u = m[name] / (1 - 0.9**t) / (np.sqrt(v[name] / (1 - 0.999**t)) + epsilon)
            if decay and name in DECAYED:
                u = u + decay * p
                norms = np.linalg.norm(p), np.linalg.norm(u)
                u = u * (norms[0] / norms[1] if all(norms) else 1)
            params[name] = p - RATE * u
    return params


def main() -> None:
    import timm.optim
    import torch

    def train(make, decay: float, size: float) -> dict[str, np.ndarray]:
        tensors = {name: torch.nn.Parameter(torch.tensor(value)) for name, value in parameters().items()}
        groups = [
            {
                "params": [tensors[name] for name in SHAPES if (name in DECAYED) == decays],
                "weight_decay": decay * decays,
            }
            for decays in (False, True)
        ]
        optimizer = make(groups)
        for step in range(1, STEPS + 1):
            for name, gradient in gradients(step, size).items():
                tensors[name].grad = torch.tensor(gradient)
            optimizer.step()
        return {name: tensor.detach().numpy() for name, tensor in tensors.items()}

    made = {}
    for case, (epsilon, decay, size) in LAMB.items():
        made[case] = train(lambda groups, eps=epsilon: timm.optim.Lamb(groups, lr=RATE, eps=eps), decay, size)
        made[f"{case}-reference"] = lamb(epsilon, decay, size)
    for case, (momentum, decay) in SGD.items():
        made[case] = train(
            lambda groups, m=momentum: timm.optim.create_optimizer_v2(
                groups, opt="sgd", lr=RATE, momentum=m, filter_bias_and_bn=False
            ),
            decay,
            0.1,
        )
    arrays = {f"{case}/{name}": value for case, params in made.items() for name, value in params.items()}
    np.savez_compressed(Path(__file__).with_name("optimizers.npz"), **arrays)


if __name__ == "__main__":
    main()
