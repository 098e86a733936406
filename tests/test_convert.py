"""The command that copies weights between formats."""

import json

import pytest
from weight_samples import FAMILIES, PUBLISHED, assert_same_arrays, convolutional, sample

from deit_jax import convert
from deit_jax.base.errors import UserError
from deit_jax.weights import files, read_weights

TINY = "deit_tiny_patch16_224"


def run(capsys, *arguments):
    """The JSON object of the last line."""
    assert convert.main([str(argument) for argument in arguments]) == 0
    return json.loads(capsys.readouterr().out.splitlines()[-1])


@pytest.mark.parametrize("name", FAMILIES)
def test_timm_orbax_timm(tmp_path, capsys, name):
    first = tmp_path / "first.safetensors"
    convert.write_timm(first, sample(name, depth=12 if name == TINY else 2))
    result = run(capsys, first, tmp_path / "orbax")
    assert result["source"] == str(first)
    assert result["destination"] == str(tmp_path / "orbax")
    assert (result["model"], result["format"]) == (name, "orbax")
    assert result["dtypes"] == ["bfloat16", "float16", "float32"]
    tensors, _ = files.read_tensors(first)
    assert result["parameters"] == sum(value.size for value in tensors.values())
    run(capsys, tmp_path / "orbax", tmp_path / "second.safetensors")
    assert_same_arrays(tensors, files.read_tensors(tmp_path / "second.safetensors")[0])
    assert read_weights(tmp_path / "second.safetensors").card == read_weights(first).card


@pytest.mark.parametrize("name", FAMILIES)
def test_orbax_timm_orbax(tmp_path, capsys, name):
    weights = sample(name)
    convert.write_orbax(tmp_path / "first", weights)
    run(capsys, tmp_path / "first", tmp_path / "w.safetensors")
    run(capsys, tmp_path / "w.safetensors", tmp_path / "second")
    again = read_weights(tmp_path / "second")
    assert_same_arrays(weights.variables, again.variables)
    assert again.card == weights.card


@pytest.mark.parametrize("name", PUBLISHED)
def test_orbax_hugging_face_orbax(tmp_path, capsys, name):
    weights = sample(name, depth=12 if name == TINY else 2)
    convert.write_orbax(tmp_path / "first", weights)
    assert run(capsys, tmp_path / "first", tmp_path / "hf", "--format=hf")["format"] == "hf"
    run(capsys, tmp_path / "hf", tmp_path / "second")
    again = read_weights(tmp_path / "second")
    assert_same_arrays(weights.variables, again.variables)
    assert again.card == weights.card


@pytest.mark.parametrize("name", PUBLISHED)
def test_hugging_face_timm_hugging_face(tmp_path, capsys, name):
    convert.folders.write_folder(tmp_path / "first", sample(name))
    run(capsys, tmp_path / "first", tmp_path / "w.safetensors")
    run(capsys, tmp_path / "w.safetensors", tmp_path / "second", "--format=hf")
    for file in ("config.json", "preprocessor_config.json"):
        assert (tmp_path / "first" / file).read_bytes() == (tmp_path / "second" / file).read_bytes()
    first, _ = files.read_tensors(tmp_path / "first" / "model.safetensors")
    assert_same_arrays(first, files.read_tensors(tmp_path / "second" / "model.safetensors")[0])


@pytest.mark.long
def test_convolutional_networks_go_with_their_statistics(tmp_path, capsys):
    weights = convolutional("regnety_002", num_classes=7)
    convert.write_timm(tmp_path / "first.safetensors", weights)
    run(capsys, tmp_path / "first.safetensors", tmp_path / "orbax")
    run(capsys, tmp_path / "orbax", tmp_path / "second.safetensors")
    for spec in ("orbax", "second.safetensors"):
        again = read_weights(tmp_path / spec)
        assert_same_arrays(weights.variables, again.variables)
        assert again.card == weights.card
    assert "s3.b4.conv2.bn.running_var" in files.read_tensors(tmp_path / "second.safetensors")[0]
    with pytest.raises(UserError, match=r"regnety_002: is no Vision Transformer; write a \.safetensors file"):
        convert.main([str(tmp_path / "orbax"), str(tmp_path / "hf"), "--format=hf"])
    assert not (tmp_path / "hf").exists()


def test_a_tilde_is_the_home(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    convert.write_timm(tmp_path / "w.safetensors", sample(TINY))
    assert run(capsys, "~/w.safetensors", "~/new/v.safetensors")["destination"] == f"{tmp_path}/new/v.safetensors"
    assert (tmp_path / "new" / "v.safetensors").is_file()


def test_a_model_that_the_source_does_not_tell_has_to_be_named(tmp_path, capsys):
    weights = sample(TINY, width=192, heads=3, patch_size=16, image_size=32, depth=12)
    tensors = convert.tables.scatter(weights.variables, convert.tables.TIMM)
    files.write_safetensors(tmp_path / "bare.safetensors", tensors, {})
    with pytest.raises(UserError, match=rf"does not say which model it is of; .*by its shapes: {TINY} or "):
        convert.main([str(tmp_path / "bare.safetensors"), str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()
    result = run(capsys, tmp_path / "bare.safetensors", tmp_path / "out", f"--model={TINY}")
    assert result["arguments"] == {"num_classes": 3, "image_size": 32}


@pytest.mark.parametrize(
    ("destination", "arguments", "message"),
    [
        ("full", [], "is a folder with something in it; remove it or choose another name"),
        ("full", ["--format=hf"], "is a folder with something in it"),
        ("there.safetensors", [], "exists; remove it or choose another name"),
        ("there", [], "exists"),
        ("w.safetensors", ["--format=hf"], "is the name of a file, and format hf a folder"),
        ("w.pth", [], "is the name of a file, and format orbax a folder"),
        ("w", ["--format=timm"], r"format timm is one file; end its name in \.safetensors"),
        ("there/w.safetensors", [], "cannot be written: Not a directory|cannot be written: File exists"),
        ("there/w", ["--format=hf"], "cannot be written: Not a directory|cannot be written: File exists"),
    ],
)
def test_nothing_is_overwritten(tmp_path, destination, arguments, message):
    convert.write_timm(tmp_path / "source.safetensors", sample(TINY, image_size=10))
    (tmp_path / "full").mkdir()
    for name in ("there", "there.safetensors", "full/file"):
        (tmp_path / name).write_text(name)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(UserError, match=message):
        convert.main([str(tmp_path / "source.safetensors"), str(tmp_path / destination), *arguments])
    assert sorted(tmp_path.rglob("*")) == before


def test_empty_and_missing_folders_are_filled(tmp_path, capsys):
    convert.write_timm(tmp_path / "source.safetensors", sample(TINY, image_size=10))
    (tmp_path / "empty").mkdir()
    run(capsys, tmp_path / "source.safetensors", tmp_path / "empty", "--format=hf")
    run(capsys, tmp_path / "source.safetensors", tmp_path / "new" / "deep" / "hf", "--format=hf")
    run(capsys, tmp_path / "source.safetensors", tmp_path / "new" / "deep" / "w.safetensors")
    assert sorted(path.name for path in (tmp_path / "new" / "deep").iterdir()) == ["hf", "w.safetensors"]


def test_weights_out_of_which_transformers_makes_nothing(tmp_path):
    convert.write_timm(tmp_path / "w.safetensors", sample("deit3_small_patch16_224"))
    with pytest.raises(UserError, match=r"deit3_small_patch16_224: transformers has no class for a model with layer"):
        convert.main([str(tmp_path / "w.safetensors"), str(tmp_path / "hf"), "--format=hf"])


@pytest.mark.parametrize("arguments", [[], ["one"], ["one", "two", "three"]])
def test_two_places_are_needed(arguments):
    with pytest.raises(UserError, match=f"two places are needed, {len(arguments)} given"):
        convert.main(arguments)


def test_help_tells_what_there_is(capsys):
    with pytest.raises(SystemExit) as exit_:
        convert.main(["--help"])
    assert exit_.value.code == 0
    out = capsys.readouterr().out
    assert "Nothing is ever overwritten" in out
    assert "--[no]ema" in out


def test_a_url_is_no_destination(tmp_path):
    with pytest.raises(UserError, match=r"DST: s3://bucket/x is a URL of s3, which is not read"):
        convert.main([str(tmp_path), "s3://bucket/x"])
