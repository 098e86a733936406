"""Exact metrics over a split, of several sets of weights in one pass, on any mesh."""

import csv
import dataclasses
import functools
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Int

from deit_jax import parallel
from deit_jax.base.atomic import replacing
from deit_jax.base.errors import UserError
from deit_jax.base.storage import Place
from deit_jax.base.threads import map_in_threads
from deit_jax.config.resolve import BEGINNING, SHAPE, check_same
from deit_jax.config.schema import Config
from deit_jax.data import Source, eval_batches, readable
from deit_jax.parallel import hosts
from deit_jax.run import plots
from deit_jax.run.build import Run, build, open_mesh, read_init
from deit_jax.run.checkpoint import has_steps
from deit_jax.run.corrupt import too_many
from deit_jax.run.stream import eval_source
from deit_jax.run.together import require_same_data, require_seen
from deit_jax.run.workdir import CHECKPOINTS
from deit_jax.step.state import TrainState, Variables
from deit_jax.step.step import eval_step
from deit_jax.weights.meta import CorruptCheckpoint
from deit_jax.weights.orbax import CheckpointDirectory

PREDICTIONS = "predictions.csv"
LOOKED_AT = 64  # images of a split, before training
AT_ONCE = 1000  # images that are looked at within the limit of a step


@dataclasses.dataclass
class Result:
    """Counts over a split; percentages and nats are read off it.

    Attributes:
        seen: int64 [classes], examples of each class.
        right: int64 [classes], those of them that are told as it.
        heads: int64 [heads], examples that each head alone gets right.
        top5: examples whose class is among the five best.
        loss_sum: of the cross-entropies in nats.
        corrupt: examples that could not be decoded and are in none of the above.
        predictions: for each example its index in the split, its class, the predicted class, that one's probability and
            that of its class.
    """

    seen: Int[np.ndarray, " classes"]
    right: Int[np.ndarray, " classes"]
    heads: Int[np.ndarray, " heads"]
    top5: int = 0
    loss_sum: float = 0.0
    corrupt: int = 0
    predictions: list[tuple[int, int, int, float, float]] = dataclasses.field(default_factory=list)

    @classmethod
    def empty(cls, classes: int, heads: int) -> "Result":
        return cls(np.zeros(classes, np.int64), np.zeros(classes, np.int64), np.zeros(heads, np.int64))

    def add(self, out: Mapping[str, np.ndarray]) -> None:
        """Counts a batch."""
        real, label = out["mask"], out["label"][out["mask"]]
        top = out["top"][real]
        np.add.at(self.seen, label, 1)
        np.add.at(self.right, label[top[:, 0] == label], 1)
        self.top5 += int((top == label[:, None]).sum())
        self.heads += (out["heads"][:, real] == label).sum(axis=1)
        self.loss_sum += float(out["loss"][real].astype(np.float64).sum())
        self.corrupt += int(out["corrupt"].sum())
        of_class = np.exp(-out["loss"][real])
        columns = (out["index"][real], label, top[:, 0], out["probability"][real], of_class)
        self.predictions += zip(*(column.tolist() for column in columns), strict=True)

    def folded(self, together: int) -> Int[np.ndarray, "rows rows"]:
        """The confusion matrix, true classes by row, with so many neighbouring ones in each row and column."""
        rows = -(-len(self.seen) // together)
        counts = np.zeros((rows, rows), np.int64)
        for _, true, said, *_ in self.predictions:
            counts[true // together, said // together] += 1
        return counts

    @property
    def examples(self) -> int:
        return int(self.seen.sum())

    def summary(self) -> dict[str, float]:
        """`top1` and `top5` in percent, `loss` in nats, `examples`; `top1_cls` and `top1_dist` with two heads."""
        percent = 100 / max(self.examples, 1)
        summary = {
            "top1": float(self.right.sum()) * percent,
            "top5": self.top5 * percent,
            "loss": self.loss_sum / max(self.examples, 1),
            "examples": self.examples,
        }
        if len(self.heads) == 2:
            summary |= {"top1_cls": float(self.heads[0]) * percent, "top1_dist": float(self.heads[1]) * percent}
        if self.corrupt:
            summary["corrupt"] = self.corrupt
        return summary

    def per_class(self) -> np.ndarray:
        """Top-1 accuracy in percent of each class; NaN for a class without examples."""
        with np.errstate(invalid="ignore"):
            return 100 * self.right / self.seen


class Evaluator:
    """Evaluates weights of one model on one split; compiled once.

    Args:
        predict: logits of each head of (variables, uint8 images).
        source: the evaluation split, never the training one.
    """

    def __init__(self, config: Config, predict: Callable[[Any, Array], tuple[Array, ...]], source: Source, mesh: Mesh):
        self._source, self._mesh, self._data = source, mesh, config.data
        devices = parallel.batch_devices(mesh)
        wanted = min(config.eval.batch_size, len(source))
        self._batch_size = -(-wanted // devices) * devices
        step = functools.partial(eval_step, predict=predict)
        # Every process gets all rows back and counts the same: no sum is left to the order of devices.
        self._step = jax.jit(step, out_shardings=parallel.replicated(mesh))

    def __call__(
        self, weights: Mapping[str, Any], every_batch: Callable[[], object] = lambda: None
    ) -> dict[str, Result]:
        """A `Result` for each of the named sets of weights; `every_batch` is called before each."""
        results: dict[str, Result] = {}
        batches = eval_batches(
            self._source,
            batch_size=self._batch_size,
            rows=parallel.local_rows(self._mesh, self._batch_size),
            image_size=self._data.image_size,
            crop_ratio=self._data.crop_ratio,
            exif=self._data.exif,
            threads=self._data.threads,
            prefetch=self._data.prefetch,
        )
        classes = len(self._source.class_names)
        for number, rows in enumerate(batches, 1):
            hosts.at(f"batch {number} of an evaluation", compiling=number <= 2)
            every_batch()
            batch = parallel.put_batch(rows, self._mesh, self._batch_size)
            for name, variables in weights.items():
                out = jax.device_get(self._step(variables, batch))
                results.setdefault(name, Result.empty(classes, len(out["heads"]))).add(out)
        for result in results.values():
            seen = result.examples + result.corrupt
            if seen != len(self._source):
                raise RuntimeError(f"evaluated {seen} examples of a split of {len(self._source)}")
            _refuse_unreadable(result.corrupt, seen, self._data.max_corrupt)
        return results


def require_readable(source: Source, config: Config) -> None:
    """Looks into a split before it is needed: at some images, and where one of them cannot be decoded, at all.

    Raises:
        UserError: more of them than `data.max_corrupt` allows.
    """
    hosts.at("images of the evaluation split", compiling=True)
    look = functools.partial(map_in_threads, max(1, config.data.threads), functools.partial(readable, source))
    if all(look(np.linspace(0, len(source) - 1, min(LOOKED_AT, len(source))).astype(int).tolist())):
        return
    corrupt = 0
    for first in range(0, len(source), AT_ONCE):
        hosts.at(f"image {first} of the evaluation split, of which some cannot be decoded", compiling=True)
        corrupt += look(range(first, min(first + AT_ONCE, len(source)))).count(False)
    _refuse_unreadable(corrupt, len(source), config.data.max_corrupt)


def _refuse_unreadable(corrupt: int, examples: int, allowed: float) -> None:
    if corrupt == examples or too_many(corrupt, examples, allowed):
        raise UserError(
            f"config.data.eval_split: {corrupt} of its {examples} images cannot be decoded, config.data.max_corrupt "
            f"allows {allowed:.2%}; mend the files that the log names"
        )


def rows_of(results: Mapping[str, Result]) -> dict[str, float]:
    """The metrics of a row in `metrics.jsonl`: `eval/top1`, `eval_ema/top1`, ..."""
    return {f"{name}/{key}": value for name, result in results.items() for key, value in result.summary().items()}


def json_of(results: Mapping[str, Result]) -> dict[str, Any]:
    """What commands print last: the raw weights' metrics, with an `ema` object where there is an average."""
    ema = {"ema": results["eval_ema"].summary()} if "eval_ema" in results else {}
    return {**results["eval"].summary(), **ema}


def handed_on(results: Mapping[str, Result]) -> Result:
    """That of the weights which predict, export and convert take: the average where there is one."""
    return results.get("eval_ema", results["eval"])


def report(results: Mapping[str, Result], source: Source, workdir: Place) -> list[str]:
    """Writes an evaluation, of the weights that are handed on.

    Files: `confusion.png`, `per_class.csv` and, a row an image, `predictions.csv`, each whole or not at all. One that
    cannot be made costs a warning: the evaluation is done, and nothing that comes of it may be lost.

    Returns:
        The names of those that were written.
    """
    best, names = handed_on(results), source.class_names

    def confusion(path: Place) -> None:
        plots.save_confusion(best.folded(plots.classes_a_row(len(names))), names, path)

    def per_class(path: Place) -> None:
        classes = zip(names, best.seen, best.per_class().round(2), strict=True)
        _write_table(path, ("class", "examples", "top1"), classes)

    def predictions(path: Place) -> None:
        images = (
            (source.name(i), names[true], names[said], f"{p:.4f}", f"{of_class:.4f}")
            for i, true, said, p, of_class in best.predictions
        )
        _write_table(path, ("image", "class", "predicted", "probability", "probability_of_class"), images)

    written = []
    for name, write in {"confusion.png": confusion, "per_class.csv": per_class, PREDICTIONS: predictions}.items():
        try:
            write(workdir / name)
            written.append(name)
        except Exception as error:  # whatever a library makes of others' names
            reason = getattr(error, "strerror", None) or " ".join(f"{type(error).__name__}: {error}".split())
            logging.warning("%s is not written: %s", workdir / name, reason)
    return written


def _write_table(path: Place, header: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """A CSV file in UTF-8, whole or not at all; what is no UTF-8 is escaped, as predict shows it."""
    with replacing(path) as fresh, fresh.open("w", newline="", encoding="utf-8", errors="backslashreplace") as file:
        table = csv.writer(file)
        table.writerow(header)
        table.writerows(rows)


def evaluate(config: Config, workdir: Place) -> dict[str, Any]:
    """Evaluates the best checkpoint of a workdir, raw and average weights; the training split stays closed.

    Where the workdir has no checkpoints, the weights of `config.init_from`.

    Raises:
        UserError: there are no weights, or they are those of another model.
    """
    mesh = open_mesh(config)
    hosts.at("the weights to evaluate", compiling=True)
    if not has_steps(workdir / CHECKPOINTS):
        if config.init_from:
            return _evaluate_init(config, workdir, mesh)
        raise UserError(
            f"--workdir: {workdir} has no checkpoints; train first, name the workdir of a run, or set config.init_from"
        )
    checkpoints = CheckpointDirectory(workdir / CHECKPOINTS)
    step = hosts.of_first(checkpoints.best)
    if step is None:
        raise UserError(f"--workdir: no checkpoint in {workdir}/checkpoints can be read; bring one back from a copy")
    require_seen(checkpoints.directory / str(step), "--workdir")
    try:
        return _evaluate_step(config, workdir, checkpoints, step, mesh)
    except CorruptCheckpoint as error:
        raise UserError(f"{error}; train on, which takes the checkpoint before it, or bring it back") from error


def _evaluate_step(
    config: Config, workdir: Place, checkpoints: CheckpointDirectory, step: int, mesh: Mesh
) -> dict[str, Any]:
    meta = checkpoints.meta(step)
    class_names = tuple(meta["card"]["class_names"])
    fixed = [SHAPE, BEGINNING] if config.init_from else [SHAPE]  # else weights that were asked for would be ignored
    stored = meta.get("config", {})  # weights that were converted have none
    for change in check_same(stored, config, fixed) if stored and hosts.index() == 0 else ():
        print(f"differs from the run: {change}")
    hosts.require_equal(
        f"step {step} of --workdir", {path: entry["checksum"] for path, entry in meta["arrays"].items()}
    )
    run = build(config, mesh, eval_source(config, class_names))
    hosts.at(f"step {step} of --workdir", compiling=True)
    weights = weights_of(checkpoints.restore(step, run.target))
    return _evaluate_weights(run, workdir, weights, f"step {step}, the best") | {"step": step}


def _evaluate_init(config: Config, workdir: Place, mesh: Mesh) -> dict[str, Any]:
    weights = read_init(config)
    if reason := weights.card.no_classifier(weights.classes):
        raise UserError(f"config.init_from: {config.init_from}: {reason}; fine-tune from it instead")
    look = weights.card.preprocessing
    if look:  # as they were trained, whatever the config would train with
        config = dataclasses.replace(config, data=dataclasses.replace(config.data, mean=look.mean, std=look.std))
        if look.crop_ratio != config.data.crop_ratio and hosts.index() == 0:
            print(f"{config.init_from}: expects crop_ratio {look.crop_ratio}, config.data has {config.data.crop_ratio}")
    run = build(config, mesh, eval_source(config, weights.card.class_names or None))

    def refuse(paths: Sequence[str]) -> Variables:
        raise UserError(
            f"the weights have no classifier for the {len(run.source.class_names)} classes of the data; train one"
        )

    variables, notes = run.fit(weights, refuse)
    for note in notes if hosts.index() == 0 else ():
        print(f"{config.init_from}: {note}")
    return _evaluate_weights(run, workdir, {"eval": parallel.place(variables, mesh)}, config.init_from)


def _evaluate_weights(run: Run, workdir: Place, weights: Mapping[str, Variables], what: str) -> dict[str, Any]:
    require_same_data(eval_split=run.source)
    evaluator = Evaluator(run.config, run.predict, run.source, run.mesh)
    results = evaluator(weights)
    if hosts.index() == 0:
        average = " (moving average)" if "eval_ema" in results else ""
        print(f"{what}{average}: {handed_on(results).summary()['top1']:.2f} % top-1 of {len(run.source):,} images")
        if written := report(results, run.source, workdir):
            print(f"written anew in {workdir}: {', '.join(written)}", flush=True)
    return json_of(results)


def teacher_note(
    config: Config, predict: Callable[[Any, Array], tuple[Array, ...]], variables: Any, source: Source, mesh: Mesh
) -> str:
    """In words, how good a teacher is on the evaluation split, of which it sees what the student does."""
    # The student's evaluation may take more images at a time than there is room for in a larger network.
    config = dataclasses.replace(
        config, eval=dataclasses.replace(config.eval, batch_size=min(config.eval.batch_size, config.batch_size))
    )
    told = Evaluator(config, predict, source, mesh)({"teacher": variables})["teacher"]
    return f"the teacher has {told.summary()['top1']:.2f} % top-1 as it sees the evaluation split"


def weights_of(state: TrainState) -> dict[str, Variables]:
    """The sets of weights that a state holds, by the name of their metrics."""
    return {"eval": state.params | state.stats} | ({"eval_ema": state.ema} if state.ema else {})
