"""Measures speed: of training, of inference, or of the data stream.

    python -m deit_jax.benchmark train --model=NAME --batch_size=N --batches=K [--parts=core|full]
    python -m deit_jax.benchmark infer --model=NAME --batch_size=N --batches=K
    python -m deit_jax.benchmark data --config=FILE[:ARGUMENT] --batches=K [--config.section.field=value ...]

`benchmark train --help` and so on list the other flags. The last line of stdout is one JSON object, which
`--output=FILE.json` also writes to a file.
"""

import dataclasses
import functools
import inspect
import json
import os
import shlex
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from absl import flags
from jaxtyping import Array, UInt32

from deit_jax import cli, parallel
from deit_jax.base import rng
from deit_jax.base.errors import UserError, nearest
from deit_jax.config import recipes
from deit_jax.config.resolve import for_platform, resolve
from deit_jax.config.schema import Config
from deit_jax.data import Source
from deit_jax.data.memory import MemorySource
from deit_jax.models import VisionTransformer, abstract_model, bind, forward_flops, list_models, training_flops
from deit_jax.parallel import hosts
from deit_jax.parallel.peak import seconds
from deit_jax.run.build import Run, build, open_mesh
from deit_jax.run.learning import peak_learning_rate
from deit_jax.run.stream import stream, train_source
from deit_jax.step.state import TrainState

CLASSES = 1000  # ImageNet-1k's
IMAGES = 64  # of noise, which a batch repeats
WARM_UP = 2  # batches after the first, which compiles

Result = dict[str, Any]


def main(argv: Sequence[str]) -> int:
    """Runs the benchmark that the first argument names and prints what it measured; returns the exit status."""
    name = argv[0] if argv else "nothing"
    if name in ("--help", "-h", "-help", "--helpfull"):
        print((__doc__ or "").strip())
        return 0
    if name not in BENCHMARKS:
        raise UserError(f"the first argument is {name}, should be one of {', '.join(BENCHMARKS)}")
    result, output = BENCHMARKS[name](argv[1:])
    result["command"] = shlex.join(["python", "-m", "deit_jax.benchmark", *argv])
    if hosts.index():
        return 0
    print(json.dumps(result), flush=True)
    if output:
        try:
            cli.local_path(output, "--output").write_text(json.dumps(result, indent=2) + "\n")
        except OSError as error:
            raise UserError(f"--output: cannot write {output}: {error.strerror}; the result is above") from error
    return 0


def train(argv: Sequence[str]) -> tuple[Result, str]:
    """Training steps on a batch that stays on the devices: images per second (of the median step) and utilisation.

    Utilisation is the model's floating-point operations per second over those of large matrix products, measured in
    the same type before and after. The first batch is stated apart, with its compilation or loading from the cache.

    `core` is forward, backward and AdamW with drop path 0.1 on float images and soft targets; `full` is the step of
    `deit_jax.main` with the DeiT recipe but for random erasing: uint8 images, normalisation, mixing, the guard, EMA.
    """
    given, config = _parse(train, argv, trains=True)
    run, seed = _noise_run(config), np.uint32(config.seed)
    if given.parts == "full":
        jitted, batch = run.train_step(), next(run.batches(0, 1))[0]
    else:
        jitted, batch = run.jit_step(_core_step(run)), _float_batch(run)
    state = run.first_state()

    def step() -> Any:
        nonlocal state
        state, metrics = jitted(state, batch, seed)
        return metrics

    flops = training_flops(run.model)  # what `remat` computes again is not useful work
    return _measure(step, run, given.batches, flops, {"benchmark": "train", "parts": given.parts}), given.output


def infer(argv: Sequence[str]) -> tuple[Result, str]:
    """Forward passes over a batch of normalised float images that stays on the devices; figures as for `train`."""
    given, config = _parse(infer, argv, trains=False)
    run = _noise_run(config)
    params, images = run.first_state().params, _float_batch(run)["image"]
    forward = jax.jit(lambda params, images: bind(run.model, params)(images))
    flops = forward_flops(run.model)
    return _measure(lambda: forward(params, images), run, given.batches, flops, {"benchmark": "infer"}), given.output


def data(argv: Sequence[str]) -> tuple[Result, str]:
    """The training stream of a config, on the host alone; every image is read and decoded for its place in the stream.

    Images per second are those of the whole stream, from asking for its first batch until the last one is there: the
    threads finish their batches in bursts, so that the time between two batches alone would mislead. Take several
    times as many batches as the config has threads.

    `--compare` also tells how many times the CPU time of crop and flip alone the whole augmentation takes, decoding
    included: the stream is drawn anew with and without the rest, in turn.
    """

    def define(values: flags.FlagValues) -> None:
        flags.DEFINE_boolean("compare", False, "with crop and flip alone, see above", flag_values=values)
        _define_common(values)

    given, tree, name = cli.parse_with_config(inspect.getdoc(data) or "", define, argv)
    _check(given, "batches")
    _check_output(given.output)
    config = resolve(tree)
    cli.start_jax()
    if given.compare and not (config.data.augment or config.data.color_jitter):
        raise UserError("--compare: the config has no augmentation beside crop and flip; set config.data.augment")
    source = train_source(config)
    batches = stream(config, source, range(config.batch_size), first_step=0, total_steps=given.batches)
    facts = {"benchmark": "data", "config": name, "data": config.data.name, "examples": len(source)}
    facts |= {"batch_size": config.batch_size, "batches": given.batches}
    facts |= {"image_size": config.data.image_size_schedule or config.data.image_size}
    facts |= {"threads": config.data.threads, "prefetch": config.data.prefetch, **_machine()}
    _show(facts)
    replaced, stamps = 0, [time.perf_counter()]
    for batch in batches:
        stamps.append(time.perf_counter())
        replaced += int(batch["replaced"].sum())
    measured = {
        "images_per_second": round(given.batches * config.batch_size / (stamps[-1] - stamps[0]), 2),
        "first_batch_seconds": round(stamps[1] - stamps[0], 3),
        "batch_ms": round(1e3 * statistics.median(np.diff(stamps).tolist()), 3),
        "replaced": replaced,
    }
    if given.compare:
        measured["times_crop_and_flip"] = round(_times_crop_and_flip(config, source, given.batches), 3)
    _show(measured)
    return measured | facts, given.output


def _times_crop_and_flip(config: Config, source: Source, batches: int) -> float:
    """CPU time of a config's stream over that of the same with crop and flip alone, batch by batch in turn."""
    plain = dataclasses.replace(config, data=dataclasses.replace(config.data, augment="", color_jitter=0.0))
    spent = [0.0, 0.0]
    for step in range(batches):
        for turn, each in enumerate((config, plain)):
            start = time.process_time()  # of all threads
            next(stream(each, source, range(config.batch_size), first_step=step, total_steps=step + 1))
            spent[turn] += time.process_time() - start
    return spent[0] / spent[1]


BENCHMARKS: dict[str, Callable[[Sequence[str]], tuple[Result, str]]] = {"train": train, "infer": infer, "data": data}


def _measure(step: Callable[[], Any], run: Run, batches: int, flops_per_image: int, facts: Mapping[str, Any]) -> Result:
    """The result of a benchmark whose `step` starts one batch on the devices and returns what is ready at its end."""
    config, mesh = run.config, run.mesh
    facts = {
        **facts,
        "model": config.model.name,
        "image_size": config.data.image_size,
        "batch_size": config.batch_size,
        "batches": batches,
        **{name: getattr(config.model, name) for name in ("dtype", "attention", "remat")},
        "device": jax.devices()[0].device_kind,
        "device_count": mesh.size,
        **_machine(),
    }
    _show(facts)
    hosts.at("the first batch", compiling=True)
    first = seconds(step)
    _intervals(step, WARM_UP)
    memory = [device.memory_stats() or {} for device in jax.local_devices()]
    peak_bytes = max(stats.get("peak_bytes_in_use", 0) for stats in memory)  # before the matrices are there
    matmul = parallel.matmul_peak(mesh, config.model.dtype)
    before = matmul()
    times = _intervals(step, batches)
    peak = max(before, matmul())
    speed = config.batch_size / statistics.median(times)
    measured = {
        "images_per_second": round(speed, 2),
        "batch_ms": round(1e3 * statistics.median(times), 3),
        "batch_ms_range": [round(1e3 * bound, 3) for bound in (min(times), max(times))],
        "first_batch_seconds": round(first, 2),
        "flops_per_image": flops_per_image,
        "flops_per_second": round(speed * flops_per_image),
        "matmul_peak_flops": round(peak),
        "utilisation": round(speed * flops_per_image / peak, 4),
        "memory_peak_bytes": peak_bytes or None,
    }
    _show(measured)
    return measured | facts


def _intervals(step: Callable[[], Any], batches: int) -> list[float]:
    """Seconds between the ends of successive batches.

    The host starts each batch before it waits for the one before, as in training: an accelerator never waits for the
    host unless the host is the slower one, and no batch counts before all of its results are there.
    """
    ahead, stamps = step(), []
    for batch in range(1, batches + 1):
        hosts.at(f"batch {batch} of {batches}")
        done, ahead = ahead, step()
        jax.block_until_ready(done)
        stamps.append(time.perf_counter())
    jax.block_until_ready(ahead)
    return np.diff([*stamps, time.perf_counter()]).tolist()


def _noise_run(config: Config) -> Run:
    """The run of a config on images of noise."""
    random, size = np.random.default_rng(0), config.data.image_size
    images = random.integers(256, size=(IMAGES, size, size, 3), dtype=np.uint8)
    source = MemorySource(images, random.integers(CLASSES, size=IMAGES), [str(i) for i in range(CLASSES)], name="noise")
    run = build(config, open_mesh(config), source)
    hosts.at("the state to begin with", compiling=True)
    return run


def _core_step(run: Run) -> Callable[..., tuple[TrainState, dict[str, Array]]]:
    """`state, batch, seed -> next state, metrics`: nothing but forward, backward and AdamW."""
    model, loss, optimizer, rate = run.model, run.loss, run.optimizer, peak_learning_rate(run.config)

    def step(
        state: TrainState, batch: Mapping[str, Array], seed: UInt32[Array, ""]
    ) -> tuple[TrainState, dict[str, Array]]:
        key = rng.key_for(jax.random.key(seed), "drop_path", state.step)

        def loss_of(params: dict[str, Array]) -> Array:
            return loss(bind(model, params).head_logits(batch["image"], key=key), batch["target"], None)[0]

        value, grads = jax.value_and_grad(loss_of)(state.params)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = jax.tree.map(lambda p, u: p - rate * u, state.params, updates)
        state = dataclasses.replace(state, step=state.step + 1, params=params, opt_state=opt_state)
        return state, {"loss": value}

    return step


def _float_batch(run: Run) -> dict[str, Array]:
    """`image` float32 [batch, size, size, 3], standard normal, and `target` float32 [batch, classes], on the mesh."""
    random, size, batch_size = np.random.default_rng(0), run.config.data.image_size, run.config.batch_size
    images = random.standard_normal((batch_size, size, size, 3), np.float32)
    targets = random.dirichlet(np.ones(CLASSES), batch_size).astype(np.float32)
    own = parallel.local_rows(run.mesh, batch_size)
    rows = slice(own.start, own.stop)
    return parallel.put_batch({"image": images[rows], "target": targets[rows]}, run.mesh, batch_size)


def _parse(benchmark: Callable, argv: Sequence[str], *, trains: bool) -> tuple[flags.FlagValues, Config]:
    """The flags of `train` or `infer`, and the DeiT recipe with what they change."""

    def define(values: flags.FlagValues) -> None:
        enum = functools.partial(flags.DEFINE_enum, flag_values=values)
        flags.DEFINE_string("model", None, f"one of {', '.join(list_models())}", flag_values=values)
        flags.DEFINE_integer("batch_size", None, "images in a batch, over all devices", 1, flag_values=values)
        flags.DEFINE_integer("image_size", None, "side in pixels (default: the model's own)", 1, flag_values=values)
        enum("dtype", "auto", ["auto", "float32", "bfloat16"], "of the computation (auto: float32 on CPU)")
        enum("attention", "auto", ["auto", "einsum", "xla", "cudnn"], "implementation (auto: by device)")
        if trains:
            enum("parts", "core", ["core", "full"], "of a training step, see above")
            flags.DEFINE_boolean("remat", False, "recompute the blocks in the backward pass", flag_values=values)
        cli.define_hosts(values)
        _define_common(values)

    given, beside = cli.parse(inspect.getdoc(benchmark) or "", define, argv)
    if beside:
        raise UserError(f"{beside[0]}: not a flag; see --help")
    _check(given, "model", "batch_size", "batches")
    if given.model not in list_models():
        raise UserError(f"--model: unknown model {given.model!r}{nearest(given.model, list_models())}")
    named: Any = abstract_model(given.model)
    if not isinstance(named, VisionTransformer):
        raise UserError(f"--model: {given.model} is none of the Transformers, which alone are measured")
    tree = recipes.deit(given.model)
    recipes.crop_and_flip(tree)
    tree.batch_size = given.batch_size
    tree.data.image_size = given.image_size or named.image_size[0]
    tree.model.update(dtype=given.dtype, attention=given.attention, remat=trains and given.remat)
    if not (trains and given.parts == "full"):
        tree.ema.decay = 0.0
    config = resolve(tree)
    if cli.start_hosts(given, config):
        _check_output(given.output)
    config = for_platform(config, cli.start_jax())
    if given.batch_size % jax.device_count():
        raise UserError(f"--batch_size: {given.batch_size} is not divisible by the {jax.device_count()} devices")
    return given, config


def _define_common(values: flags.FlagValues) -> None:
    flags.DEFINE_integer("batches", None, "measured batches", 1, flag_values=values)
    flags.DEFINE_string("output", "", "JSON file that the result is also written to", flag_values=values)


def _check(given: flags.FlagValues, *required: str) -> None:
    for name in required:
        if given[name].value is None:
            raise UserError(f"--{name}: missing; {given[name].help}")


def _check_output(output: str) -> None:
    if output and not (folder := cli.local_path(output, "--output").parent).is_dir():
        raise UserError(f"--output: there is no folder {folder}; make it first")


def _machine() -> dict[str, Any]:
    """What else decides the speed: the load is that of all programs in the minute before."""
    return {"cpus": os.cpu_count(), "load_average": round(os.getloadavg()[0], 2), "jax": jax.__version__}


def _show(facts: Mapping[str, Any]) -> None:
    for name, value in facts.items() if hosts.index() == 0 else ():
        print(f"{name:22}{value:,}" if type(value) in (int, float) else f"{name:22}{value}", flush=True)


if __name__ == "__main__":
    cli.run(main)
