import ast
import copy
import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import pytest
from ml_collections import ConfigDict

import deit_jax
from deit_jax import cli
from deit_jax.base.errors import UserError, nearest
from deit_jax.config import recipes
from deit_jax.config.fields import field_paths
from deit_jax.config.resolve import (
    LATER,
    check_same,
    flatten,
    for_platform,
    resolve,
    stream_fields,
    to_dict,
)
from deit_jax.config.schema import UNITS, Config, Duration
from deit_jax.models import abstract_model

CONFIGS = sorted((Path(__file__).parents[2] / "configs").glob("*.py"))
PLAIN = recipes.deit("deit_tiny_patch16_224")
recipes.crop_and_flip(PLAIN)
RECIPE = PLAIN.to_dict()
CONFIG = resolve(RECIPE)


def recipe(**fields: Any) -> dict[str, Any]:
    """A complete config as a nested dict; `section__field=value` changes a field."""
    tree = copy.deepcopy(RECIPE)
    for name, value in fields.items():
        *groups, field = name.split("__")
        group = tree
        for part in groups:
            group = group[part]
        group[field] = value
    return tree


def refused(config: Any) -> str:
    """The message by which a config is refused: one line."""
    with pytest.raises(UserError) as error:
        resolve(config)
    assert "\n" not in str(error.value)
    return str(error.value)


# Resolving.


@pytest.mark.parametrize(("batch", "group"), [(1024, 256), (1000, 250), (81, 81), (514, 2), (1026, 171)])
def test_images_mix_in_groups_that_divide_the_batch(batch, group):
    assert resolve(recipe(batch_size=batch)).mixing_group == group


def test_a_resolved_config_is_a_fixed_point():
    assert resolve(to_dict(CONFIG)) == CONFIG
    assert resolve(json.loads(json.dumps(to_dict(CONFIG)))) == CONFIG


def test_a_resolved_config_holds_what_the_config_dict_said():
    given = ConfigDict(recipe(seed=17, data__crop_scale=(0.25, 0.75), model__remat=True, ema__decay=0.5))
    assert dict(flatten(to_dict(resolve(given)))) == dict(flatten(given.to_dict()))


def test_resolved_configs_are_frozen_all_the_way_down():
    def sections(value: Any):
        yield value
        for field in dataclasses.fields(value):
            if dataclasses.is_dataclass(getattr(value, field.name)):
                yield from sections(getattr(value, field.name))

    for section in sections(CONFIG):
        hash(section)
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(section, dataclasses.fields(section)[0].name, None)


def test_field_paths_are_the_leaves_of_a_config():
    assert sorted(field_paths()) == sorted(path for path, _ in flatten(to_dict(CONFIG)))


def test_every_field_is_read_by_something():
    """By code below the door, as an attribute `section.field`, or by name where a part of a run takes what is set."""
    package = Path(deit_jax.__file__).parent
    below = [path for path in package.rglob("*.py") if path.name not in ("schema.py", "resolve.py", "recipes.py")]
    nodes = [node for path in below for node in ast.walk(ast.parse(path.read_text()))]
    read = {ast.unparse(node) for node in nodes if isinstance(node, ast.Attribute)}
    parts = [ast.parse((package / "run" / f"{part}.py").read_text()) for part in ("network", "learning")]
    named = {node.value for part in parts for node in ast.walk(part) if isinstance(node, ast.Constant)}
    unread = set()
    for path in field_paths():
        stem, _, unit = path.rpartition("_")
        field = stem if unit in UNITS else path
        attribute = field if "." in field else f"config.{field}"
        if not any(name.endswith(attribute) for name in read) and field.rpartition(".")[2] not in named:
            unread.add(path)
    assert unread == set()


@pytest.mark.parametrize("path", list(field_paths()))
def test_every_missing_field_is_named(path):
    tree = recipe()
    *groups, leaf = path.split(".")
    group = tree
    for name in groups:
        group = group[name]
    del group[leaf]
    assert refused(tree).startswith(f"config.{path}: missing; ")


@pytest.mark.parametrize(
    ("name", "path", "hint"),
    [
        ("optim__learning_rat", "optim.learning_rat", "did you mean optim.learning_rate"),
        ("batchsize", "batchsize", "did you mean batch_size"),
        ("total_step", "total_step", "did you mean total_steps"),
        ("mesh__model", "mesh.model", "did you mean "),
    ],
)
def test_unknown_fields_are_named_with_their_nearest(name, path, hint):
    message = refused(recipe(**{name: 1}))
    assert message.startswith(f"config.{path}: unknown field; ")
    assert hint in message


def test_an_unknown_group_is_named():
    assert refused(recipe(optimizer={"eps": 1.0})).startswith("config.optimizer: unknown field; ")


def test_a_name_like_no_other_gets_all_that_are_known():
    assert nearest("zzz", ["batch_size", "seed"]) == "; known: batch_size, seed"


@pytest.mark.parametrize(
    ("name", "value", "wanted"),
    [
        ("batch_size", 64.0, "of type int"),
        ("batch_size", "64", "of type int"),
        ("batch_size", True, "of type int"),
        ("seed", None, "of type int"),
        ("model__remat", 1, "of type bool"),
        ("model__name", 3, "of type str"),
        ("optim__learning_rate", "5e-4", "of type float"),
        ("ema__decay", True, "of type float"),
        ("optim__learning_rate", math.nan, "a finite number"),
        ("optim__clip_norm", math.inf, "a finite number"),
        ("total_epochs", math.inf, "a finite number"),
        ("total_steps", 1.5, "of type int"),
        ("data__crop_scale", 0.5, "2 numbers"),
        ("data__crop_scale", (0.1, 0.5, 1.0), "2 numbers"),
        ("data__mean", "abc", "3 numbers"),
        ("data__mean", (0.5, 0.5, "a"), "of type float"),
        ("optim__name", "adam", "one of 'adamw', 'lamb', 'sgd', 'muon'"),
        ("model__dtype", "float16", "one of 'auto', 'float32', 'bfloat16'"),
        ("model__attention", "flash", "one of 'auto', 'einsum', 'xla', 'cudnn'"),
        ("model__global_pool", "max", "one of '', 'token', 'avg'"),
        ("data__crop", "center", "one of 'random_resized', 'simple', 'pad'"),
        ("data__interpolation", "nearest", "one of 'bicubic', 'bilinear', 'random'"),
        ("loss__kind", "mse", "one of 'cross_entropy', 'binary_cross_entropy'"),
        ("distillation__kind", "feature", "one of 'none', 'soft', 'hard'"),
        ("distillation__kl_reduction", "mean", "one of 'numel', 'batchmean'"),
        ("distillation__teacher", "regnety_160", "a group of fields"),
        ("ema", 0.9, "a group of fields"),
    ],
)
def test_values_of_another_kind_are_refused_by_name(name, value, wanted):
    message = refused(recipe(**{name: value}))
    path = name.replace("__", ".")
    assert message.startswith(f"config.{path}: is {value!r}, should be ") or name == "data__mean"
    assert message.startswith(f"config.{path}: is ")
    assert wanted in message


def test_an_int_will_do_for_a_float():
    config = resolve(recipe(optim__learning_rate=1, total_epochs=3, data__crop_scale=(1, 1)))
    values = (config.optim.learning_rate, config.total.epochs, *config.data.crop_scale)
    assert values == (1.0, 3.0, 1.0, 1.0)
    assert {type(value) for value in values} == {float}


NOT_NEGATIVE = [
    "total_steps",
    "total_epochs",
    "total_examples",
    "log__every_steps",
    "eval__every_epochs",
    "checkpoint__every_examples",
    "optim__warmup_steps",
    "mixing__off_epochs",
    "optim__cooldown_steps",
    "optim__decay_epochs",
    "data__threads",
    "data__prefetch",
    "model__patch_size",
    "model__width",
    "model__depth",
    "model__heads",
    "mixing__mixup",
    "mixing__cutmix",
    "optim__warmup_learning_rate",
    "optim__min_learning_rate",
    "optim__weight_decay",
    "optim__clip_norm",
    "guard__max_rollbacks",
    "distillation__teacher__image_size",
]
POSITIVE = [
    "batch_size",
    "eval__batch_size",
    "data__image_size",
    "data__repeats",
    "mixing__group",
    "erasing__min_count",
    "erasing__max_count",
    "optim__accumulation",
    "checkpoint__keep",
    "guard__max_skipped",
    "mesh__fsdp",
    "mesh__tensor",
    "mesh__slices",
]
POSITIVE_REAL = ["optim__learning_rate", "optim__eps", "distillation__tau"]
SHARES = [
    "erasing__probability",
    "mixing__probability",
    "mixing__switch_probability",
    "data__flip",
    "data__color_jitter",
    "data__max_corrupt",
    "distillation__alpha",
    "cosub__weight",
]
BELOW_ONE = ["mixing__label_smoothing", "model__drop_path", "ema__decay", "optim__b1", "optim__b2", "optim__momentum"]


@pytest.mark.parametrize(
    ("name", "value", "wanted"),
    [
        *((name, -1, "at least 0") for name in NOT_NEGATIVE),
        *((name, 0, "at least 1") for name in POSITIVE),
        *((name, value, "positive") for name in POSITIVE_REAL for value in (0.0, -1.0)),
        *((name, value, "from 0 to 1") for name in SHARES for value in (-0.01, 1.01)),
        *((name, value, "from 0 to below 1") for name in BELOW_ONE for value in (-0.01, 1.0)),
        ("seed", -1, "from 0 to 4294967295"),
        ("seed", 2**32, "from 0 to 4294967295"),
        ("data__crop_ratio", 0.06, "from 0.0625 to 1"),
        ("data__crop_ratio", 1.5, "from 0.0625 to 1"),
        ("data__crop_scale", (0.0, 1.0), "from 0.001 to 1"),
        ("data__crop_scale", (0.08, 1.2), "from 0.001 to 1"),
        ("data__crop_aspect", (0.0, 1.0), "from 0.01 to 100"),
        ("data__crop_aspect", (1.0, 101.0), "from 0.01 to 100"),
        ("data__std", (0.2, 0.0, 0.2), "positive"),
        ("mixing__cutmix_minmax", (0.2, 1.1), "from 0 to 1"),
        ("optim__decay_rate", 0.0, "from 0.001 to 1"),
        ("erasing__area", (0.0, 0.3), "from 0.001 to 1"),
        ("erasing__area", (0.1, 1.3), "from 0.001 to 1"),
        ("erasing__aspect", (0.3, 101.0), "from 0.01 to 100"),
    ],
)
def test_values_out_of_range_are_refused_by_name(name, value, wanted):
    message = refused(recipe(**{name: value}))
    assert message.startswith(f"config.{name.replace('__', '.')}: is ")
    assert f"should be {wanted}" in message


@pytest.mark.parametrize(
    ("name", "value", "most"),
    [
        *((name, 2**31, "2,147,483,647") for name in ("total_steps", "optim__warmup_steps", "guard__max_skipped")),
        ("total_steps", 99999999999999999999, "2,147,483,647"),
        ("total_epochs", 1e7, "1,000,000"),
        ("total_examples", 2**53 + 2, "9,007,199,254,740,992"),
        ("model__depth", 3000, "256"),
        ("model__width", 10**6, "16,384"),
        ("model__num_classes", 10**9, "1,000,000"),
        ("data__image_size", 10**5, "8,192"),
        ("data__threads", 10**6, "4,096"),
        ("optim__learning_rate", 1e7, "1,000,000"),
        ("data__mean", (0.5, -1e9, 0.5), "1,000,000"),
    ],
)
def test_numbers_beyond_all_use_are_refused_by_name(name, value, most):
    message = refused(recipe(**{name: value}))
    assert message.startswith(f"config.{name.replace('__', '.')}: is ")
    assert f"should be at most {most}" in message


@pytest.mark.parametrize("value", [10**400, "a\0b", "a\nb"])
def test_what_no_field_can_hold_is_refused(value):
    name = "data__dir" if isinstance(value, str) else "optim__weight_decay"
    assert refused(recipe(**{name: value})).startswith(f"config.{name.replace('__', '.')}: is ")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("seed", 0),
        ("seed", 2**32 - 1),
        *((name, 0) for name in NOT_NEGATIVE if not name.startswith(("total", "eval", "checkpoint", "log"))),
        *((name, 1) for name in [*POSITIVE, *POSITIVE_REAL]),
        *((name, value) for name in SHARES for value in (0, 1)),
        *((name, 0) for name in BELOW_ONE),
        ("ema__decay", 0.99996),
        ("data__crop_ratio", 1.0),
        ("data__crop_scale", (1.0, 1.0)),
        ("data__mean", (-1.0, 0.0, 2.0)),
        ("mesh__data", -1),
    ],
)
def test_the_ends_of_ranges_are_admitted(name, value):
    assert dict(flatten(to_dict(resolve(recipe(**{name: value})))))[name.replace("__", ".")] == value


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"batch_size": 1022, "optim__accumulation": 4, "mixing__group": 1}, ["optim.accumulation", "batch_size"]),
        (
            {"batch_size": 1009},
            ["batch_size: 1009 is a multiple of no number up to mixing.group 256", "mixing.group=1"],
        ),
        ({"mixing__cutmix_minmax": (0.8, 0.2)}, ["mixing.cutmix_minmax", "(0.0, 0.0) for none"]),
        ({"mixing__cutmix_minmax": (0.5, 0.503)}, ["mixing.cutmix_minmax", "of 224 pixels", "below 112"]),
        ({"mixing__off_epochs": 2.0, "mixing__off_steps": 3}, ["mixing.off_steps", "mixing.off_epochs"]),
        ({"loss__kind": "binary_cross_entropy", "loss__binarize": True}, ["label_smoothing", "loss.binarize"]),
        ({"data__crop_scale": (0.9, 0.1)}, ["data.crop_scale"]),
        ({"eval__published_curve": "deit3_smal"}, ["eval.published_curve", "did you mean deit3_small"]),
        ({"erasing__area": (0.9, 0.1)}, ["erasing.area"]),
        ({"erasing__aspect": (2.0, 0.5)}, ["erasing.aspect"]),
        ({"erasing__min_count": 3, "erasing__max_count": 2}, ["erasing.min_count", "erasing.max_count"]),
        ({"data__crop_aspect": (4 / 3, 3 / 4)}, ["data.crop_aspect"]),
        ({"data__image_size_schedule": "128@0,160x90"}, ["data.image_size_schedule", "'160x90'", "SIZE@EPOCH"]),
        ({"data__image_size_schedule": "128@0,9000@9"}, ["data.image_size_schedule", "'9000@9'", "1 to 8192"]),
        ({"data__image_size_schedule": "128@0,160@2000000"}, ["'160@2000000'", "0 to 1,000,000"]),
        ({"data__image_size_schedule": "128@0,"}, ["data.image_size_schedule", "''", "SIZE@EPOCH"]),
        ({"data__image_size_schedule": "128@0.5,160@2"}, ["data.image_size_schedule", "'128@0.5'", "as 128@0"]),
        ({"data__image_size_schedule": "128@0,160@9,192@9"}, ["data.image_size_schedule", "'192@9'", "later"]),
        (
            {"data__image_size_schedule": "128@0,224@9", "mixing__cutmix_minmax": (0.5, 0.505)},
            ["mixing.cutmix_minmax", "of 128 pixels", "below 64"],
        ),
        ({"data__augment": "rand-m9-x3"}, ["data.augment", "'x3'"]),
        ({"data__repeats": 5}, ["data.repeats", "5 copies", "batch of 1024 has 4 group(s)", "mixing.group 256"]),
        ({"data__repeats": 3, "batch_size": 64}, ["data.repeats", "batch of 64 has 1 group(s)", "mixing.group 64"]),
        ({"model__num_classes": 0}, ["model.num_classes"]),
        ({"model__num_classes": -2}, ["model.num_classes"]),
        ({"mesh__data": 0}, ["mesh.data"]),
        ({"mesh__data": -2}, ["mesh.data"]),
        ({"total_steps": 7}, ["total_steps", "total_epochs"]),
        ({"total_epochs": 0}, ["total_steps"]),
        ({"log__every_steps": 0}, ["log.every_steps"]),
        ({"eval__every_examples": 3}, ["eval.every_epochs", "eval.every_examples"]),
        ({"checkpoint__every_epochs": 0}, ["checkpoint.every_steps"]),
        ({"optim__warmup_steps": 3}, ["optim.warmup_steps", "optim.warmup_epochs"]),
        ({"optim__schedule": "wsd"}, ["optim.decay_epochs", "optim.schedule='wsd'"]),
        ({"optim__schedule": "step"}, ["optim.decay_epochs", "optim.schedule='step'"]),
        ({"optim__schedule": "wsd", "optim__decay_epochs": 2.0}, ["optim.schedule_per_epoch", "set it to False"]),
        ({"optim__cooldown_steps": 3}, ["optim.schedule_per_epoch", "set it to False"]),
        ({"cosub__weight": 0.5, "model__drop_path": 0.0}, ["cosub.weight", "model.drop_path"]),
        ({"cosub__weight": 0.5, "optim__trainable": "head"}, ["cosub.weight", "optim.trainable"]),
        (
            {"cosub__weight": 0.5, "distillation__kind": "hard", "distillation__teacher__name": "regnety_160"},
            ["cosub.weight", "distillation.kind is 'hard'"],
        ),
        ({"distillation__top_k": 0}, ["distillation.top_k"]),
        ({"distillation__top_k": -2}, ["distillation.top_k"]),
        ({"distillation__store": "store"}, ["distillation.kind", "'none'", "set soft or hard", "leave the store out"]),
        (
            {"distillation__kind": "hard", "distillation__store": "s3://a/store"},
            ["distillation.store", "is a URL of s3"],
        ),
        ({"distillation__kind": "soft"}, ["distillation.teacher.name", "distillation.kind", "distillation.store"]),
    ],
)
def test_contradictions_name_their_fields(fields, named):
    message = refused(recipe(**fields))
    assert message.startswith("config.")
    for name in named:
        assert name in message


def test_what_only_looks_like_a_contradiction_passes():
    assert resolve(recipe(optim__warmup_epochs=0)).optim.warmup == Duration(0, 0.0, 0)
    assert resolve(recipe(batch_size=100)).batch_size == 100  # a group is never wider than the batch
    binary = recipe(loss__kind="binary_cross_entropy", loss__binarize=True, mixing__label_smoothing=0)
    assert resolve(binary).loss.binarize
    assert resolve(recipe(loss__binarize=True)).loss.binarize  # cross-entropy does not look at it
    assert resolve(recipe(loss__kind="binary_cross_entropy", loss__binarize=True, loss__threshold=0.2)).loss.threshold
    assert (
        resolve(recipe(data__repeats=4)).data.repeats == 4
    )  # as many as there are groups; no batch need be a multiple
    assert resolve(recipe(data__repeats=5, mixing__probability=0)).data.repeats == 5  # nothing mixes
    alone = recipe(batch_size=64, data__repeats=100, mixing__group=1)  # nor is there anybody to mix with
    assert resolve(alone).data.repeats == 100


# Durations.


@pytest.mark.parametrize(
    ("duration", "steps"),
    [
        (Duration(7, 0.0, 0), 7),
        (Duration(0, 3.0, 0), 33),
        (Duration(0, 0.5, 0), 6),  # 5.5 steps
        (Duration(0, 1.25, 0), 14),  # 13.75 steps
        (Duration(0, 0.01, 0), 1),  # set, so at least one step
        (Duration(0, 0.0, 39), 3),
        (Duration(0, 0.0, 45), 3),
        (Duration(0, 0.0, 46), 4),
        (Duration(0, 0.0, 1), 1),
        (Duration(0, 0.0, 0), 0),
    ],
)
def test_durations_in_steps(duration, steps):
    assert duration.in_steps(batch_size=13, epoch_steps=11) == steps


@pytest.mark.parametrize(("epochs", "steps"), [(1.0, 1), (4.0, 2), (10.0, 5), (0.5, 1)])
def test_an_epoch_may_be_shorter_than_a_batch(epochs, steps):
    """31 examples in batches of 64: ten epochs are 310 examples, 4.84 steps."""
    assert Duration(0, epochs, 0).in_steps(batch_size=64, epoch_steps=31 / 64) == steps


@pytest.mark.parametrize(("unit", "value"), [("steps", 7), ("epochs", 2.5), ("examples", 999)])
def test_each_unit_reaches_its_duration(unit, value):
    config = ConfigDict(recipe())
    recipes.set_duration(config.eval, "every", **{unit: value})
    recipes.set_duration(config, "total", **{unit: value})
    resolved = resolve(config)
    wanted = Duration(**(dict.fromkeys(UNITS, 0) | {unit: value}))
    assert (resolved.eval.every, resolved.total) == (wanted, wanted)


# Resuming.


STORED = json.loads(json.dumps(to_dict(CONFIG)))  # as a checkpoint holds it


def test_an_unchanged_config_resumes_in_silence():
    assert check_same(STORED, CONFIG) == []


CHANGES: dict[str, Any] = {
    "seed": 1,
    "batch_size": 512,
    "model__name": "deit_small_patch16_224",
    "model__patch_size": 8,
    "model__width": 96,
    "model__depth": 6,
    "model__heads": 6,
    "model__global_pool": "avg",
    "model__stem": "cifar",
    "data__name": "cifar10",
    "data__train_split": "train[:90%]",
    "data__image_size": 192,
    "data__image_size_schedule": "128@0,160@90",
    "data__crop_scale": (0.5, 1.0),
    "data__flip": 0.0,
    "erasing__probability": 0.25,
    "erasing__mode": "const",
    "erasing__min_count": 2,
    "erasing__max_count": 3,
    "erasing__area": (0.1, 0.2),
    "erasing__aspect": (0.5, 2.0),
    "data__crop": "simple",
    "data__crop_aspect": (0.5, 2.0),
    "data__interpolation": "random",
    "data__augment": "rand-m9-mstd0.5-inc1",
    "data__color_jitter": 0.3,
    "data__repeats": 3,
    "data__exif": False,
    "mixing__mixup": 0.1,
    "mixing__cutmix": 0.0,
    "mixing__probability": 0.5,
    "mixing__switch_probability": 0.1,
    "mixing__label_smoothing": 0.0,
    "mixing__group": 64,
    "mixing__mode": "elem",
    "mixing__cutmix_minmax": (0.2, 0.9),
    "mixing__off_epochs": 200.0,
    "ema__decay": 0.0,
    "init_from": "pretrained",
    "optim__trainable": "head",
    "optim__name": "lamb",
}


COMPANIONS = {"erasing__min_count": {"erasing__max_count": 2}}  # without which a field would contradict another


@pytest.mark.parametrize("name", CHANGES)
def test_a_resume_may_not_change_the_stream_or_the_state(name):
    path, value = name.replace("__", "."), CHANGES[name]
    with pytest.raises(UserError) as error:
        check_same(STORED, resolve(recipe(**{name: value}, **COMPANIONS.get(name, {}))))
    message = str(error.value)
    assert message.startswith(f"config.{path}: is {value!r}, ")
    assert repr(dict(flatten(to_dict(CONFIG)))[path]) in message
    assert "--workdir" in message


FREE: dict[str, Any] = {
    "total_epochs": 400.0,
    "model__num_classes": 10,
    "model__drop_path": 0.2,
    "model__dtype": "bfloat16",
    "model__attention": "xla",
    "model__patch_embedding": "conv",
    "model__remat": True,
    "data__dir": "/elsewhere",
    "data__eval_split": "validation[:50%]",
    "data__crop_ratio": 1.0,
    "data__mean": (0.5, 0.5, 0.5),
    "data__std": (0.5, 0.5, 0.5),
    "data__threads": 3,
    "data__prefetch": 1,
    "data__max_corrupt": 0.5,
    "loss__kind": "binary_cross_entropy",
    "loss__binarize": True,
    "loss__threshold": 0.2,
    "optim__learning_rate": 1e-4,
    "optim__warmup_learning_rate": 1e-5,
    "optim__min_learning_rate": 0.0,
    "optim__warmup_epochs": 3.0,
    "cosub__weight": 0.5,
    "optim__scale_by_batch": False,
    "optim__schedule": "constant",
    "optim__decay_epochs": 30.0,
    "optim__decay_rate": 0.5,
    "optim__momentum": 0.95,
    "optim__warmup_prefix": True,
    "optim__schedule_per_epoch": False,
    "optim__weight_decay": 0.1,
    "optim__b1": 0.8,
    "optim__b2": 0.95,
    "optim__eps": 1e-6,
    "optim__clip_norm": 1.0,
    "optim__accumulation": 2,
    "optim__gradient_dtype": "bfloat16",
    "optim__layer_decay": 0.75,
    "distillation__token": True,
    "distillation__alpha": 0.1,
    "distillation__tau": 3.0,
    "distillation__kl_reduction": "batchmean",
    "distillation__teacher__name": "regnety_160",
    "distillation__teacher__weights": "pretrained",
    "distillation__teacher__image_size": 288,
    "distillation__teacher__evaluate": False,
    "distillation__top_k": -1,
    "ema__warmup": True,
    "guard__max_skipped": 1,
    "guard__max_rollbacks": 1,
    "log__every_steps": 1,
    "log__progress": False,
    "log__tensorboard": False,
    "log__wandb": True,
    "log__utilisation": "off",
    "checkpoint__every_epochs": 2.0,
    "checkpoint__keep": 5,
    "eval__every_epochs": 1.0,
    "eval__batch_size": 7,
    "eval__published_curve": "deit3_small",
    "mesh__data": 1,
    "mesh__fsdp": 2,
    "mesh__tensor": 2,
    "mesh__slices": 2,
}


@pytest.mark.parametrize("name", FREE)
def test_a_resume_announces_every_other_change(name):
    path = name.replace("__", ".")
    before = dict(flatten(to_dict(CONFIG)))[path]
    assert check_same(STORED, resolve(recipe(**{name: FREE[name]}))) == [f"{path}: {before!r} -> {FREE[name]!r}"]


TEACHER_LATER = {"distillation__kind": "hard", "distillation__store": "store"}  # neither comes alone


def test_a_teacher_may_come_later():
    taught = resolve(recipe(**TEACHER_LATER))
    assert check_same(STORED, taught) == ["distillation.kind: 'none' -> 'hard'", "distillation.store: '' -> 'store'"]


def test_a_change_of_unit_is_announced_in_both():
    config = ConfigDict(recipe())
    recipes.set_duration(config, "total", steps=7)
    assert check_same(STORED, resolve(config)) == ["total_steps: 0 -> 7", "total_epochs: 300.0 -> 0.0"]


def test_every_field_is_either_fixed_or_free():
    """A new field has to be put into one of the two lists above, and so be thought about."""
    units = {path for path in field_paths() if path.rpartition("_")[2] in UNITS}
    known = {name.replace("__", ".") for name in [*CHANGES, *FREE, *TEACHER_LATER]}
    assert known | units == set(field_paths())


# Platforms.


@pytest.mark.parametrize(
    ("platform", "how"),
    [
        ("cpu", ("float32", "einsum", "linear")),
        ("gpu", ("bfloat16", "xla", "linear")),
        ("tpu", ("bfloat16", "xla", "conv")),
    ],
)
def test_auto_is_decided_by_the_platform(platform, how):
    decided = for_platform(CONFIG, platform)
    assert (decided.model.dtype, decided.model.attention, decided.model.patch_embedding) == how
    model = dataclasses.replace(decided.model, dtype="auto", attention="auto", patch_embedding="auto")
    assert dataclasses.replace(decided, model=model) == CONFIG  # and nothing else is


def test_another_accelerator_is_taken_for_a_gpu():
    assert for_platform(CONFIG, "METAL") == for_platform(CONFIG, "gpu")


@pytest.mark.parametrize("platform", ["cpu", "gpu", "tpu"])
def test_what_is_set_stays_set_on_every_platform(platform):
    config = resolve(recipe(model__dtype="bfloat16", model__attention="einsum", model__patch_embedding="conv"))
    assert for_platform(config, platform) == config


# Recipes and the files in configs/.


def test_deit_is_the_papers_recipe():
    """Table 9 of arXiv:2012.12877, column DeiT-B, and the defaults of facebook's main.py."""
    config = resolve(recipes.deit("deit_base_patch16_224"))
    optim, mixing = config.optim, config.mixing
    assert (config.total, config.batch_size, config.model.drop_path) == (Duration(0, 300.0, 0), 1024, 0.1)
    assert (optim.learning_rate, optim.weight_decay, optim.warmup) == (5e-4, 0.05, Duration(0, 5.0, 0))
    assert (optim.b1, optim.b2, optim.eps, optim.clip_norm) == (0.9, 0.999, 1e-8, 0)
    assert (optim.warmup_learning_rate, optim.min_learning_rate, optim.schedule_per_epoch) == (1e-6, 1e-5, True)
    assert (mixing.mixup, mixing.cutmix, mixing.probability, mixing.switch_probability) == (0.8, 1.0, 1.0, 0.5)
    assert (mixing.label_smoothing, config.ema.decay, config.data.image_size) == (0.1, 0.99996, 224)
    assert (config.data.augment, config.data.repeats) == ("rand-m9-mstd0.5-inc1", 3)
    assert (config.erasing.probability, config.erasing.mode) == (0.25, "pixel")


@pytest.mark.parametrize("dataset", recipes.DATASETS)
@pytest.mark.parametrize("hardware", recipes.HARDWARE)
def test_the_recipe_is_complete_for_all_hardware_and_data(hardware, dataset):
    config = resolve(recipes.deit("deit_tiny_patch16_224", hardware=hardware, dataset=dataset))
    assert config.data.name == dataset
    assert {name: getattr(config.model, name) for name in recipes.HARDWARE[hardware]} == recipes.HARDWARE[hardware]
    assert dataclasses.asdict(config.mesh) == {"data": -1, "fsdp": 1, "tensor": 1, "slices": 1}


@pytest.mark.parametrize(
    ("chosen", "named"),
    [
        ({"hardware": "tpux"}, "unknown hardware 'tpux'; did you mean tpu"),
        ({"dataset": "cifar"}, "unknown dataset 'cifar'; did you mean cifar"),
    ],
)
def test_unknown_hardware_and_data_are_named_with_their_nearest(chosen, named):
    with pytest.raises(UserError, match=r"^--config: ") as error:
        recipes.deit("deit_tiny_patch16_224", **chosen)
    assert named in str(error.value)


def test_two_configs_of_a_recipe_share_nothing():
    first, second = (recipes.deit("deit_tiny_patch16_224") for _ in range(2))
    first.mixing.mixup = 0.3
    assert second.mixing.mixup == 0.8


@pytest.mark.parametrize(
    ("text", "chosen"),
    [
        (None, {"hardware": "auto", "dataset": "digits"}),
        ("", {"hardware": "auto", "dataset": "digits"}),
        ("hardware=tpu", {"hardware": "tpu", "dataset": "digits"}),
        ("dataset=cifar10,hardware=gpu", {"hardware": "gpu", "dataset": "cifar10"}),
    ],
)
def test_arguments_go_over_their_defaults(text, chosen):
    assert recipes.arguments(text, hardware="auto", dataset="digits") == chosen


@pytest.mark.parametrize("text", ["tpu", "hw=tpu", "hardware=tpu,size=3"])
def test_arguments_that_are_none_are_refused(text):
    with pytest.raises(
        UserError, match=r"^--config: argument '.*', should be name=value with a name of \['hardware'\]"
    ):
        recipes.arguments(text, hardware="auto")


def test_set_duration_clears_the_other_units():
    config = ConfigDict(recipe())
    recipes.set_duration(config, "total", examples=1000)
    assert (config.total_steps, config.total_epochs, config.total_examples) == (0, 0.0, 1000)


def load(path: Path, argument: str = "") -> ConfigDict:
    return cli.parse_with_config("", lambda values: None, [f"--config={path}{argument}"])[1]


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
@pytest.mark.parametrize("hardware", ["", *recipes.HARDWARE])
def test_configs_are_complete_on_all_hardware(path, hardware):
    config = resolve(load(path, f":hardware={hardware}" if hardware else ""))
    for platform in ("cpu", "gpu", "tpu"):
        decided = for_platform(config, platform)
        assert "auto" not in (decided.model.dtype, decided.model.attention, decided.model.patch_embedding)


def test_the_plain_baseline_is_big_visions():
    """configs/vit_s16_i1k.py there; its decay of 1e-4 is not multiplied by the peak of the learning rate."""
    path = next(path for path in CONFIGS if path.stem == "vit_s16_90ep")
    config = resolve(load(path))
    data, optim = config.data, config.optim
    assert (config.model.name, config.model.drop_path) == ("vit_small_patch16_gap_224", 0)
    assert (data.train_split, data.eval_split, data.crop_ratio) == ("train[:99%]", "validation", 224 / 256)
    assert (data.crop_scale, data.crop_aspect, data.interpolation) == ((0.05, 1.0), (0.75, 1.33), "bilinear")
    assert data.mean == data.std == (0.5, 0.5, 0.5)
    assert (optim.learning_rate * optim.weight_decay, optim.clip_norm) == (pytest.approx(1e-4), 1)
    assert (config.total, optim.warmup, config.batch_size) == (Duration(0, 90.0, 0), Duration(10_000, 0, 0), 1024)
    assert (config.mixing.mixup, config.mixing.cutmix, config.mixing.label_smoothing) == (0.2, 0, 0)
    assert resolve(load(path, ":dataset=digits")).data.train_split == "train"


MODELS3 = ("small", "base", "large", "huge")
ARGUMENTS = [
    *(("deit3", f"model={model}") for model in (*MODELS3, "medium")),
    ("deit3", "epochs=400"),
    *(("deit3_finetune", f"model={model}") for model in (*MODELS3, "medium")),
    *(("deit3_finetune", f"model={model},pixels=384") for model in ("base", "large")),
    *(("deit3_21k", f"model={model},stage={stage}") for model in MODELS3 for stage in ("pretrain", "finetune")),
    *(
        ("transfer_published", f"target={name}")
        for name in ("cifar10", "cifar100", "flowers", "cars", "inat18", "inat19")
    ),
    *(("deit_distilled", f"model=deit_{size}_distilled_patch16_224") for size in ("tiny", "small", "base")),
    ("deit_distilled", "epochs=1000"),
]


@pytest.mark.parametrize(("name", "argument"), ARGUMENTS)
def test_configs_resolve_and_build_with_each_argument(name, argument):
    config = resolve(load(CONFIGS[0].with_name(f"{name}.py"), f":{argument}"))
    network = abstract_model(config.model.name, image_size=config.data.image_size)
    assert network.image_size == (config.data.image_size, config.data.image_size)
    if "epochs" in argument:
        assert f"epochs={config.total.epochs:.0f}" == argument


@pytest.mark.parametrize("argument", ["epochs=many", "epochs=600", "model=giant"])
def test_wrong_arguments_of_configs_are_refused(argument):
    with pytest.raises(UserError, match=f"^--config: .*{argument.partition('=')[2]}"):
        load(CONFIGS[0].with_name("deit3.py"), f":{argument}")


def test_crop_and_flip_is_what_runs_of_before_had():
    fields = dict(flatten(RECIPE)) | {"model.patch_embedding": for_platform(CONFIG, "cpu").model.patch_embedding}
    assert [path for path in LATER if fields[path] != LATER[path]] == []


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_configs_say_how_they_are_launched(path):
    source = path.read_text()
    docstring = source.split('"""')[1]
    assert source.startswith('"""')
    assert f"python -m deit_jax.main --config=configs/{path.name}" in docstring


def test_there_are_configs():
    assert "quickstart" in [path.stem for path in CONFIGS]
    assert isinstance(resolve(load(CONFIGS[0])), Config)


def test_a_field_that_came_after_the_run_is_announced():
    older = {name: value for name, value in STORED.items() if name != "init_from"}
    assert check_same(older, CONFIG) == ["init_from: '', which the run did not know yet"]


# `data.flip` stands for a field that came later: a checkpoint of before lacks it, and trained as with 0.5.


def without_flip() -> dict[str, Any]:
    older = copy.deepcopy(STORED)
    del older["data"]["flip"]
    return older


def test_a_later_field_at_its_value_of_before_resumes_in_silence(monkeypatch):
    monkeypatch.setitem(LATER, "data.flip", 0.5)
    assert check_same(without_flip(), CONFIG) == []


def test_a_later_field_at_another_value_is_refused_as_any_other(monkeypatch):
    changed = resolve(recipe(data__flip=0.25))
    with pytest.raises(UserError) as known:
        check_same(STORED, changed)
    monkeypatch.setitem(LATER, "data.flip", 0.5)
    with pytest.raises(UserError) as lacking:
        check_same(without_flip(), changed)
    assert str(lacking.value) == str(known.value)


def test_what_is_stored_of_a_later_field_counts(monkeypatch):
    monkeypatch.setitem(LATER, "data.flip", 0.25)
    assert check_same(STORED, CONFIG) == []


def test_a_later_field_that_is_not_fixed_is_announced_with_its_value_of_before(monkeypatch):
    older = {name: value for name, value in STORED.items() if name != "init_from"}
    monkeypatch.setitem(LATER, "init_from", "elsewhere")
    assert check_same(older, CONFIG, fixed=()) == ["init_from: 'elsewhere' -> ''"]


def test_the_stream_has_a_later_field_only_where_it_changes_something(monkeypatch):
    before = stream_fields(CONFIG)
    assert before["data.flip"] == 0.5
    monkeypatch.setitem(LATER, "data.flip", 0.5)
    assert stream_fields(CONFIG) == {path: value for path, value in before.items() if path != "data.flip"}
    changed = resolve(recipe(data__flip=0.0))
    assert stream_fields(changed) == before | {"data.flip": 0.0}


def test_later_fields_are_fields_and_admit_their_value_of_before():
    fields = {path.replace(".", "__"): value for path, value in LATER.items()}
    assert LATER.items() <= dict(flatten(to_dict(resolve(recipe(**fields))))).items()
