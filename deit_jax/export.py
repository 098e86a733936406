"""Writes a trained model for serving without deit_jax.

    python -m deit_jax.export [--model=NAME] --output=DIR WEIGHTS

WEIGHTS may stand there or be given as --weights.

DIR gets model.jaxexport, a program that `jax.export.deserialize` reads, for CPU, CUDA and TPU and any batch size, with
the weights inside: from uint8 images [batch, size, size, 3], red, green and blue from 0 to 255, to float32 logits
[batch, classes]. Scaling and normalisation are inside, too. preprocessing.json says how a photo becomes such an image
and what the classes are called, and serve.py does it. The version of JAX that wrote the program, or a newer one, reads
it. The last line of stdout is a JSON object: what was written, in bytes.

Exit status: 0 when done; 2 for a mistake in what was given, told in one line.
"""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.export
import jax.numpy as jnp
from absl import flags
from jaxtyping import Array

from deit_jax import cli
from deit_jax.base.atomic import replacing
from deit_jax.base.errors import UserError
from deit_jax.base.text import printable
from deit_jax.classifier import Classifier
from deit_jax.distill.open import ABOUT
from deit_jax.models import bind, flatten
from deit_jax.trained import define_flags, open_trained, take_weights
from deit_jax.weights.imagenet import words

PLATFORMS = ("cpu", "cuda", "tpu")
LARGEST = 2**31 - 2**24  # bytes of weights: the format holds 2 GiB, program included


def main(argv: Sequence[str]) -> int:
    """Parses the command line and writes the folder; returns the exit status."""
    given, beside = cli.parse(__doc__ or "", _define, argv)
    if beside := take_weights(given, beside):
        raise UserError(f"{beside[0]}: not a flag; export takes one set of weights")
    if not given.output:
        raise UserError("--output: missing; name the folder to write")
    output = cli.local_path(given.output, "--output")
    cli.start_jax()
    trained = open_trained(given, dtype=given.dtype)
    program = export_model(trained)
    about = describe(trained) | {"sha256": hashlib.sha256(program).hexdigest()}  # of the program beside it
    files = {
        "model.jaxexport": program,
        ABOUT: (json.dumps(about, indent=1) + "\n").encode(),
        "serve.py": Path(__file__).with_name("serve.py").read_bytes(),
    }
    _write(output, files)
    for name in files:
        print(printable(str(output / name)))
    print(json.dumps({name: len(content) for name, content in files.items()}))
    return 0


def export_model(trained: Classifier) -> bytes:
    """The serialised function from uint8 images `[batch, size, size, 3]` to logits; `batch` stays open.

    Raises:
        UserError: the weights are too large for the format.
    """
    variables = flatten(trained.model)
    size = sum(value.nbytes for value in variables.values())
    if size > LARGEST:
        raise UserError(f"--weights: {size / 2**30:.1f} GiB of weights do not fit into an artefact, which holds 2 GiB")

    def forward(images: Array) -> Any:
        return bind(trained.model, variables)(trained.normalize(images))

    (batch,) = jax.export.symbolic_shape("batch")
    images = jax.ShapeDtypeStruct((batch, trained.image_size, trained.image_size, 3), jnp.uint8)
    return bytes(jax.export.export(jax.jit(forward), platforms=PLATFORMS)(images).serialize())


def describe(trained: Classifier) -> dict[str, Any]:
    """What a server has to know beside the program, and preprocessing.json says with the program's checksum."""
    return {
        "model": trained.name,
        "jax": jax.__version__,
        "input": {"dtype": "uint8", "shape": ["batch", trained.image_size, trained.image_size, 3], "channels": "RGB"},
        "resize_short_side": int(trained.image_size / trained.preprocessing.crop_ratio),
        "interpolation": "bicubic",
        "crop_size": trained.image_size,
        "normalization": "in the model",
        "output": {"dtype": "float32", "shape": ["batch", len(trained.names)], "values": "logits"},
        "class_names": trained.names,
        "names": [words(name) for name in trained.names],
    }


def _write(output: Path, files: dict[str, bytes]) -> None:
    """Each file whole or not at all."""
    try:
        for name, content in files.items():
            with replacing(output / name) as fresh:
                fresh.write_bytes(content)
    except OSError as error:
        raise UserError(f"--output: cannot write into {output}: {error.strerror}") from error


def _define(values: flags.FlagValues) -> None:
    define_flags(values)
    flags.DEFINE_string("output", "", "folder to write; made where it is missing", flag_values=values)
    flags.DEFINE_enum("dtype", "float32", ["float32", "bfloat16"], "of the computation", flag_values=values)


if __name__ == "__main__":
    cli.run(main)
