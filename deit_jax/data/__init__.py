"""Images from disk to batches: sources, the order of the stream, decoding, transforms and the pipeline."""

from deit_jax.data.index import examples_per_epoch
from deit_jax.data.known import KNOWN, KnownSource, known_source
from deit_jax.data.pipeline import (
    IMAGES_VERSION,
    DrawnExample,
    checksum,
    draw_example,
    eval_batches,
    readable,
    slow_reads,
    train_batches,
)
from deit_jax.data.records import Source
from deit_jax.data.sources import describe_data, open_source
from deit_jax.data.train_transform import TrainTransform

__all__ = [
    "IMAGES_VERSION",
    "KNOWN",
    "DrawnExample",
    "KnownSource",
    "Source",
    "TrainTransform",
    "checksum",
    "describe_data",
    "draw_example",
    "eval_batches",
    "examples_per_epoch",
    "known_source",
    "open_source",
    "readable",
    "slow_reads",
    "train_batches",
]
