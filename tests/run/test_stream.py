"""The data of a run."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import ExifTags, Image, ImageOps
from tiny import EVERYTHING, replace, tiny_config, tiny_run

from deit_jax import precompute
from deit_jax.base.errors import UserError
from deit_jax.data import TrainTransform, readable, train_batches
from deit_jax.data.index import example_index
from deit_jax.data.memory import MemorySource
from deit_jax.run import evaluate, stream
from deit_jax.run.corrupt import too_many
from deit_jax.run.describe import _epoch_of
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


@pytest.mark.parametrize(("mode", "shape"), [("batch", (8,)), ("pair", (8, 4)), ("elem", (8, 4))])
def test_the_mode_reaches_the_batch(mode, shape):
    """Of four groups, a part on each of eight devices."""
    assert mixes(mixing__mode=mode)[0]["label_weight"].shape == shape


AUGMENTED = {
    "data__crop_scale": (0.3, 0.9),
    "data__crop_aspect": (0.5, 2.0),
    "data__interpolation": "random",
    "data__flip": 0.4,
    "data__augment": "rand-m9-mstd0.5-inc1",
    "data__color_jitter": 0.2,
    "data__repeats": 3,
}


@pytest.mark.parametrize("crop", ["random_resized", "simple", "pad"])
def test_the_stream_is_what_the_config_says(crop):
    config = tiny_config(data__crop=crop, **AUGMENTED)
    source = train_source(config)
    transform = TrainTransform(8, (0.3, 0.9), 0.4, crop, (0.5, 2.0), "random", "rand-m9-mstd0.5-inc1", 0.2)
    where = {"first_step": 5, "total_steps": 7}
    order = {"seed": 0, "batch_size": 32, "repeats": 3, "groups": 4}
    wanted = train_batches(source, rows=range(32), transform=transform, threads=0, prefetch=0, **where, **order)
    for found, batch in zip(stream.stream(config, source, range(32), **where), wanted, strict=True):
        assert all(np.array_equal(found[name], batch[name]) for name in batch)


@pytest.mark.parametrize(("exif", "looks"), [(True, "upright"), (False, "stored")])
def test_training_turns_photos_as_the_config_says(exif, looks, tmp_path):
    """A photo with an orientation is seen as if it had been saved upright; or as if it had none."""
    tag, random = Image.Exif(), np.random.default_rng(0)
    tag[ExifTags.Base.Orientation] = 6
    for i in range(4):
        name = f"{'ab'[i % 2]}/{i}.jpg"  # the same, since the order follows from it
        tagged, upright, stored = paths = [tmp_path / kind / name for kind in ("tagged", "upright", "stored")]
        for path in paths:
            path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(random.integers(0, 256, (11, 17, 3), np.uint8)).save(tagged, exif=tag)
        with Image.open(tagged) as image:
            Image.fromarray(np.asarray(image)).save(stored, "PNG")
            Image.fromarray(np.asarray(ImageOps.exif_transpose(image))).save(upright, "PNG")

    def images(kind):
        config = tiny_config(data__name="folder", data__dir=str(tmp_path / kind), data__exif=exif)
        batches = stream.stream(config, train_source(config), range(32), first_step=0, total_steps=1)
        return next(batches)["image"]

    assert (images("tagged") == images(looks)).all()
    assert (images("upright") != images("stored")).any()


@pytest.fixture
def photos(tmp_path):
    """100 photos to train on, of which the two that come first are no photos: cut, and text."""
    for i in range(140):
        path = tmp_path / "photos" / "ab"[i % 2] / f"{i}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((11, 13, 3), i, np.uint8)).save(path)
    given = {"data__name": "folder", "data__dir": str(tmp_path / "photos"), "data__train_split": "train[:100]"}
    source = train_source(tiny_config(**given))
    assert len(source) == 100
    first = next(stream.stream(tiny_config(**given), source, range(32), first_step=0, total_steps=1))["index"]
    cut, text = (tmp_path / "photos" / source.name(int(index)) for index in first[:2])
    cut.write_bytes(cut.read_bytes()[:100])
    text.write_text("no photo")
    return given


def test_two_photos_of_a_hundred_that_are_none_are_replaced_and_counted(photos):
    """In each of three epochs, where they are not among the four that its batches leave out."""
    config = tiny_config(**photos, data__max_corrupt=0.04, data__threads=2)
    source, run = train_source(config), tiny_run(config)
    seen = [
        (np.asarray(batch["index"][jnp.argsort(batch["place"])]), replaced) for batch, replaced in run.batches(0, 9)
    ]
    bad = {index for index in range(100) if not readable(source, index)}
    order = [example_index(p, seed=0, examples=100, batch_size=32, groups=4) for p in range(288)]
    assert len(bad) == 2
    assert [replaced for _, replaced in seen] == [sum(i in bad for i in order[32 * s : 32 * s + 32]) for s in range(9)]
    shown = np.concatenate([indices for indices, _ in seen])
    assert [i for i, planned in zip(shown, order, strict=True) if planned not in bad] == [
        i for i in order if i not in bad
    ]
    assert not bad & set(shown.tolist())


def test_more_photos_that_are_none_than_are_allowed_end_the_run(photos, monkeypatch):
    for more in ({}, {"data__repeats": 3}):  # in which the two come as six of the first 96 rows
        list(tiny_run(tiny_config(**photos, data__max_corrupt=0.02, **more)).batches(0, 9))
    run = tiny_run(tiny_config(**photos, data__max_corrupt=0.019))
    monkeypatch.setattr(stream, "EVERY", 2)
    came = []
    with pytest.raises(
        UserError, match=r"config\.data\.max_corrupt: 2 of 100 images could not .* 1\.90% are allowed"
    ) as told:
        came.extend(run.batches(1, 9))
    assert told.value.alike
    assert 0 < len(came) < 7  # they come again in steps 3 to 5, and it is not the last step that tells


def test_a_share_is_what_it_says_and_not_what_its_product_is():
    assert 0.29 * 100 < 29
    assert [too_many(corrupt, 100, 0.29) for corrupt in (28, 29, 30)] == [False, False, True]
    assert not too_many(0, 100, 0.0)
    assert too_many(1, 1_281_167, 0.0)


def test_rows_that_two_processes_have_are_counted_by_the_first(photos, monkeypatch):
    """Of the two photos that are none the first is in row 0, the other in row 1."""
    have = [range(1), range(1, 32), range(32)]
    counts = []
    for process, own in enumerate(have):
        monkeypatch.setattr(jax, "process_index", lambda process=process: process)
        rows = lambda mesh, size, asked=None, own=own: own if asked is None else have[asked]  # noqa: E731
        monkeypatch.setattr(stream.parallel, "local_rows", rows)
        monkeypatch.setattr(stream.parallel, "put_batch", lambda rows, mesh, size: dict(rows))
        counts.append(next(tiny_run(tiny_config(**photos, data__max_corrupt=0.02)).batches(0, 1))[1])
    assert counts == [1, 1, 0]


@pytest.fixture(scope="module")
def whole_batches():
    """The device batches of steps 3 to 5 with everything on, of one process and no threads."""
    run = tiny_run(tiny_config(data__threads=0, **EVERYTHING))
    return run, [jax.device_get(batch) for batch, _ in run.batches(3, 6)]


@pytest.mark.parametrize("threads", [0, 1, 3])
@pytest.mark.parametrize("processes", [1, 2, 4])
def test_processes_and_threads_make_the_same_batches(whole_batches, monkeypatch, processes, threads):
    """Each makes its rows of images, labels, examples and erasing, and all the same mixing."""
    run, whole = whole_batches
    config, rows = replace(run.config, "data", threads=threads), 32 // processes
    parts, put = [], stream.parallel.put_batch
    # There is but one process: it puts what it has.
    monkeypatch.setattr(stream.parallel, "put_batch", lambda given, mesh, batch_size: put(given, mesh, rows))
    for process in range(processes):
        own = range(process * rows, (process + 1) * rows)
        monkeypatch.setattr(stream.parallel, "local_rows", lambda *given, own=own: own)
        found = stream.device_batches(config, run.mesh, run.source, 3, 6)
        parts.append([jax.device_get(batch) for batch, _ in found])
    for step, shares in enumerate(zip(*parts, strict=True)):
        for name in ("mix", "teacher"):
            for share in shares:
                jax.tree.map(np.testing.assert_array_equal, share.pop(name), whole[step][name])
        joined = jax.tree.map(lambda *given: np.concatenate(given), *shares)
        assert joined.keys() == {"image", "label", "index", "place", "erasing"}
        jax.tree.map(np.testing.assert_array_equal, joined, {name: whole[step][name] for name in joined})
    assert whole[0]["erasing"]["box"].any()
    assert (whole[0]["mix"]["label_weight"] < 1).any()


def test_an_epoch_of_repeats_is_the_same_to_all_that_counts_in_epochs():
    """Of the 1,437 digits 1,280 positions, 40 steps of 32."""
    config = tiny_config(data__repeats=3, total_steps=0, total_epochs=2, optim__schedule_per_epoch=True)
    run = tiny_run(config)
    assert run.total == 80
    assert run.learning_rate.keywords["epoch_steps"] == 40
    assert _epoch_of(run) == "1,280 images, of 427 of the 1,437 examples, 3 times each"
    assert tiny_run(tiny_config(total_steps=0, total_epochs=2)).total == 88  # 1,408 of them


@pytest.mark.parametrize("exif", [True, False])
def test_evaluation_and_centre_crops_turn_photos_as_the_config_says(monkeypatch, exif):
    config, told = tiny_config(data__exif=exif), []

    def batches(source, **options):
        told.append((options["exif"], options["crop_ratio"]))
        return iter(())

    monkeypatch.setattr(evaluate, "eval_batches", batches)
    monkeypatch.setattr(precompute, "eval_batches", batches)
    run = tiny_run(config)
    evaluate.Evaluator(config, run.predict, run.source, run.mesh)({})
    list(precompute._centre_crops(run, 0, 1))
    assert told == [(exif, 1.0)] * 2
