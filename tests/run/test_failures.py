"""Which failing steps of whole runs are kept, with what, and what befalls the keeping."""

import dataclasses
import json
import shutil

import jax
import numpy as np
import pytest
from test_train import GUARDED, at_step, fail, poison
from tiny import replace, tiny_run

from deit_jax.base.errors import UserError
from deit_jax.config.schema import Duration
from deit_jax.parallel import Exchange, make_mesh
from deit_jax.run import failures, train
from deit_jax.run.build import Run
from deit_jax.run.failures import Failures, kept_steps, read_failure
from deit_jax.run.interrupt import Interrupt
from deit_jax.run.metrics import read_rows
from deit_jax.run.monitor import Monitor
from deit_jax.run.replay import replay
from deit_jax.run.workdir import Workdir
from deit_jax.step.state import TrainState
from deit_jax.weights.orbax import CheckpointDirectory
from deit_jax.weights.read import read_weights

# Checkpoints at 5 and 10 alone, so that most steps are read when the next one is on its way.
SPARSE = replace(GUARDED, "checkpoint", every=Duration(5, 0.0, 0))


@pytest.fixture
def states(monkeypatch):
    """The parameters that each step was given, by the step that it ends as; of a second start those of that one."""
    given = {}
    make = Run.train_step

    def recording(self, teacher=None):
        step = make(self, teacher)

        def record(state, *rest):
            given[int(state.step) + 1] = jax.device_get(state.params)
            return step(state, *rest)

        return record

    monkeypatch.setattr(Run, "train_step", recording)
    return given


def kept_params(workdir, step):
    return CheckpointDirectory(workdir / "failures" / f"step_{step}").variables(step - 1)[0]


def assert_equal(ours, theirs):
    assert ours.keys() == theirs.keys()
    for path, value in ours.items():
        np.testing.assert_array_equal(value, theirs[path])


@pytest.mark.long
def test_of_a_burst_the_first_step_is_kept_as_it_was_given(tmp_path, monkeypatch, states, caplog):
    poison(monkeypatch, {6, 7})
    train.train(SPARSE, tmp_path)
    assert kept_steps(tmp_path / "failures") == [7]
    assert "step 7: kept in" in caplog.text
    failure = read_failure(tmp_path / "failures", 7)
    assert failure.updates_since == 0
    assert_equal(kept_params(tmp_path, 7), states[7])
    run = tiny_run(SPARSE)
    given, _ = next(run.batches(6, 7))
    jax.tree.map(np.testing.assert_array_equal, failure.batch, jax.device_get(given))
    assert np.isnan(failure.batch["mix"]["label_weight"]).all()
    assert failure.examples == given["index"].tolist()
    assert failure.names == [run.source.name(index) for index in failure.examples]
    assert [int(run.source[index].label) for index in failure.examples] == failure.batch["label"].tolist()
    facts = json.loads((tmp_path / "failures" / "step_7" / "failure.json").read_text())
    assert (facts["positions"], facts["seed"], facts["split"]) == ([192, 223], 0, 1437)
    # Other commands open the weights that failed.
    assert_equal(read_weights(str(tmp_path / "failures" / "step_7"), model="").variables, states[7])


@pytest.mark.long
@pytest.mark.parametrize(("step", "updates"), [(7, 1), (6, 0), (5, 1)], ids=["alone", "at a pause", "before a pause"])
def test_a_step_alone_is_kept_with_the_parameters_that_there_are(tmp_path, monkeypatch, states, step, updates):
    """Evaluations at 6 and 12: the device waits there, and step 6 is read before the next one."""
    poison(monkeypatch, {step - 1})
    train.train(replace(SPARSE, "checkpoint", every=Duration(100, 0.0, 0)), tmp_path)
    assert kept_steps(tmp_path / "failures") == [step]
    assert read_failure(tmp_path / "failures", step).updates_since == updates
    assert_equal(kept_params(tmp_path, step), states[step + 1 + updates])


@pytest.mark.long
def test_many_alone_are_not_kept_but_a_burst_that_goes_back_is(tmp_path, monkeypatch):
    monkeypatch.setattr(failures, "MOST", 2)
    poison(monkeypatch, {0, 2, 4, 8, 9})
    train.train(GUARDED, tmp_path)
    assert kept_steps(tmp_path / "failures") == [1, 3, 10]
    assert json.loads((tmp_path / "rollbacks.json").read_text())[0]["to"] == 11


@pytest.mark.long
def test_what_is_kept_is_kept_once(tmp_path, monkeypatch):
    """A run that was killed fails again at the same step; what was half-kept is kept anew."""
    poison(monkeypatch, {2, 9})
    with monkeypatch.context() as patch:
        at_step(patch, 11, lambda: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            train.train(SPARSE, tmp_path)
    assert kept_steps(tmp_path / "failures") == [3, 10]
    shutil.rmtree(tmp_path / "checkpoints" / "10", ignore_errors=True)
    (tmp_path / "failures" / "step_10" / "failure.json").unlink()
    before = (tmp_path / "failures" / "step_3" / "failure.json").stat().st_mtime_ns
    train.train(SPARSE, tmp_path)
    assert kept_steps(tmp_path / "failures") == [3, 10]
    assert (tmp_path / "failures" / "step_3" / "failure.json").stat().st_mtime_ns == before


@pytest.mark.long
@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), ValueError("no space")])
def test_a_step_that_cannot_be_kept_costs_a_warning(tmp_path, monkeypatch, caplog, error):
    poison(monkeypatch, {6, 7})
    result = train.train(SPARSE, tmp_path / "whole")
    save = CheckpointDirectory.save

    def failing(self, *given, **options):
        return fail(error) if self.directory.parent.name == "failures" else save(self, *given, **options)

    monkeypatch.setattr(CheckpointDirectory, "save", failing)
    assert train.train(SPARSE, tmp_path / "full") == result
    assert "step 7: is not kept: " in caplog.text
    assert not list((tmp_path / "full" / "failures").glob("*"))


def test_what_a_kill_left_half_kept_is_removed_and_nothing_of_anybody_else(tmp_path):
    for name in ("step_5/4", "step_7", "step_notes", "step_7b"):
        (tmp_path / "failures" / name).mkdir(parents=True)
    (tmp_path / "failures" / "step_7" / "failure.json").write_text("{}")
    Failures(Workdir(tmp_path), tiny_run(SPARSE), {})
    assert {path.name for path in (tmp_path / "failures").iterdir()} == {"step_7", "step_notes", "step_7b"}


def test_a_healthy_step_is_not_looked_at(tmp_path):
    """Neither its state nor its batch, which are still being computed."""
    watching = Failures(Workdir(tmp_path), tiny_run(SPARSE), {})
    monitor = Monitor(None, Exchange(make_mesh()), Interrupt(), start=0, total=12, log_every=1, batch_size=32)
    for step in range(1, 9):
        watching.look(step, {"image": object()}, TrainState(*[object()] * 7), monitor)
    assert len(watching._recent) == 2  # no more batches than a step's and that of the one before
    assert list(tmp_path.iterdir()) == []


@pytest.mark.long
def test_a_rate_that_diverges_ends_in_a_step_that_tells_where(tmp_path, states):
    """The first update makes parameters so large that the next forward pass overflows, in every batch."""
    config = replace(SPARSE, "optim", learning_rate=1e30, warmup_learning_rate=1e30)
    with pytest.raises(UserError, match="--mode=replay tells"):
        train.train(config, tmp_path)
    (step,) = kept_steps(tmp_path / "failures")
    assert read_failure(tmp_path / "failures", step).updates_since == 0
    assert_equal(kept_params(tmp_path, step), states[step])
    result = replay(config, tmp_path, step, "cpu")
    assert not result["finite"]
    assert result["largest_parameter"] > 1e20
    assert result["rows"] == list(range(32))
    row = read_rows(tmp_path / "metrics.jsonl")[step - 1]
    assert (row["step"], row["train/loss"]) == (step, None)


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    """A folder with a step that was kept."""
    workdir, run = tmp_path_factory.mktemp("kept"), tiny_run(SPARSE)
    state = run.first_state()
    state = dataclasses.replace(state, step=state.step + 3, skipped_in_a_row=state.skipped_in_a_row + 1)
    monitor = Monitor(None, Exchange(make_mesh()), Interrupt(), start=0, total=12, log_every=1, batch_size=32)
    monitor.failed = (3, 1)
    meta = {"config": {}, "card": run.card.to_json()}
    Failures(Workdir(workdir), run, meta).look(3, next(run.batches(2, 3))[0], state, monitor)
    return workdir / "failures"


def test_the_rows_of_all_processes_are_put_together(kept, tmp_path):
    folder = shutil.copytree(kept, tmp_path / "failures")
    (file,) = (folder / "step_3").glob("*.npz")
    whole = read_failure(folder, 3).batch
    with np.load(file) as stored:
        rows = dict(stored)
    file.unlink()
    for first in (0, 8, 24):
        part = slice(first, {0: 8, 8: 24, 24: 32}[first])
        own = {name: value if name.startswith("mix/") else value[part] for name, value in rows.items()}
        np.savez(folder / "step_3" / f"batch_{first}.npz", **own)
    jax.tree.map(np.testing.assert_array_equal, read_failure(folder, 3).batch, whole)
    (folder / "step_3" / "batch_8.npz").unlink()
    with pytest.raises(UserError, match=r"step_3: is not what was kept: .* has 16 of 32 rows; bring it back"):
        read_failure(folder, 3)


def test_rows_of_before_they_had_a_place_are_in_order(kept, tmp_path):
    folder = shutil.copytree(kept, tmp_path / "failures")
    (file,) = (folder / "step_3").glob("*.npz")
    with np.load(file) as stored:
        rows = {name: value for name, value in stored.items() if name != "place"}
    np.savez(file, **rows)
    assert read_failure(folder, 3).batch["place"].tolist() == list(range(32))


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 3] ^= 1
    path.write_bytes(data)


DAMAGES = {
    "no batch": lambda step: (step / "batch_0.npz").unlink(),
    "a cut batch": lambda step: (step / "batch_0.npz").write_bytes((step / "batch_0.npz").read_bytes()[:999]),
    "a flipped bit": lambda step: flip(step / "batch_0.npz"),
    "another batch": lambda step: (step / "batch_x.npz").write_bytes(b""),
    "cut facts": lambda step: (step / "failure.json").write_text("{"),
    "other facts": lambda step: (step / "failure.json").write_text('{"step": 3}'),
    "no meta": lambda step: shutil.rmtree(step / "2" / "meta"),
    "no weights": lambda step: shutil.rmtree(step / "2" / "state"),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_damage_is_one_line(kept, tmp_path, damage):
    folder = shutil.copytree(kept, tmp_path / "failures")
    damage(folder / "step_3")
    with pytest.raises(UserError, match="bring it back from a copy"):
        replay(SPARSE, tmp_path, 3, "cpu")


def test_strangers_in_the_folder_are_no_steps(kept, tmp_path):
    folder = shutil.copytree(kept, tmp_path / "failures")
    for name in ("step_03", "step_x", "step_-1", "step_99999999999", "7"):
        shutil.copytree(folder / "step_3", folder / name)
    assert kept_steps(folder) == [3]
