"""What a teacher said, recorded once and replayed: a row for each position of a training stream, or for each example.

A store is a folder, or lies in a bucket:

    store.json      the header: what was recorded, and the fingerprint of all that it depends on
    labels          uint8, uint16 or uint32 [rows]: the teacher's best class
    values          float16 [rows, top]: its largest logits, best first; all of them in class order where top = classes
    indices         unsigned [rows, top]: the classes of `values`, where top < classes
    rest            float16 [rows]: log of the summed exponentials of the logits that were left out, where top < classes
    done/N          an empty file for each chunk of rows that is whole

The arrays are zarr 3 with a checksum in every chunk, the last chunk padded. A hard teacher needs `labels` alone
(top = 0).
"""

import dataclasses
import json
import logging
import reprlib
from collections.abc import Collection, Iterable, Mapping
from typing import Any

import numpy as np
import tensorstore as ts

from deit_jax.base.atomic import replacing
from deit_jax.base.errors import UserError
from deit_jax.base.forms import parse_json, read_regular, require, whole
from deit_jax.base.links import refuse_links
from deit_jax.base.storage import Place, is_bucket, tensorstore, told, within
from deit_jax.distill.summary import index_type
from deit_jax.parallel import hosts

HEADER, DONE = "store.json", "done"
MAX_CLASSES, MAX_ROWS, MAX_CHUNK, MAX_CHUNKS = 10**6, 10**13, 10**8, 10**7
FIELD = "config.distillation.store"

Rows = dict[str, np.ndarray]

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Header:
    """What a store holds.

    Attributes:
        classes: of the teacher.
        top: logits kept of each row; 0 for the best class alone.
        rows: positions of the stream, or examples.
        chunk: rows that are written at once, a multiple of the batch.
        views: "stream": a row a position, of the augmented and mixed image; "one": one an example, of its centre crop.
        dtype: that the teacher computed in. Another one says nearly the same, so that a run may replay what was
            recorded on other hardware; but no store is a mixture.
        fingerprint: everything else that the rows depend on, by name.
    """

    classes: int
    top: int
    rows: int
    chunk: int
    views: str
    dtype: str
    fingerprint: Mapping[str, Any]

    @property
    def chunks(self) -> int:
        return -(-self.rows // self.chunk)

    def arrays(self) -> dict[str, tuple[np.dtype, tuple[int, ...]]]:
        """Type of each array, and its shape behind the rows."""
        index = index_type(self.classes)
        arrays: dict[str, tuple[np.dtype, tuple[int, ...]]] = {"labels": (index, ())}
        if self.top:
            arrays["values"] = (np.dtype(np.float16), (self.top,))
        if 0 < self.top < self.classes:
            arrays |= {"indices": (index, (self.top,)), "rest": (np.dtype(np.float16), ())}
        return arrays

    @property
    def nbytes(self) -> int:
        """What the rows take."""
        return self.rows * self.row_bytes

    @property
    def row_bytes(self) -> int:
        """What a row takes."""
        return sum(kind.itemsize * int(np.prod(shape)) for kind, shape in self.arrays().values())


class Writer:
    """Writes a store chunk by chunk, in any order and from several processes; goes on with one that was begun.

    Raises:
        UserError: the folder cannot be written to, or holds something else, a recording of something else, or links.
    """

    def __init__(self, folder: Place, header: Header):
        self._folder, self._header = folder, header
        try:
            folder.mkdir(parents=True, exist_ok=True)
            # Listed before it is asked for the header, which another process may be writing, and then the rest.
            others = [path for path in _list(folder) if HEADER not in path.name]  # nor what a kill left of one
            if (folder / HEADER).exists():
                _check_same(folder, read_header(folder), header)
            elif others:
                raise UserError(f"--output: {folder} is not empty and no store; name a new folder")
            else:
                with replacing(folder / HEADER) as fresh:
                    fresh.write_text(json.dumps(dataclasses.asdict(header), indent=2) + "\n")
            if not is_bucket(folder):
                refuse_links(folder.rglob("*"), flag="--output", folder="the store", writer="a recording")
            (folder / DONE).mkdir(exist_ok=True)
        except OSError as error:
            reason = told(error, folder, "name a folder of yours")
            raise UserError(f"--output: cannot write to {folder}: {reason}") from error
        self._arrays = {name: _open(folder, name, header, create=True) for name in header.arrays()}

    def missing(self, chunks: Collection[int] | None = None) -> list[int]:
        """Those of some chunks (None: all) that are still to be written, or marked as done and cannot be read."""
        chunks = range(self._header.chunks) if chunks is None else chunks
        left = set(missing(self._folder, self._header)).intersection(chunks)
        damaged = [chunk for chunk in chunks if chunk not in left and not self._whole(chunk)]
        if damaged:
            log.warning("%s: %d chunks cannot be read; recorded anew", self._folder, len(damaged))
        return sorted([*left, *damaged])

    def _whole(self, chunk: int) -> bool:
        hosts.at(f"chunk {chunk} of the recording")
        try:
            _read(self._folder, self._arrays, self._header, chunk)
        except (OSError, ValueError):
            return False
        return True

    def write(self, chunk: int, rows: Rows) -> None:
        """Writes all rows of one chunk; `UserError` where the disk does not take them."""
        start, size = chunk * self._header.chunk, self._header.chunk
        try:
            writes = []
            for name, array in self._arrays.items():
                # Whole chunks replace what is there without reading it, which may be damaged.
                whole = np.zeros((size, *rows[name].shape[1:]), rows[name].dtype)
                whole[: len(rows[name])] = rows[name]
                _make_way(_file(self._folder, name, array, chunk))
                writes.append(array[start : start + size].write(whole))
            within(lambda: [write.result() for write in writes], self._folder, nbytes=size * self._header.row_bytes)
            (self._folder / DONE / str(chunk)).write_bytes(b"")
        except (OSError, ValueError) as error:
            raise UserError(f"--output: cannot write to {self._folder}: {_why(error)}; the same command goes on") from (
                error
            )


class Store:
    """A whole store, to be replayed.

    Args:
        fingerprint: of what replays it; what it does not name may be anything.
        rows: as many as are needed.
        soft: logits are needed, not the best class alone.

    Raises:
        UserError: it is not there, incomplete, too short, or was recorded for another run; the line names what differs.
    """

    def __init__(self, folder: Place, *, fingerprint: Mapping[str, Any], rows: int, soft: bool):
        self.folder, self.header = folder, read_header(folder)
        differing = _differing(fingerprint, self.header.fingerprint)
        if differing:
            raise UserError(f"{FIELD}: {folder} was recorded for another run: {differing}; record it anew")
        left = missing(folder, self.header)
        if left:
            raise UserError(
                f"{FIELD}: {folder} is incomplete: {len(left)} of {self.header.chunks} chunks are missing; run "
                f"deit_jax.precompute again, which goes on where it stopped"
            )
        if rows > self.header.rows:
            raise UserError(
                f"{FIELD}: {folder} has {self.header.rows} rows, the run needs {rows}; record a longer one, or shorten "
                f"config.total"
            )
        if soft and not self.header.top:
            raise UserError(
                f"config.distillation.kind: is soft, and {folder} has the teacher's best class alone; record it anew "
                f"with kind=soft, or set hard"
            )
        names = self.header.arrays() if soft else ["labels"]
        self._arrays = {name: _open(folder, name, self.header) for name in names}
        self._chunk, self._rows = -1, Rows()
        self._memory: Rows | None = None
        if self.header.views == "one":  # asked for in the order of the shuffle: every chunk in every batch
            chunks = [self._read(chunk) for chunk in range(self.header.chunks)]
            self._memory = {name: np.concatenate([chunk[name] for chunk in chunks]) for name in self._arrays}

    def read(self, positions: np.ndarray, examples: np.ndarray) -> Rows:
        """What was recorded for a batch, or a part of one.

        Args:
            positions: in the stream, in any order.
            examples: that stand there, by their index in the split: what counts in a store of one view.

        Raises:
            UserError: the files are damaged.
        """
        if self._memory is not None:
            return {name: array[examples] for name, array in self._memory.items()}
        chunk = int(positions[0]) // self.header.chunk
        if chunk != self._chunk:  # a run goes through a chunk batch by batch: it is read and checked once
            self._chunk, self._rows = chunk, self._read(chunk)
        return {name: array[positions - chunk * self.header.chunk] for name, array in self._rows.items()}

    def verify(self, chunks: Iterable[int]) -> None:
        """Reads some chunks; `UserError` naming the first that is damaged."""
        for chunk in chunks:
            hosts.at(f"chunk {chunk} of the recording")
            self._read(chunk)

    def _read(self, chunk: int) -> Rows:
        """The rows of a chunk."""
        try:
            return _read(self.folder, self._arrays, self.header, chunk)
        except (OSError, ValueError) as error:
            raise UserError(
                f"{FIELD}: chunk {chunk} of {self.folder} cannot be read: {_why(error)}; "
                f"run deit_jax.precompute again, which records it anew"
            ) from error


def _file(folder: Place, name: str, array: ts.TensorStore, chunk: int) -> Place:
    """Of a chunk of an array, in the order of zarr's default keys."""
    return folder.joinpath(name, "c", str(chunk), *["0"] * (array.rank - 1))


def _read(folder: Place, arrays: Mapping[str, ts.TensorStore], header: Header, chunk: int) -> Rows:
    """The rows of a chunk; `OSError` or `ValueError` where they cannot be read, or were never written."""
    for file in (_file(folder, name, array, chunk) for name, array in arrays.items() if not is_bucket(folder)):
        require(file.is_file() or not file.exists(), f"{file} is no regular file")  # a pipe would be waited for
    start = chunk * header.chunk
    stop = min(start + header.chunk, header.rows)
    reads = {name: array[start:stop].read() for name, array in arrays.items()}
    whole = within(lambda: [read.result() for read in reads.values()], folder, nbytes=header.chunk * header.row_bytes)
    rows = {name: np.asarray(array) for name, array in zip(reads, whole, strict=True)}
    for name, array in rows.items():
        # What was never written reads as NaN, or as the largest number of its type.
        if np.isnan(array).any() if array.dtype == np.float16 else (array >= header.classes).any():
            raise ValueError(f"its {name} are not there")
    return rows


def read_header(folder: Place) -> Header:
    """The header of a store; `UserError` where there is none, or none that could be of a store."""
    try:
        content = parse_json(read_regular(folder / HEADER))
        _check_form(content)
        return Header(**content)
    except FileNotFoundError as error:
        raise UserError(f"{FIELD}: {folder} is no store; make one with deit_jax.precompute") from error
    except (OSError, ValueError) as error:
        raise UserError(f"{FIELD}: {folder / HEADER} cannot be read: {error}; record it anew") from error


def _check_form(content: Any) -> None:
    """Raises `ValueError` unless it is what a recording writes, with numbers that a machine can hold."""
    names = {field.name for field in dataclasses.fields(Header)}
    require(isinstance(content, dict) and content.keys() == names, f"has not the fields {', '.join(sorted(names))}")
    require(whole(content["classes"], 1, MAX_CLASSES), "has no such number of classes")
    require(whole(content["top"], 0, content["classes"]), "has no such top")
    require(whole(content["rows"], 1, MAX_ROWS) and whole(content["chunk"], 1, MAX_CHUNK), "has no such rows or chunk")
    require(content["rows"] <= MAX_CHUNKS * content["chunk"], f"has more than {MAX_CHUNKS:,} chunks")
    require(content["views"] in ("stream", "one"), "has no such views")
    require(content["dtype"] in ("float32", "bfloat16"), "has no such dtype")
    require(isinstance(content["fingerprint"], dict), "has no fingerprint")


def _list(folder: Place) -> list[Place]:
    return list(folder.iterdir()) if folder.is_dir() else []


def missing(folder: Place, header: Header) -> list[int]:
    """The chunks of a store that are not whole."""
    done = {path.name for path in _list(folder / DONE)}
    return [chunk for chunk in range(header.chunks) if str(chunk) not in done]


def _make_way(file: Place) -> None:
    """Removes an empty folder, onto which no file can be moved; `UserError` where it is not empty."""
    if not is_bucket(file) and file.is_dir():
        try:
            file.rmdir()
        except OSError as error:
            raise UserError(
                f"--output: {file} is a folder in the place of a file: {error.strerror}; remove it, and the same "
                f"command goes on"
            ) from error


def _check_same(folder: Place, found: Header, wanted: Header) -> None:
    """Raises `UserError` naming what differs between a store that was begun and what is to be recorded."""
    new, old = ({**dataclasses.asdict(header), **header.fingerprint} for header in (wanted, found))
    differing = _differing({name: value for name, value in new.items() if name != "fingerprint"}, old)
    if differing:
        raise UserError(f"--output: {folder} was begun for another recording: {differing}; name a new folder")


def _differing(wanted: Mapping[str, Any], recorded: Mapping[str, Any]) -> str:
    """What is not as it was recorded, in words; "" where all is."""
    short = reprlib.Repr()
    short.maxlist, short.maxstring = 3, 80
    return "; ".join(
        f"{name} is {short.repr(value)}, recorded with {short.repr(recorded.get(name))}"
        for name, value in wanted.items()
        if recorded.get(name) != value
    )


def _why(error: Exception) -> str:
    return str(error).split(" [")[0]  # TensorStore appends its whole specification


def _open(folder: Place, name: str, header: Header, *, create: bool = False) -> ts.TensorStore:
    kind, shape = header.arrays()[name]
    spec = {
        "driver": "zarr3",
        "kvstore": tensorstore(folder.absolute() / name),
        "metadata": {
            "shape": (header.chunks * header.chunk, *shape),
            "data_type": kind.name,
            "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": (header.chunk, *shape)}},
            "codecs": [{"name": "bytes", "configuration": {"endian": "little"}}, {"name": "crc32c"}],
            "fill_value": "NaN" if kind == np.float16 else int(np.iinfo(kind).max),
        },
    }
    try:
        return within(lambda: ts.open(spec, open=True, create=create).result(), folder)
    except (OSError, ValueError) as error:
        raise UserError(f"{FIELD}: {folder / name} cannot be opened: {_why(error)}; record it anew") from error
