"""The data of a run."""

import numpy as np
import pytest
from tiny import tiny_config

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
