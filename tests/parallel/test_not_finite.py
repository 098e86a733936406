"""Losses that are not finite in runs of two processes: once, in a burst, and from a step on."""

import json

import numpy as np
import pytest
from processes import PATIENCE, end, start
from tiny import replace, tiny_config, tiny_run

from deit_jax.config.schema import Duration
from deit_jax.run.failures import kept_steps, read_failure
from deit_jax.run.replay import replay

GUARDED = replace(
    replace(tiny_config(), "guard", max_skipped=2, max_rollbacks=1), "checkpoint", every=Duration(3, 0.0, 0)
)
# What each of the two does; the batches of some steps give a loss that is not finite.
RUNS = """
import pathlib, jax, numpy as np
sys.path[:0] = ["tests", "tests/parallel"]
jax.config.update("jax_num_cpu_devices", 2)
cli.start_jax()
from test_not_finite import GUARDED
from deit_jax.run import train
from deit_jax.step import mixing
draw, mkdir = mixing.draw, pathlib.Path.mkdir
def run(name, steps):
    def poisoned(seed, step, **settings):
        mix = draw(seed, step, **settings)
        return {**mix, "label_weight": mix["label_weight"] * np.float32("nan")} if step in steps else mix
    mixing.draw = poisoned
    try:
        told = train.train(GUARDED, pathlib.Path("ROOT") / name)
        print(name, told["skipped"], told["rollbacks"])
    except UserError as error:
        print(name, str(error).partition(";")[0])
def refuse(path, *given, **options):
    if "failures" in path.parts:
        raise OSError(28, "No space left on device", str(path))
    mkdir(path, *given, **options)
run("burst", {2, 6, 7})
if hosts.index() == 0: pathlib.Path.mkdir = refuse
run("on", set(range(4, 12)))
"""


def by_place(batch):
    return np.asarray(batch["index"])[np.argsort(np.asarray(batch["place"]))].tolist()


@pytest.mark.long
def test_two_processes_skip_go_back_keep_and_give_up_alike(tmp_path):
    """Of the second run nothing can be kept, which costs a warning."""
    ended = end(start(RUNS.replace("ROOT", str(tmp_path)), step_timeout=120), timeout=2 * PATIENCE)
    for i, (status, out, err) in enumerate(ended):
        said = [line for line in out.splitlines() if line.startswith(("burst", "on ", "done"))]
        given_up = "the loss or its gradient is not finite, 3 steps in a row up to step 9 (stream positions 192 to 287)"
        assert (status, said) == (0, ["burst 3 1", f"on {given_up}, after 1 rollbacks", f"done {i}"]), err
    jumps = {name: json.loads((tmp_path / name / "rollbacks.json").read_text()) for name in ("burst", "on")}
    assert jumps["burst"] == [{"from": 6, "to": 9, "skipped": 3}]
    assert jumps["on"] == [{"from": 3, "to": 6, "skipped": 2}]
    assert {name: kept_steps(tmp_path / name / "failures") for name in jumps} == {"burst": [3, 7], "on": []}
    assert "step 6: is not kept: [Errno 28] No space left on device" in ended[0][2]
    assert "step 7: is not kept: [Errno 28] No space left on device" in ended[0][2]

    # Its rows are of both processes, and one alone runs it again.
    files = sorted(path.name for path in (tmp_path / "burst" / "failures" / "step_7").glob("*.npz"))
    assert files == ["batch_0.npz", "batch_16.npz"]
    (batch, _) = next(tiny_run(GUARDED).batches(6, 7))
    assert by_place(read_failure(tmp_path / "burst" / "failures", 7).batch) == by_place(batch)
    told = replay(GUARDED, tmp_path / "burst", 7, "cpu")
    assert (told["finite"], told["first"], told["rows"]) == (False, "targets", list(range(32)))
