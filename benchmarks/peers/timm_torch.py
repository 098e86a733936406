"""Speed of timm's models in torch, measured as `deit_jax.benchmark` measures ours; imports nothing of this package.

    python benchmarks/peers/timm_torch.py train --model=NAME --batch_size=N --batches=K [--parts=core|full] [--compile]
    python benchmarks/peers/timm_torch.py infer --model=NAME --batch_size=N --batches=K [--compile]

One batch stays on the device, with random weights. `core` is forward, backward and AdamW with drop path 0.1 on float
images and soft targets; `full` begins with uint8 images, normalises and mixes them (mixup, cutmix, label smoothing) and
keeps an EMA of the weights, with timm's own parts. As timm trains: float32 weights under autocast, images in
channels-last order, scaled-dot-product attention, fused AdamW. For `infer` the weights themselves are in `--dtype`.
The last line of stdout is one JSON object, whose fields are those of `deit_jax.benchmark`.
"""

import argparse
import functools
import itertools
import json
import os
import shlex
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import timm
import torch
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD, Mixup
from timm.loss import SoftTargetCrossEntropy
from timm.utils import ModelEmaV3
from torch import Tensor

CLASSES = 1000
WARM_UP = 2  # batches after the first, which compiles
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
MATMULS = (8192, 16) if DEVICE.type == "cuda" else (2048, 4)  # side, and how many products are timed as one

Run = Callable[[], Any]


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("benchmark", choices=["train", "infer"])
    arguments.add_argument("--model", required=True)
    arguments.add_argument("--batch_size", type=int, required=True)
    arguments.add_argument("--batches", type=int, required=True)
    arguments.add_argument("--parts", choices=["core", "full"], default="core")
    arguments.add_argument("--dtype", choices=["float32", "bfloat16"], default="bfloat16")
    arguments.add_argument("--compile", action="store_true", help="the model under torch.compile")
    given = arguments.parse_args()
    torch.manual_seed(0)
    torch.backends.cudnn.benchmark = True  # as timm's train.py
    load, dtype = os.getloadavg()[0], getattr(torch, given.dtype)
    drop_path = 0.1 if given.benchmark == "train" else 0.0
    model = timm.create_model(given.model, num_classes=CLASSES, drop_path_rate=drop_path)
    model = model.to(DEVICE, memory_format=torch.channels_last)
    run = (training if given.benchmark == "train" else inference)(model, given, dtype)
    first = seconds(run)
    intervals(run, WARM_UP)
    # Before the matrices are there. What is in use, not what is reserved: JAX's figure is that, too.
    memory = torch.cuda.max_memory_allocated() if DEVICE.type == "cuda" else None
    before = matmul_peak(dtype)
    times = intervals(run, given.batches)
    median = statistics.median(times)
    result = {
        "images_per_second": round(given.batch_size / median, 2),
        "batch_ms": round(1e3 * median, 3),
        "batch_ms_range": [round(1e3 * bound, 3) for bound in (min(times), max(times))],
        "first_batch_seconds": round(first, 2),
        "matmul_peak_flops": round(max(before, matmul_peak(dtype))),
        "memory_peak_bytes": memory,
        "benchmark": given.benchmark,
        **({"parts": given.parts} if given.benchmark == "train" else {}),
        **{name: getattr(given, name) for name in ("model", "batch_size", "batches", "dtype", "compile")},
        "scaled_dot_product_attention": bool(model.blocks[0].attn.fused_attn),
        "device": torch.cuda.get_device_name() if DEVICE.type == "cuda" else "cpu",
        "cpus": os.cpu_count(),
        "load_average": round(load, 2),
        "torch": torch.__version__,
        "timm": timm.__version__,
        "cudnn": torch.backends.cudnn.version(),
        "command": shlex.join(["python", *sys.argv]),
    }
    print(json.dumps(result))


def training(model: torch.nn.Module, given: argparse.Namespace, dtype: torch.dtype) -> Run:
    """Starts one step on the device."""
    model.train()
    forward = torch.compile(model) if given.compile else model
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-4, weight_decay=0.05, fused=True)
    loss_of = SoftTargetCrossEntropy()
    batch, ema = float_batch(model, given.batch_size), None
    if given.parts == "full":
        ema, batch = ModelEmaV3(model, decay=0.99996), recipe_batch(model, given.batch_size)

    def run() -> Tensor:
        images, targets = batch()
        optimizer.zero_grad()
        with torch.autocast(DEVICE.type, dtype, enabled=dtype != torch.float32):
            loss = loss_of(forward(images), targets)
        loss.backward()
        optimizer.step()
        if ema is not None:
            ema.update(model)
        return loss

    return run


def inference(model: torch.nn.Module, given: argparse.Namespace, dtype: torch.dtype) -> Run:
    """Starts the forward pass of one batch."""
    model.eval().to(dtype)
    forward = torch.compile(model) if given.compile else model
    images = float_batch(model, given.batch_size)()[0].to(dtype)

    def run() -> Tensor:
        with torch.inference_mode():
            return forward(images)

    return run


def float_batch(model: Any, batch_size: int) -> Callable[[], tuple[Tensor, Tensor]]:
    """The same normal images and soft targets each time."""
    images = torch.randn(batch_size, 3, *model.patch_embed.img_size, device=DEVICE)
    images = images.to(memory_format=torch.channels_last)
    targets = torch.rand(batch_size, CLASSES, device=DEVICE)
    targets /= targets.sum(1, keepdim=True)
    return lambda: (images, targets)


def recipe_batch(model: Any, batch_size: int) -> Callable[[], tuple[Tensor, Tensor]]:
    """The same images of noise each time, normalised as timm's loader does it on the device, and mixed anew."""
    size = (batch_size, 3, *model.patch_embed.img_size)
    pixels = torch.randint(256, size, dtype=torch.uint8, device=DEVICE).to(memory_format=torch.channels_last)
    labels = torch.randint(CLASSES, (batch_size,), device=DEVICE)
    mean, std = (
        255 * torch.tensor(value, device=DEVICE).view(1, 3, 1, 1)
        for value in (IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD)
    )
    mixup = Mixup(mixup_alpha=0.8, cutmix_alpha=1.0, label_smoothing=0.1, num_classes=CLASSES)
    return lambda: mixup(pixels.float().sub_(mean).div_(std), labels)


def matmul_peak(dtype: torch.dtype) -> float:
    """FLOP/s of large square products of random matrices, the best of a few."""
    size, products = MATMULS
    x = torch.randn(size, size, device=DEVICE).div_(size**0.5).to(dtype)
    chain = functools.partial(functools.reduce, lambda y, _: x @ y, range(products), x)
    return products * 2 * size**3 / min(seconds(chain) for _ in range(6))


def seconds(run: Run) -> float:
    """From the start of a batch to its end."""
    start = time.perf_counter()
    run()
    synchronize()
    return time.perf_counter() - start


def intervals(run: Run, batches: int) -> list[float]:
    """Seconds between the ends of successive batches; the host starts each before it waits for the one before."""
    if DEVICE.type != "cuda":
        return [seconds(run) for _ in range(batches)]
    ahead, stamps = started(run), []
    for _ in range(batches):
        done, ahead = ahead, started(run)
        done.synchronize()
        stamps.append(time.perf_counter())
    ahead.synchronize()
    return [after - before for before, after in itertools.pairwise([*stamps, time.perf_counter()])]


def started(run: Run) -> torch.cuda.Event:
    """Starts a batch; the event is its end."""
    run()
    end = torch.cuda.Event()
    end.record()
    return end


def synchronize() -> None:
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()


if __name__ == "__main__":
    main()
