"""The data of a run."""

import numpy as np
import pytest
from tiny import tiny_config, tiny_run

from deit_jax.base.errors import UserError
from deit_jax.data.memory import MemorySource
from deit_jax.run import stream
from deit_jax.run.stream import train_source


def test_one_class_is_nothing_to_train_on(monkeypatch, tmp_path):
    """Whatever the source: its top-1 would be 100 % and its loss 0."""
    source = MemorySource(np.zeros((5, 2, 2), np.uint8), np.zeros(5, int), ["flowers"], name="plants train")
    monkeypatch.setattr(stream, "open_source", lambda **options: source)
    with pytest.raises(
        UserError, match=r"config\.data\.train_split: all 5 photos, such as plants train\[0\], are of one"
    ):
        train_source(tiny_config())
    monkeypatch.undo()
    for kind in ("rose", "tulip"):
        (tmp_path / "flowers" / kind).mkdir(parents=True)
        (tmp_path / "flowers" / kind / "0.jpg").touch()
    with pytest.raises(UserError, match=f"give --config.data.dir={tmp_path}/flowers$"):
        train_source(tiny_config(data__name="folder", data__dir=str(tmp_path)))


def mixes(**fields):
    run = tiny_run(tiny_config(**fields))
    return [{name: np.asarray(value) for name, value in batch["mix"].items()} for batch, _ in run.batches(0, 4)]


@pytest.mark.parametrize("off", [{"mixing__off_steps": 2}, {"mixing__off_examples": 64}])
def test_mixing_ends_where_it_is_switched_off(off):
    """From there on nothing is mixed; before, all is as without."""
    for step, (usual, ending) in enumerate(zip(mixes(), mixes(**off), strict=True)):
        assert (usual["label_weight"] < 1).any()
        for name in usual:
            unmixed = {"image_weight": 1, "label_weight": 1, "box": 0}[name]
            np.testing.assert_array_equal(ending[name], usual[name] if step < 2 else unmixed)


@pytest.mark.parametrize(("mode", "shape"), [("batch", (4,)), ("pair", (4, 8)), ("elem", (4, 8))])
def test_the_mode_reaches_the_batch(mode, shape):
    assert mixes(mixing__mode=mode)[0]["label_weight"].shape == shape
