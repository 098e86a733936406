"""Runs that begin with the weights of another: what is taken over, what is trained, what it brings."""

import csv
import json

import jax
import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits
from tiny import tiny_config, tiny_run, write_random_weights

from deit_jax.base.errors import UserError
from deit_jax.config import recipes
from deit_jax.models import resize_positions
from deit_jax.run import train
from deit_jax.run.evaluate import evaluate
from deit_jax.run.metrics import read_rows
from deit_jax.run.stream import eval_source
from deit_jax.weights import load_weights
from deit_jax.weights.orbax import read_variables, write_variables

HEADS = ("head.kernel", "head.bias", "head_dist.kernel", "head_dist.bias")


@pytest.fixture(scope="module")
def before(tmp_path_factory):
    """A workdir with a checkpoint of the tiny network on ten digits, of weights that are all different."""
    workdir = tmp_path_factory.mktemp("before")
    write_random_weights(tiny_config(), [str(digit) for digit in range(10)], workdir)
    return workdir


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Digits as PNG files in four classes, of which three are known to the network before."""
    folder = tmp_path_factory.mktemp("photos")
    digits = load_digits(n_class=4)
    for i, (image, label) in enumerate(zip(digits.images, digits.target, strict=True)):
        path = folder / ("0", "1", "2", "trois")[label] / f"{i}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(np.round(image * 255 / 16).astype(np.uint8)).save(path)
    return folder


def finetuning(before, photos, **fields):
    data = {"name": "folder", "dir": str(photos), "eval_split": "validation", "image_size": 16}
    changes = {"init_from": str(before)} | {f"data__{name}": value for name, value in data.items()}
    return tiny_config(**changes | fields)


def test_the_run_begins_with_the_weights_bit_for_bit(before, photos):
    config, names = finetuning(before, photos), ("0", "1", "2", "trois")
    run = tiny_run(config, names)
    given, notes = run.given_variables()
    state = run.first_state(given)
    stored, _ = read_variables(before / "checkpoints")
    fresh = jax.jit(run.fresh)(np.uint32(config.seed))
    for weights in (state.params, state.ema):
        assert weights.keys() == stored.keys()
        for path, value in weights.items():
            if path in HEADS:
                np.testing.assert_array_equal(value[..., :3], stored[path][..., :3])
                np.testing.assert_array_equal(value[..., 3], fresh[path][..., 3])
            elif path == "pos_embed":
                np.testing.assert_array_equal(value, resize_positions(stored[path], 2, (2, 2), (4, 4)))
            else:
                np.testing.assert_array_equal(value, stored[path], err_msg=path)
    assert [note.partition(":")[0].split()[0] for note in notes] == ["position", "head", "head_dist"]
    assert int(state.step) == 0


@pytest.mark.long
def test_a_linear_probe_moves_the_heads_alone(before, photos, tmp_path, capsys):
    config = finetuning(before, photos, optim__trainable="head", total_steps=3)
    train.train(config, tmp_path / "run")
    assert "position embedding resized from 2 x 2 to 4 x 4" in capsys.readouterr().out
    stored, _ = read_variables(before / "checkpoints")
    after, meta = read_variables(tmp_path / "run" / "checkpoints", ema=False)
    for path in stored.keys() - {*HEADS, "pos_embed"}:
        np.testing.assert_array_equal(after[path], stored[path], err_msg=path)
    assert all(np.abs(after[path][..., :3] - stored[path][..., :3]).max() > 0 for path in HEADS)
    assert meta["card"]["class_names"] == ["0", "1", "2", "trois"]
    assert {path for path in meta["arrays"] if ".mu[" in path and "head" not in path} == set()  # no moments kept
    with (tmp_path / "run" / "predictions.csv").open() as file:
        rows = list(csv.DictReader(file))
    source = eval_source(config, None)
    assert [row["image"] for row in rows] == [source.name(i) for i in range(len(source))]
    assert [row["class"] for row in rows] == [row["image"].split("/")[0] for row in rows]
    assert {row["predicted"] for row in rows} <= set(source.class_names)
    assert all(0.25 <= float(row["probability"]) <= 1 for row in rows)

    # It goes on from its own checkpoint, not from the weights that it began with, which may be gone.
    gone = finetuning(before / "gone", photos, optim__trainable="head", total_steps=3)
    with pytest.raises(UserError, match=r"config\.init_from.*the weights that the run began with"):
        train.train(gone, tmp_path / "run")


def test_what_counts_blocks_or_attention_is_for_transformers():
    fields = dict.fromkeys(("patch_size", "width", "depth", "heads", "drop_path"), 0) | {"name": "resnet50"}
    convnet = {f"model__{name}": value for name, value in fields.items()} | {"distillation__token": False}
    assert set(tiny_run(tiny_config(**convnet), "abc").rates.values()) == {1.0}
    for field, value in (("layer_decay", 0.75), ("trainable", "attention")):
        with pytest.raises(UserError, match=rf"^config\.optim\.{field}: .*resnet50.*; set it to"):
            tiny_run(tiny_config(**convnet, **{f"optim__{field}": value}), "abc")
    for field, value, mend in (("heads", 3, "0"), ("global_pool", "avg", "nothing"), ("remat", True, "False")):
        with pytest.raises(UserError, match=rf"^config\.model\.{field}: resnet50 has none; set it to {mend}$"):
            tiny_run(tiny_config(**convnet | {f"model__{field}": value}), "abc")
    assert recipes.finetune("resnet50").optim.layer_decay == 1.0
    assert recipes.finetune("deit_tiny_patch16_224").optim.layer_decay == 0.75


@pytest.mark.long
def test_fine_tuning_learns_from_a_teacher_too(before, photos, tmp_path, monkeypatch):
    (tmp_path / "sums.py").write_text(
        "import numpy as np\n"
        "def build():\n"
        "    weights = {'w': np.eye(3, 4, dtype=np.float32)}\n"
        "    return lambda v, x: x.mean((1, 2)) @ v['w'], weights, (0.5,) * 3, (0.5,) * 3, 9\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    fields = {"distillation__kind": "hard", "distillation__teacher__name": "sums:build", "total_steps": 2}
    result = train.train(finetuning(before, photos, **fields), tmp_path / "run")
    assert {"top1", "top1_cls", "top1_dist"} <= result.keys()
    for row in (row for row in read_rows(tmp_path / "run" / "metrics.jsonl") if "train/loss" in row):
        terms = [row[f"train/loss_{name}"] for name in ("base", "distillation")]
        assert min(terms) > 0
        np.testing.assert_allclose(sum(terms), row["train/loss"], rtol=1e-6)


def test_weights_are_evaluated_without_a_run(before, photos, tmp_path):
    run = tiny_run(tiny_config())
    (tmp_path / "new" / "checkpoints").mkdir(parents=True)  # of a run that was refused: there are none in it
    result = evaluate(tiny_config(init_from=str(before)), tmp_path / "new")
    assert result["examples"] == 360
    source = eval_source(tiny_config(), None)
    bound = load_weights(run.model, str(before))
    images = np.stack([np.stack([source[i].image] * 3, -1) for i in range(len(source))])
    said = np.argmax(jax.jit(lambda x: bound(run.normalize(x)))(images), axis=-1)
    right = np.mean([said[i] == source[i].label for i in range(len(source))])
    assert result["top1"] == pytest.approx(100 * right)
    assert (tmp_path / "new" / "predictions.csv").exists()
    with pytest.raises(UserError, match="class 'trois' is not one of the 10 classes trained on"):
        evaluate(finetuning(before, photos), tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_a_classifier_for_other_classes_is_not_evaluated(before, photos, tmp_path):
    variables, meta = read_variables(before / "checkpoints")
    write_variables(tmp_path / "nameless", variables, {"card": meta["card"] | {"class_names": []}})
    with pytest.raises(UserError, match="no classifier for the 4 classes of the data"):
        evaluate(finetuning(tmp_path / "nameless", photos), tmp_path / "run")


def test_a_head_that_tells_no_class_of_several_is_not_evaluated(before, tmp_path):
    """Though its labels have the names of the data's classes."""
    variables, meta = read_variables(before / "checkpoints")
    card = meta["card"] | {"problem_type": "multi_label_classification"}
    write_variables(tmp_path / "labels", variables, {"card": card})
    line = rf"^config\.init_from: {tmp_path}/labels: its head is for multi_label_classification.*; fine-tune from it"
    with pytest.raises(UserError, match=line):
        evaluate(tiny_config(init_from=str(tmp_path / "labels")), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"model__depth": 3}, r"config\.init_from: .*another network: .*missing: blocks\.2"),
        ({"init_from": "nowhere"}, r"config\.init_from: nowhere: is not there"),
    ],
)
def test_weights_that_do_not_fit_leave_nothing_behind(before, photos, tmp_path, fields, message):
    with pytest.raises(UserError, match=message):
        train.train(finetuning(before, photos, **fields), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.long
def test_fine_tuning_beats_training_from_scratch(photos, tmp_path):
    """At equal budget: a network that knows ten digits against a new one, on four digits at twice the size."""
    size = {"model__width": 48, "model__heads": 3, "model__depth": 3, "model__drop_path": 0.0, "mixing__cutmix": 0.0}
    learnt = tiny_config(total_steps=600, eval__every_steps=600, checkpoint__every_steps=600, **size)
    assert train.train(learnt, tmp_path / "digits")["top1"] > 80
    budget = size | {"total_steps": 40, "eval__every_steps": 40, "optim__learning_rate": 5e-3}
    scratch = train.train(finetuning("", photos, **budget), tmp_path / "scratch")
    tuned = train.train(finetuning(tmp_path / "digits", photos, **budget), tmp_path / "tuned")
    print(json.dumps({"scratch": scratch, "tuned": tuned}))
    assert tuned["top1"] > scratch["top1"] + 5
