"""What a run takes, before it is begun: a table for people, and the same for programs.

Nothing of the run is allocated on a device, and nothing is written.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from deit_jax.base.storage import Place
from deit_jax.config.schema import Config
from deit_jax.parallel.topologies import Topology
from deit_jax.run.ahead import planned_source, step_of
from deit_jax.run.compiled import compiled_report
from deit_jax.run.estimate import estimate

Rows = Iterator[tuple[str, str]]


def make_plan(
    config: Config, workdir: Place, *, utilisation: float | None = None, topology: Topology | None = None
) -> dict[str, Any]:
    """Prints what a run takes as a table, and returns it.

    Args:
        config: resolved for the platform of the topology, without one for the machine's own.
        workdir: which tells the utilisation of a run that was begun; it need not be there.
        utilisation: see `estimate`.
        topology: that the step is compiled for; None for the devices that there are, where nothing is compiled.

    Raises:
        UserError: the config, the data and the devices do not go together.
    """
    source, where = planned_source(config)
    step = step_of(config, source, topology)
    report = estimate(step, where, utilisation, workdir, topology)
    if topology:
        report |= compiled_report(step, topology)
    print(table(report), flush=True)
    return report


def table(plan: Mapping[str, Any]) -> str:
    """Lines of a name and what there is to say; what is estimated says so."""
    rows = [*_network(plan), *_data(plan), *_devices(plan), *_compiled(plan), *_time(plan)]
    return "\n".join(f"{name:14}{said}" for name, said in rows)


def _network(plan: Mapping[str, Any]) -> Rows:
    yield "model", f"{plan['model']}, {plan['parameters']:,} parameters, {plan['dtype']}, {plan['attention']} attention"
    if plan["teacher"]:
        beside = f"{plan['teacher_parameters']:,} parameters" if plan["teacher_parameters"] else "recorded"
        yield "teacher", f"{plan['teacher']}, {beside}"
    parts = f", {plan['student_flops_per_image'] / 1e9:,.4g} of them the student's training"
    yield "operations", f"{plan['flops_per_image'] / 1e9:,.4g} GFLOP an image{parts if plan['teacher'] else ''}"


def _data(plan: Mapping[str, Any]) -> Rows:
    yield "data", f"{plan['data']}, {plan['examples']:,} images of {plan['classes']:,} classes, {plan['data_source']}"
    yield (
        "steps",
        f"{plan['steps']:,} of {plan['batch_size']:,} images: {plan['images']:,} in {plan['epochs']:g} epochs",
    )
    how = f"{plan['bytes_per_image']:,} bytes an image ({plan['bytes_per_image_source']})"
    yield "read", f"{_decimal(plan['bytes_read'])}, {how}"


def _devices(plan: Mapping[str, Any]) -> Rows:
    slices = f"{plan['slices']} x " if plan["slices"] > 1 else ""
    where = f"{slices}{plan['topology']}, {plan['chips']} chip(s)"
    yield "devices", f"{where}, mesh {plan['mesh']}, {plan['images_per_device']} images a device"
    if slices:
        yield "", f"to be trained with --config.mesh.slices={plan['slices']}"
    parts = {name: size for name, size in plan["bytes_by_part"].items() if size}
    yield (
        "a device",
        f"{_binary(sum(parts.values()))} estimated: "
        + ", ".join(f"{name} {_binary(size)}" for name, size in parts.items()),
    )


def _compiled(plan: Mapping[str, Any]) -> Rows:
    if "compiled" not in plan:
        return
    compiled, room = plan["compiled"], _binary(plan["memory_per_device"])
    needed = _binary(plan["bytes_per_device"]) if plan["bytes_per_device"] else "more"
    yield "compiled", f"by {compiled['compiler']}: {needed} a device of {room}, {_verdict(plan['fits'])}"
    if "memory" in compiled:
        yield "", ", ".join(f"{name.replace('_', ' ')} {_binary(size)}" for name, size in compiled["memory"].items())
        for each in compiled["collectives"]:
            yield (
                "moves",
                f"{each['moves']:13}{each['kind']:19}{each['dtype']:5}{each['count']:4} x, {_binary(each['bytes'])}",
            )
    for each in plan.get("tried", []):
        needed = _binary(each["bytes_per_device"]) if each["bytes_per_device"] else "more than there is"
        yield "tried", f"{each['change']}: {needed}, {_verdict(each['fits'])}"
    if not plan["fits"] and not any(each["fits"] for each in plan["tried"]):
        yield "", "nothing that was tried fits: take larger chips, or a smaller model or image"


def _time(plan: Mapping[str, Any]) -> Rows:
    peak, share = plan["peak_flops_per_chip"] / 1e12, f"{plan['utilisation']:.1%} ({plan['utilisation_source']})"
    hours = f"{plan['hours']:,.1f} hours, {plan['chip_hours']:,.1f} chip-hours"
    yield "time", f"{hours} at {share} of {peak:,.3g} TFLOP/s a chip"
    seconds = plan.get("compiled", {}).get("estimated_step_seconds")
    if seconds:
        rate, least = plan["batch_size"] / plan["chips"] / seconds, seconds * plan["steps"] / 3600
        yield "", f"{least:,.1f} hours, {rate:,.0f} images a second and chip, by the compiler's estimate of its cycles"
        yield "", "(which leaves out what travels between chips, and the host's input)"


def _verdict(fits: bool) -> str:
    return "which fits" if fits else "which does not fit"


def _binary(size: float) -> str:
    """Bytes in the unit that memory is sold in."""
    unit, scale = ("GiB", 2**30) if size >= 2**27 else ("MiB", 2**20) if size >= 2**17 else ("KiB", 2**10)
    return f"{size / scale:.2f} {unit}"


def _decimal(size: float) -> str:
    """Bytes in the unit that files are counted in."""
    unit, scale = ("TB", 1e12) if size >= 1e12 else ("GB", 1e9) if size >= 1e9 else ("MB", 1e6)
    return f"{size / scale:,.3g} {unit}"
