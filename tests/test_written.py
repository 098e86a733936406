"""What an older version wrote still opens: see golden/make_written.py, which says which."""

import functools
import json
import shutil
import tarfile
from pathlib import Path

import jax
import jax.export
import numpy as np
import pytest
from golden_files import FOLDER, arrays, assert_close

from deit_jax import cli, parallel
from deit_jax.config.resolve import for_platform, resolve
from deit_jax.distill import Store, summarize
from deit_jax.distill.open import open_teacher
from deit_jax.distill.teaching import open_teaching
from deit_jax.main import main
from deit_jax.run.build import build
from deit_jax.run.metrics import read_rows
from deit_jax.run.stream import train_source
from deit_jax.step.step import teacher_step
from deit_jax.weights import open_model

ROOT = Path(__file__).parents[1]
GOLDEN = "written.tar.xz"


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp("written")
    with tarfile.open(FOLDER / GOLDEN) as archive:
        archive.extractall(folder, filter="data")
    return folder


def arguments(run, name, *more):
    """The command line of a config of so small a network as that of the run in a workdir."""
    stored = json.loads((run / "config.json").read_text())
    chosen = [f"--config={ROOT}/configs/{name}.py:hardware=cpu"]
    chosen += [f"--config.batch_size={stored['batch_size']}", f"--config.total_steps={stored['total_steps']}"]
    chosen += [f"--config.model.{field}={stored['model'][field]}" for field in ("width", "depth", "heads")]
    chosen += [f"--config.{part}.every_steps={stored[part]['every_steps']}" for part in ("log", "eval", "checkpoint")]
    return [*chosen, "--config.log.progress=False", "--config.log.tensorboard=False", *more]


def test_a_run_goes_on(written, tmp_path, capsys):
    shutil.copytree(written / "run", tmp_path / "run")
    workdir = tmp_path / "run"
    assert main([*arguments(workdir, "quickstart"), f"--workdir={workdir}"]) == 0
    rows = {row["step"]: row["train/loss"] for row in read_rows(workdir / "metrics.jsonl")}
    rest = {int(step): loss for step, loss in json.loads((written / "rest.json").read_text()).items()}
    assert list(rest) == [5, 6, 7, 8]
    assert_close([rows[step] for step in rest], list(rest.values()), GOLDEN, "losses")
    assert json.loads((workdir / "run.json").read_text())["start_step"] == 4


@pytest.fixture(scope="module")
def golden(written):
    """What the program said of some images: `images`, `logits`."""
    return arrays(written / "logits.npz")


def test_weights_say_the_same(written, golden):
    model, card = open_model(written / "run", ema=None)
    look = card.preprocessing
    images = (golden["images"] / np.float32(255) - np.float32(look.mean)) / np.float32(look.std)
    assert_close(jax.jit(model)(images.astype(np.float32)), golden["logits"], GOLDEN, "logits")


def test_a_program_says_the_same(written, golden):
    program = jax.export.deserialize(bytearray((written / "served" / "model.jaxexport").read_bytes()))
    assert_close(program.call(golden["images"]), golden["logits"], GOLDEN, "logits")


@pytest.mark.parametrize("of", ["weights", "program"])
def test_a_store_holds_what_the_teacher_says(written, of):
    """The store was recorded of the run's weights, which are in the program, too."""
    name, weights = "deit_tiny_patch16_224", written / "run"
    if of == "program":
        name, weights = written / "served" / "model.jaxexport", ""
    taught = {"kind": "soft", "teacher.name": name, "teacher.weights": weights}
    taught |= {"store": written / "store"} if of == "weights" else {}
    given = [f"--config.distillation.{field}={value}" for field, value in taught.items()]
    _, tree, _ = cli.parse_with_config(
        "", lambda values: None, arguments(written / "run", "quickstart_distilled", *given)
    )
    config = for_platform(resolve(tree), "cpu")
    run = build(config, parallel.make_mesh(), train_source(config))
    if of == "weights":
        assert open_teaching(config, run.source, run.mesh, rows=run.total * 32).store is not None
    store = Store(written / "store", fingerprint={}, rows=8 * 32, soft=True)
    teacher = open_teacher(config, run.source.class_names)
    ask = jax.jit(functools.partial(teacher_step, teacher=teacher, normalize=run.normalize))
    for step, (batch, _) in enumerate(run.batches(0, 2)):
        said = summarize(ask(teacher.variables, batch), 10)
        rows = store.read(32 * step + np.asarray(batch["place"]), np.zeros(32, int))
        np.testing.assert_array_equal(rows["labels"], said["labels"])
        assert_close(rows["values"], said["values"], GOLDEN, "float16")
