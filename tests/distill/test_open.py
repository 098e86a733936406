"""From a config to a teacher: of the registry, of the user's own, of an exported program; and to a store."""

import dataclasses
import hashlib
import json
import sys
import textwrap

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export
from processes import Two
from tiny import TEACHER, distilled_config, replace, tiny_config, tiny_run, write_teacher, write_weights

from deit_jax import parallel
from deit_jax.base.errors import UserError
from deit_jax.classifier import Classifier
from deit_jax.distill.open import open_teacher
from deit_jax.distill.teaching import OF_TEACHER, fingerprint, require_same_teacher
from deit_jax.export import describe, export_model
from deit_jax.models import Preprocessing, abstract_model, flatten
from deit_jax.parallel import hosts
from deit_jax.run.stream import train_source
from deit_jax.weights import Card, open_model
from deit_jax.weights.orbax import read_variables, write_variables

NAMES = tuple(str(digit) for digit in range(10))
IMAGES = np.random.default_rng(1).random((3, 8, 8, 3), np.float32)


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("teacher")
    write_teacher(folder)
    return folder


def with_teacher(config, **fields):
    teacher = dataclasses.replace(config.distillation.teacher, **fields)
    return replace(config, "distillation", teacher=teacher)


def ask(teacher, images=IMAGES):
    return np.asarray(jax.jit(teacher)(teacher.variables, images))


def refused(call, *arguments):
    with pytest.raises(UserError) as error:
        call(*arguments)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.fixture(scope="module")
def said(workdir):
    """What the teacher says of the images, by its own command."""
    model, card = open_model(str(workdir))
    look = card.preprocessing
    images = np.clip(jax.image.resize(IMAGES, (3, 12, 12, 3), "bicubic"), 0, 1)
    logits = model(jax.device_put((images - np.float32(look.mean)) / np.float32(look.std)))
    assert np.ptp(logits) > 1
    return np.asarray(logits)


# Of the registry.


def test_a_network_of_the_registry_with_its_own_size_and_normalisation(workdir, said):
    teacher = open_teacher(distilled_config(workdir), NAMES)
    assert (teacher.image_size, teacher.mean, teacher.std) == ((12, 12), (0.5, 0.4, 0.3), (0.2, 0.3, 0.4))
    np.testing.assert_allclose(ask(teacher), said, rtol=1e-5, atol=1e-5)


def test_classes_are_taken_by_their_names(workdir, said):
    names = ("7", "2", "9", "0")
    teacher = open_teacher(distilled_config(workdir), names)
    np.testing.assert_allclose(ask(teacher), said[:, [7, 2, 9, 0]], rtol=1e-5, atol=1e-5)


def test_classes_without_names_are_taken_in_order_and_that_is_said(workdir, tmp_path, said, caplog):
    variables, meta = read_variables(workdir / "checkpoints")
    write_variables(tmp_path / "unnamed", variables, {"card": meta["card"] | {"class_names": []}})
    names = tuple("abcdefghij")
    teacher = open_teacher(distilled_config(tmp_path / "unnamed"), names)
    np.testing.assert_allclose(ask(teacher), said, rtol=1e-5, atol=1e-5)
    assert "the weights do not name their classes: the k-th output is taken for the data's k-th class (a, b, c" in (
        caplog.text
    )
    assert "does not say which classes it knows" in refused(
        open_teacher, distilled_config(tmp_path / "unnamed"), names[:9]
    )


def test_a_teacher_whose_head_tells_no_class_of_several_is_refused(workdir, tmp_path):
    variables, meta = read_variables(workdir / "checkpoints")
    card = meta["card"] | {"problem_type": "multi_label_classification"}
    write_variables(tmp_path / "labels", variables, {"card": card})
    message = refused(open_teacher, distilled_config(tmp_path / "labels"), NAMES)
    assert "cannot teach: its head is for multi_label_classification" in message


def test_both_heads_of_a_distilled_teacher_are_heard(workdir, tmp_path):
    config = tiny_config(**TEACHER | {"model__name": "deit_tiny_distilled_patch16_224", "model__global_pool": ""})
    random = np.random.default_rng(0)
    shapes = flatten(tiny_run(config).model)
    variables = {path: random.normal(0, 0.3, leaf.shape).astype(np.float32) for path, leaf in shapes.items()}
    write_weights(config, NAMES, tmp_path, variables)
    given = with_teacher(distilled_config(tmp_path), name="deit_tiny_distilled_patch16_224")
    teacher = open_teacher(given, NAMES)
    changed = {path: value * (path != "head_dist.kernel") for path, value in teacher.variables.items()}
    alone = jax.jit(teacher)(changed, IMAGES)
    assert np.abs(alone - ask(teacher)).max() > 0.01


def test_another_image_size_than_it_was_trained_with(workdir):
    teacher = open_teacher(with_teacher(distilled_config(workdir), image_size=16), NAMES)
    assert teacher.image_size == (16, 16)
    assert teacher.variables["pos_embed"].shape == (1, 1 + 16, 24)


def test_it_computes_in_the_runs_dtype(workdir, said):
    config = replace(distilled_config(workdir), "model", dtype="bfloat16")
    teacher = open_teacher(config, NAMES)
    assert "bf16" in str(jax.make_jaxpr(teacher)(teacher.variables, IMAGES))
    assert 1e-3 < np.abs(ask(teacher) - said).max() < 0.3
    assert {value.dtype for value in teacher.variables.values()} == {np.dtype(np.float32)}


def test_its_weights_are_cut_by_the_students_rules(workdir):
    teacher = open_teacher(distilled_config(workdir), NAMES)
    placed = parallel.place(teacher.variables, parallel.make_mesh(2, 4, 1))
    assert placed["blocks.0.mlp.fc1.kernel"].sharding.shard_shape((24, 96)) == (24 // 4, 96)
    for path, value in placed.items():
        np.testing.assert_array_equal(value, teacher.variables[path])


def test_a_convolutional_teacher_keeps_its_statistics(tmp_path):
    """An image's logits do not depend on the others of the batch."""
    size = {"depths": (1, 1), "widths": (5, 7), "stem_width": 3, "stem": "cifar", "image_size": 12, "num_classes": 10}
    random = np.random.default_rng(0)
    variables = {
        path: random.uniform(0.5, 1, leaf.shape).astype(np.float32)
        for path, leaf in flatten(abstract_model("resnet50", **size)).items()
    }
    card = Card("resnet50", size, NAMES, Preprocessing((0.5, 0.5, 0.5), (0.25, 0.25, 0.25)))
    write_variables(tmp_path / "checkpoints", variables, {"card": card.to_json()})
    teacher = open_teacher(with_teacher(distilled_config(tmp_path), name="resnet50"), NAMES)
    assert {"bn1.mean", "layer2.0.bn3.var"} <= teacher.variables.keys()
    np.testing.assert_allclose(ask(teacher, IMAGES[:1]), ask(teacher)[:1], rtol=1e-5)
    moved = dict(teacher.variables, **{"bn1.mean": teacher.variables["bn1.mean"] + 1})
    assert np.abs(jax.jit(teacher)(moved, IMAGES) - ask(teacher)).max() > 0.01


@pytest.mark.parametrize(
    ("fields", "parts"),
    [
        ({"name": "deit_tiny_patch16_22"}, ["teacher.name: unknown model", "did you mean deit_tiny_patch16_224"]),
        ({"weights": ""}, ["teacher.weights: missing; name a workdir"]),
        ({"weights": "nowhere"}, ["teacher.weights: nowhere: ", "is not there"]),
        ({"name": "deit_small_patch16_224"}, ["are of deit_tiny_patch16_224, not of deit_small_patch16_224"]),
        ({"image_size": 13}, ["image_size 13 x 13 is not divisible by patch_size 4"]),
    ],
)
def test_what_does_not_fit_is_named(workdir, fields, parts):
    message = refused(open_teacher, with_teacher(distilled_config(workdir), **fields), NAMES)
    assert message.startswith("config.distillation.teacher.")
    for part in parts:
        assert part in message


def test_weights_that_do_not_fit_are_refused(workdir, tmp_path):
    config = tiny_config(**TEACHER)
    variables, _ = read_variables(workdir / "checkpoints")
    del variables["blocks.0.norm2.bias"]
    write_weights(config, NAMES, tmp_path, variables)
    message = refused(open_teacher, distilled_config(tmp_path), NAMES)
    assert message.startswith(f"config.distillation.teacher.weights: {tmp_path}")
    assert "blocks.0.norm2.bias" in message


def test_a_teacher_of_other_classes_is_refused(workdir, tmp_path):
    message = refused(open_teacher, distilled_config(workdir), (*NAMES[:9], "trois"))
    assert "was trained for other classes than the data's: knows no class 'trois'" in message
    variables, _ = read_variables(workdir / "checkpoints")
    write_weights(tiny_config(**TEACHER), (), tmp_path, variables | {
        "head.kernel": variables["head.kernel"][:, :7], "head.bias": variables["head.bias"][:7]
    })  # fmt: skip
    message = refused(open_teacher, distilled_config(tmp_path), NAMES)
    assert message.startswith("config.distillation.teacher.weights: ")


@pytest.mark.parametrize(
    ("known", "wanted"), [(("0", "1", "1", *NAMES[3:]), NAMES[:2]), (NAMES, (*NAMES[:9], "8"))], ids=["known", "wanted"]
)
def test_a_name_of_several_classes_is_refused(workdir, tmp_path, known, wanted):
    """Otherwise their logits would be none of the teacher's."""
    variables, _ = read_variables(workdir / "checkpoints")
    write_weights(tiny_config(**TEACHER), known, tmp_path, variables)
    message = refused(open_teacher, distilled_config(tmp_path), wanted)
    assert f"{'1' if wanted == NAMES[:2] else '8'!r} stands for several of them; name each class differently" in message


# Of the user's own.


@pytest.fixture
def module(tmp_path, monkeypatch):
    """Writes a module and returns the name of its `build`."""
    monkeypatch.syspath_prepend(tmp_path)

    def write(source):
        (tmp_path / "mine.py").write_text(textwrap.dedent(source))
        monkeypatch.delitem(sys.modules, "mine", raising=False)
        monkeypatch.setattr(sys, "dont_write_bytecode", True)
        return "mine:build"

    return write


OWN = """
    import jax.numpy as jnp

    def apply(variables, images):
        return images.mean((1, 2)) @ variables["head"]["kernel"]

    def build():
        kernel = jnp.arange(30.0).reshape(3, 10)
        return apply, {"head": {"kernel": kernel}}, (0.5, 0.4, 0.3), [1, 2, 4], 8
"""


def test_a_function_of_the_users(module):
    config = with_teacher(distilled_config("none"), name=module(OWN), weights="")
    teacher = open_teacher(config, NAMES)
    expected = ((IMAGES - np.array([0.5, 0.4, 0.3])) / [1, 2, 4]).mean((1, 2)) @ np.arange(30.0).reshape(3, 10)
    np.testing.assert_allclose(ask(teacher), expected, rtol=1e-5, atol=1e-5)
    assert all(isinstance(leaf, np.ndarray) for leaf in jax.tree.leaves(teacher.variables))
    parallel.place(teacher.variables, parallel.make_mesh(2, 4, 1))


def test_variables_of_any_names(module):
    """Also of numbers, and of those that the student's rules would cut otherwise."""
    source = OWN.replace('{"head": {"kernel": kernel}}', '{0: kernel, 1: {"attn.qkv.kernel": jnp.ones(8)}}')
    source = source.replace('["head"]["kernel"]', "[0]")
    teacher = open_teacher(with_teacher(distilled_config("none"), name=module(source), weights=""), NAMES)
    placed = parallel.place(teacher.variables, parallel.make_mesh(2, 4, 1))
    assert placed[1]["attn.qkv.kernel"].sharding.is_fully_replicated


@pytest.mark.parametrize(
    ("source", "parts"),
    [
        ("import nothing_of_this_name", ["failed: ModuleNotFoundError: No module named 'nothing_of_this_name'"]),
        ("x = (", ["failed: SyntaxError"]),
        ("raise SystemExit(3)", ["failed: SystemExit: 3"]),
        ("", ["failed: AttributeError"]),
        ("build = 3", ["failed: TypeError"]),
        ("def build(): raise ValueError('first\\nsecond')", ["failed: ValueError: first"]),
        ("def build(): return None", ["should return (apply(variables, images) -> logits, variables, mean, std"]),
        ("def build(): return 1, {}, (0, 0, 0), (1, 1, 1), 8", ["should return", "the first is no function"]),
        ("def build(): return print, {}, (0, 0), (1, 1, 1), 8", ["should return", "expected 3, got 2"]),
        ("def build(): return print, {}, (0, 0, 0), 1, 8", ["should return", "non-iterable int"]),
        ("def build(): return print, {}, (0, 0, 0), (1, 0, 1), 8", ["should return", "its std is (1.0, 0.0, 1.0)"]),
        ("def build(): return print, {}, (0, 0, 0), (1, float('nan'), 1), 8", ["its std is (1.0, nan, 1.0)"]),
        ("def build(): return print, {}, (0, float('inf'), 0), (1, 1, 1), 8", ["its mean is (0.0, inf, 0.0)"]),
        ("def build(): return print, {}, (0, 0, 0), (1, 1, 1), 'big'", ["should return"]),
        (OWN.replace(", 10)", ", 5, 2)[:, :, 0]"), ["gives logits of shape (2, 5) for two images, the data has 10 c"]),
        (OWN.replace("return images", "return images[0]"), ["fails on images (2, 8, 8, 3): "]),
        (OWN.replace('variables["head"]', 'variables["tail"]'), ["fails on images (2, 8, 8, 3): KeyError: 'tail'"]),
        ("def build(): return (lambda v, x: (x, x)), {}, (0, 0, 0), (1, 1, 1), 8", ["fails on images (2, 8, 8, 3): "]),
    ],
)
def test_a_function_that_is_none_is_one_line(module, source, parts):
    config = with_teacher(distilled_config("none"), name=module(source), weights="")
    message = refused(open_teacher, config, NAMES)
    assert message.startswith("config.distillation.teacher.name: mine:build ")
    for part in parts:
        assert part in message


def test_a_module_that_is_not_there():
    config = with_teacher(distilled_config("none"), name="nowhere.at_all:build", weights="")
    assert "ModuleNotFoundError: No module named 'nowhere'" in refused(open_teacher, config, NAMES)


# Exported.


@pytest.fixture(scope="module")
def exported(workdir, tmp_path_factory):
    """The teacher as `deit_jax.export` writes it."""
    folder = tmp_path_factory.mktemp("exported")
    model, card = open_model(str(workdir))
    trained = Classifier(model, dataclasses.replace(card, class_names=NAMES))
    (folder / "model.jaxexport").write_bytes(export_model(trained))
    (folder / "preprocessing.json").write_text(json.dumps(describe(trained)))
    return folder / "model.jaxexport"


def test_a_program_of_uint8_images(exported, workdir):
    teacher = open_teacher(with_teacher(distilled_config("none"), name=str(exported), weights=""), NAMES)
    assert teacher.image_size == (12, 12)
    images = np.random.default_rng(0).integers(0, 256, (8, 12, 12, 3)).astype(np.float32) / 255
    own = open_teacher(distilled_config(workdir), NAMES)
    np.testing.assert_allclose(ask(teacher, images), ask(own, images), rtol=1e-4, atol=1e-4)
    # Images that are resized would leave 0 to 255, and wrap around.
    sharp = np.float32(np.indices((3, 8, 8, 3)).sum(0) % 2)
    np.testing.assert_allclose(ask(teacher, sharp), ask(own, sharp), atol=0.2)
    mesh = parallel.make_mesh(8)
    batch = parallel.put_batch({"image": images}, mesh, len(images))
    np.testing.assert_allclose(ask(teacher, batch["image"]), ask(teacher, images), rtol=1e-4, atol=1e-4)


def test_a_program_that_cannot_be_read_tells_which_jax_wrote_it(exported, tmp_path):
    program = tmp_path / "model.jaxexport"
    program.write_bytes(exported.read_bytes()[:1000])
    config = with_teacher(distilled_config("none"), name=str(program), weights="")
    assert "jax" not in refused(open_teacher, config, NAMES).partition("cannot be read")[2].partition("jaxexport")[0]
    (tmp_path / "preprocessing.json").write_text(json.dumps({"jax": "9.9.9", "class_names": NAMES}))
    message = refused(open_teacher, config, NAMES)
    assert (
        f"(jax 9.9.9 wrote it, this is {jax.__version__}; the same or a newer one reads it, if it is whole)" in message
    )


def test_a_newer_program_is_refused_before_it_is_run(exported, monkeypatch):
    """A whole one deserialises, and what StableHLO has against it shows where it is made a module of."""

    def newer(self) -> str:
        raise ValueError("unknown version\nof the dialect")

    monkeypatch.setattr(export.Exported, "mlir_module", newer)
    message = refused(open_teacher, with_teacher(distilled_config("none"), name=str(exported), weights=""), NAMES)
    assert "cannot be read: ValueError: unknown version" in message or "cannot be read: unknown version" in message


def test_the_classes_of_a_program_are_taken_by_the_names_beside_it(exported, tmp_path):
    described = json.loads((exported.parent / "preprocessing.json").read_text())
    program = tmp_path / "model.jaxexport"
    program.write_bytes(exported.read_bytes())
    config = with_teacher(distilled_config("none"), name=str(program), weights="")
    plain = ask(open_teacher(config, NAMES))  # of nothing but numbers
    names = [f"digit {digit}" for digit in range(10)]
    (tmp_path / "preprocessing.json").write_text(json.dumps(described | {"class_names": names}))
    np.testing.assert_array_equal(ask(open_teacher(config, names[::-2])), plain[:, ::-2])
    assert "knows no class '3'" in refused(open_teacher, config, ("digit 1", "3"))
    accents = [f"cafe\u0301 {digit}" for digit in range(10)]
    (tmp_path / "preprocessing.json").write_text(json.dumps(described | {"class_names": accents}))
    composed = [f"caf\u00e9 {digit}" for digit in range(10)]
    np.testing.assert_array_equal(ask(open_teacher(config, composed[::-1])), plain[:, ::-1])
    twice = [*names[:9], "digit 1"]
    (tmp_path / "preprocessing.json").write_text(json.dumps(described | {"class_names": twice}))
    message = refused(open_teacher, config, ("digit 2", "digit 1"))
    assert "'digit 1' stands for several of them; name each class differently" in message
    (tmp_path / "preprocessing.json").write_text(json.dumps(described | {"class_names": names[:9]}))
    assert "preprocessing.json, beside it, names 9 classes; export it anew" in refused(open_teacher, config, names[:9])


def test_a_program_without_names_is_taken_by_number_and_that_is_said(exported, tmp_path, caplog):
    program = tmp_path / "model.jaxexport"
    program.write_bytes(exported.read_bytes())
    config = with_teacher(distilled_config("none"), name=str(program), weights="")
    letters = tuple("abcdefghij")
    line = f"{program}: the weights do not name their classes: the k-th output is taken for the data's k-th class (a, b"
    for beside in (None, json.dumps({"class_names": NAMES})):
        if beside:
            (tmp_path / "preprocessing.json").write_text(beside)
        caplog.clear()
        open_teacher(config, letters)
        assert line in caplog.text
    caplog.clear()
    open_teacher(config, NAMES)  # whose classes are called so
    assert caplog.text == ""
    assert "gives logits of shape" in refused(open_teacher, config, letters[:9])


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("{}", ", beside it, has no list of texts as class_names"),
        ('{"class_names": [1, 2]}', ", beside it, has no list of texts as class_names"),
        ('{"class_names": "0123456789"}', ", beside it, has no list of texts as class_names"),
        ("[]", ": is no JSON object"),
        ('{"class_names":' * 100_000, ": is nested more than 32 deep"),
    ],
)
def test_a_description_that_is_none_is_one_line(exported, tmp_path, content, reason):
    program = tmp_path / "model.jaxexport"
    program.write_bytes(exported.read_bytes())
    (tmp_path / "preprocessing.json").write_text(content)
    message = refused(open_teacher, with_teacher(distilled_config("none"), name=str(program), weights=""), NAMES)
    assert message == (
        f"config.distillation.teacher.name: {tmp_path / 'preprocessing.json'}{reason}; mend or remove that file"
    )


@pytest.mark.parametrize("damage", [lambda data: data[:-1], lambda data: data[:-8], lambda data: b"x" + data[1:]])
def test_a_program_that_is_not_what_was_exported_is_refused(exported, tmp_path, damage):
    program, whole = tmp_path / "model.jaxexport", exported.read_bytes()
    about = {"class_names": list(NAMES), "sha256": hashlib.sha256(whole).hexdigest()}
    (tmp_path / "preprocessing.json").write_text(json.dumps(about))
    config = with_teacher(distilled_config("none"), name=str(program), weights="")
    program.write_bytes(whole)
    open_teacher(config, NAMES)
    program.write_bytes(damage(whole))
    assert "model.jaxexport cannot be read: ValueError: its checksum is not the one in" in refused(
        open_teacher, config, NAMES
    )


@pytest.mark.parametrize("field", ["exported", "module"])
def test_images_of_another_size_are_refused_where_the_size_is_given(exported, module, field):
    name = str(exported) if field == "exported" else module(OWN)
    config = with_teacher(distilled_config("none"), name=name, weights="", image_size=16)
    message = refused(open_teacher, config, NAMES)
    assert message.startswith("config.distillation.teacher.image_size: ")
    assert message.endswith("set it to 0")


def test_a_program_of_floating_point_images_in_0_to_1(tmp_path):
    (batch,) = export.symbolic_shape("batch")
    shape = jax.ShapeDtypeStruct((batch, 8, 8, 3), jnp.float32)
    program = export.export(jax.jit(lambda images: jnp.tile(images.mean((1, 2)), 4)[:, :10]))(shape)
    (tmp_path / "mean.jaxexport").write_bytes(program.serialize())
    config = with_teacher(distilled_config("none"), name=str(tmp_path / "mean.jaxexport"), weights="")
    expected = np.tile(IMAGES.mean((1, 2)), 4)[:, :10]
    np.testing.assert_allclose(ask(open_teacher(config, NAMES)), expected, rtol=1e-5)


def test_a_program_that_does_not_fit_is_one_line(tmp_path):
    batch, side = export.symbolic_shape("batch, side")
    programs = {
        "sizes": ((batch, side, side, 3), ("cpu",), "cannot be read: "),
        "tpu": ((batch, 8, 8, 3), ("tpu",), "is for tpu, not for cpu; export it for that"),
        "one": ((1, 8, 8, 3), ("cpu",), "takes 1 image(s) at a time; export it with a symbolic batch size"),
    }
    for name, (shape, platforms, message) in programs.items():
        program = export.export(jax.jit(lambda images: images.mean((1, 2))), platforms=platforms)
        path = tmp_path / f"{name}.jaxexport"
        path.write_bytes(program(jax.ShapeDtypeStruct(shape, jnp.float32)).serialize())
        config = with_teacher(distilled_config("none"), name=str(path), weights="")
        assert message in refused(open_teacher, config, NAMES)


@pytest.mark.parametrize("content", [None, b"", b"no program", "cut"])
def test_a_file_that_is_no_program_is_one_line(exported, tmp_path, content):
    path = tmp_path / "model.jaxexport"
    if content is not None:
        path.write_bytes(exported.read_bytes()[:1000] if content == "cut" else content)
    config = with_teacher(distilled_config("none"), name=str(path), weights="")
    assert f"config.distillation.teacher.name: {path} cannot be read: " in refused(open_teacher, config, NAMES)


# Fingerprints.


def test_a_fingerprint_tells_teachers_apart(workdir, exported, module):
    config, source = distilled_config(workdir), train_source(distilled_config(workdir))

    def printed(config, views="stream"):
        return fingerprint(config, source, open_teacher(config, NAMES), views)

    base = printed(config)
    assert base == printed(config) == json.loads(json.dumps(base))
    own = printed(with_teacher(config, name=module(OWN), weights=""))
    other = printed(with_teacher(config, name=module(OWN.replace("30.0)", "30.0)[::-1]")), weights=""))
    teacher = "distillation.teacher."
    assert [name for name in own if own[name] != other[name]] == [f"{teacher}weights", f"{teacher}function"]
    for before, after, field in (
        ("(0.5, 0.4, 0.3)", "(0.5, 0.4, 0.2)", "mean"),
        ("[1, 2, 4]", "[1, 2, 5]", "std"),
        ("images.mean", "images.max", "function"),
    ):
        other = printed(with_teacher(config, name=module(OWN.replace(before, after)), weights=""))
        differing = {name for name in own if own[name] != other[name]}
        assert f"{teacher}{field}" in differing <= {f"{teacher}{field}", f"{teacher}function"}
    program = printed(with_teacher(config, name=str(exported), weights=""))
    described = exported.parent / "copy.jaxexport"
    described.write_bytes(exported.read_bytes() + b"\0")
    again = printed(with_teacher(config, name=str(described), weights=""))
    assert program[f"{teacher}function"] != again[f"{teacher}function"]


def test_processes_with_different_teachers_are_told(workdir, monkeypatch):
    def compared(teacher, told=()):
        two = Two(told)
        monkeypatch.setattr(hosts, "_peers", two)
        require_same_teacher(teacher)
        return two.heard

    teacher = open_teacher(distilled_config(workdir), NAMES)
    compared(teacher, compared(teacher))
    others = {"image_size": (9, 9), "mean": (0.0,) * 3, "std": (2.0,) * 3, "function": "another"}
    assert others.keys() == set(OF_TEACHER)
    for name, value in others.items():
        told = compared(dataclasses.replace(teacher, **{name: value}))
        with pytest.raises(UserError, match=f"^config.distillation.teacher, its {name}: is .* in process 0 and .* 1;"):
            compared(teacher, told)
    changed = jax.tree.map(lambda leaf: leaf + 1, teacher.variables)
    with pytest.raises(UserError, match=r"^the weights of config.distillation.teacher: is 'of checksum "):
        compared(teacher, compared(dataclasses.replace(teacher, variables=changed)))


def test_a_fingerprint_tells_networks_of_the_same_variables_apart(workdir, tmp_path):
    variables, _ = read_variables(workdir / "checkpoints")
    write_weights(tiny_config(**TEACHER | {"model__heads": 2}), NAMES, tmp_path, variables)
    source = train_source(distilled_config(workdir))
    one, two = (
        fingerprint(config, source, open_teacher(config, NAMES), "stream")
        for config in map(distilled_config, (workdir, tmp_path))
    )
    assert [name for name in one if one[name] != two[name]] == ["distillation.teacher.function"]


@pytest.mark.parametrize(
    ("section", "fields", "views"),
    [
        ("", {"seed": 9}, ["stream"]),
        ("", {"batch_size": 40}, ["stream"]),
        ("data", {"flip": 0.5}, ["stream"]),
        ("data", {"crop_scale": (0.7, 1.0)}, ["stream"]),
        ("data", {"augment": "3a"}, ["stream"]),
        ("data", {"repeats": 3}, ["stream"]),
        ("data", {"exif": False}, ["stream", "one"]),
        ("data", {"crop_ratio": 0.9}, ["one"]),
        ("data", {"image_size": 12}, ["stream", "one"]),
        ("data", {"train_split": "train[:900]"}, ["stream", "one"]),
        ("mixing", {"mixup": 0.1}, ["stream"]),
        ("mixing", {"cutmix": 0.1}, ["stream"]),
        ("mixing", {"probability": 0.1}, ["stream"]),
        ("mixing", {"switch_probability": 0.1}, ["stream"]),
        ("mixing", {"group": 16}, ["stream"]),
        ("mixing", {"label_smoothing": 0.0}, []),
        ("data", {"mean": (0.1, 0.1, 0.1)}, []),
        ("optim", {"learning_rate": 1.0}, []),
        ("distillation", {"alpha": 0.1, "tau": 3.0, "kl_reduction": "batchmean"}, []),
    ],
)
def test_a_fingerprint_holds_what_decides_the_images_and_nothing_else(section, fields, views):
    config = distilled_config("none")
    changed = replace(config, section, **fields) if section else dataclasses.replace(config, **fields)
    for view in ("stream", "one"):
        before, after = (fingerprint(c, train_source(c), None, view) for c in (config, changed))
        assert (before != after) == (view in views)
