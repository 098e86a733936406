"""Checkpoints: what comes back, which are kept, and what damage does."""

import contextlib
import dataclasses
import errno
import gc
import json
import os
import resource
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from deit_jax import parallel
from deit_jax.base.errors import OutOfReach, TryAgain, UserError
from deit_jax.base.storage import place
from deit_jax.run.checkpoint import Checkpoints
from deit_jax.step.optim import adamw
from deit_jax.step.state import init_state
from deit_jax.weights import arrays, orbax
from deit_jax.weights.card import Card
from deit_jax.weights.meta import CorruptCheckpoint, raise_machines
from deit_jax.weights.orbax import CheckpointDirectory, read_variables, write_variables

# The first is too large to be stored inline in the index of the array files.
PATHS = {"blocks.0.mlp.fc1.kernel": (64, 240), "norm.scale": (5,), "head.kernel": (16, 3)}
META = {"card": Card("x").to_json()}
OPTIMIZER = adamw(PATHS, b1=0.9, b2=0.99, eps=1e-8, weight_decay=0.1)


def a_state(step=1, mesh=None):
    params = {path: jax.random.normal(jax.random.key(step), shape) for path, shape in PATHS.items()}
    state = init_state(params, {"bn.mean": jnp.arange(3.0)}, OPTIMIZER.init(params), keep_ema=True)
    state = dataclasses.replace(state, step=jnp.int32(step), skipped=jnp.int32(7))
    return jax.device_put(state, parallel.shardings(state, mesh or parallel.make_mesh(8)))


def target(mesh=None, **changes):
    shapes = jax.eval_shape(lambda: dataclasses.replace(init_like(), **changes))
    return parallel.targets(shapes, mesh or parallel.make_mesh(8))


def init_like():
    params = {path: jnp.zeros(shape) for path, shape in PATHS.items()}
    return init_state(params, {"bn.mean": jnp.zeros(3)}, OPTIMIZER.init(params), keep_ema=True)


def saved(directory, steps=(1,), top1=None, keep=2):
    checkpoints = opened(directory, keep)
    for step in steps:
        checkpoints.save(a_state(step), META | {"of": step})
        if step in (top1 or {}):
            checkpoints.judge(step, top1[step])
    checkpoints.close()
    return opened(directory, keep)


def opened(directory, keep=2):
    return Checkpoints(directory, aside=directory.parent / "corrupt", keep=keep)


def equal(ours, theirs):
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, b, strict=True), ours, theirs)


def fine(meta):
    assert "of" in meta


@pytest.mark.parametrize("shape", [(8, 1, 1), (1, 8, 1), (2, 2, 2)])
def test_round_trip_onto_any_mesh(tmp_path, shape):
    checkpoints, mesh = saved(tmp_path), parallel.make_mesh(*shape)
    state = checkpoints.restore(1, target(mesh))
    equal(jax.device_get(state), jax.device_get(a_state(1)))
    assert jax.tree.map(lambda x: x.sharding, state) == parallel.shardings(state, mesh)
    assert checkpoints.meta(1)["of"] == 1


def test_weights_alone_come_back_by_name_and_kind(tmp_path):
    saved(tmp_path, (1, 2, 3), top1={2: 60.0}, keep=3).close()
    first, best, latest = (jax.device_get(a_state(step)) for step in (1, 2, 3))
    for step, state in ((1, first), ("best", best), ("latest", latest)):
        average, meta = read_variables(tmp_path, step=step)
        equal(average, state.ema)
        assert meta["of"] == state.step
    raw, _ = read_variables(tmp_path, step=2, ema=False)
    equal(raw, best.params | best.stats)
    with pytest.raises(UserError, match=r"no step 5; there are \[1, 2, 3\]"):
        read_variables(tmp_path, step=5)


def test_weights_alone_are_written_in_their_own_types(tmp_path):
    random = np.random.default_rng(0)
    variables = {
        f"blocks.{i}.kernel": random.normal(size=(2, 3)).astype(kind)
        for i, kind in enumerate([np.float32, np.float16, jnp.bfloat16] * 4)
    }
    write_variables(tmp_path / "out", variables, META)
    read, meta = read_variables(tmp_path / "out")
    equal(read, variables)
    assert meta["card"] == META["card"]
    with pytest.raises(UserError, match="step 0 has no moving average"):
        read_variables(tmp_path / "out", ema=True)
    with pytest.raises(UserError, match="no finished checkpoint"):
        read_variables(tmp_path)


def test_latest_and_best_are_kept(tmp_path):
    checkpoints = saved(tmp_path, range(1, 8), top1={2: 60.0, 4: 90.0, 5: 80.0})
    assert sorted(int(path.name) for path in tmp_path.iterdir()) == [4, 6, 7]
    assert (checkpoints.latest(), checkpoints.best()) == (7, 4)


def test_best_is_the_latest_where_none_was_evaluated(tmp_path):
    assert saved(tmp_path, (1, 2)).best() == 2
    assert opened(tmp_path / "empty").best() is None


def test_saving_an_old_step_is_an_error(tmp_path):
    checkpoints = saved(tmp_path, (3,))
    with pytest.raises(RuntimeError, match="step 2 was not saved"):
        checkpoints.save(a_state(2), META)


def test_a_save_goes_on_while_the_state_is_donated(tmp_path):
    checkpoints, state = opened(tmp_path), a_state(1)
    expected = jax.device_get(state)
    checkpoints.save(state, META)
    jax.jit(lambda s: jax.tree.map(lambda x: x + 1, s), donate_argnums=0)(state)
    checkpoints.close()
    equal(jax.device_get(opened(tmp_path).restore(1, target())), expected)


def test_another_model_is_the_users_mistake(tmp_path):
    checkpoints = saved(tmp_path)
    with pytest.raises(UserError, match=r"another model.*ema.*kernel.*missing here"):
        checkpoints.restore(1, target(ema={}))
    half = {path: value.astype(jnp.bfloat16) for path, value in init_like().params.items()}
    with pytest.raises(UserError, match=r"float32.*bfloat16"):  # Orbax alone would cast
        checkpoints.restore(1, target(params=half))
    assert checkpoints.latest() == 1


def test_an_optimizer_of_another_form_is_no_corrupt_checkpoint(tmp_path):
    """Of the same arrays, as after an update of optax that adds a part without any."""
    checkpoints = saved(tmp_path)
    grown = target(opt_state=(*init_like().opt_state, optax.EmptyState()))
    with pytest.raises(UserError, match=r"optimizer of another form.*config\.init_from"):
        checkpoints.restore(1, grown)
    assert checkpoints.latest() == 1


def flip_bits_of_the_large_arrays(step):
    """Of the parameters and their average: 60 kB each, in an order and in files that Orbax leaves to chance."""
    for file in (step / "state" / "ocdbt.process_0" / "d").iterdir():
        data = bytearray(file.read_bytes())
        for position in range(2_500, len(data), 5_000):  # indices and small arrays make shorter files
            data[position] ^= 1
        file.write_bytes(data)


def cut(name):
    def damage(step):
        path = step / name
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])

    return damage


def cut_arrays(step):
    for file in (step / "state" / "ocdbt.process_0" / "d").iterdir():
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 20])  # within the first of them


def remove(name):
    return lambda step: (step / name).unlink()


def pipe_for_an_array(step):
    path = max((step / "state").rglob("*"), key=lambda path: path.stat().st_size * path.is_file())
    path.unlink()
    os.mkfifo(path)


DAMAGES = {
    "flipped bits": flip_bits_of_the_large_arrays,
    "cut meta": cut("meta/metadata"),
    "cut manifest": cut("state/manifest.ocdbt"),
    "cut tree": cut("state/_METADATA"),
    "cut arrays": cut_arrays,
    "a pipe for an array": pipe_for_an_array,
    "no meta": remove("meta/metadata"),
    "no manifest": remove("state/manifest.ocdbt"),
}


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(d, id=n, marks=pytest.mark.long if n in ("cut manifest", "cut tree", "no manifest") else ())
        for n, d in DAMAGES.items()
    ],
)
def test_damage_is_seen_and_the_one_before_is_taken(tmp_path, damage, caplog):
    saved(tmp_path / "original", (1, 2)).close()
    # Elsewhere: TensorStore would read from its memory what it has written in this process.
    directory = shutil.copytree(tmp_path / "original", tmp_path / "checkpoints")
    damage(directory / "2")
    with pytest.raises(CorruptCheckpoint):
        opened(directory).restore(2, target())
    with pytest.raises(UserError, match=r"2.*name another step"):
        read_variables(directory)
    checkpoints = opened(directory)
    state = checkpoints.restore_latest(target(), fine)
    equal(jax.device_get(state), jax.device_get(a_state(1)))
    assert (tmp_path / "corrupt" / "2").is_dir()
    assert "moved to" in caplog.text
    checkpoints.save(a_state(2), META | {"of": 2})  # the step can be done again
    checkpoints.close()
    equal(jax.device_get(opened(directory).restore(2, target())), jax.device_get(a_state(2)))


def test_without_the_tree_of_arrays_the_one_before_is_taken(kept_two):
    """Weights alone are read without it, and their checksums tell that they are right."""
    remove("state/_METADATA")(kept_two / "2")
    equal(read_variables(kept_two, step=2)[0], jax.device_get(a_state(2).ema))
    assert int(opened(kept_two).restore_latest(target(), fine).step) == 1
    assert (kept_two.parent / "corrupt" / "2").is_dir()


def without_checksum(path):
    """A meta as older versions wrote it."""
    return {name: value for name, value in json.loads(path.read_text()).items() if name != "checksum"}


@pytest.mark.parametrize("file", ["meta/metadata", "state/_METADATA", "metrics/metrics"])
def test_a_flipped_bit_is_neither_believed_nor_blamed_on_the_config(kept_two, file, caplog):
    """Of those that leave JSON, the state is whole or the one before is taken, whatever the bit was of."""
    path, seen = kept_two / "2" / file, set()
    whole = path.read_bytes()
    meta, top1 = opened(kept_two).meta(2), opened(kept_two).top1(2)
    random = np.random.default_rng(0)
    for at, bit in zip(random.integers(len(whole), size=40), random.integers(7, size=40), strict=True):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1 << bit]) + whole[at + 1 :])
        try:
            assert opened(kept_two).meta(2).items() >= {name: meta[name] for name in ("card", "arrays", "of")}.items()
            assert opened(kept_two).top1(2) == top1
            equal(jax.device_get(opened(kept_two).restore(2, target())), jax.device_get(a_state(2)))
            seen.add("whole")
        except CorruptCheckpoint:
            seen.add("corrupt")
    assert "corrupt" in seen


STRANGE_METAS = [
    *(
        "",
        "{",
        "[]",
        "5",
        "null",
        "{}",
        "[" * 9999,
        '{"card": 5}',
        '{"card": {"model": 3}}',
        '{"card": {}, "arrays": {}}',
    ),
    *({"config": 5}, {"data": 5}, {"jax": None}, {"layout": "1"}, {"layout": 0}, {"layout": None}, {"arrays": []}),
    *({"arrays": {"x": 5}}, {"arrays": {"x": {"shape": 3, "dtype": "float32", "checksum": 1}}}),
    *({"arrays": {"x": {"shape": [-1], "dtype": "float32", "checksum": 1}}}, {"card": {"model": "x", "arguments": 5}}),
]


@pytest.mark.parametrize("strange", STRANGE_METAS, ids=lambda strange: str(strange)[:30])
def test_a_meta_of_another_form_is_a_corrupt_one(kept_two, strange, caplog):
    path = kept_two / "2" / "meta" / "metadata"
    path.write_text(strange if isinstance(strange, str) else json.dumps(without_checksum(path) | strange))
    with pytest.raises(UserError, match=r"/2: cannot be read: .*name another step"):
        read_variables(kept_two, step=2)
    assert int(opened(kept_two).restore_latest(target(), fine).step) == 1
    assert (kept_two.parent / "corrupt" / "2").is_dir()


@pytest.mark.parametrize(
    "strange", ["", "{", "[]", "5", "{}", '{"top1": "x"}', '{"top1": NaN}', '{"top1": 101}', "\xff"]
)
def test_an_evaluation_of_another_form_is_corrupt_too_and_hides_no_other(kept_two, strange, caplog):
    (kept_two / "2" / "metrics" / "metrics").write_text(strange, encoding="latin-1")
    assert CheckpointDirectory(kept_two).best() == 1
    assert read_variables(kept_two)[1]["of"] == 1
    assert "is no evaluation" in caplog.text
    assert int(opened(kept_two).restore_latest(target(), fine).step) == 1
    assert (kept_two.parent / "corrupt" / "2").is_dir()


def test_a_step_whose_evaluation_cannot_be_read_may_be_the_best_and_is_kept_aside(kept_two):
    (kept_two / "1" / "metrics" / "metrics").write_text("{")
    checkpoints = opened(kept_two, keep=1)
    checkpoints.save(a_state(3), META)
    checkpoints.close()
    assert CheckpointDirectory(kept_two).steps() == [2, 3]
    assert (kept_two.parent / "corrupt" / "1").is_dir()


@pytest.mark.parametrize("error", [OSError(5, "Input/output error"), OSError(116, "Stale file handle")])
def test_what_the_machine_cannot_read_is_no_damage(kept_two, monkeypatch, error):
    def fail(path):
        raise error

    monkeypatch.setattr("deit_jax.weights.meta.read_regular", fail)
    with pytest.raises(TryAgain, match=f"cannot be read: {error.strerror}; the same command goes on"):
        opened(kept_two).restore_latest(target(), fine)
    assert sorted(path.name for path in kept_two.iterdir()) == ["1", "2"]
    assert not (kept_two.parent / "corrupt").exists()


def test_what_one_may_not_read_is_neither_damage_nor_an_outage(kept_two, monkeypatch, bucket, caplog):
    def fail(*given, **options):
        raise PermissionError(errno.EACCES, "Permission denied")

    for where, line in (
        (kept_two, "Permission denied; make it yours to read"),
        (place(bucket, ""), "Permission denied; log in .*, or get the role Storage Object User on gs://tests"),
    ):
        for error in (PermissionError(errno.EACCES, "Permission denied"), ValueError("[os_error_code='13']")):
            with pytest.raises(UserError, match=f"^{where}: cannot be read: {line}"):
                raise_machines(error, where)
    with pytest.raises(TryAgain, match="Input/output error; the same command goes on when the bucket is well again"):
        raise_machines(OSError(errno.EIO, "Input/output error"), place(bucket, ""))
    for step in (1, 2):
        (kept_two / str(step) / "metrics").mkdir(exist_ok=True)
        (kept_two / str(step) / "metrics" / "metrics").write_text('{"top1": 1.0}')
    checkpoints = opened(kept_two, keep=1)
    monkeypatch.setattr("deit_jax.weights.meta.read_regular", fail)
    checkpoints._collect()  # which is no reason to end a run
    assert "old checkpoints are not removed" in caplog.text
    assert checkpoints.steps() == [1, 2]
    monkeypatch.setattr("deit_jax.weights.meta.replacing", fail)
    checkpoints.directory = place(bucket, "")
    monkeypatch.setattr(checkpoints, "steps", lambda: [2])
    checkpoints.judge(2, 50.0)
    assert "the evaluation of step 2 is not kept beside it: Permission denied; log in" in caplog.text
    checkpoints.directory = kept_two


def test_nor_is_it_in_the_arrays(kept_two, monkeypatch):
    def fail(*given, **options):
        raise ValueError("INTERNAL: Error reading local file [os_error_code='5']")

    monkeypatch.setattr(orbax.ocp.StandardCheckpointHandler, "restore", fail)
    with pytest.raises(TryAgain):
        opened(kept_two).restore_latest(target(), fine)
    assert not (kept_two.parent / "corrupt").exists()


def test_a_step_by_another_name_is_corrupt(kept_two):
    (kept_two / "1").rename(kept_two / "11")
    assert int(opened(kept_two).restore_latest(target(), fine).step) == 2
    assert (kept_two.parent / "corrupt" / "11").is_dir()


@pytest.mark.parametrize("error", [OSError(5, "Input/output error"), TryAgain("Input/output error")])
def test_what_the_garbage_collection_raises_costs_a_warning(kept_two, monkeypatch, caplog, error):
    checkpoints = opened(kept_two, keep=1)
    monkeypatch.setattr(Checkpoints, "_keep_few", lambda self: (_ for _ in ()).throw(error))
    checkpoints.save(a_state(3), META)
    checkpoints.close()
    assert CheckpointDirectory(kept_two).latest() == 3
    assert "old checkpoints are not removed: " in caplog.text


@pytest.fixture
def kept_two(tmp_path, two):
    """Steps 1 and 2, both evaluated, the second better."""
    return shutil.copytree(two, tmp_path / "checkpoints")


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    directory = tmp_path_factory.mktemp("two") / "checkpoints"
    saved(directory, (1, 2), top1={1: 10.0, 2: 90.0}).close()
    return directory


@pytest.mark.parametrize(
    "name", ["4_backup", "best", "4 (copy)", "0004", ".DS_Store", "-1", "\u0664", "99999999999", "x4"]
)
def test_strangers_among_the_steps_are_passed_over(kept_two, name):
    (kept_two / name).mkdir()
    (kept_two / "7").write_text("a file")
    assert CheckpointDirectory(kept_two).steps() == [1, 2]


def test_what_kills_left_is_removed_by_the_next_run(kept_two):
    for name in ("3.orbax-checkpoint-tmp", "1.orbax-checkpoint-tmp-17"):
        (kept_two / name / "state").mkdir(parents=True)
    CheckpointDirectory(kept_two)
    assert len(list(kept_two.iterdir())) == 4  # a reader touches nothing
    opened(kept_two)
    assert sorted(path.name for path in kept_two.iterdir()) == ["1", "2"]


def test_a_refused_run_touches_nothing(tmp_path):
    checkpoints = saved(tmp_path, (1,))

    def refuse(meta):
        raise UserError("another run")

    with pytest.raises(UserError, match="another run"):
        checkpoints.restore_latest(target(), refuse)
    assert checkpoints.latest() == 1


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda meta: meta.pop("arrays"), "is of an older layout, .*deit_jax.convert.*config.init_from"),
        (lambda meta: meta.update(layout=2), "is of layout 2, and this version reads 1; update deit_jax"),
    ],
)
def test_another_layout_says_so(tmp_path, change, says):
    saved(tmp_path).close()
    (path,) = (tmp_path / "1" / "meta").glob("metadata")
    meta = without_checksum(path)
    change(meta)
    path.write_text(json.dumps(meta))
    for read in (
        lambda: read_variables(tmp_path),
        lambda: opened(tmp_path).restore_latest(target(), check=lambda meta: None),
    ):
        with pytest.raises(UserError, match=says):
            read()
    assert (tmp_path / "1" / "state").is_dir()  # not moved aside as if it were damaged


def test_a_layout_from_before_they_were_counted_opens(tmp_path):
    saved(tmp_path).close()
    (path,) = (tmp_path / "1" / "meta").glob("metadata")
    meta = without_checksum(path)
    del meta["layout"]
    path.write_text(json.dumps(meta))
    assert opened(tmp_path).restore_latest(target(), check=fine) is not None


def test_a_checkpoint_of_another_program_says_so(tmp_path):
    import orbax.checkpoint as ocp

    with ocp.CheckpointManager(tmp_path) as manager:
        manager.save(3, args=ocp.args.StandardSave({"w": jnp.ones(2)}))
    with pytest.raises(UserError, match=r"/3: is no checkpoint of deit_jax, it holds default; .*convert"):
        read_variables(tmp_path)
    with pytest.raises(UserError, match="is no checkpoint of deit_jax"):
        opened(tmp_path).restore_latest(target(), check=fine)
    assert (tmp_path / "3").is_dir()


def test_nothing_to_restore(tmp_path):
    assert opened(tmp_path).restore_latest(target(), fine) is None


def test_with_all_of_them_damaged_nothing_starts_anew(tmp_path):
    saved(tmp_path / "original", (1, 2)).close()
    directory = shutil.copytree(tmp_path / "original", tmp_path / "checkpoints")
    for step in directory.iterdir():
        DAMAGES["cut tree"](step)
    with pytest.raises(UserError, match="no checkpoint is whole; they were moved to"):
        opened(directory).restore_latest(target(), fine)
    assert sorted(path.name for path in (tmp_path / "corrupt").iterdir()) == ["1", "2"]
    with pytest.raises(UserError, match="no checkpoint is whole; they were moved to"):  # nor at the next start
        opened(directory).restore_latest(target(), fine)


def test_a_half_written_checkpoint_is_ignored_and_replaced(tmp_path):
    saved(tmp_path, (1,)).close()
    (tmp_path / "2.orbax-checkpoint-tmp" / "state").mkdir(parents=True)
    checkpoints = opened(tmp_path)
    assert checkpoints.latest() == 1
    checkpoints.save(a_state(2), META | {"of": 2})
    checkpoints.close()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["1", "2"]


@pytest.mark.parametrize("step", [1, 2], ids=["before", "last"])
def test_a_failed_save_is_told_and_done_again(tmp_path, caplog, step):
    checkpoints = opened(tmp_path)
    fail_after(checkpoints, step)
    checkpoints.save(a_state(1), META | {"of": 1})
    checkpoints.save(a_state(2), META | {"of": 2}, last=True)
    assert "disk full" in caplog.text
    checkpoints.close()
    equal(jax.device_get(opened(tmp_path).restore(2, target())), jax.device_get(a_state(2)))


@contextlib.contextmanager
def room_for(bytes_a_file):
    """What the system does not let this process write, as on a full disk: each file is no longer than so many bytes."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (bytes_a_file, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@pytest.mark.parametrize("bytes_a_file", [500, 5000], ids=["no meta", "no arrays"])
def test_a_disk_that_is_full_while_saving_leaves_the_checkpoint_before(tmp_path, bytes_a_file, caplog):
    checkpoints = opened(tmp_path / "checkpoints")
    checkpoints.save(a_state(1), META | {"of": 1})
    checkpoints.finish()
    arrays._checksums(a_state(2))  # compiled, which is kept on the disk, too
    with room_for(bytes_a_file):
        checkpoints.save(a_state(2), META)
        checkpoints.finish()
        with pytest.raises(UserError, match=r"step 3 could not be saved.*make room.*goes on from step 1"):
            checkpoints.save(a_state(3), META, last=True)
        assert checkpoints.steps() == [1]
    assert caplog.text.count("saving to") >= 2
    checkpoints.save(a_state(4), META | {"of": 4}, last=True)
    checkpoints.close()
    again = opened(tmp_path / "checkpoints")
    assert again.steps() == [1, 4]
    for step in again.steps():
        equal(jax.device_get(again.restore(step, target())), jax.device_get(a_state(step)))


def test_a_last_save_that_is_told_too_late_to_have_failed_is_there(tmp_path):
    """As of a bucket that has all of it when its answer is lost; to save it again would be refused."""
    checkpoints = saved(tmp_path / "checkpoints")
    wait = checkpoints.wait

    def late():
        wait()
        raise TimeoutError("no answer")

    checkpoints.wait = late
    checkpoints.save(a_state(2), META, last=True)
    assert checkpoints.steps() == [1, 2]
    checkpoints.wait = wait
    assert int(checkpoints.restore_latest(target(), lambda meta: None).step) == 2


def test_a_last_save_is_tried_twice_while_a_bucket_does_not_answer(tmp_path, monkeypatch):
    """Nor tells what it has."""
    checkpoints, tries = saved(tmp_path / "checkpoints"), []

    def silent():
        raise OutOfReach("gs://a/b", "no answer")

    monkeypatch.setattr(checkpoints, "latest", silent)
    monkeypatch.setattr(checkpoints, "_begin", lambda *given: tries.append(given))
    with pytest.raises(UserError, match=r"step 2 could not be saved") as told:
        checkpoints.save(a_state(2), META, last=True)
    assert (len(tries), told.value.alike) == (2, True)


def test_a_disk_that_stays_full_ends_the_run(tmp_path):
    checkpoints = opened(tmp_path / "checkpoints")
    checkpoints.save(a_state(1), META)
    checkpoints.finish()
    arrays._checksums(a_state(2))
    with room_for(5000):
        for step in (2, 3, 4):
            checkpoints.save(a_state(step), META)
        with pytest.raises(UserError, match=r"step 5 could not be saved.*make room.*goes on from step 1") as error:
            checkpoints.save(a_state(5), META)
    assert error.value.alike
    checkpoints.save(a_state(6), META, last=True)
    checkpoints.save(a_state(7), META)
    checkpoints.close()
    assert opened(tmp_path / "checkpoints").steps() == [6, 7]
    gc.collect()  # what Orbax has left of the saves that failed is told here, not in a test behind this one


def test_a_step_is_not_saved_before_what_comes_before_it(tmp_path, caplog):
    kept = [False, True]
    directory = tmp_path / "checkpoints"
    checkpoints = Checkpoints(directory, aside=tmp_path / "corrupt", keep=2, before=lambda: kept.pop(0))
    checkpoints.save(a_state(1), META)
    assert "what comes before it cannot be kept" in caplog.text
    checkpoints.save(a_state(2), META)
    checkpoints.close()
    assert opened(directory).steps() == [2]


def fail_after(checkpoints, step):
    """The first wait that ends with `step` as the newest loses it, as a full disk would."""
    wait = checkpoints.wait

    def failing():
        wait()
        if checkpoints.latest() == step:
            checkpoints.wait = wait
            shutil.rmtree(checkpoints.directory / str(step))
            raise ValueError("disk full")

    checkpoints.wait = failing
