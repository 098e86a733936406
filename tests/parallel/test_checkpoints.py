"""Checkpoints that several processes write and read together, of which one meets damage or a full disk."""

import re

import pytest
from processes import end, start

# A state that two processes have a half of each, and a place for its checkpoints.
BEGIN = """
import dataclasses, os, pathlib, resource, signal
import jax, numpy as np
from jax.sharding import NamedSharding, PartitionSpec as P
from deit_jax.run.checkpoint import Checkpoints
from deit_jax.step.state import TrainState
from deit_jax.weights import Card

mesh = jax.make_mesh((2,), ("fsdp",), devices=[host[0] for host in np.array(jax.devices()).reshape(2, -1)])
def over(spec, value):
    there = NamedSharding(mesh, spec)
    return jax.make_array_from_callback(np.shape(value), there, lambda part: np.asarray(value)[part])
def state(step):
    kernel = over(P("fsdp"), np.random.default_rng(step).standard_normal((512, 64), np.float32))
    number, zero = over(P(), np.int32(step)), over(P(), np.int32(0))
    return TrainState(number, {"a.kernel": kernel}, {}, (), {}, zero, zero)
def limit(nbytes=resource.RLIM_INFINITY):
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (nbytes, resource.RLIM_INFINITY))
root, meta = pathlib.Path("ROOT"), {"card": Card("x").to_json(), "config": {}}
checkpoints = Checkpoints(root / "checkpoints", aside=root / "corrupt", keep=3)
"""
SAVED = BEGIN + "for step in (1, 2): checkpoints.save(state(step), meta, last=True)\n"
RESTORED = """
hosts.gather("damaged")
target = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding), state(0))
restored = checkpoints.restore_latest(target, lambda meta: None)
mine, whole = (leaf.addressable_data(0) for leaf in (restored.params["a.kernel"], state(1).params["a.kernel"]))
print(int(restored.step), bool((mine == whole).all()), checkpoints.steps(), os.listdir(root / "corrupt"))
"""
# What each process reads of a run, where to the second one the folder looks older.
READ = """
import dataclasses, pathlib
import jax.numpy as jnp
from deit_jax.run.checkpoint import Checkpoints, has_steps
from deit_jax.run.failures import Failures
from deit_jax.run.rollback import Rollbacks
from deit_jax.run.workdir import Workdir
from deit_jax.step.state import init_state

workdir = Workdir(pathlib.Path("ROOT") / str(hosts.index()))
workdir.checkpoints.joinpath("3").mkdir(parents=True)
workdir.rollbacks.write_text('[{"from": 3, "to": 7, "skipped": 4}]')
workdir.failures.joinpath("step_5").mkdir(parents=True)
workdir.failures.joinpath("step_5", "failure.json").write_text("{}")
if hosts.index():
    workdir.checkpoints.joinpath("3").rename(workdir.checkpoints / "2")
    workdir.rollbacks.write_text("")
    workdir.failures.joinpath("step_5", "failure.json").unlink()
rollbacks = Rollbacks(workdir, total=9, limit=2, batch_size=1)
at_3 = dataclasses.replace(init_state({}, {}, (), keep_ema=False), step=jnp.int32(3))
print(int(rollbacks.resume(at_3).step), len(rollbacks), Failures(workdir, None, {})._known)
steps = Checkpoints(workdir.checkpoints, aside=workdir.corrupt, keep=1)
print(has_steps(workdir.checkpoints), has_steps(workdir.root), hosts.of_first(steps.latest))
sys.path.append("tests")
from tiny import tiny_config
from deit_jax.run import together
from deit_jax.run.evaluate import evaluate
together.SEEN = 0
try:
    evaluate(tiny_config(), workdir.root)
except UserError as error:
    print(error)
"""
DAMAGE = {
    "cut": "path.write_bytes(path.read_bytes()[:-2000])",
    "gone": "path.unlink()",
    "flipped": "data = bytearray(path.read_bytes()); data[len(data) // 2] ^= 1; path.write_bytes(data)",
}


@pytest.mark.long
@pytest.mark.parametrize(("of", "damage"), [(0, "cut"), (1, "gone"), (1, "flipped")])
def test_damage_that_one_process_meets_costs_all_the_newest(of, damage, tmp_path):
    files = f"(root / 'checkpoints' / '2' / 'state' / 'ocdbt.process_{of}').rglob('*')"
    text = f"""{SAVED}
if hosts.index() == 0:
    path = max((path for path in {files} if path.is_file()), key=lambda path: path.stat().st_size)
    {DAMAGE[damage]}
{RESTORED}""".replace("ROOT", str(tmp_path))
    for i, (status, out, err) in enumerate(end(start(text))):
        assert (status, out.splitlines()) == (0, ["1 True [1] ['2']", f"done {i}"]), err
        assert "the one before is taken" in err


def test_what_the_first_process_reads_decides_for_all(tmp_path):
    """To others a shared folder may look older for a while."""
    for i, (status, out, err) in enumerate(end(start(READ.replace("ROOT", str(tmp_path)), step_timeout=120))):
        *read, refused, done = out.splitlines()
        assert (status, read, done) == (0, ["7 1 {5}", "True False 3"], f"done {i}"), err
        assert refused.startswith("--workdir: process 1 ")
        assert refused.endswith(f"has in {tmp_path / str(i) / 'checkpoints'}; name a place that all share")


@pytest.mark.long
def test_a_failing_step_that_the_first_process_has_no_room_for_costs_all_a_warning(tmp_path):
    """And what is saved after it has the same names in all of them."""
    text = f"""{BEGIN}
from deit_jax.run.failures import Failures
from deit_jax.run.workdir import Workdir
failures, mkdir = Failures(Workdir(root), None, meta), pathlib.Path.mkdir
def no_room(path, *given, **options):
    raise OSError(28, "No space left on device", str(path))
def keep(step):
    return failures._keep_weights(root / "failures" / f"step_{{step}}", step, state(step))
if hosts.index() == 0: pathlib.Path.mkdir = no_room
print(keep(7), checkpoints._begin(state(8), meta))
pathlib.Path.mkdir = mkdir
print(keep(9))
checkpoints.save(state(10), meta, last=True)
print(checkpoints.steps())
""".replace("ROOT", str(tmp_path))
    for i, (status, out, err) in enumerate(end(start(text, step_timeout=120))):
        assert (status, out.splitlines()) == (0, ["False False", "True", "[10]", f"done {i}"]), err
        assert "step 7: is not kept: [Errno 28] No space left on device" in err
        assert "checkpoints failed: [Errno 28] No space left on device" in err


@pytest.mark.long
@pytest.mark.parametrize("failing", [0, 1])
def test_a_failing_step_that_one_process_alone_cannot_save_costs_all_a_warning(failing, tmp_path):
    """The other one may have saved its part, and is not to wait."""
    text = f"""{BEGIN}
import orbax.checkpoint as ocp
from deit_jax.run.failures import Failures
from deit_jax.run.workdir import Workdir
failures, save = Failures(Workdir(root), None, meta), ocp.AsyncCheckpointer.save
def full(*given, **options):
    raise OSError(28, "No space left on device")
def keep(step):
    return failures._keep_weights(root / "failures" / f"step_{{step}}", step, state(step))
if hosts.index() == {failing}: ocp.AsyncCheckpointer.save = full
print(keep(7))
ocp.AsyncCheckpointer.save = save
print(failures._done(8, full if hosts.index() == {failing} else lambda: None))  # as its rows
print(keep(9))
for step in (10, 11): checkpoints.save(state(step), meta, last=True)
print(checkpoints.steps())
""".replace("ROOT", str(tmp_path))
    for i, (status, out, err) in enumerate(end(start(text, step_timeout=120))):
        assert (status, out.splitlines()) == (0, ["False", "False", "True", "[10, 11]", f"done {i}"]), err
        assert re.search(r"step 7: is not kept: .*No space left on device", err)


@pytest.mark.long
@pytest.mark.parametrize("full", [0, 1])
def test_a_disk_that_is_full_for_one_process_costs_all_one_checkpoint(full, tmp_path):
    text = f"""{SAVED}
if hosts.index() == {full}: limit(20000)
checkpoints.save(state(3), meta)
print(checkpoints.finish(), checkpoints.steps())
limit()
checkpoints.save(state(4), meta, last=True)
print(checkpoints.steps())
""".replace("ROOT", str(tmp_path))
    for i, (status, out, err) in enumerate(end(start(text))):
        assert (status, out.splitlines()) == (0, ["False [1, 2]", "[1, 2, 4]", f"done {i}"]), err
        assert "checkpoints failed: " in err


@pytest.mark.long
@pytest.mark.parametrize("early", [0, 1])
def test_a_save_that_one_process_does_not_wait_for_may_go_on_beside_the_next(early, tmp_path):
    """As where a bucket took too long: what waits there for the others is not met by what comes after."""
    text = f"""{SAVED}
import orbax.checkpoint as ocp
wait = ocp.AsyncCheckpointer.wait_until_finished
def tired(saver):
    ocp.AsyncCheckpointer.wait_until_finished = wait
    raise TimeoutError("no answer")
for step in (3, 4, 5, 6):
    if hosts.index() == {early}: ocp.AsyncCheckpointer.wait_until_finished = tired
    checkpoints.save(state(step), meta, last=True)
    print(step in checkpoints.steps())
""".replace("ROOT", str(tmp_path))
    for i, (status, out, err) in enumerate(end(start(text, step_timeout=120))):
        assert (status, out.splitlines()) == (0, [*["True"] * 4, f"done {i}"]), err


@pytest.mark.long
def test_a_save_that_one_process_alone_sees_fail_costs_all_one_checkpoint(tmp_path):
    """As of a bucket that has all of it, and answers one of them too late."""
    text = f"""{BEGIN}
checkpoints.save(state(1), meta)
wait = checkpoints.wait
def late():
    wait()
    checkpoints.give_up()
    raise TimeoutError("no answer")
if hosts.index() == 0: checkpoints.wait = late
print(checkpoints.finish())
checkpoints.wait = wait
checkpoints.save(state(2), meta)
if hosts.index() == 0: checkpoints.wait = late
checkpoints.save(state(3), meta, last=True)
print(checkpoints.steps())
""".replace("ROOT", str(tmp_path))
    for i, (status, out, err) in enumerate(end(start(text, step_timeout=120))):
        assert (status, out.splitlines()) == (0, ["False", "[1, 2, 3]", f"done {i}"]), err
        assert re.search(r"checkpoints failed: process 0 \(.+\): no answer", err)
