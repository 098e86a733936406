"""Attention maps: rollout against its formula, what is drawn where, and the command."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from trained_models import (
    CONVNET,
    DEPTH,
    HEADS,
    NAMES,
    PATCH,
    PREPROCESSING,
    SIZE,
    small_convnet,
    small_model,
    stand_in,
    write_photos,
)

from deit_jax import attention
from deit_jax.base.errors import UserError
from deit_jax.data.decode import decode
from deit_jax.data.transforms import eval_transform
from deit_jax.weights import Card

CARD = Card("deit_tiny_patch16_224", {}, NAMES, PREPROCESSING)
PATCHES = (SIZE // PATCH) ** 2


def random_maps(depth: int, heads: int, tokens: int) -> np.ndarray:
    weights = np.random.default_rng(0).exponential(size=(depth, heads, tokens, tokens)).astype(np.float32)
    return weights / weights.sum(axis=-1, keepdims=True)


def test_rollout_by_hand() -> None:
    depth, heads, tokens = 3, 2, 5
    maps = random_maps(depth, heads, tokens)
    product = None
    for layer in range(depth):
        step = np.zeros((tokens, tokens))
        for i in range(tokens):
            for j in range(tokens):
                step[i, j] = sum(float(maps[layer, head, i, j]) for head in range(heads)) / heads + (i == j)
            step[i] /= step[i].sum()
        product = step if product is None else np.einsum("ik,kj->ij", step, product)
    found = attention.rollout(maps)
    np.testing.assert_allclose(found, product, rtol=1e-6)
    np.testing.assert_allclose(found.sum(axis=1), 1, rtol=1e-6)
    assert np.abs(found - attention.rollout(maps[::-1])).max() > 0.01  # the order counts


def test_rollout_of_one_block_that_looks_at_one_patch() -> None:
    maps = np.zeros((1, 2, 3, 3), np.float32)
    maps[0, :, :, 2] = 1
    np.testing.assert_allclose(attention.rollout(maps), [[0.5, 0, 0.5], [0, 0.5, 0.5], [0, 0, 1]])


@pytest.mark.parametrize(
    ("name", "overrides", "tokens"),
    [
        ("deit_tiny_patch16_224", {}, ("class token",)),
        ("deit_tiny_distilled_patch16_224", {}, ("class token", "distillation token")),
        ("deit3_small_patch16_224", {}, ("class token",)),
        ("deit_tiny_patch16_224", {"class_token": False, "global_pool": "avg"}, ()),
    ],
)
def test_tokens(name: str, overrides: dict[str, Any], tokens: tuple[str, ...]) -> None:
    model = small_model(name, **overrides)
    assert attention.tokens_of(model) == tokens
    assert len(tokens) == model.num_prefix_tokens


def test_every_panel_shows_its_own_map() -> None:
    tokens, heads, block = ("class token", "distillation token"), 7, 1
    maps = random_maps(3, heads, 2 + 9)
    photo = np.random.default_rng(1).integers(0, 256, (12, 12, 3), dtype=np.uint8)
    figure = attention.draw(photo, maps, tokens, block, "a $title$ with dollars")
    assert figure.get_suptitle() == "a $title$ with dollars"
    panels = {axes.get_title().partition("\n")[0]: axes.get_images() for axes in figure.axes if axes.get_images()}
    assert len(panels) == 1 + len(tokens) * (2 + heads)
    np.testing.assert_array_equal(panels["photo"][0].get_array(), photo)
    flow = attention.rollout(maps)
    for i, token in enumerate(tokens):
        maps_by_title = {f"{token}, head {head}": maps[block, head] for head in range(heads)}
        maps_by_title[f"{token}, mean of heads"] = maps[block].mean(axis=0)
        for title, full in ({f"{token}, rollout": flow} | maps_by_title).items():
            grey, heat = panels[title]
            np.testing.assert_allclose(grey.get_array(), photo.mean(axis=-1))
            np.testing.assert_allclose(heat.get_array(), full[i, 2:].reshape(3, 3), rtol=1e-6)
            assert heat.get_extent() == grey.get_extent()
            shown = flow if "rollout" in title else maps[block]
            assert heat.get_clim() == (0, shown[..., :2, 2:].max())  # one for all that compare
            np.testing.assert_allclose(
                heat.get_alpha(), 0.8 * np.sqrt(heat.get_array() / heat.get_clim()[1]), rtol=1e-5
            )


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What would have been drawn; a picture of nothing is written in its place, since drawing takes long."""
    calls: list[dict[str, Any]] = []

    class Picture:
        def savefig(self, path: Path, format: str, dpi: int) -> None:
            Image.new("RGB", (3, 3)).save(path, format=format)

    def draw(photo: np.ndarray, maps: np.ndarray, tokens: tuple[str, ...], block: int, title: str) -> Picture:
        calls.append({"photo": photo, "maps": maps, "tokens": tokens, "block": block, "title": title})
        return Picture()

    monkeypatch.setattr(attention, "draw", draw)
    return calls


@pytest.fixture
def photos(tmp_path: Path) -> list[str]:
    return write_photos(tmp_path, ["photos/a.jpg", "photos/b.png"])


@pytest.mark.parametrize("block", [None, 0, -2])
def test_the_command_draws_the_models_maps(photos, drawn, monkeypatch, tmp_path, block) -> None:
    model = small_model("deit_tiny_distilled_patch16_224")
    stand_in(monkeypatch, model, CARD)
    arguments = [] if block is None else [f"--block={block}"]
    assert attention.main(["--weights=x", f"--output={tmp_path}/out", *arguments, *photos]) == 0
    for call, path in zip(drawn, photos, strict=True):
        image = eval_transform(decode(Path(path).read_bytes()), size=SIZE, crop_ratio=0.875)
        pixels = ((image.astype(np.float32) / 255 - PREPROCESSING.mean) / PREPROCESSING.std).astype(np.float32)
        np.testing.assert_array_equal(call["photo"], image)
        assert call["maps"].shape == (DEPTH, HEADS, 2 + PATCHES, 2 + PATCHES)
        np.testing.assert_allclose(call["maps"], model.attention_maps(pixels[None])[:, 0], rtol=1e-4, atol=1e-7)
        assert call["tokens"] == ("class token", "distillation token")
        assert call["block"] == {None: 2, 0: 0, -2: 1}[block]


def test_files_and_output(photos, drawn, monkeypatch, tmp_path, capsys) -> None:
    stand_in(monkeypatch, small_model(), CARD)
    other = write_photos(tmp_path, ["other/a.png"])
    (tmp_path / "photos" / "c.jpg").write_bytes(b"")
    output = tmp_path / "out" / "deep"
    assert attention.main(["--weights=x", f"--output={output}", str(tmp_path / "photos"), *other]) == 0
    out, err = capsys.readouterr()
    names = ["a_attention.png", "b_attention.png", "a_2_attention.png"]
    assert out.splitlines()[:-1] == [str(output / name) for name in names]
    assert json.loads(out.splitlines()[-1]) == {"images": 3, "failed": 1}
    assert err.splitlines() == [
        f"{tmp_path}/photos/c.jpg: these 0 bytes are no JPEG, PNG, WebP, GIF or BMP image; left out"
    ]
    assert sorted(path.name for path in output.iterdir()) == sorted(names)


LONG = ["x" * 235, "x" * 251, "x" * 250 + "y", "x" * 235 + "_2", "熊" * 80, "熊" * 82, "é" * 120 + "x" * 11]


def test_long_names(drawn, monkeypatch, tmp_path, capsys) -> None:
    """Cut to whole characters, each picture of its own, nothing temporary left."""
    stand_in(monkeypatch, small_model(), CARD)
    (photo,) = write_photos(tmp_path, ["a.jpg"])
    odd = os.fsdecode(b"\xdf" * 251)
    for stem in (*LONG, odd):
        shutil.copy(photo, tmp_path / f"{stem}.jpg")
    paths = [str(tmp_path / f"{stem}.jpg") for stem in ("a", *LONG, odd, "a")]
    assert attention.main(["--weights=x", f"--output={tmp_path}/out", *paths]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1]) == {"images": 9, "failed": 0}
    names = os.listdir(tmp_path / "out")
    assert len(names) == 9
    assert all(name.endswith("_attention.png") and len(os.fsencode(name)) <= 255 for name in names)
    for cut in ("x" * 200, "熊" * 70, "é" * 100):
        assert any(name.startswith(cut) for name in names)
    for name in names:
        if "\xdf" not in os.fsencode(name).decode("latin-1"):
            name.encode()  # no character is cut in two


def test_a_picture_that_cannot_be_written_does_not_cost_the_others(
    photos, drawn, monkeypatch, tmp_path, capsys
) -> None:
    stand_in(monkeypatch, small_model(), CARD)
    (tmp_path / "out" / "a_attention.png" / "full").mkdir(parents=True)
    assert attention.main(["--weights=x", f"--output={tmp_path}/out", *photos]) == 0
    out, err = capsys.readouterr()
    assert out.splitlines()[0] == f"{tmp_path}/out/b_attention.png"
    assert json.loads(out.splitlines()[-1]) == {"images": 1, "failed": 1}
    assert err == f"{photos[0]}: cannot write {tmp_path}/out/a_attention.png: Is a directory; left out\n"
    with pytest.raises(UserError, match=f"^--output: cannot write {tmp_path}/out/a_attention.png: Is a directory$"):
        attention.main(["--weights=x", f"--output={tmp_path}/out", photos[0]])


def test_names_that_no_font_has_are_drawn_without_a_word(monkeypatch, tmp_path, recwarn) -> None:
    stand_in(monkeypatch, small_model(), CARD)
    (photo,) = write_photos(tmp_path, ["熊猫 $1_bill_$ \x1b[2J.jpg"])
    assert attention.main(["--weights=x", f"--output={tmp_path}/out", photo]) == 0
    assert not recwarn.list


def test_a_real_picture(photos, monkeypatch, tmp_path) -> None:
    stand_in(monkeypatch, small_model(), CARD)
    assert attention.main(["--weights=x", f"--output={tmp_path}", photos[0]]) == 0
    with Image.open(tmp_path / "a_attention.png") as picture:
        assert picture.width > 300
        assert np.asarray(picture.convert("RGB")).std() > 20


@pytest.fixture
def refused(tmp_path: Path, drawn: list) -> Callable[..., str]:
    def run(*arguments: str) -> str:
        with pytest.raises(UserError) as error:
            attention.main(["--weights=x", f"--output={tmp_path}/out", *arguments])
        assert drawn == []
        assert not (tmp_path / "out").is_dir() or not list((tmp_path / "out").iterdir())
        return str(error.value)

    return run


def test_mistakes(photos, monkeypatch, refused, tmp_path) -> None:
    stand_in(monkeypatch, small_model(), CARD)
    assert refused("--block=3", *photos).startswith("--block: 3 is none of the model's 3; give 0 to 2, or -1")
    assert refused("--block=-4", *photos).startswith("--block: -4 is none")
    assert refused("--output=", *photos).startswith("--output: missing")
    assert refused().startswith("no images: name files")
    (tmp_path / "empty.jpg").write_bytes(b"")
    assert refused(f"{tmp_path}/empty.jpg").startswith(f"no image could be read: {tmp_path}/empty.jpg: these 0 bytes")
    (tmp_path / "out").rmdir()
    (tmp_path / "out").write_text("a file")
    assert refused(*photos).startswith(f"--output: cannot make the folder {tmp_path}/out: File exists")


def test_a_model_without_prefix_tokens(photos, monkeypatch, refused) -> None:
    stand_in(monkeypatch, small_model(class_token=False, global_pool="avg"), CARD)
    assert refused(*photos).startswith("--weights: this model has no class token")


@pytest.mark.long
def test_a_network_without_attention(photos, monkeypatch, refused) -> None:
    stand_in(monkeypatch, small_convnet(), Card(CONVNET, {}, NAMES, PREPROCESSING))
    assert refused(*photos).startswith("--weights: x is of regnety_002, which has no attention; name a ViT's")


def test_help(capsys) -> None:
    with pytest.raises(SystemExit) as stop:
        attention.main(["--help"])
    assert stop.value.code == 0
    assert "--block" in capsys.readouterr().out
