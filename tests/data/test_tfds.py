"""TFDS data sets, written here without TensorFlow."""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import tensorflow_datasets as tfds
from array_record.python.array_record_module import ArrayRecordWriter

from deit_jax.base.errors import UserError
from deit_jax.data.decode import CorruptImage, decode
from deit_jax.data.sources import describe_data, open_source
from deit_jax.data.tfds import TfdsSource

CLASSES = ["pear", "apple", "plum"]


@pytest.fixture
def prepare(tmp_path: Path, photo, encode):
    """Writes a data set `toy:1.2.0` of 13 train and 5 test images with an id, and returns TFDS's data directory."""

    def make(
        *, kind: str = "array_record", image: str = "image", unlabelled: bool = False, classes: Sequence[str] = CLASSES
    ) -> str:
        folder = tmp_path / "data" / "toy" / "1.2.0"
        folder.mkdir(parents=True)
        features = tfds.features.FeaturesDict(
            {
                image: tfds.features.Image(shape=(None, None, 3), encoding_format="png"),
                "label": tfds.features.ClassLabel(names=list(classes)),
                "id": tfds.features.Text(),
            }
        )
        features.save_config(folder)
        serializer = tfds.core.ExampleSerializer(features.get_serialized_info())
        sizes = {"train": 13, "test": 5}
        for split, size in sizes.items():
            writer = ArrayRecordWriter(str(folder / f"toy-{split}.{kind}-00000-of-00001"), "group_size:1")
            for i in range(size):
                label = -1 if unlabelled else i % 3
                example = {image: encode(photo(5, 7, seed=i)), "label": label, "id": f"{split} {i}"}
                writer.write(serializer.serialize_example(example))
            writer.close()
        splits = [{"name": split, "shardLengths": [str(size)]} for split, size in sizes.items()]
        info = {"name": "toy", "version": "1.2.0", "fileFormat": kind, "splits": splits}
        (folder / "dataset_info.json").write_text(json.dumps(info))
        return str(tmp_path / "data")

    return make


def open_toy(directory: str, split: str = "train", name: str = "toy", **options: object):
    return open_source(name=name, directory=directory, split=split, field="data.eval_split", **options)


def test_examples(prepare, photo) -> None:
    source = open_toy(prepare())
    assert len(source) == 13
    assert source.class_names == tuple(CLASSES)
    for i in (0, 4, 12):
        record = source[i]
        assert (decode(record.image) == photo(5, 7, seed=i)).all()
        assert record.label == i % 3
        assert record.name == f"toy-train.array_record-00000-of-00001[{i}]"


@pytest.mark.parametrize(
    ("split", "seeds"),
    [
        ("test", range(5)),
        ("train[:50%]", range(6)),
        ("train[10%:20%]", range(1, 3)),
        ("train[-3:]", range(10, 13)),
        ("train[:2]+test[3:]", [0, 1, 3, 4]),
    ],
)
def test_split_expressions(prepare, photo, split: str, seeds) -> None:
    source = open_toy(prepare(), split)
    assert [decode(source[i].image).tobytes() for i in range(len(source))] == [
        photo(5, 7, seed=seed).tobytes() for seed in seeds
    ]


def test_an_example_has_the_same_name_in_every_split(prepare) -> None:
    directory = prepare()
    train, part = open_toy(directory), open_toy(directory, "train[11:]+test[3:]")
    names = [part.name(i) for i in range(len(part))]
    assert names == [train.name(11), train.name(12), *(f"toy-test.array_record-00000-of-00001[{i}]" for i in (3, 4))]
    assert describe_data(train, part).endswith(", 4 to evaluate, 2 of them trained on")
    assert describe_data(train, open_toy(directory, "test")).endswith(", 5 held out")


def test_version_in_the_name_and_fingerprints(prepare) -> None:
    directory = prepare()
    whole = open_toy(directory, name="toy:1.2.0")
    assert whole.fingerprint == open_toy(directory).fingerprint
    others = [open_toy(directory, "train[:12]"), open_toy(directory, class_names=[*CLASSES, "fig"])]
    assert len({whole.fingerprint, *(source.fingerprint for source in others)}) == 3


def test_class_names_decide_the_labels(prepare) -> None:
    directory = prepare()
    source = open_toy(directory, class_names=["apple", "fig", "pear", "plum"])
    assert [source[i].label for i in range(3)] == [2, 0, 3]
    with pytest.raises(UserError, match=r"^data\.eval_split: class 'plum' is not one of the 2 classes"):
        open_toy(directory, class_names=["apple", "pear"])


def test_class_names_in_either_unicode_form(prepare) -> None:
    directory = prepare(classes=["the\u0301", "cafe\u0301", "cocoa"])
    assert open_toy(directory).class_names == ("th\u00e9", "caf\u00e9", "cocoa")
    source = open_toy(directory, class_names=["cocoa", "caf\u00e9", "the\u0301"])
    assert [source[i].label for i in range(3)] == [2, 1, 0]


@pytest.mark.parametrize(
    ("split", "message"),
    [
        (
            "tset",
            r"no split 'tset'; there are test, train; did you mean 'test'\?|no split 'tset'; there are train, test.*",
        ),
        ("train[:", r"cannot read 'train\[:' of toy: .*train \(13\)"),
        ("train[:90]", r"cannot read 'train\[:90\]' of toy: .*13 examples"),
        ("train+tset", r"cannot read 'train\+tset' of toy: .*'tset'"),
        ("train[:0]", r"cannot read 'train\[:0\]' of toy: .*"),
    ],
)
def test_wrong_splits(prepare, split: str, message: str) -> None:
    with pytest.raises(UserError) as error:
        open_toy(prepare(), split)
    assert "\n" not in str(error.value)
    error.match(rf"^data\.eval_split: {message}")


def test_not_prepared_names_the_command(tmp_path) -> None:
    with pytest.raises(UserError) as error:
        open_toy(str(tmp_path), name="cifar10:3.0.2")
    assert "\n" not in str(error.value)
    error.match(r"^config\.data\.name: cifar10:3\.0\.2 is not prepared under ")
    call = f"tfds.builder('cifar10:3.0.2', file_format='array_record', data_dir='{tmp_path}').download_and_prepare()"
    assert f'python -c "import tensorflow_datasets as tfds; {call}"' in str(error.value)
    assert "pip install 'deit_jax[prepare]'" in str(error.value)


@pytest.mark.parametrize(("name", "nearest"), [("cifar01", "cifar10"), ("digit", "digits"), ("folders", "folder")])
def test_unknown_names_get_the_nearest(tmp_path, name: str, nearest: str) -> None:
    with pytest.raises(
        UserError, match=rf"^config\.data\.name: no data set '{name}' under .* did you mean '{nearest}'\?$"
    ):
        open_toy(str(tmp_path), name=name)


@pytest.mark.parametrize("name", ["", "a b", "x/y/z/w/v", "toy:9.9.9"])
def test_impossible_names(prepare, name: str) -> None:
    with pytest.raises(UserError, match=r"^config\.data\.name: no data set [^\n]+$"):
        open_toy(prepare(), name=name)


def test_tfrecord_names_the_command(prepare) -> None:
    directory = prepare(kind="tfrecord")
    with pytest.raises(UserError) as error:
        open_toy(directory)
    assert "\n" not in str(error.value)
    error.match(
        rf"^config\.data\.dir: {directory}/toy/1\.2\.0 holds tfrecord files, not ArrayRecord; set config\.data\.dir to "
    )
    assert f"data_dir='{directory}_array_record').download_and_prepare(download_dir='{directory}/downloads')" in str(
        error.value
    )


def test_no_image_feature(prepare) -> None:
    with pytest.raises(UserError, match=r"^config\.data\.name: toy has no features image and label"):
        open_toy(prepare(image="picture"))


def test_home_directory(prepare, monkeypatch) -> None:
    monkeypatch.setenv("HOME", prepare())
    assert len(open_toy("~")) == 13


def test_hidden_labels(prepare) -> None:
    source = open_toy(prepare(unlabelled=True))
    with pytest.raises(UserError, match=r"^data\.eval_split: toy/1\.2\.0 train has no labels"):
        source[0]


def test_reading_imports_no_tensorflow(prepare) -> None:
    code = (
        "import sys; from deit_jax.data.sources import open_source;"
        f"source = open_source(name='toy', directory={prepare()!r}, split='train'); assert len(source[3].image) > 50;"
        "assert not {'tensorflow', 'torch'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True)


def test_a_file_that_is_cut_off_is_told_when_it_is_opened(prepare) -> None:
    """ArrayRecord opens it without a word."""
    directory = prepare()
    (file,) = Path(directory).rglob("toy-test*")
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(UserError, match=rf"^config\.data\.dir: a file is damaged or not there: .*{file.name}: .*anew$"):
        open_toy(directory, "test")
    assert len(open_toy(directory, "train")) == 13
    file.unlink()
    with pytest.raises(UserError, match="a file is damaged or not there"):
        open_toy(directory, "test")


DESCRIPTIONS = {
    "emptied": (lambda path: path.write_bytes(b""), r"{file}: is no JSON: .*"),
    "truncated": (lambda path: path.write_bytes(path.read_bytes()[:-9]), r"{file}: is no JSON: .*"),
    "no text": (lambda path: path.write_bytes(b'{"name": "\xff"}'), r"{file}: is no UTF-8: .*"),
    "a list": (lambda path: path.write_text("[1]"), r"{file}: is no JSON object"),
    "a folder": (lambda path: (path.unlink(), path.mkdir()), r"{file}: is no regular file"),
    "of another form": (
        lambda path: path.write_text('{"name": [{}], "pythonClassName": [{}]}'),
        r"toy: cannot be read by TFDS: .*",
    ),
}


@pytest.mark.parametrize("file", ["dataset_info.json", "features.json"])
@pytest.mark.parametrize("damage", DESCRIPTIONS)
def test_a_damaged_description_is_one_line(prepare, file: str, damage: str) -> None:
    directory = prepare()
    change, message = DESCRIPTIONS[damage]
    change(Path(directory) / "toy" / "1.2.0" / file)
    with pytest.raises(UserError, match=rf"^{directory}/.*{message.format(file=file)}; prepare it anew$") as error:
        open_toy(directory)
    assert "\n" not in str(error.value)


def test_a_damaged_version_beside_is_nothing_to_others(prepare) -> None:
    directory = prepare()
    beside = Path(directory) / "toy" / "1.3.0.incomplete"
    beside.mkdir()
    (beside / "features.json").write_text("")
    assert len(open_toy(directory)) == 13


def test_a_pipe_is_not_waited_for(prepare) -> None:
    directory = prepare()
    (file,) = Path(directory).rglob("toy-test*")
    file.unlink()
    os.mkfifo(file)
    with pytest.raises(UserError, match=rf"^config\.data\.dir: .*{file.name}: is no regular file; prepare it anew$"):
        open_toy(directory, "test")


class Failing(Sequence):
    """Examples of which one cannot be read as ArrayRecord says it: always by RuntimeError."""

    opened = False

    def __len__(self) -> int:
        return 9

    def __getitem__(self, index: int) -> dict:
        if self.opened and index == 4:
            raise RuntimeError("DATA_LOSS\n and more")
        return {"image": b"", "label": 7 if index == 5 else 0}


def test_a_damaged_record_is_told_apart_from_a_file_that_cannot_be_read(tmp_path) -> None:
    (tmp_path / "b").write_bytes(b"x")
    files = [(str(tmp_path / "a"), 0, 3), (str(tmp_path / "b"), 2, 9)]
    examples = Failing()
    source = TfdsSource(examples, files, name="toy", found=["x"], class_names=["x"], field="split")
    examples.opened = True
    with pytest.raises(CorruptImage, match=r"^b\[3\]: cannot be read: DATA_LOSS$"):
        source[4]
    with pytest.raises(CorruptImage, match=r"^b\[4\]: has label 7, there are 1 classes"):
        source[5]
    (tmp_path / "b").unlink()
    with pytest.raises(FileNotFoundError):  # of the machine, which the stream waits for
        source[4]
