"""What a run takes: against the arrays of the run itself, and numbers by hand."""

import dataclasses
import json
from pathlib import Path

import jax
import pytest
from endings import content, end, inside
from jax.experimental.compilation_cache.compilation_cache import reset_cache
from tiny import EVERYTHING, distilled_config, replace, tiny_config, tiny_run, write_teacher

from deit_jax import parallel
from deit_jax.base.errors import OutOfReach, UserError
from deit_jax.config.resolve import to_dict
from deit_jax.distill.ahead import teaching_shapes
from deit_jax.distill.open import open_teacher
from deit_jax.main import main
from deit_jax.models import forward_flops
from deit_jax.parallel import peak
from deit_jax.parallel.plan import Compiled, TooLarge, shard_bytes
from deit_jax.parallel.topologies import CHIPS, Chip, Topology, find_topology
from deit_jax.run import ahead, compiled
from deit_jax.run import estimate as estimating
from deit_jax.run.ahead import planned_source, step_of
from deit_jax.run.build import build, open_mesh
from deit_jax.run.compiled import compiled_report
from deit_jax.run.estimate import estimate
from deit_jax.run.plan import make_plan
from deit_jax.run.stream import batch_shapes, train_source

CONFIG = tiny_config()
SOURCE = train_source(CONFIG)
MESH = parallel.make_mesh()
NOWHERE = Path("nowhere")
GIB = 2**30
SMALL = Topology("v5e:2x4", Chip("cpu", memory=GIB, peak=1e15, axes=2), chips=8, slices=1)


@pytest.fixture(autouse=True)
def small_products(monkeypatch):
    monkeypatch.setattr(peak, "MATMULS_CPU", (64, 2))


def described(tree):
    """Shape, type and sharding of each leaf."""
    return jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype, leaf.sharding.spec), tree)


@pytest.mark.parametrize(
    "fields",
    [{}, EVERYTHING, EVERYTHING | {"erasing__mode": "rand", "mixing__mode": "pair"}],
    ids=["little", "all", "rand"],
)
def test_shapes_of_a_batch_are_those_of_the_stream(fields):
    run = tiny_run(tiny_config(**fields))
    batch, _ = next(run.batches(0, 1))
    assert described(batch_shapes(run.config, run.mesh, 8, {})) == described(batch)


def test_bytes_are_those_of_the_state():
    config = replace(CONFIG, "mesh", data=2, fsdp=4)
    step = step_of(config, train_source(config), None)
    parts = estimate(step, "", None, NOWHERE, None)["bytes_by_part"]
    state = build(config, open_mesh(config), train_source(config)).first_state()
    held = {"parameters": state.params, "optimizer": state.opt_state, "average": state.ema, "gradients": state.params}
    assert {name: parts[name] for name in held} == {name: parallel.bytes_per_device(x) for name, x in held.items()}
    assert parts["teacher"] == 0
    assert parts["gathered"] == sum(value.nbytes for value in state.params.values())  # a step works with all of them
    assert sum(parts.values()) == estimate(step, "", None, NOWHERE, None)["bytes_per_device"]


def test_activations_of_recomputed_blocks_are_fewer():
    plain, again = (
        estimate(step_of(tiny_config(model__remat=remat), SOURCE, None), "", None, NOWHERE, None)["bytes_by_part"]
        for remat in (False, True)
    )
    assert again["activations"] < 0.8 * plain["activations"]
    assert {name for name in plain if plain[name] != again[name]} == {"activations"}


def test_operations_and_hours_by_hand():
    """4 pixels for two of three epochs, then 8; at a tenth of the peak of 32 chips."""
    config = tiny_config(total_steps=132, data__image_size_schedule="4@0,8@2", cosub__weight=0.5)
    step = step_of(config, SOURCE, None)
    chips = dataclasses.replace(SMALL, chips=32, chip=dataclasses.replace(SMALL.chip, peak=1e5))
    plan = estimate(step, "at hand", 0.1, NOWHERE, chips)
    small, large = (forward_flops(step.run.model, (size, size)) for size in (4, 8))
    assert plan["steps"] == 132 == 3 * step.run.epoch_steps
    assert plan["flops_per_image"] == pytest.approx(2 * 3 * (2 * small + large) / 3)
    assert plan["images"] == 132 * 32
    assert plan["bytes_read"] == 132 * 32 * 64  # digits of 8 x 8
    assert plan["chip_hours"] == pytest.approx(132 * 32 * plan["flops_per_image"] / 0.1 / 1e5 / 3600, rel=1e-4)
    assert plan["hours"] == pytest.approx(plan["chip_hours"] / 32, rel=1e-3)


def test_a_teacher_beside_the_student_counts(tmp_path):
    write_teacher(tmp_path)
    config = distilled_config(tmp_path)
    shapes = teaching_shapes(config, SOURCE.class_names, MESH, "cpu")
    teacher = open_teacher(config, SOURCE.class_names)
    assert described_variables(shapes.teaching.variables) == described_variables(teacher.variables)
    assert shapes.parameters == sum(leaf.size for leaf in teacher.variables.values())
    plan = estimate(step_of(config, SOURCE, None), "", None, NOWHERE, None)
    assert plan["bytes_by_part"]["teacher"] == 4 * shapes.parameters
    assert plan["flops_per_image"] - plan["student_flops_per_image"] == shapes.flops > 0


def described_variables(variables):
    return {path: (leaf.shape, leaf.dtype) for path, leaf in variables.items()}


def test_a_published_teacher_need_not_be_there():
    given = {"kind": "hard", "teacher__name": "regnety_002", "teacher__weights": "pretrained"}
    config = tiny_config(**{f"distillation__{name}": value for name, value in given.items()})
    shapes = teaching_shapes(config, SOURCE.class_names, MESH, "tpu")
    # 3.2 M with a thousand classes, of which ten are left; a multiply-add is two operations.
    assert 2.7e6 < shapes.parameters < 2.9e6
    assert shapes.flops == pytest.approx(2 * 0.2e9, rel=0.01)
    unknown = tiny_config(**{f"distillation__{n}": v for n, v in (given | {"teacher__name": "regnety_02"}).items()})
    with pytest.raises(UserError, match=r"config\.distillation\.teacher\.name: .*regnety_002"):
        teaching_shapes(unknown, SOURCE.class_names, MESH, "tpu")


@pytest.mark.parametrize(
    ("kind", "top_k", "names"), [("hard", 3, {"labels"}), ("soft", 3, {"labels", "values", "indices", "rest"})]
)
def test_a_recorded_teacher_need_not_be_there(kind, top_k, names):
    given = {"kind": kind, "store": "nowhere", "top_k": top_k}
    shapes = teaching_shapes(
        tiny_config(**{f"distillation__{n}": v for n, v in given.items()}), SOURCE.class_names, MESH, "tpu"
    )
    assert shapes.recorded.keys() == names
    assert all(len(leaf.shape) == 0 or leaf.shape[0] == CONFIG.batch_size for leaf in shapes.recorded.values())
    assert (shapes.parameters, shapes.flops) == (0, 0)


def test_data_is_counted_by_what_is_published_where_it_is_not_there(tmp_path):
    config = replace(CONFIG, "data", name="imagenet2012", dir=str(tmp_path), train_split="train")
    source, where = planned_source(config)
    assert (len(source), len(source.class_names)) == (1_281_167, 1000)
    assert "not at hand" in where
    with pytest.raises(UserError, match=r"config\.data\.dir: .*; or plan with --config\.data\.name of imagenet2012"):
        planned_source(replace(CONFIG, "data", name="folder", dir=str(tmp_path / "no")))
    with pytest.raises(UserError, match=r"config\.model\.num_classes: is 10"):
        planned_source(replace(config, "model", num_classes=10))


@pytest.mark.parametrize("error", [OutOfReach("gs://a/b", "no answer"), PermissionError(13, "no permission")])
def test_a_bucket_of_data_need_not_be_reached(monkeypatch, error):
    def fail(config):
        raise error

    monkeypatch.setattr(ahead, "train_source", fail)
    source, where = planned_source(replace(CONFIG, "data", name="imagenet2012", train_split="train"))
    assert (len(source), where) == (1_281_167, "as published; the data is not at hand")
    with pytest.raises(type(error)):  # nobody knows how many photos there are
        planned_source(replace(CONFIG, "data", name="folder", train_split="train"))


# A run that was begun, of four devices, 100 images a second.


@pytest.fixture
def begun(tmp_path):
    def write(config, kind="cpu"):
        (tmp_path / "config.json").write_text(json.dumps(to_dict(config)))
        (tmp_path / "run.json").write_text(json.dumps({"device_kind": kind, "devices": 4}))
        rows = [{"step": i + 1, "train/images_per_second": speed} for i, speed in enumerate((9e9, *[100.0] * 20))]
        (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        return tmp_path

    return write


def hours(workdir, config, given=None, topology=SMALL):
    plan = estimate(step_of(config, SOURCE, None), "", given, workdir, topology)
    return plan["hours"], plan["utilisation_source"]


@pytest.mark.parametrize(("distilled", "topology"), [(True, SMALL), (False, None)])
def test_hours_are_those_that_the_run_in_the_workdir_takes(begun, tmp_path, distilled, topology):
    """1.6 million images at 25 a second and device, on eight devices: a teacher's operations are in this already."""
    write_teacher(tmp_path / "teacher")
    config = (
        distilled_config(tmp_path / "teacher", total_steps=50_000) if distilled else tiny_config(total_steps=50_000)
    )
    workdir = begun(config)
    assert hours(workdir, config, topology=topology) == (
        pytest.approx(1_600_000 / 25 / 8 / 3600, abs=1e-3),
        f"measured in {workdir}",
    )


def test_utilisation_is_of_the_run_in_the_workdir_and_its_own_operations(begun):
    """Its images were of half the side; a chip of two devices does the work of both."""
    config = tiny_config(data__image_size_schedule="4@0,8@99")
    run = tiny_run(config)
    workdir = begun(config)
    share, said = estimating._measured_utilisation(step_of(CONFIG, SOURCE, None), workdir, SMALL.chip)
    assert (share, said) == (pytest.approx(25 * run.flops_per_image(4) / 1e15), f"measured in {workdir}")
    twice = dataclasses.replace(SMALL.chip, devices=2)
    assert estimating._measured_utilisation(step_of(CONFIG, SOURCE, None), workdir, twice)[0] == pytest.approx(
        2 * share
    )


def test_hours_at_a_share_that_is_given_or_assumed(begun):
    config = tiny_config(total_steps=50_000, model__width=192)
    operations = tiny_run(config).flops_per_image(8) * 1_600_000 / 1e9 / 8 / 3600
    slow = dataclasses.replace(SMALL, chip=dataclasses.replace(SMALL.chip, peak=1e9))
    assert hours(begun(config), config, 0.5, slow) == (pytest.approx(operations / 0.5, abs=1e-3), "given")
    assert hours(NOWHERE, config, None, slow) == (pytest.approx(operations / 0.4, abs=1e-3), "assumed")
    other = begun(config, "TPU v4")
    assert hours(other, config, None, slow) == (
        pytest.approx(operations / 0.4, abs=1e-3),
        f"assumed; {other} is of TPU v4",
    )


@pytest.mark.parametrize("lost", ["config.json", "run.json"])
def test_a_run_that_does_not_tell_its_devices_or_config_has_no_utilisation(begun, lost):
    workdir = begun(CONFIG)
    (workdir / lost).write_text("{}")
    assert hours(workdir, CONFIG)[1] == f"assumed; {workdir} cannot be read"


@pytest.mark.parametrize("error", [OutOfReach("gs://a/b", "no answer"), PermissionError(13, "no permission")])
def test_a_workdir_that_cannot_be_read_costs_its_utilisation_alone(monkeypatch, error):
    def fail(path):
        raise error

    monkeypatch.setattr(estimating, "read_rows", fail)
    assert hours(NOWHERE, CONFIG)[1] == "assumed; nowhere cannot be read"


def test_the_peak_of_known_devices_is_the_published_one(monkeypatch):
    """Of two devices a chip; others multiply matrices."""
    monkeypatch.setattr(parallel, "matmul_peak", lambda mesh, dtype: lambda: 8e9)
    step = step_of(CONFIG, SOURCE, None)
    plan = estimate(step, "", None, NOWHERE, None)
    assert (plan["topology"], plan["chips"], plan["peak_flops_per_chip"]) == ("cpu", 8, 10**9)
    monkeypatch.setattr(estimating, "find_chip", {"cpu": CHIPS["v3"]}.get)
    monkeypatch.delattr(parallel, "matmul_peak")
    plan = estimate(step, "", None, NOWHERE, None)
    assert (plan["topology"], plan["chips"], plan["peak_flops_per_chip"]) == ("TPU v3", 4, 123 * 10**12)


# Eight of this machine's devices in the place of others, compiled for by its own compiler.


@pytest.fixture
def here(monkeypatch):
    monkeypatch.setattr(Topology, "devices", lambda topology: jax.devices())
    monkeypatch.setattr(Topology, "options", {})
    monkeypatch.setattr(compiled.metadata, "version", lambda package: "0")


def test_the_real_step_is_compiled_and_moves_no_activations(here, tmp_path, capsys):
    """Hard-distilled, all eight devices in one mixing group."""
    write_teacher(tmp_path)
    config = distilled_config(tmp_path, mixing__group=32)
    plan = make_plan(config, tmp_path / "run", topology=find_topology("v5e:2x4"))
    assert not (tmp_path / "run").exists()
    moved = {each["moves"]: each["bytes"] for each in plan["compiled"]["collectives"] if each["moves"] != "indices"}
    assert moved.keys() <= {"gradients", "images", "targets", "scalars"}
    parameters = sum(leaf.size for leaf in tiny_run(config).target.params.values())
    assert 4 * parameters <= moved["gradients"] <= 4 * (parameters + 10)  # and the loss
    memory = plan["compiled"]["memory"]
    parts = plan["bytes_by_part"]
    known = sum(parts[name] for name in ("parameters", "optimizer", "average", "teacher", "batch"))
    assert memory["arguments"] == pytest.approx(known, abs=100)  # the counters and the seed
    assert plan["fits"]
    assert plan["bytes_per_device"] == memory["peak"] + memory["generated_code"]
    assert "tried" not in plan
    table = capsys.readouterr().out
    assert "which fits" in table
    assert all(name in table for name in ("parameters", "gradients", "all-reduce", "chip-hours"))


def room(monkeypatch, needed):
    """A compiler that finds a step to need so many bytes, of what one device has of (the state, the batch)."""

    def compile_ahead(step, state, batch, *given, options):
        size = needed(shard_bytes(state), shard_bytes(batch["image"]))
        if size is None:
            raise TooLarge("Used 99.00G of 1.00G hbm")
        return Compiled({"peak": size, "generated_code": 0}, [], 0, 0.0)

    monkeypatch.setattr(compiled, "compile_ahead", compile_ahead)


def tried(topology=None):
    step = step_of(CONFIG, SOURCE, topology or SMALL)
    report = compiled_report(step, topology or SMALL)
    return report, {each["change"].replace("--config.", ""): each["fits"] for each in report.get("tried", [])}


def test_slices_of_the_config_are_those_of_the_topology(here, monkeypatch):
    two = replace(CONFIG, "mesh", slices=2)
    with pytest.raises(UserError, match=r"^--slices: is 1, and config\.mesh\.slices 2; plan with --slices=2, or"):
        step_of(two, SOURCE, SMALL)
    given = []
    monkeypatch.setattr(ahead, "open_mesh", lambda config, devices: given.append(config.mesh.slices) or MESH)
    for config in (two, CONFIG):
        step_of(config, SOURCE, dataclasses.replace(SMALL, slices=2))
    step_of(two, SOURCE, find_topology("h100:8"))  # of which a process each is one
    assert given == [2, 2, 2]


def test_changes_that_save_memory_are_tried_alone(here, monkeypatch):
    """State and average of 8 devices are cut by fsdp; half the batch is half its images."""
    whole = step_of(CONFIG, SOURCE, SMALL)
    state, images = shard_bytes(whole.run.target), shard_bytes(whole.batch["image"])
    room(monkeypatch, lambda state, images: state + 1000 * images)
    report, fits = tried(dataclasses.replace(SMALL, chip=dataclasses.replace(SMALL.chip, memory=state + 999 * images)))
    assert not report["fits"]
    assert report["bytes_per_device"] == state + 1000 * images
    assert fits == {
        "optim.accumulation=2": False,
        "model.remat=True": False,
        "mesh.data=-1 mesh.fsdp=8": True,
        "batch_size=16": True,
    }


def test_where_none_is_enough_they_are_tried_together(here, monkeypatch):
    room(monkeypatch, lambda state, images: None if images > 8 * 8 * 3 else 0)  # more than one image a device
    report, fits = tried()
    assert report["bytes_per_device"] == 99 * GIB
    assert "hbm" in report["compiled"]["refused"]
    assert list(fits.values()) == [False] * 7 + [True]
    assert list(fits)[-1] == "model.remat=True mesh.data=-1 mesh.fsdp=8 batch_size=8"


def test_the_table_says_when_nothing_fits(here, monkeypatch, tmp_path, capsys):
    room(monkeypatch, lambda state, images: None)
    plan = make_plan(CONFIG, tmp_path, topology=SMALL)
    assert not any(each["fits"] for each in plan["tried"])
    assert "nothing that was tried fits" in capsys.readouterr().out


# The command.

QUICKSTART = f"--config={parallel.__file__.rpartition('/deit_jax/')[0]}/configs/quickstart.py"


@pytest.fixture
def empty(tmp_path, monkeypatch):
    """A folder in which everything is that is kept, JAX's compiled programs as well."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    before = {name: getattr(jax.config, name) for name in ("jax_compilation_cache_dir", "jax_enable_compilation_cache")}
    jax.config.update("jax_compilation_cache_dir", str(tmp_path / "xla"))
    reset_cache()
    yield tmp_path
    for name, value in before.items():
        jax.config.update(name, value)
    reset_cache()


def test_the_command_writes_nothing(empty):
    with inside(empty):
        done = end(main, [QUICKSTART, "--mode=plan", "--utilisation=0.3"])
    assert (done.status, done.err, content(empty)) == (0, "", {})
    plan = json.loads(done.out.splitlines()[-1])
    assert plan.keys() >= {"bytes_per_device", "flops_per_image", "parameters", "steps", "hours", "chip_hours"}
    assert (plan["parameters"], plan["steps"], plan["utilisation"]) == (692_458, 1760, 0.3)


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--mode=plan", "--topology=v9:4x4"], "--topology: v9:4x4 is none that is known; known: v3, "),
        (["--mode=plan", "--slices=2"], "--slices: are those of a topology"),
        (["--mode=plan", "--utilisation=1.5"], "--utilisation: is 1.5, should be above 0 and at most 1"),
        (["--mode=plan", "--utilisation=nan"], "--utilisation: is nan"),
        (["--topology=v5e:4x4"], "--topology: is for --mode=plan"),
        (["--mode=evaluate", "--slices=2"], "--slices: is for --mode=plan"),
    ],
)
def test_bad_flags(flags, said, tmp_path):
    with inside(tmp_path):
        done = end(main, [QUICKSTART, *flags])
    assert done.status == 2
    assert done.err.startswith(f"error: {said}")
    assert done.err.count("\n") == 1
