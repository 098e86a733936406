"""Writes trajectories.npz: small DeiTs trained by torch and timm. Needs these, reading does not:

    OMP_NUM_THREADS=2 python tests/golden/make_trajectories.py

Weights and batches are drawn by `weights` and `batch`, for the tests, too; drop path is off. Keys: `CASE/losses`
[steps], before each update; `CASE/ema/NAME`, what `excerpt` takes of the moving average after all, by this package's
names and layouts.
"""

from pathlib import Path

import numpy as np

STEPS, WARMUP, BATCH, GROUP, SIZE, PATCH, CLASSES = 100, 10, 16, 8, 16, 4, 10
WIDTH, DEPTH, HEADS = 24, 2, 3
PEAK, START, FLOOR, EMA = {"deit": 2e-3, "deit3": 5e-3, "distilled": 2e-3}, 1e-6, 1e-5, 0.97
MEAN, STD, SMOOTHING = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), {"deit": 0.1, "deit3": 0.0, "distilled": 0.1}
DECAY = 0.05
TOKENS = {"deit": ("cls_token",), "deit3": ("cls_token",), "distilled": ("cls_token", "dist_token")}


def shapes(case: str) -> dict[str, tuple[int, ...]]:
    """Of the parameters, by this package's names."""
    places = (SIZE // PATCH) ** 2 + (0 if case == "deit3" else len(TOKENS[case]))
    found = dict.fromkeys(TOKENS[case], (1, 1, WIDTH)) | {"pos_embed": (1, places, WIDTH)}

    def dense(name: str, rows: tuple[int, ...], columns: int) -> None:
        found[f"{name}.kernel"], found[f"{name}.bias"] = (*rows, columns), (columns,)

    def norm(name: str) -> None:
        found[f"{name}.scale"], found[f"{name}.bias"] = (WIDTH,), (WIDTH,)

    dense("patch_embed.proj", (PATCH, PATCH, 3), WIDTH)
    for i in range(DEPTH):
        norm(f"blocks.{i}.norm1")
        norm(f"blocks.{i}.norm2")
        dense(f"blocks.{i}.attn.qkv", (WIDTH,), 3 * WIDTH)
        dense(f"blocks.{i}.attn.proj", (WIDTH,), WIDTH)
        dense(f"blocks.{i}.mlp.fc1", (WIDTH,), 4 * WIDTH)
        dense(f"blocks.{i}.mlp.fc2", (4 * WIDTH,), WIDTH)
        if case == "deit3":
            found |= {f"blocks.{i}.ls{j}.gamma": (WIDTH,) for j in (1, 2)}
    norm("norm")
    for head in ("head", "head_dist")[: len(TOKENS[case])]:
        dense(head, (WIDTH,), CLASSES)
    return found


def weights(case: str) -> dict[str, np.ndarray]:
    random = np.random.default_rng(0)
    about = {"scale": 1.0, "gamma": 0.3}
    return {
        name: (random.normal(0, 0.1, shape) + about.get(name.rpartition(".")[2], 0)).astype(np.float32)
        for name, shape in sorted(shapes(case).items())
    }


def batch(step: int) -> dict:
    """A batch of the training stream: classes of one pattern each, groups mixed, some images erased."""
    random = np.random.default_rng([1, step])
    patterns = np.random.default_rng(2).integers(256, size=(CLASSES, SIZE, SIZE, 3))
    labels = random.integers(CLASSES, size=BATCH)
    noise = random.integers(256, size=(BATCH, SIZE, SIZE, 3))
    groups = BATCH // GROUP
    weight = random.beta(0.8, 0.8, groups)
    box = np.zeros((groups, 4), np.int64)
    if step % 2:  # cutmix
        y, x = random.integers(0, 8, (2, groups))
        box = np.stack([y, y + 7, x, x + 8], axis=1)
        weight = np.full(groups, 1 - 7 * 8 / SIZE**2)
    corner = random.integers(0, 10, (BATCH, 1, 2))
    erased = np.stack([corner[..., 0], corner[..., 0] + 6, corner[..., 1], corner[..., 1] + 5], axis=-1)
    erased *= random.random((BATCH, 1, 1)) < 0.5
    return {
        "image": ((patterns[labels] + noise) // 2).astype(np.uint8),
        "label": labels.astype(np.int32),
        "mix": {
            "image_weight": (weight if not step % 2 else np.ones(groups)).astype(np.float32),
            "box": box.astype(np.int32),
            "label_weight": weight.astype(np.float32),
        },
        "erasing": {
            "box": erased.astype(np.int32),
            "fill": random.normal(size=(BATCH, 1, 3)).astype(np.float32),
        },
        "teacher": {"labels": np.where(random.random(BATCH) < 0.8, labels, (labels + 1) % CLASSES).astype(np.int32)},
    }


def shown(given: dict, smoothing: float) -> tuple[np.ndarray, np.ndarray]:
    """What the student sees and learns of a batch: normalised, erased, mixed, row by row."""
    images = (given["image"].astype(np.float32) / 255 - np.float32(MEAN)) / np.float32(STD)
    for image, (box,), (fill,) in zip(images, given["erasing"]["box"], given["erasing"]["fill"], strict=True):
        image[box[0] : box[1], box[2] : box[3]] = fill
    labels = np.eye(CLASSES)[given["label"]] * (1 - smoothing) + smoothing / CLASSES
    mixed, targets = images.copy(), labels.copy()
    for row in range(BATCH):
        group, other = row // GROUP, row // GROUP * GROUP + GROUP - 1 - row % GROUP
        mix = {name: value[group] for name, value in given["mix"].items()}
        y0, y1, x0, x1 = mix["box"]
        mixed[row] = mix["image_weight"] * images[row] + (1 - mix["image_weight"]) * images[other]
        mixed[row, y0:y1, x0:x1] = images[other, y0:y1, x0:x1]
        targets[row] = mix["label_weight"] * labels[row] + (1 - mix["label_weight"]) * labels[other]
    return mixed, targets.astype(np.float32)


def excerpt(name: str, value: np.ndarray) -> np.ndarray:
    """Of a tensor its norm, its mean, and numbers from all over it; not the bias of the keys, which changes nothing.

    Its gradient is 0 but for rounding, of which Adam makes steps.
    """
    if name.endswith("qkv.bias"):
        value = np.delete(value, np.s_[WIDTH : 2 * WIDTH])
    flat = value.ravel()
    places = np.linspace(0, flat.size - 1, min(flat.size, 9)).astype(int)
    root = np.sqrt(np.mean(flat.astype(np.float64) ** 2))
    return np.array([root, flat.mean(dtype=np.float64), *flat[places]])


def main() -> None:
    import timm.models.vision_transformer as vit
    import torch
    from timm.loss import BinaryCrossEntropy, SoftTargetCrossEntropy
    from timm.models.deit import VisionTransformerDistilled
    from timm.optim import Lamb
    from timm.scheduler import CosineLRScheduler
    from timm.utils import ModelEmaV2

    shape = {"img_size": SIZE, "patch_size": PATCH, "embed_dim": WIDTH, "depth": DEPTH, "num_heads": HEADS}
    shape |= {"num_classes": CLASSES}

    def network(case: str) -> torch.nn.Module:
        if case == "distilled":
            model = VisionTransformerDistilled(**shape)
            model.set_distilled_training(True)
            return model
        return vit.VisionTransformer(
            **shape, **({"no_embed_class": True, "init_values": 1.0} if case == "deit3" else {})
        )

    def theirs(name: str) -> str:
        return name.replace(".kernel", ".weight").replace(".scale", ".weight")

    def turned(value: np.ndarray, name: str, back: bool = False) -> np.ndarray:
        if not name.endswith("kernel"):
            return value
        if value.ndim == 4:
            return value.transpose((2, 3, 1, 0) if back else (3, 2, 0, 1))
        return value.T

    def train(case: str) -> dict[str, np.ndarray]:
        model = network(case)
        given = {theirs(name): torch.tensor(turned(value, name).copy()) for name, value in weights(case).items()}
        model.load_state_dict(given, strict=True)
        skip, named = model.no_weight_decay(), dict(model.named_parameters())
        free = [name for name, p in named.items() if p.ndim == 1 or name.endswith(".bias") or name in skip]
        groups = [
            {"params": [named[name] for name in free], "weight_decay": 0.0},
            {"params": [p for name, p in named.items() if name not in free], "weight_decay": DECAY},
        ]
        make = Lamb if case == "deit3" else torch.optim.AdamW
        optimizer = make(groups, lr=PEAK[case], eps=1e-8)
        schedule = CosineLRScheduler(
            optimizer, STEPS, lr_min=FLOOR, warmup_t=WARMUP, warmup_lr_init=START, t_in_epochs=False
        )
        ema, losses = ModelEmaV2(model, EMA), []
        for step in range(STEPS):
            schedule.step_update(step)
            now = batch(step)
            images, targets = (torch.tensor(x) for x in shown(now, SMOOTHING[case]))
            said = model(images.permute(0, 3, 1, 2))
            if case == "distilled":
                labels = torch.tensor(now["teacher"]["labels"]).long()
                hard = torch.nn.functional.cross_entropy(said[1], labels)
                loss = (SoftTargetCrossEntropy()(said[0], targets) + hard) / 2
            elif case == "deit3":
                loss = BinaryCrossEntropy(target_threshold=0.0)(said, targets)
            else:
                loss = SoftTargetCrossEntropy()(said, targets)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            ema.update(model)
            losses.append(loss.item())
        print(case, losses[0], losses[-1])
        last = ema.module.state_dict()
        told = {
            f"{case}/ema/{name}": excerpt(name, turned(last[theirs(name)].numpy(), name, back=True))
            for name in shapes(case)
        }
        return {f"{case}/losses": np.array(losses)} | told

    arrays: dict[str, np.ndarray] = {}
    for case in PEAK:
        arrays |= train(case)
    np.savez_compressed(Path(__file__).with_name("trajectories.npz"), **arrays)


if __name__ == "__main__":
    main()
