"""What a run takes, as far as it is known without a compiler of other chips: operations, data, memory and time."""

import dataclasses
import functools
import statistics
from contextlib import suppress
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from deit_jax import __version__, parallel
from deit_jax.base.errors import TryAgain, UserError
from deit_jax.base.forms import read_json
from deit_jax.base.storage import Place
from deit_jax.config.resolve import resolve
from deit_jax.data import KnownSource, Source
from deit_jax.data.decode import CorruptImage
from deit_jax.distill.ahead import teaching_shapes
from deit_jax.models import VisionTransformer, bind, flatten
from deit_jax.parallel.plan import residual_bytes, shard_bytes
from deit_jax.parallel.topologies import Chip, Topology, find_chip
from deit_jax.run.ahead import Step
from deit_jax.run.build import Run, build
from deit_jax.run.metrics import read_rows
from deit_jax.run.network import model_arguments, model_of
from deit_jax.run.workdir import METRICS
from deit_jax.step.step import typed

ASSUMED = 0.4  # of the peak, where no utilisation is given or measured
SAMPLE = 256  # images whose stored sizes are looked at
MEASURED = 20  # rows of metrics.jsonl at its end whose speed counts

Report = dict[str, Any]


def estimate(step: Step, where: str, utilisation: float | None, workdir: Place, topology: Topology | None) -> Report:
    """All that is known without a compiler of other chips.

    Devices that are there and of which no peak is published multiply a few large matrices, which tell theirs.

    Args:
        where: see `planned_source`.
        utilisation: share of the chips' peak that all operations take, the teacher's as well; None for what the run in
            the workdir last reached, if it was on such devices, else `ASSUMED`.
    """
    run, config = step.run, step.run.config
    images, image_bytes, measured_on = run.total * config.batch_size, *_image_bytes(run.source)
    student, teacher = _student_flops(run), step.teaching.flops
    parts = _bytes_by_part(step)
    chip = topology.chip if topology else _chip(run)
    chips = topology.chips if topology else run.mesh.size // chip.devices
    share, said = (utilisation, "given") if utilisation else _measured_utilisation(step, workdir, chip)
    hours = images * (student + teacher) / (share * chip.peak * chips) / 3600
    return {
        "model": config.model.name,
        "teacher": config.distillation.store or config.distillation.teacher.name,
        "parameters": sum(leaf.size for leaf in run.target.params.values()),
        "teacher_parameters": step.teaching.parameters,
        "flops_per_image": student + teacher,
        "student_flops_per_image": student,
        "teacher_flops_per_image": teacher,
        "data": config.data.name,
        "examples": len(run.source),
        "classes": len(run.source.class_names),
        "data_source": where,
        "steps": run.total,
        "batch_size": config.batch_size,
        "images": images,
        "epochs": round(run.total / run.epoch_steps, 2),
        "bytes_per_image": round(image_bytes),
        "bytes_per_image_source": measured_on,
        "bytes_read": round(images * image_bytes),
        "topology": topology.name if topology else chip.kind,
        "slices": topology.slices if topology else 1,
        "chips": chips,
        "devices": run.mesh.size,
        "mesh": dict(run.mesh.shape),
        "dtype": config.model.dtype,
        "attention": config.model.attention,
        "images_per_device": config.batch_size // parallel.batch_devices(run.mesh),
        "bytes_by_part": parts,
        "bytes_per_device": sum(parts.values()),
        "memory_per_device": topology.memory if topology else None,
        "utilisation": share,
        "utilisation_source": said,
        "peak_flops_per_chip": round(chip.peak),
        "hours": round(hours, 3),
        "chip_hours": round(hours * chips, 3),
        "versions": {"deit_jax": __version__, "jax": jax.__version__},
    }


def _image_bytes(source: Source) -> tuple[float, str]:
    """Mean bytes of an image as it is stored, and in words how that is known."""
    if isinstance(source, KnownSource):
        return source.image_bytes, "published"
    sizes = []
    for index in np.linspace(0, len(source) - 1, min(SAMPLE, len(source))).astype(int):
        with suppress(CorruptImage):
            image = source[int(index)].image
            sizes.append(image.nbytes if isinstance(image, np.ndarray) else len(image))
    return statistics.fmean(sizes or [0]), f"mean of {len(sizes)} images"


def _student_flops(run: Run) -> int:
    """Operations of training on an image, the mean over a run whose images grow."""
    ends = [first for first, _ in run.sizes[1:]] + [run.total]
    steps = [max(0, min(end, run.total) - first) for end, (first, _) in zip(ends, run.sizes, strict=True)]
    return round(sum(n * run.flops_per_image(size) for n, (_, size) in zip(steps, run.sizes, strict=True)) / run.total)


def _chip(run: Run) -> Chip:
    """What the devices are that there are: as published, else each a chip with the peak that is measured here."""
    kind = _device(run).device_kind
    return find_chip(kind) or Chip(
        kind, memory=0, peak=parallel.matmul_peak(run.mesh, run.config.model.dtype)() / run.mesh.size, axes=1
    )


def _device(run: Run) -> jax.Device:
    device: jax.Device = run.mesh.devices.flat[0]
    return device


def _measured_utilisation(step: Step, workdir: Place, chip: Chip) -> tuple[float, str]:
    """The share of a chip's peak that the run in a workdir last reached, and where the number is from, in words.

    It is its images a second times its own operations, which the config there tells.
    """
    mesh, source, device = step.run.mesh, step.run.source, _device(step.run)
    try:
        rows = [row for row in read_rows(workdir / METRICS) if row.get("train/images_per_second")][-MEASURED:]
        if not rows:
            return ASSUMED, "assumed"
        about, config = read_json(workdir / "run.json", dict), resolve(read_json(workdir / "config.json", dict))
        if about["device_kind"] != device.device_kind:
            return ASSUMED, f"assumed; {workdir} is of {about['device_kind']}"
        before = build(config, mesh, source)
        teacher = teaching_shapes(config, source.class_names, mesh, device.platform).flops
        operations = [teacher + before.flops_per_image(before.size_at(row["step"] - 1)) for row in rows]
        done = [row["train/images_per_second"] * each for row, each in zip(rows, operations, strict=True)]
        return statistics.median(done) / about["devices"] * chip.devices / chip.peak, f"measured in {workdir}"
    except (OSError, ValueError, KeyError, TypeError, ZeroDivisionError, TryAgain, UserError):
        return ASSUMED, f"assumed; {workdir} cannot be read"


def _bytes_by_part(step: Step) -> dict[str, int]:
    """Bytes of a device, by what takes them, estimated: a compiler keeps and computes again what it finds best."""
    run, config, target = step.run, step.run.config, step.run.target
    trained = {path: target.params[path] for path in run.rates}
    micro = config.batch_size * run.copies // config.optim.accumulation // parallel.batch_devices(run.mesh)
    sums = 2 if config.optim.accumulation > 1 else 1  # of all micro-batches, and of one
    return {
        "parameters": shard_bytes(target.params) + shard_bytes(target.stats),
        "gathered": _gathered_bytes(run),
        "optimizer": shard_bytes(target.opt_state),
        "average": shard_bytes(target.ema),
        "gradients": sums * shard_bytes(trained),
        "activations": round(micro * _activation_bytes(run)),
        "teacher": shard_bytes(step.teaching.teaching.variables),
        "batch": shard_bytes(step.batch),
    }


def _gathered_bytes(run: Run) -> int:
    """Bytes of the parameters that a step works with, where devices hold but a part of them: `parallel.gathered`."""
    if run.mesh.shape["fsdp"] == 1:
        return 0
    params = jax.eval_shape(functools.partial(typed, model=run.objective()["model"]), run.target.params)
    whole = parallel.shardings(params, run.mesh, cut=("tensor",))
    return shard_bytes(
        {path: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=whole[path]) for path, leaf in params.items()}
    )


def _activation_bytes(run: Run) -> float:
    """Bytes that are kept of an image's forward pass for the backward one."""
    config, size = run.config, max(size for _, size in run.sizes)
    frozen = config.optim.trainable == "head"

    def kept(remat: bool, images: int) -> int:
        chosen = dataclasses.replace(config, model=dataclasses.replace(config.model, remat=remat))
        model = model_of(chosen, model_arguments(chosen, len(run.source.class_names)))
        variables = flatten(model)
        trained = {path: variables.pop(path) for path in run.rates}

        def logits(trained: Any, fixed: Any, pixels: Any, seed: Any) -> Any:
            bound = bind(model, trained | fixed)
            bound.set_input_size((size, size))
            return bound.head_logits(pixels, key=None if frozen else jax.random.key(seed))

        pixels = jax.ShapeDtypeStruct((images, size, size, 3), jnp.float32)
        return residual_bytes(logits, trained, variables, pixels, jax.ShapeDtypeStruct((), jnp.uint32))

    def an_image(remat: bool) -> float:
        return (kept(remat, 4) - kept(remat, 2)) / 2  # without what does not depend on the images

    if not config.model.remat:
        return an_image(False)
    blocks = len(run.model.blocks) if isinstance(run.model, VisionTransformer) else 1
    return an_image(True) + an_image(False) / blocks  # one block at a time is computed again
