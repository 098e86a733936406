"""Records what a teacher says of a run's training images, so that the run itself need not compute it.

    python -m deit_jax.precompute --config=FILE[:ARGUMENT] --output=DIR|gs://BUCKET/NAME [--views=stream|one] [--check]
        [--config.section.field=value ...]

Train with the same config and `--config.distillation.store=DIR`. With `--views=stream` (the default) every position of
the training stream is recorded: the augmented and mixed image that the student will see there, so that training with
the store equals training beside the teacher. `--views=one` records one prediction an image, of the centre crop without
augmentation or mixing: as many rows as images, whatever the length of the run, but an approximation, since the teacher
is then asked about another picture than the student.

A soft teacher's `distillation.top_k` largest logits are kept (-1: all), a hard one's best class. A recording that was
killed goes on where it stopped. `--check` records nothing: it asks the teacher again about a sample and compares. The
last line of stdout is a JSON object.

Exit status: 0 when done; 2 for a mistake in what was given, told in one line; 75 when interrupted, so that the same
command goes on.
"""

import functools
import itertools
import json
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from tqdm import tqdm

from deit_jax import cli, parallel
from deit_jax.base import rng
from deit_jax.base.errors import UserError
from deit_jax.base.storage import Place, place
from deit_jax.config.resolve import for_platform, resolve
from deit_jax.config.schema import Config
from deit_jax.data import eval_batches
from deit_jax.distill import Header, Rows, Store, Writer, expand, kept_logits, read_header, summarize, teaching
from deit_jax.distill.open import FIELD, open_teacher
from deit_jax.parallel import hosts
from deit_jax.run.build import Run, build, open_mesh
from deit_jax.run.evaluate import teacher_note
from deit_jax.run.interrupt import Interrupt
from deit_jax.run.stream import eval_source, train_source
from deit_jax.run.together import require_same_data, require_shared
from deit_jax.step.step import teacher_step

CHUNK_ROWS = 8192  # at most about so many rows; 10 logits with their classes are then a third of a megabyte
CHUNKS = 50  # at least about so many, since a kill loses the one that was begun
CHECKED = 8  # batches of a check
# What bfloat16 on another device may do to a check: move probabilities, and where two classes are about as likely, as
# in one of 500 strongly mixed images, decide for the other one.
APART, SAME = 0.05, 0.99
Batches = Callable[[int, int], Generator[Any, None, None]]  # device batches from one step to another


def main(argv: Sequence[str]) -> int:
    """Parses the command line, then records or checks; returns the exit status."""

    def define(values: flags.FlagValues) -> None:
        flags.DEFINE_string("output", "", "folder of the store, or gs://BUCKET/NAME", flag_values=values)
        flags.DEFINE_enum("views", "stream", ["stream", "one"], "what the teacher is shown", flag_values=values)
        flags.DEFINE_boolean("check", False, "compare a sample with what is recorded", flag_values=values)
        cli.define_hosts(values)

    given, tree, _ = cli.parse_with_config(__doc__ or "", define, argv)
    if not given.output:
        raise UserError("--output: missing; name the folder of the store")
    config = resolve(tree)
    if config.distillation.kind == "none":
        raise UserError("config.distillation.kind: is 'none', so there is nothing to record; set soft or hard")
    folder = place(given.output, "--output")  # one that all processes see
    first = cli.start_hosts(given, config)
    config = for_platform(config, cli.start_jax())
    result = check(config, folder) if given.check else Recording(config, given.views).write(folder)
    if first:
        print(json.dumps(result))
    return 0


class Recording:
    """A teacher, the images that it is shown batch by batch, and the header of the store that this makes.

    Raises:
        UserError: the data, the teacher and the student of the config do not go together.
    """

    def __init__(self, config: Config, views: str):
        mesh, source = open_mesh(config), train_source(config)
        held_out = eval_source(config, source.class_names)
        require_same_data(train_split=source, eval_split=held_out)
        classes, batch_size = len(source.class_names), config.batch_size
        parallel.check_batch(mesh, batch_size, config.optim.accumulation)
        run = build(config, mesh, source)  # what training would refuse is refused before hours of recording
        teacher = open_teacher(config, source.class_names)
        teaching.require_same_teacher(teacher)
        rows = run.total * batch_size if views == "stream" else len(source)
        self.header = Header(
            classes=classes,
            top=kept_logits(config.distillation.kind, config.distillation.top_k, classes),
            rows=rows,
            chunk=max(1, min(CHUNK_ROWS, rows // CHUNKS) // batch_size) * batch_size,
            views=views,
            dtype=config.model.dtype,
            fingerprint=teaching.fingerprint(config, source, teacher, views),
        )
        self.batch_size, self._progress = batch_size, config.log.progress
        self._batches: Batches = functools.partial(_stream if views == "stream" else _centre_crops, run)
        self._variables = parallel.place(teacher.variables, mesh)
        teacher = teacher.on(mesh)
        predict = teaching.predict(teacher)
        self._note: Callable[[], str] | None = None
        if config.distillation.teacher.evaluate:
            self._note = functools.partial(teacher_note, config, predict, self._variables, held_out, mesh)

        def look(variables: Any, batch: Any, top: int) -> tuple[dict[str, jax.Array], jax.Array]:
            if views == "stream":
                logits = teacher_step(variables, batch, teacher=teacher, normalize=run.normalize)
                order = jnp.argsort(batch["place"])
            else:
                (logits,) = predict(variables, batch["image"])
                order = jnp.arange(len(logits))
            said = {name: rows[order] for name, rows in summarize(logits, top).items()}
            return said, jnp.isnan(jax.nn.log_softmax(logits)).any()

        # Every process gets all rows, and writes whole chunks of its own: none is written by two.
        self._look = jax.jit(look, static_argnums=2, out_shardings=parallel.replicated(mesh))

    def rows(self, start: int, stop: int, top: int) -> Generator[Rows, None, None]:
        """What the teacher says of the batches from one step to another, the last without what pads it.

        Raises:
            UserError: it says NaN, or has infinite confidence.
        """
        waiting: tuple[Any, ...] = ()
        with closing(self._batches(start, stop)) as batches:
            for step, batch in enumerate(batches, start):
                hosts.at(f"the batch of step {step}", compiling=step < start + 2)
                said = self._look(self._variables, batch, top)  # runs on while the batch before is fetched and written
                if waiting:
                    yield self._fetched(*waiting)
                waiting = step, said
        yield self._fetched(*waiting)

    def _fetched(self, step: int, said: tuple[dict[str, jax.Array], jax.Array]) -> Rows:
        rows, nothing = jax.device_get(said)
        if nothing:
            raise UserError(f"{FIELD}: its logits are NaN or infinite in the batch of step {step}; mend its weights")
        left = self.header.rows - step * self.batch_size
        return {name: array[:left] for name, array in rows.items()}

    def write(self, folder: Place) -> dict[str, Any]:
        """Records what is missing in `folder`.

        Raises:
            UserError: the folder cannot be written to, or holds something else.
            Interrupted: SIGTERM or SIGINT came; the chunks that are whole are kept.
        """
        hosts.at("what is recorded", compiling=True)
        header, main_process = self.header, hosts.index() == 0
        writer = Writer(folder, header)
        require_shared(folder, "--output")
        # Each process looks at the chunks that it writes, and all hear of it: whole recordings take long to read.
        told = hosts.gather(json.dumps(writer.missing(_own_chunks(header))))
        todo = sorted(chunk for missing in told for chunk in json.loads(missing))
        there = (header.chunks - len(todo)) * header.chunk
        if main_process:
            print(f"{header.rows:,} rows of {header.classes} classes, {header.nbytes / 1e6:,.1f} MB, in {folder}")
        if self._note and todo:
            note = self._note()
            if main_process:
                print(note, flush=True)
        start, recorded = time.perf_counter(), 0
        parts: list[Rows] = []
        silent = not (main_process and self._progress)
        progress = tqdm(total=header.rows, initial=min(there, header.rows), unit="image", disable=silent)
        with Interrupt(), progress as bar:
            for chunk, whole, rows in self._told(todo):
                parts.append(rows)
                bar.update(len(rows["labels"]))
                recorded += len(rows["labels"])
                if whole:
                    if chunk in _own_chunks(header):
                        writer.write(chunk, _joined(parts))
                    parts = []
        speed = recorded / (time.perf_counter() - start)
        return {"rows": header.rows, "bytes": header.nbytes, "recorded": recorded, "images_per_second": round(speed, 2)}

    def _told(self, chunks: Sequence[int]) -> Iterator[tuple[int, bool, Rows]]:
        """For each batch of some chunks, its chunk, whether that ends with it, and what the teacher says of it."""
        per_chunk, end = self.header.chunk // self.batch_size, -(-self.header.rows // self.batch_size)
        for first, last in _ranges(chunks):
            start, stop = first * per_chunk, min(last * per_chunk, end)
            for step, rows in enumerate(self.rows(start, stop, self.header.top), start + 1):
                yield (step - 1) // per_chunk, step % per_chunk == 0 or step == end, rows


def check(config: Config, folder: Place) -> dict[str, Any]:
    """Asks the teacher again about a sample of batches.

    Every chunk is read, too, by one of the processes, which finds damaged ones.

    Raises:
        UserError: the store is not there, not whole or damaged; or what is recorded as the best class is not, for more
            images than rounding explains or by more; or a probability is another one.
    """
    recorded = read_header(folder)
    if recorded.dtype != config.model.dtype:
        raise UserError(
            f"config.model.dtype: is {config.model.dtype}, {folder} was recorded in {recorded.dtype}; check it in that"
        )
    recording = Recording(config, recorded.views)
    store = Store(folder, fingerprint=recording.header.fingerprint, rows=recording.header.rows, soft=recorded.top > 0)
    store.verify(_own_chunks(store.header))
    batch_size, available = recording.batch_size, -(-recording.header.rows // recording.batch_size)
    sample = rng.generator(config.seed, "check", 0).choice(available, min(CHECKED, available), replace=False)
    same, rows, apart = 0, 0, 0.0
    for step in sorted(sample.tolist()):
        (now,) = recording.rows(step, step + 1, recorded.classes)
        start, stop = step * batch_size, step * batch_size + len(now["labels"])
        then = store.read(np.arange(start, stop), np.arange(start, stop))
        same, rows = same + int((now["labels"] == then["labels"]).sum()), rows + stop - start
        after = jax.nn.softmax(now["values"].astype(np.float32))
        least = jnp.take_along_axis(after, then["labels"][:, None].astype(np.int32), axis=1)[:, 0]
        apart = max(apart, float((after.max(axis=1) - least).max()))
        if recorded.top:
            before = jax.nn.softmax(expand(then, recorded.classes))
            known = then.get("indices", np.arange(recorded.classes)[None])
            difference = jnp.take_along_axis(after - before, known.astype(np.int32), axis=1)
            apart = max(apart, float(jnp.abs(difference).max()))
    result = {"rows_checked": rows, "same_labels": round(100 * same / rows, 3), "largest_difference": apart}
    if same < SAME * rows or apart > APART:
        raise UserError(f"{folder}: the teacher says something else now: {result}; record it anew")
    return result


def _stream(run: Run, start: int, stop: int) -> Generator[Any, None, None]:
    return (batch for batch, _ in run.batches(start, stop))


def _centre_crops(run: Run, start: int, stop: int) -> Generator[Any, None, None]:
    data, batch_size = run.config.data, run.config.batch_size
    batches = eval_batches(
        run.source,
        batch_size=batch_size,
        rows=parallel.local_rows(run.mesh, batch_size),
        steps=range(start, stop),
        image_size=data.image_size,
        crop_ratio=data.crop_ratio,
        exif=data.exif,
        threads=data.threads,
        prefetch=data.prefetch,
    )
    return (parallel.put_batch({"image": batch["image"]}, run.mesh, batch_size) for batch in batches)


def _own_chunks(header: Header) -> range:
    """The chunks of a store that this process writes, and looks at."""
    return range(jax.process_index(), header.chunks, jax.process_count())


def _ranges(numbers: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Runs of successive numbers, each as its first and the one after its last."""
    for _, group in itertools.groupby(enumerate(numbers), key=lambda pair: pair[1] - pair[0]):
        run = [number for _, number in group]
        yield run[0], run[-1] + 1


def _joined(parts: Sequence[Rows]) -> Rows:
    """The rows of several batches."""
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


if __name__ == "__main__":
    cli.run(main, goes_on=True)
