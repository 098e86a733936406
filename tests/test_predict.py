"""Predicting: the right probabilities for every image, whatever the batch size, and what is said of bad ones."""

import dataclasses
import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from PIL import Image
from trained_models import (
    CLASSES,
    CONVNET,
    NAMES,
    PREPROCESSING,
    SIZE,
    WIDTH,
    small_convnet,
    small_model,
    stand_in,
    write_photos,
)

from deit_jax import predict
from deit_jax.base.errors import UserError
from deit_jax.data.decode import decode
from deit_jax.data.transforms import eval_transform
from deit_jax.models import bind, flatten
from deit_jax.weights import Card

opened_model = functools.cache(small_model)
CARD = Card("deit_tiny_patch16_224", {}, NAMES, PREPROCESSING)


@pytest.fixture(autouse=True)
def opened(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    return stand_in(monkeypatch, opened_model(), CARD)


@pytest.fixture
def photos(tmp_path: Path) -> list[str]:
    return write_photos(tmp_path, [f"photos/{name}" for name in ("a.jpg", "b.png", "c.jpg", "d.png", "e.jpg")])


@pytest.fixture
def run(capsys: pytest.CaptureFixture) -> Callable[..., tuple[list[str], list[str]]]:
    """Runs the command and returns the lines of stdout and of stderr."""

    def call(*arguments: str) -> tuple[list[str], list[str]]:
        assert predict.main(["--weights=somewhere", *arguments]) == 0
        out, err = capsys.readouterr()
        return out.splitlines(), err.splitlines()

    return call


def expected(paths: list[str], model: Any = None) -> np.ndarray:
    """Probabilities [images, classes] of the model itself, image by image."""
    images = [eval_transform(decode(Path(path).read_bytes()), size=SIZE, crop_ratio=0.875) for path in paths]
    pixels = (np.stack(images).astype(np.float32) / 255 - PREPROCESSING.mean) / PREPROCESSING.std
    return np.asarray(jax.nn.softmax((model or opened_model())(pixels.astype(np.float32))))


def probabilities(lines: list[str]) -> np.ndarray:
    """[images, classes] from the lines of `--json --top=CLASSES`."""
    found = np.zeros((len(lines), CLASSES))
    for row, line in zip(found, lines, strict=True):
        for prediction in json.loads(line)["predictions"]:
            row[prediction["index"]] = prediction["probability"]
    return found


def test_json_has_the_models_probabilities(run, photos) -> None:
    lines, err = run("--json", "--top=99", *photos)
    assert [json.loads(line)["image"] for line in lines] == photos
    np.testing.assert_allclose(probabilities(lines), expected(photos), rtol=1e-5, atol=1e-7)
    assert err == []
    first = json.loads(lines[0])["predictions"]
    assert len(first) == CLASSES
    assert [p["probability"] for p in first] == sorted((p["probability"] for p in first), reverse=True)
    assert {p["index"]: (p["class"], p["name"]) for p in first} == {
        i: (name, "tench" if i == 0 else name) for i, name in enumerate(NAMES)
    }


@pytest.mark.parametrize("batch_size", [1, 2, 5, 32])
def test_the_batch_size_changes_nothing(run, photos, batch_size) -> None:
    lines, _ = run("--json", "--top=99", f"--batch_size={batch_size}", "--threads=1", *photos)
    np.testing.assert_allclose(probabilities(lines), expected(photos), rtol=1e-5, atol=1e-7)


def test_the_table(run, photos) -> None:
    lines, err = run("--top=2", *photos[:2])
    assert err == []
    rows = expected(photos[:2])
    wanted = []
    for path, row in zip(photos, rows, strict=False):
        wanted.append(path)
        for i in np.argsort(-row)[:2]:
            wanted.append(f"{row[i]:8.2%}  {'tench (n01440764)' if i == 0 else NAMES[i]}")
    assert lines[:-1] == wanted
    summary = json.loads(lines[-1])
    assert summary.keys() == {"images", "failed", "images_per_second"}
    assert (summary["images"], summary["failed"]) == (2, 0)
    assert summary["images_per_second"] > 0


def test_bad_images_are_reported_and_the_rest_predicted(run, photos, tmp_path) -> None:
    (tmp_path / "photos" / "b2.jpg").write_bytes(b"")
    (tmp_path / "photos" / "c2.heic").write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic")
    lines, err = run("--json", "--top=99", "--batch_size=2", str(tmp_path / "photos"), str(tmp_path / "gone.jpg"))
    found = [json.loads(line) for line in lines]
    names = [Path(one["image"]).name for one in found]
    assert names == ["a.jpg", "b.png", "b2.jpg", "c.jpg", "c2.heic", "d.png", "e.jpg", "gone.jpg"]
    errors = {name: one["error"] for name, one in zip(names, found, strict=True) if "error" in one}
    assert errors.keys() == {"b2.jpg", "c2.heic", "gone.jpg"}
    assert "magick photo.heic photo.jpg" in errors["c2.heic"]
    good = [line for line in lines if "error" not in json.loads(line)]
    np.testing.assert_allclose(probabilities(good), expected(photos), rtol=1e-5, atol=1e-7)
    assert len(err) == 3
    assert err[0] == f"{tmp_path}/photos/b2.jpg: {errors['b2.jpg']}; left out"
    summary = json.loads(run("--batch_size=3", str(tmp_path / "photos"))[0][-1])
    assert (summary["images"], summary["failed"]) == (5, 2)


def test_a_head_that_tells_no_classes_gives_features_and_no_probability(run, photos, tmp_path, monkeypatch) -> None:
    stand_in(monkeypatch, opened_model(), dataclasses.replace(CARD, problem_type="multi_label_classification"))
    for arguments in ((), ("--json",)):
        lines, _ = run(f"--features={tmp_path}/f.npz", *arguments, *photos[:2])
        assert not any("%" in line or "probability" in line for line in lines)
        assert sum(photos[0] in line for line in lines) == 1
    with np.load(tmp_path / "f.npz") as saved:
        assert list(saved["paths"]) == photos[:2]


def test_nothing_but_bad_images(capsys, tmp_path) -> None:
    for name in ("a.jpg", "b.jpg"):
        (tmp_path / name).write_bytes(b"")
    with pytest.raises(UserError, match=r"no image could be read: .*a.jpg: these 0 bytes .* \(nor can 1 more\)"):
        predict.main(["--weights=somewhere", "--features=x.npz", str(tmp_path)])
    assert capsys.readouterr() == ("", "")
    with pytest.raises(UserError, match="no image could be read"):
        predict.main(["--weights=somewhere", "--json", str(tmp_path)])
    out, err = capsys.readouterr()
    assert [json.loads(line)["image"] for line in out.splitlines()] == [f"{tmp_path}/a.jpg", f"{tmp_path}/b.jpg"]
    assert err == ""


@pytest.mark.parametrize("dist_head", [True, False])
def test_distilled_models(run, photos, tmp_path, monkeypatch, dist_head) -> None:
    model = small_model("deit_tiny_distilled_patch16_224", dist_head=dist_head)
    stand_in(monkeypatch, model, CARD)
    lines, _ = run("--json", "--top=99", f"--features={tmp_path}/f.npz", *photos)
    np.testing.assert_allclose(probabilities(lines), expected(photos, model), rtol=1e-5, atol=1e-7)
    # Where both heads are the same layer, the mean of the logits is that layer of the mean of the features.
    with np.load(tmp_path / "f.npz") as saved:
        heads = [head for head in (model.head, model.head_dist) if head is not None]
        assert len(heads) == 1 + dist_head
        for head in heads:
            head.kernel[...], head.bias[...] = model.head.kernel[...], model.head.bias[...]
        logits = saved["features"] @ np.asarray(model.head.kernel) + np.asarray(model.head.bias)
    np.testing.assert_allclose(jax.nn.softmax(logits), expected(photos, model), rtol=1e-5, atol=1e-7)


@pytest.mark.long
def test_convolutional_networks(run, photos, tmp_path, monkeypatch) -> None:
    model = small_convnet()
    stand_in(monkeypatch, model, Card(CONVNET, {}, NAMES, PREPROCESSING))
    lines, _ = run("--json", "--top=99", f"--features={tmp_path}/f.npz", *photos)
    np.testing.assert_allclose(probabilities(lines), expected(photos, model), rtol=1e-5, atol=1e-7)
    with np.load(tmp_path / "f.npz") as saved:
        logits = saved["features"] @ np.asarray(model.head.fc.kernel) + np.asarray(model.head.fc.bias)
    np.testing.assert_allclose(jax.nn.softmax(logits), expected(photos, model), rtol=1e-5, atol=1e-7)


def test_features_of_the_predicted_images(run, photos, tmp_path) -> None:
    (tmp_path / "photos" / "b2.jpg").write_bytes(b"")
    output = tmp_path / "features.out"
    run(f"--features={output}", "--batch_size=2", str(tmp_path / "photos"))
    with np.load(output) as saved:
        assert saved.files == ["features", "paths"]
        assert saved["paths"].tolist() == photos
        features = saved["features"]
    assert features.dtype == np.float32
    assert features.shape == (5, WIDTH)
    logits = features @ np.asarray(opened_model().head.kernel) + np.asarray(opened_model().head.bias)
    np.testing.assert_allclose(jax.nn.softmax(logits), expected(photos), rtol=1e-5, atol=1e-7)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["features.out", "photos"]


def test_what_is_opened(run, photos, opened) -> None:
    run("--model=deit_tiny_patch16_224", "--noema", "--dtype=bfloat16", photos[0])
    run("--ema", photos[0])
    run(photos[0])
    model = {"spec": "somewhere", "attention": "einsum", "patch_embedding": "linear"}
    assert opened == [
        {**model, "model": "deit_tiny_patch16_224", "ema": False, "dtype": "bfloat16"},
        {**model, "model": "", "ema": True, "dtype": "float32"},
        {**model, "model": "", "ema": None, "dtype": "float32"},
    ]


def test_classes_without_names_and_the_registrys_preprocessing(photos, monkeypatch) -> None:
    stand_in(monkeypatch, opened_model(), Card("deit3_small_patch16_224"))
    found = predict.open_trained(predict.cli.parse("", predict._define, ["--weights=x"])[0])
    assert found.names == tuple(map(str, range(CLASSES)))
    assert found.preprocessing.crop_ratio == 1.0


def test_files_whose_names_are_no_utf8(run, photos) -> None:
    odd = photos[0].replace("a.jpg", "\udcff$.jpg")
    Path(photos[0]).rename(odd)
    assert json.loads(run("--json", odd)[0][0])["image"] == odd
    assert run(odd)[0][0].endswith("\\udcff$.jpg")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--top=0", "a.jpg"], "--top"),
        (["--batch_size=0", "a.jpg"], "--batch_size"),
        (["--threads=0", "a.jpg"], "--threads"),
        (["--dtype=float16", "a.jpg"], "--dtype"),
        ([], "no images: name files"),
        (["--features=/nowhere/f.npz", "a.jpg"], "--features: /nowhere/f.npz is no file in an existing folder"),
        (["--features=.", "a.jpg"], "--features: .* is no file"),
        (["--features", "a.jpg", "a.jpg"], "--features: .*a.jpg is there and no .npz file; name another"),
        (["--weights=", "a.jpg"], "--weights: missing; name a workdir"),
        (["--topp=3", "a.jpg"], "--topp: unknown flag; did you mean top"),
    ],
)
def test_mistakes(arguments, message, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (9, 9)).save("a.jpg")
    with pytest.raises(UserError, match=f"^{message}|flag {message}"):
        predict.main(["--weights=somewhere", *arguments])


@pytest.mark.parametrize(
    ("overrides", "message"),
    [({"num_classes": 0}, "has no classification head"), ({"image_size": (35, 28)}, "is for images of 35 x 28")],
)
def test_models_that_cannot_classify_photos(photos, monkeypatch, overrides, message) -> None:
    stand_in(monkeypatch, small_model(**overrides), CARD)
    with pytest.raises(UserError, match=f"^(--weights: )?somewhere {message}"):
        predict.main(["--weights=somewhere", photos[0]])


def test_features_of_models_without_a_head(run, photos, monkeypatch, tmp_path) -> None:
    headless = small_model(num_classes=0)
    body = {path: value for path, value in flatten(opened_model()).items() if path in flatten(headless)}
    stand_in(monkeypatch, bind(headless, body), CARD)
    lines, _ = run("--json", f"--features={tmp_path}/f.npz", *photos)
    assert [json.loads(line)["predictions"] for line in lines] == [[]] * len(photos)
    with np.load(tmp_path / "f.npz") as saved:
        logits = saved["features"] @ np.asarray(opened_model().head.kernel) + np.asarray(opened_model().head.bias)
    np.testing.assert_allclose(jax.nn.softmax(logits), expected(photos), rtol=1e-5, atol=1e-7)


def test_damaged_weights(photos, monkeypatch) -> None:
    model = small_model()
    model.head.bias[...] = model.head.bias[...].at[3].set(np.nan)
    stand_in(monkeypatch, model, CARD)
    with pytest.raises(UserError, match="is not finite; the weights are damaged"):
        predict.main(["--weights=somewhere", photos[0]])


def test_a_full_disk_leaves_no_half_file(photos, monkeypatch, tmp_path) -> None:
    def full(file, **arrays) -> None:
        file.write(b"PK")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez", full)
    with pytest.raises(UserError, match=r"--features: cannot write .*f.npz: No space left on device"):
        predict.main(["--weights=somewhere", f"--features={tmp_path}/f.npz", photos[0]])
    assert [path.name for path in tmp_path.iterdir()] == ["photos"]


def test_help(capsys) -> None:
    with pytest.raises(SystemExit) as stop:
        predict.main(["--help"])
    assert stop.value.code == 0
    assert "--weights" in capsys.readouterr().out
