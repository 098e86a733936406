"""Exporting: the artefact computes what the model computes, and the example serves it without this package."""

import functools
import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.export
import numpy as np
import pytest
from PIL import Image, PngImagePlugin
from PIL.PngImagePlugin import PngInfo
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

from deit_jax import export, predict, serve
from deit_jax.base.errors import UserError
from deit_jax.data import decode
from deit_jax.data.decode import ORIENTATION_TAG, CorruptImage
from deit_jax.data.files import read_image
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
        pytest.param(functools.partial(small_model, "deit_tiny_distilled_patch16_224"), marks=pytest.mark.long),
        pytest.param(functools.partial(small_model, "deit3_small_patch16_224"), marks=pytest.mark.long),
        pytest.param(functools.partial(small_model, "vit_small_patch16_gap_224", width=24), marks=pytest.mark.long),
        pytest.param(small_convnet, marks=pytest.mark.long),
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
        "sha256": hashlib.sha256((output / "model.jaxexport").read_bytes()).hexdigest(),
    }


@pytest.mark.long
def test_the_example_serves_it_without_this_package(monkeypatch, tmp_path, capsys) -> None:
    paths = [*write_photos(tmp_path, ["a.jpg", "b.png", "c.jpg"]), str(tmp_path / "16bit.png")]
    Image.fromarray(photo(40, 50, 9)[..., 0].astype(np.uint16) * 257).save(paths[-1])
    paths += [str(tmp_path / name) for name in ("text.jpg", "\x1b[2J.png", "metadata.png")]
    Path(paths[-3]).write_text("no photo")
    Image.fromarray(photo(40, 50, 10)).save(paths[-2])
    text = PngInfo()
    text.add_text("Comment", " " * 3_000_000, zip=True)
    Image.fromarray(photo(40, 50, 11)).save(paths[-1], pnginfo=text, icc_profile=bytes(3_000_000))
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
    assert len(expected) == 6 * 6
    assert rf"{tmp_path}/\x1b[2J.png" in expected
    (line,) = run.stderr.splitlines()
    assert line.startswith(f"{paths[4]}: ")
    assert line.endswith("; left out")
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


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        return exported(small_model(), patch, tmp_path_factory.mktemp("export"))


def test_a_program_that_is_damaged_is_one_line(folder, tmp_path) -> None:
    program = (folder / "model.jaxexport").read_bytes()
    for damaged in (program[:-1], program[:-8], program + b"\0", program[:-9] + b"\xff" + program[-8:], b""):
        shutil.copy(folder / "preprocessing.json", tmp_path)
        (tmp_path / "model.jaxexport").write_bytes(damaged)
        with pytest.raises(SystemExit, match=r"is damaged: .*model\.jaxexport has not the checksum") as end:
            serve.read_model(tmp_path)
        assert "\n" not in str(end.value)


def test_exports_of_before_have_no_checksum(folder, tmp_path) -> None:
    about = json.loads((folder / "preprocessing.json").read_text())
    del about["sha256"]
    (tmp_path / "preprocessing.json").write_text(json.dumps(about))
    shutil.copy(folder / "model.jaxexport", tmp_path)
    assert serve.read_model(tmp_path)[1] == about


@pytest.mark.parametrize(
    ("name", "value", "what"),
    [
        *(("crop_size", value, "other sizes") for value in (8, "16", None, [16], 16.5)),
        *(("resize_short_side", value, "other sizes") for value in (0, -18, "18", None, 18.5, 10**9)),
        *(("names", value, "other classes") for value in (None, [], ["a"], 3, "abc")),
    ],
)
def test_a_description_of_another_model_is_one_line(folder, tmp_path, name, value, what) -> None:
    about = json.loads((folder / "preprocessing.json").read_text()) | {name: value}
    (tmp_path / "preprocessing.json").write_text(json.dumps(about))
    shutil.copy(folder / "model.jaxexport", tmp_path)
    with pytest.raises(SystemExit) as end:
        serve.read_model(tmp_path)
    assert re.fullmatch(
        rf"{tmp_path}: preprocessing\.json has no \w+ or {what} than the model \w+; export it anew", str(end.value)
    )


@pytest.mark.parametrize("content", ["", "[1]", "{", '{"names": []'])
def test_a_folder_whose_description_is_damaged_is_one_line(content, tmp_path) -> None:
    (tmp_path / "preprocessing.json").write_text(content)
    with pytest.raises(SystemExit, match="an unknown version wrote, or it is damaged: ") as end:
        serve.read_model(tmp_path)
    assert "\n" not in str(end.value)


def test_a_photo_in_the_place_of_the_folder_is_one_line(tmp_path) -> None:
    (photo,) = write_photos(tmp_path, ["a.jpg"])
    for place in (Path(photo), tmp_path):
        with pytest.raises(SystemExit, match=r"is no folder that deit_jax\.export wrote; usage: python serve\.py DIR "):
            serve.read_model(place)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="a Linux device")
def test_a_full_disk_behind_stdout_is_one_line(folder, tmp_path) -> None:
    command = [sys.executable, str(folder / "serve.py"), str(folder), *write_photos(tmp_path, ["a.jpg"])]
    with open("/dev/full", "w") as full:
        run = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True)
    assert (run.returncode, run.stderr) == (1, "cannot write: [Errno 28] No space left on device\n")


def serve_all(folder: Path, paths: list[str], monkeypatch: pytest.MonkeyPatch) -> int:
    """The exit status of serving in this process, whose signals and limits are put back."""
    monkeypatch.setattr(signal, "signal", lambda *arguments: None)
    for limit in ("MAX_TEXT_CHUNK", "MAX_TEXT_MEMORY"):
        monkeypatch.setattr(PngImagePlugin, limit, getattr(PngImagePlugin, limit))
    with pytest.raises(SystemExit) as end, warnings.catch_warnings():
        serve.main(str(folder), *paths)
    return end.value.code


def test_the_exit_status_is_2_where_nothing_was_served(folder, tmp_path, monkeypatch, capsys) -> None:
    (good,) = write_photos(tmp_path, ["a.jpg"])
    bad = [str(tmp_path / "missing.jpg"), str(tmp_path)]
    assert serve_all(folder, [*bad, good], monkeypatch) == 0
    assert serve_all(folder, bad, monkeypatch) == 2
    assert len(capsys.readouterr().err.splitlines()) == 4


def pictures(tmp_path: Path) -> Iterator[str]:
    """Of all kinds that the package reads, and of others."""
    array = photo(37, 53, 1)
    for mode in ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16"):
        image = Image.fromarray(array[..., 0].astype(np.uint16) * 257 if mode == "I;16" else array)
        suffix = "jpg" if mode == "CMYK" else "png"
        (image if mode == "I;16" else image.convert(mode)).save(tmp_path / f"{mode}.{suffix}")
        yield f"{mode}.{suffix}"
    for suffix in ("webp", "gif", "bmp", "tiff", "ppm", "ico", "eps"):
        Image.fromarray(array).save(tmp_path / f"a.{suffix}")
        (tmp_path / f"a.{suffix}").rename(tmp_path / f"{suffix}.jpg")
        yield f"{suffix}.jpg"
    for orientation in range(10):
        exif = Image.Exif()
        exif[ORIENTATION_TAG] = orientation
        Image.fromarray(array).save(tmp_path / f"up{orientation}.jpg", exif=exif)
        yield f"up{orientation}.jpg"
    Image.fromarray(array).save(tmp_path / "damaged.jpg", exif=b"Exif\0\0II*\0\x08\0\0\0\xff\xff garbage")
    Image.fromarray(array).save(tmp_path / "nonsense.jpg", exif=b"Exif\0\0nonsense")
    (tmp_path / "cut.jpg").write_bytes((tmp_path / "up1.jpg").read_bytes()[:-99])
    (tmp_path / "cut.png").write_bytes((tmp_path / "RGB.png").read_bytes()[:-99])
    Image.new("RGB", (1, 900)).save(tmp_path / "thin.png")
    Image.new("RGB", (1, 40_000)).save(tmp_path / "thinner.png")
    yield from ("damaged.jpg", "nonsense.jpg", "cut.jpg", "cut.png", "thin.png", "thinner.png")


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("large", [False, True])
def test_the_example_reads_what_the_package_reads(large, tmp_path, monkeypatch) -> None:
    if large:
        monkeypatch.setattr(serve, "LARGE", 37 * 53 - 1)
        monkeypatch.setattr(decode, "LARGE", 37 * 53 - 1)
    read = 0
    for name in pictures(tmp_path):
        path = str(tmp_path / name)
        try:
            ours = read_image(path, image_size=SIZE, crop_ratio=0.5)
        except CorruptImage:
            with pytest.raises((OSError, ValueError)):
                serve.read_photo(path, 2 * SIZE, SIZE)
            continue
        theirs = np.asarray(serve.read_photo(path, 2 * SIZE, SIZE))
        tolerance = 20 if large and name == "CMYK.jpg" else 0  # of these the package takes the mean of all pixels
        assert np.abs(theirs.astype(int) - ours).max() <= tolerance, name
        read += 1
    assert read == 8 + 3 + 10 + 2 + 1 + large  # the thinnest, whose sides are divided by four


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
