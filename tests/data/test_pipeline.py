"""The stream of batches: exact, restartable, and loud when it breaks."""

import re
import threading
import time
from collections.abc import Sequence
from itertools import islice

import numpy as np
import pytest
from PIL import Image

from deit_jax.base import rng
from deit_jax.base.errors import TryAgain, UserError
from deit_jax.data import pipeline
from deit_jax.data.decode import ORIENTATION_TAG, CorruptImage, decode
from deit_jax.data.index import example_index
from deit_jax.data.memory import MemorySource
from deit_jax.data.pipeline import MAX_NEIGHBOURS, MOST_TOLD, eval_batches, eval_example, train_batches, train_example
from deit_jax.data.records import Record
from deit_jax.data.train_transform import TrainTransform
from deit_jax.data.transforms import eval_transform

AUGMENT = {"transform": TrainTransform(image_size=11)}
# All that there is; of batches of 5, each row is a mixing group.
EVERYTHING = {
    "transform": TrainTransform(11, interpolation="random", augment="rand-m9-n3-mstd0.5-inc1", color_jitter=0.3),
    "repeats": 3,
    "groups": 5,
}


@pytest.fixture(scope="module")
def source(photo) -> MemorySource:
    """23 images, each a class of its own, so that a label says which it is."""
    images = np.stack([photo(13, 17, seed) for seed in range(23)])
    return MemorySource(images, np.arange(23), [str(i) for i in range(23)])


class Broken:
    """A source some of whose examples raise an exception, or hold bytes that are no image."""

    class_names = tuple(map(str, range(23)))
    fingerprint = "broken"

    def __init__(self, source: MemorySource, faults: dict[int, Exception | bytes]):
        self.source, self.faults = source, faults
        self.reads: list[int] = []

    def name(self, index: int) -> str:
        return f"photos/{index}.jpg"

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> Record:
        self.reads.append(index)
        fault = self.faults.get(index)
        if isinstance(fault, Exception):
            raise fault
        return self.source[index] if fault is None else Record(fault, index, f"photos/{index}.jpg")


def train(
    source, first: int = 0, last: int = 9, rows: Sequence[int] = range(5), threads: int = 0, **options
) -> list[dict]:
    return list(start_training(source, first, last, rows, threads, **options))


def start_training(source, first=0, last=9, rows=range(5), threads=0, seed=7, prefetch=2, augment=AUGMENT):
    return train_batches(
        source,
        seed=seed,
        batch_size=5,
        rows=rows,
        first_step=first,
        total_steps=last,
        threads=threads,
        prefetch=prefetch,
        **augment,
    )


def evaluate(source, rows: Sequence[int] = range(5), threads: int = 0) -> list[dict]:
    return list(
        eval_batches(source, batch_size=5, rows=rows, image_size=11, crop_ratio=0.875, threads=threads, prefetch=2)
    )


def assert_equal(ours: list[dict], theirs: list[dict]) -> None:
    assert len(ours) == len(theirs)
    for one, other in zip(ours, theirs, strict=True):
        assert one.keys() == other.keys()
        for key in one:
            assert one[key].dtype == other[key].dtype
            assert np.array_equal(one[key], other[key]), key


def test_shapes_and_types(source) -> None:
    batches = train(source)
    assert len(batches) == 9
    for batch in batches:
        assert {key: (value.shape, value.dtype.name) for key, value in batch.items()} == {
            "image": ((5, 11, 11, 3), "uint8"),
            "label": ((5,), "int32"),
            "index": ((5,), "int32"),
            "replaced": ((5,), "bool"),
        }
        assert not batch["replaced"].any()


@pytest.mark.parametrize(("threads", "prefetch"), [(1, 1), (3, 1), (3, 5), (2, 0), (0, 4)])
def test_threads_change_nothing(source, threads: int, prefetch: int) -> None:
    assert_equal(train(source, threads=threads, prefetch=prefetch), train(source))
    assert_equal(evaluate(source, threads=threads), evaluate(source))


def test_the_stream_is_pure_with_everything_on(source) -> None:
    """For any threads, hosts and start, and a batch drawn twice in another order."""
    whole = train(source, augment=EVERYTHING)
    assert not np.array_equal(whole[3]["image"], train(source)[3]["image"])
    for threads in (1, 3):
        assert_equal(train(source, threads=threads, augment=EVERYTHING), whole)
    parts = [train(source, rows=rows, threads=2, augment=EVERYTHING) for rows in (range(2), range(2, 5))]
    assert_equal([{key: np.concatenate([a[key], b[key]]) for key in a} for a, b in zip(*parts, strict=True)], whole)
    for step in (7, 2, 8, 2):
        assert_equal(train(source, first=step, last=step + 1, augment=EVERYTHING), whole[step : step + 1])


def test_copies_of_an_image_are_augmented_differently(source) -> None:
    views = [
        (int(batch["index"][row]), batch["image"][row].tobytes())
        for batch in train(source, last=4, augment=EVERYTHING | {"repeats": 5})
        for row in range(5)
    ]
    assert len({index for index, _ in views}) == 4
    assert len(set(views)) == 20


def test_a_bad_image_is_replaced_in_all_its_copies(source) -> None:
    settings = {"seed": 7, "batch_size": 5, **EVERYTHING}
    index, after = (
        example_index(10, seed=7, examples=23, batch_size=5, repeats=3, groups=5, neighbour=n) for n in (0, 1)
    )
    broken = Broken(source, {index: b"no image"})
    found = train_example(broken, 10, **settings)
    assert (found["index"], bool(found["replaced"])) == (after, True)
    assert broken.reads == [index, after]


def test_what_only_the_crop_finds_wrong_is_replaced_too(photo) -> None:
    images = [np.zeros((1, 20_000, 3), np.uint8), photo(13, 17)]

    class Thin(Broken):
        def __len__(self) -> int:
            return 2

        def __getitem__(self, index: int) -> Record:
            return Record(images[index], index, f"{index}.png")

    transform = TrainTransform(224, crop="simple")
    found = [train_example(Thin(None, {}), p, seed=7, batch_size=2, transform=transform) for p in range(2)]
    assert sorted(bool(example["replaced"]) for example in found) == [False, True]
    assert {int(example["index"]) for example in found} == {1}


@pytest.mark.parametrize("exif", [True, False])
def test_photos_are_turned_only_where_asked_for(photo, encode, exif) -> None:
    turned = Image.Exif()
    turned[ORIENTATION_TAG] = 6
    data = encode(photo(13, 17), exif=turned)
    one = Broken(MemorySource(photo(13, 17)[None], np.array([0]), ["a"]), {0: data})
    transform = TrainTransform(11)
    trained = train_example(one, 4, seed=7, batch_size=1, transform=transform, exif=exif)
    upright = decode(data, exif=exif)
    assert upright.shape[:2] == ((17, 13) if exif else (13, 17))
    assert np.array_equal(trained["image"], transform(upright, rng.generator(7, "augment", 4)))
    shown = eval_example(one, 0, image_size=11, crop_ratio=0.875, exif=exif)
    assert np.array_equal(shown["image"], eval_transform(upright, size=11, crop_ratio=0.875))


def test_every_thread_has_work_even_where_little_is_prefetched(source) -> None:
    together = threading.Barrier(3)

    class Meeting(Broken):
        def __getitem__(self, index: int) -> Record:
            together.wait(timeout=10)  # raises unless three threads read at once
            return super().__getitem__(index)

    assert len(train(Meeting(source, {}), rows=range(1), last=3, threads=3, prefetch=1)) == 3


def test_hosts_change_nothing(source) -> None:
    """Nor the order in which one makes its rows."""
    for run in (train, evaluate):
        parts = [run(source, rows=rows, threads=1) for rows in ([1, 0], range(2, 4), [4])]
        joined = [
            {key: np.concatenate([part[key] for part in step])[[1, 0, 2, 3, 4]] for key in step[0]}
            for step in zip(*parts, strict=True)
        ]
        assert_equal(joined, run(source))


def test_any_start_continues_the_same_stream(source) -> None:
    whole = train(source)
    for first in (1, 4, 8, 9):
        assert_equal(train(source, first=first, threads=1), whole[first:])


def test_starting_late_reads_nothing_early(source) -> None:
    counted = Broken(source, {})
    train(counted, first=100_000, last=100_002)
    assert len(counted.reads) == 10


def test_nothing_is_read_before_the_first_batch_is_asked_for(source) -> None:
    counted = Broken(source, {})
    stream = start_training(counted, threads=2)
    assert counted.reads == []
    next(stream)
    stream.close()


def test_a_batch_is_the_examples_of_its_positions(source) -> None:
    batch = train(source)[6]
    for row in range(5):
        example = train_example(source, 6 * 5 + row, seed=7, batch_size=5, **AUGMENT)
        assert all(np.array_equal(example[key], batch[key][row]) for key in batch)
        assert batch["label"][row] == example_index(6 * 5 + row, seed=7, examples=23, batch_size=5)


def test_every_epoch_shows_each_example_at_most_once_and_differently(source) -> None:
    batches = train(source, last=12)
    labels = np.array([batch["label"] for batch in batches]).reshape(3, 20)
    assert all(len(set(epoch)) == 20 for epoch in labels)
    views = [batch["image"][row].tobytes() for batch in batches for row in range(5)]
    assert len(set(views)) == 60


def test_seeds_differ(source) -> None:
    one, other = train(source)[0], train(source, seed=8)[0]
    assert not np.array_equal(one["label"], other["label"])


@pytest.mark.parametrize("fault", [b"no image", CorruptImage("a damaged record")])
def test_a_bad_image_is_replaced_by_its_neighbour(source, fault) -> None:
    bad = 5
    broken = Broken(source, {bad: fault})
    good, found = train(source), train(broken, threads=2)
    assert_equal(found, train(broken))
    replaced = [(step, row) for step in range(9) for row in range(5) if good[step]["label"][row] == bad]
    assert len(replaced) >= 2
    for step in range(9):
        for row in range(5):
            if (step, row) not in replaced:
                assert not found[step]["replaced"][row]
                assert np.array_equal(found[step]["image"][row], good[step]["image"][row])
    for step, row in replaced:
        position = step * 5 + row
        neighbour = example_index(position + 1, seed=7, examples=23, batch_size=5)
        generator = rng.generator(7, "augment", position)
        expected = AUGMENT["transform"](decode(source[neighbour].image), generator)
        assert found[step]["replaced"][row]
        assert found[step]["label"][row] == neighbour
        assert np.array_equal(found[step]["image"][row], expected)


class Moody(Broken):
    """A source that fails the first times that each of some examples is asked for."""

    def __getitem__(self, index: int) -> Record:
        self.reads.append(index)
        if index in self.faults and self.reads.count(index) <= len(pipeline.WAITS):
            raise self.faults[index]
        return self.source[index]


@pytest.fixture
def naps(monkeypatch) -> list[float]:
    """The waits between tries, which take no time."""
    slept: list[float] = []
    monkeypatch.setattr(pipeline.time, "sleep", slept.append)
    return slept


@pytest.mark.parametrize("threads", [0, 3])
def test_what_cannot_be_read_for_a_while_changes_nothing(source, naps, threads) -> None:
    error = OSError(116, "Stale file handle")
    assert_equal(train(Moody(source, {5: error, 11: error}), threads=threads), train(source))
    assert_equal(evaluate(Moody(source, {5: error})), evaluate(source))
    assert sorted(naps) == sorted([*pipeline.WAITS] * 3)  # two of training, one of evaluation


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (OSError(5, "Input/output error"), TryAgain),
        (TimeoutError(110, "Connection timed out"), TryAgain),
        (FileNotFoundError(2, "No such file or directory"), UserError),
        (PermissionError(13, "Permission denied"), UserError),
    ],
)
def test_what_cannot_be_read_ends_the_stream(source, naps, error, kind) -> None:
    """Another image in its place would be another run."""
    for stream in (train, evaluate):
        with pytest.raises(kind, match=rf"^photos/5\.jpg: cannot be read: {error.strerror}, tried 5 times; "):
            stream(Broken(source, {5: error}))


def test_a_batch_that_does_not_come_is_told_with_what_is_read(source, monkeypatch, caplog) -> None:
    come = threading.Event()

    class Hanging(Broken):
        def __getitem__(self, index: int) -> Record:
            if index == 5:
                come.wait(20)
            return self.source[index]

    def tell(message: str, *given: object) -> None:
        log(message, *given)
        said.append(message % given)
        if sum("5.jpg" in line for line in said) == 2:  # told again; not the threads that have still to begin
            come.set()

    log, said = pipeline.log.warning, list[str]()
    monkeypatch.setattr(pipeline, "LATE", 0.05)
    monkeypatch.setattr(pipeline, "SLOW", 0.05)
    monkeypatch.setattr(pipeline.log, "warning", tell)
    assert_equal(train(Hanging(source, {}), threads=2), train(source))
    assert re.search(r"no batch for \d+ seconds, reading photos/5\.jpg$", caplog.text, re.MULTILINE)


@pytest.fixture
def nothing_told(monkeypatch) -> None:
    monkeypatch.setattr(pipeline, "_told", set())


def test_of_very_many_bad_files_some_are_named(nothing_told, caplog) -> None:
    texts = MemorySource(np.zeros((700, 1, 1), np.uint8), np.zeros(700, int), ["x"], name="texts")
    for _ in range(2):
        assert not any(pipeline.readable(Broken(texts, dict.fromkeys(range(700), b"text")), i) for i in range(700))
    lines = [record.getMessage() for record in caplog.records]
    assert len(lines) == MOST_TOLD + 1
    assert lines[0].startswith("photos/0.jpg: these 4 bytes are no")
    assert lines[-1] == "others cannot be decoded either, and are not named"


def test_the_bad_file_is_named_once(nothing_told, source, caplog) -> None:
    broken = Broken(source, {5: b"no image"})
    assert sum(batch["replaced"].sum() for batch in train(broken, last=12)) >= 2
    assert caplog.text.count("photos/5.jpg: these 8 bytes are no") == 1


def test_nothing_but_bad_images_is_an_error(source) -> None:
    broken = Broken(source, dict.fromkeys(range(23), b"no image"))
    with pytest.raises(
        UserError,
        match=rf"^config\.data\.dir: {MAX_NEIGHBOURS} neighbouring images .*photos/\d+\.jpg: these 8 bytes are no ",
    ):
        train(broken, threads=1)
    assert len(set(broken.reads)) >= MAX_NEIGHBOURS - 4  # neighbours across an epoch's end may repeat


@pytest.mark.parametrize("threads", [0, 2])
@pytest.mark.parametrize("error", [KeyError("bug"), UserError("no labels"), StopIteration("bug"), IndexError("bug")])
def test_any_other_exception_ends_the_stream(source, error: Exception, threads: int) -> None:
    label = train(source)[2]["label"][3]
    stream = start_training(Broken(source, {int(label): error}), threads=threads)
    seen = list(islice(stream, 2))
    assert len(seen) == 2
    # Python itself turns a StopIteration inside a generator, which would end it without a word, into a RuntimeError.
    with pytest.raises(RuntimeError if isinstance(error, StopIteration) else type(error)):
        next(stream)
    with pytest.raises(StopIteration):
        next(stream)


def test_evaluation_shows_each_example_once_in_order(source) -> None:
    batches = evaluate(source)
    joined = {key: np.concatenate([batch[key] for batch in batches]) for key in batches[0]}
    assert joined["index"].tolist() == [*range(23), -1, -1]
    assert joined["mask"].tolist() == [True] * 23 + [False] * 2
    assert joined["label"].tolist() == [*range(23), 0, 0]
    assert not joined["corrupt"].any()
    assert not joined["image"][23:].any()
    for index in range(23):
        expected = eval_transform(decode(source[index].image), size=11, crop_ratio=0.875)
        assert np.array_equal(joined["image"][index], expected)
    assert {key: value.dtype.name for key, value in joined.items()} == {
        "image": "uint8",
        "label": "int32",
        "index": "int32",
        "mask": "bool",
        "corrupt": "bool",
    }


def test_evaluation_counts_bad_images_out(source) -> None:
    batches = evaluate(Broken(source, {4: b"no image", 9: CorruptImage("a damaged record")}), threads=1)
    joined = {key: np.concatenate([batch[key] for batch in batches]) for key in batches[0]}
    assert np.flatnonzero(joined["corrupt"]).tolist() == [4, 9]
    assert np.flatnonzero(~joined["mask"]).tolist() == [4, 9, 23, 24]
    assert joined["index"].tolist() == [*range(23), -1, -1]
    assert not joined["image"][[4, 9]].any()


def test_evaluation_of_whole_batches_has_no_padding(source) -> None:
    part = MemorySource(*(np.stack([source[i].image for i in range(10)]), np.arange(10)), source.class_names)
    assert [batch["mask"].all() for batch in evaluate(part)] == [True, True]


def test_grey_and_colour_digits_alike(photo) -> None:
    grey = MemorySource(photo(13, 17)[None, ..., 0], np.array([0]), ["a"])
    assert train(grey, last=2)[1]["image"].shape == (5, 11, 11, 3)


def test_closing_ends_the_threads(source) -> None:
    def alive() -> list[str]:
        return [thread.name for thread in threading.enumerate() if thread.name.startswith("grain-prefetch")]

    deadline = time.monotonic() + 10
    while alive() and time.monotonic() < deadline:
        time.sleep(0.01)
    stream = start_training(source, last=1000, threads=2)
    next(stream)
    assert alive()
    stream.close()
    while alive() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not alive()


def test_corrupt_image_is_not_a_users_error() -> None:
    assert not issubclass(CorruptImage, (UserError, OSError))
