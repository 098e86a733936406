"""TFDS data sets prepared as ArrayRecord, read without TensorFlow."""

import bisect
import difflib
import itertools
import os
import re
from collections.abc import Sequence
from typing import Any

from deit_jax.base.errors import TryAgain, UserError
from deit_jax.base.forms import read_json, read_regular
from deit_jax.base.storage import Place, is_bucket, named, told, within
from deit_jax.base.threads import map_in_threads
from deit_jax.data.decode import CorruptImage
from deit_jax.data.records import Record, fingerprint, nfc, relabel
from deit_jax.data.splits import unknown_split


class TfdsSource:
    """A split of a prepared TFDS data set with features `image` and `label`.

    Args:
        examples: the data source: dicts with `image` (encoded bytes) and `label` by index.
        files: of each file its path, the number of its first record that is wanted, and the index in the split behind
            its last.
        name: the full name, `data set/config/version split`.
        found: the data set's class names.
        class_names: the class names that labels are to index.
        field: the config field that messages name.
    """

    def __init__(
        self,
        examples: Sequence[dict[str, Any]],
        files: Sequence[tuple[str, int, int]],
        *,
        name: str,
        found: Sequence[str],
        class_names: Sequence[str],
        field: str,
    ):
        self.class_names = tuple(class_names)
        self.fingerprint = fingerprint((name, str(len(examples)), *found, "", *class_names))
        self._labels = relabel(found, class_names, field=field)
        self._examples, self._name, self._field = examples, name, field
        self._files, self._skipped, self._ends = zip(*files, strict=True)

    def __len__(self) -> int:
        return len(self._examples)

    def name(self, index: int) -> str:
        """The file and the number of the record in it: the same for every split that the example is in."""
        file = self._file_of(index)
        begin = self._ends[file - 1] if file else 0
        return f"{os.path.basename(self._files[file])}[{self._skipped[file] + index - begin}]"

    def _file_of(self, index: int) -> int:
        return bisect.bisect_right(self._ends, index)

    def __getitem__(self, index: int) -> Record:
        file = named(self._files[self._file_of(index)], "config.data.dir")
        try:
            example = within(lambda: self._examples[index], file)
            image, label = example["image"], int(example["label"])
        except (OSError, TryAgain):
            raise
        except Exception as error:  # ArrayRecord raises RuntimeError for a damaged record, protobuf its own
            # And RuntimeError where the machine cannot read the file, which shows when it is opened here.
            if is_bucket(file):
                file.stat()
            else:
                read_regular(file, 1)
            raise CorruptImage(f"{self.name(index)}: cannot be read: {_first_line(error)}") from error
        if label < 0:  # how TFDS marks a test set whose labels are kept secret
            raise UserError(f"{self._field}: {self._name} has no labels; choose another split")
        if label >= len(self._labels):
            raise CorruptImage(f"{self.name(index)}: has label {label}, there are {len(self._labels)} classes")
        return Record(image, int(self._labels[label]), self.name(index))


def open_tfds(
    name: str, directory: str, split: str, *, class_names: Sequence[str] | None = None, field: str = "split"
) -> TfdsSource:
    """Opens a data set by its TFDS name (`name`, `name/config`, `name:version`) under `directory` ("": TFDS's own).

    Raises `UserError` when it is not prepared, not prepared as ArrayRecord, has no `image` or `label`, or lacks the
    split.
    """
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core.read_only_builder import builder_from_files

    directory = os.path.expanduser(directory)
    place = named(directory or tfds.core.constants.DATA_DIR, "config.data.dir")
    try:
        builder = within(lambda: builder_from_files(name, data_dir=directory or None), place)
    except TryAgain:
        raise
    except Exception as error:  # whatever descriptions of another form make TFDS and protobuf run into
        _refuse_damaged(place / re.split("[/:]", name)[0], error)
        raise _not_prepared(name, directory, tfds.list_builders(with_community_datasets=False)) from None
    features = builder.info.features
    by_name = dict(features.items()) if isinstance(features, tfds.features.FeaturesDict) else {}
    label = by_name.get("label")
    if "image" not in by_name or not isinstance(label, tfds.features.ClassLabel) or not label.num_classes:
        raise UserError(
            f"config.data.name: {name} has no features image and label (a class), so it cannot train a classifier"
        )
    try:
        decoders = {"image": tfds.decode.SkipDecoding()}
        examples = within(lambda: builder.as_data_source(split, decoders=decoders), place)
    except NotImplementedError:
        raise _not_array_record(name, builder.info) from None
    except ValueError as error:
        if split.isidentifier() and split not in builder.info.splits:
            raise unknown_split(split, builder.info.splits, field=field) from None
        reason = str(error).splitlines()[0]
        splits = ", ".join(f"{key} ({info.num_examples})" for key, info in builder.info.splits.items())
        raise UserError(f"{field}: cannot read {split!r} of {name}: {reason} It has {splits}") from None
    parts = builder.info.splits[split].file_instructions
    ends = itertools.accumulate(part.take for part in parts)
    files = [(part.filename, part.skip, end) for part, end in zip(parts, ends, strict=True)]
    _look_into_files(examples, files)
    full_name = f"{builder.info.full_name} {split}"
    found = list(map(nfc, label.names))
    class_names = list(map(nfc, class_names or found))
    return TfdsSource(examples, files, name=full_name, found=found, class_names=class_names, field=field)


def _refuse_damaged(folder: Place, error: Exception) -> None:
    """`UserError` where what describes a data set, of whatever version, is damaged, and so TFDS met the error."""
    for pattern in ("*/dataset_info.json", "*/features.json"):  # of versions, and those of a data set with configs
        try:
            described = sorted([*folder.glob(pattern), *folder.glob(f"*/{pattern}")])
        except OSError as unread:
            raise UserError(f"config.data.dir: {folder} cannot be read: {told(unread, folder)}") from unread
        for path in described:
            read_json(path, dict, mend="prepare it anew")
    if not isinstance(error, ValueError):  # which TFDS has for what it does not find
        raise UserError(f"{folder}: cannot be read by TFDS: {_first_line(error)}; prepare it anew") from error


def _look_into_files(examples: Any, files: Sequence[tuple[str, int, int]]) -> None:
    """Reads the first and the last record that are wanted of every file: one that is cut off opens without a word."""
    begins = [0, *(end for _, _, end in files[:-1])]

    def look(begin: int, name: str, skipped: int, end: int) -> str:
        try:
            file = named(name, "config.data.dir")
            if not is_bucket(file) and file.exists() and not file.is_file():  # a pipe would be waited for
                raise ValueError("is no regular file")
            within(lambda: [examples.data_source[index] for index in (begin, end - 1)], file)
        except TryAgain:
            raise
        except Exception as error:
            return f"{name}: {_first_line(error)}"
        return ""

    damaged = list(filter(None, map_in_threads(16, look, begins, *zip(*files, strict=True))))
    if damaged:
        more = f" (and {len(damaged) - 1} files more)" if len(damaged) > 1 else ""
        raise UserError(f"config.data.dir: a file is damaged or not there: {damaged[0]}{more}; prepare it anew")


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def _prepare(name: str, directory: str, arguments: str = "") -> str:
    """The shell command that prepares a data set as ArrayRecord."""
    where = f", data_dir={directory!r}" if directory else ""
    call = f"tfds.builder({name!r}, file_format='array_record'{where}).download_and_prepare({arguments})"
    return f"pip install 'deit_jax[prepare]' && python -c \"import tensorflow_datasets as tfds; {call}\""


def _not_prepared(name: str, directory: str, known: Sequence[str]) -> UserError:
    place = directory or "~/tensorflow_datasets"
    base = re.split("[/:]", name)[0]
    if base in known:
        return UserError(f"config.data.name: {name} is not prepared under {place}; run: {_prepare(name, directory)}")
    nearest = difflib.get_close_matches(base, ["digits", "folder", *known], n=1)
    hint = f"did you mean {nearest[0]!r}?" if nearest else "use digits, folder or a name of TFDS's catalogue"
    return UserError(f"config.data.name: no data set {name!r} under {place} or in TFDS; {hint}")


def _not_array_record(name: str, info: Any) -> UserError:
    # TFDS refuses to prepare a second format beside the first, and converts only with Apache Beam installed.
    prepared = str(info.data_dir)
    root = prepared.removesuffix(f"/{info.full_name}")
    other = f"{root}_array_record"
    command = _prepare(name, other, f"download_dir={os.path.join(root, 'downloads')!r}")
    kind = info.file_format.value
    return UserError(
        f"config.data.dir: {prepared} holds {kind} files, not ArrayRecord; "
        f"set config.data.dir to {other} after: {command}"
    )
