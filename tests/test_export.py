"""Exporting: the artefact computes what the model computes, and the example serves it without this package."""

import functools
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import jax.export
import numpy as np
import pytest
from PIL import Image
from trained_models import (
    CLASSES,
    NAMES,
    PREPROCESSING,
    SIZE,
    photo,
    small_convnet,
    small_model,
    stand_in,
    write_photos,
)

from deit_jax import export, predict
from deit_jax.base.errors import UserError
from deit_jax.step.step import Normalization
from deit_jax.weights import Card

NORMALIZE = Normalization(PREPROCESSING.mean, PREPROCESSING.std)
CARD = Card("deit_tiny_patch16_224", {}, NAMES, PREPROCESSING)


def exported(model: Any, monkeypatch: pytest.MonkeyPatch, output: Path, *arguments: str) -> Path:
    stand_in(monkeypatch, model, CARD)
    assert export.main(["--weights=x", f"--output={output}", *arguments]) == 0
    return output


@pytest.mark.parametrize(
    "make",
    [
        small_model,
        functools.partial(small_model, "deit_tiny_distilled_patch16_224"),
        functools.partial(small_model, "deit3_small_patch16_224"),
        small_convnet,
    ],
)
def test_logits_are_the_models_for_any_batch_size(make, monkeypatch, tmp_path) -> None:
    model = make()
    output = exported(model, monkeypatch, tmp_path / "out")
    program = jax.export.deserialize(bytearray((output / "model.jaxexport").read_bytes()))
    assert program.platforms == ("cpu", "cuda", "tpu")
    for batch in (1, 3):
        images = np.stack([photo(SIZE, SIZE, seed) for seed in range(batch)])
        pixels = (images.astype(np.float32) / 255 - PREPROCESSING.mean) / PREPROCESSING.std
        logits = np.asarray(program.call(images))
        assert logits.dtype == np.float32
        assert logits.shape == (batch, CLASSES)
        same_input = jax.jit(lambda images: model(NORMALIZE(images)))(images)
        np.testing.assert_allclose(logits, same_input, rtol=0, atol=1e-6)
        # Pixels normalised apart round otherwise, which the random network enlarges.
        np.testing.assert_allclose(logits, jax.jit(model)(pixels.astype(np.float32)), rtol=0, atol=1e-5)


def test_preprocessing(monkeypatch, tmp_path, capsys) -> None:
    output = exported(small_model(), monkeypatch, tmp_path / "new" / "folder")
    sizes = {path.name: path.stat().st_size for path in output.iterdir()}
    lines = capsys.readouterr().out.splitlines()
    assert json.loads(lines[-1]) == sizes
    assert lines[:-1] == [str(output / name) for name in ("model.jaxexport", "preprocessing.json", "serve.py")]
    assert json.loads((output / "preprocessing.json").read_text()) == {
        "model": "deit_tiny_patch16_224",
        "jax": jax.__version__,
        "input": {"dtype": "uint8", "shape": ["batch", SIZE, SIZE, 3], "channels": "RGB"},
        "resize_short_side": 40,
        "interpolation": "bicubic",
        "crop_size": SIZE,
        "normalization": "in the model",
        "output": {"dtype": "float32", "shape": ["batch", CLASSES], "values": "logits"},
        "class_names": list(NAMES),
        "names": ["tench", *NAMES[1:]],
    }


def test_the_example_serves_it_without_this_package(monkeypatch, tmp_path, capsys) -> None:
    paths = [*write_photos(tmp_path, ["a.jpg", "b.png", "c.jpg"]), str(tmp_path / "16bit.png")]
    Image.fromarray(photo(40, 50, 9)[..., 0].astype(np.uint16) * 257).save(paths[-1])
    output = exported(small_model(), monkeypatch, tmp_path / "out")
    capsys.readouterr()
    predict.main(["--weights=x", "--top=5", *paths])
    expected = capsys.readouterr().out.splitlines()[:-1]
    (tmp_path / "blocked" / "deit_jax").mkdir(parents=True)
    (tmp_path / "blocked" / "deit_jax" / "__init__.py").write_text("raise ImportError('deit_jax is not for servers')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "blocked"))
    command = [sys.executable, "-W", "error", str(output / "serve.py"), str(output), *paths]
    run = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert run.returncode == 0, run.stderr
    assert run.stdout.splitlines() == [line.replace("tench (n01440764)", "tench") for line in expected]
    imported = subprocess.run([sys.executable, "-c", "import deit_jax"], capture_output=True, text=True, cwd=tmp_path)
    assert "deit_jax is not for servers" in imported.stderr


def test_a_program_of_a_newer_jax_is_one_line(monkeypatch, tmp_path) -> None:
    output = exported(small_model(), monkeypatch, tmp_path / "out")
    about = json.loads((output / "preprocessing.json").read_text())
    (output / "preprocessing.json").write_text(json.dumps(about | {"jax": "9.9.9"}))
    program = (output / "model.jaxexport").read_bytes()
    (output / "model.jaxexport").write_bytes(program[: len(program) // 2])  # which no JAX reads
    run = subprocess.run([sys.executable, output / "serve.py", output, "a.jpg"], capture_output=True, text=True)
    assert run.returncode == 1
    assert f"jax {jax.__version__} cannot read what jax 9.9.9 wrote, or it is damaged" in run.stderr
    assert run.stderr.count("\n") == 1


def test_the_example_in_the_repository_is_what_is_written(monkeypatch, tmp_path) -> None:
    output = exported(small_model(), monkeypatch, tmp_path)
    example = Path(__file__).parents[1] / "examples" / "serve.py"
    assert (output / "serve.py").read_bytes() == example.read_bytes()
    assert "import deit_jax" not in example.read_text()
    assert "from deit_jax" not in example.read_text()


def test_what_is_opened(monkeypatch, tmp_path) -> None:
    calls = stand_in(monkeypatch, small_model(), CARD)
    export.main(["--weights=x", f"--output={tmp_path}", "--noema", "--dtype=bfloat16", "--model=m"])
    assert calls == [{"spec": "x", "model": "m", "ema": False, "dtype": "bfloat16"}]


def test_mistakes(monkeypatch, tmp_path) -> None:
    stand_in(monkeypatch, small_model(), CARD)
    (tmp_path / "file").write_text("")
    for arguments, message in {
        ("--weights=x",): "--output: missing",
        (f"--output={tmp_path}/out",): "--weights: missing",
        ("--weights=x", f"--output={tmp_path}/out", "a.jpg"): "a.jpg: not a flag",
        ("--weights=x", f"--output={tmp_path}/file"): "--output: cannot write into .*/file: File exists",
    }.items():
        with pytest.raises(UserError, match=f"^{message}"):
            export.main(list(arguments))
    monkeypatch.setattr(export, "LARGEST", 1000)
    with pytest.raises(UserError, match="of weights do not fit into an artefact"):
        export.main(["--weights=x", f"--output={tmp_path}/out"])
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_help(capsys) -> None:
    with pytest.raises(SystemExit) as stop:
        export.main(["--help"])
    assert stop.value.code == 0
    assert "--output" in capsys.readouterr().out
