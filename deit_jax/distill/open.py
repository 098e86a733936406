"""From a resolved config to the teacher that it names."""

import collections
import hashlib
import importlib
import json
import logging
import math
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import PurePath
from typing import Any

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from deit_jax.base.errors import UserError
from deit_jax.base.forms import read_json, read_regular
from deit_jax.base.storage import Place, named
from deit_jax.config.schema import Config
from deit_jax.data.records import fingerprint as digest
from deit_jax.distill import Teacher
from deit_jax.models import Preprocessing, abstract_model, bind, entry
from deit_jax.models import flatten as variables_of
from deit_jax.parallel import hosts
from deit_jax.weights import adapt, read_weights
from deit_jax.weights.imagenet import words
from deit_jax.weights.surgery import in_order, traits

FIELD = "config.distillation.teacher"
ABOUT = "preprocessing.json"  # what deit_jax.export writes beside a program
PLATFORMS = {"cuda": "gpu", "rocm": "gpu"}  # of programs, as JAX calls its backends


def open_teacher(config: Config, class_names: Sequence[str], platform: str = "") -> Teacher:
    """The teacher that `config.distillation.teacher` names, its logits in the order of these classes.

    Args:
        platform: `cpu`, `gpu` or `tpu`, which it is to run on ("": JAX's own here).

    Raises:
        UserError: it is not there, does not work, or was trained for other classes.
    """
    hosts.at("the teacher", compiling=True)
    name = config.distillation.teacher.name
    if is_artefact(name):
        where = named(os.path.expanduser(name), f"{FIELD}.name")
        teacher = _from_artefact(where, class_names, platform or jax.default_backend())
    elif ":" in name:
        teacher = _from_module(name)
    else:
        teacher = _from_registry(config, class_names)
    if config.distillation.teacher.image_size not in (0, *teacher.image_size):
        height, width = teacher.image_size
        raise UserError(f"{FIELD}.image_size: {name} takes images of {height} x {width}; set it to 0")
    images = jax.ShapeDtypeStruct((2, *teacher.image_size, 3), jnp.float32)  # one alone would pass where one is fixed
    try:
        shape = jax.eval_shape(teacher, teacher.variables, images).shape
    except Exception as error:  # whatever a function of somebody else's raises
        raise UserError(f"{FIELD}.name: {name} fails on images {images.shape}: {_first_line(error)}") from error
    if shape != (2, len(class_names)):
        raise UserError(
            f"{FIELD}.name: {name} gives logits of shape {shape} for two images, the data has {len(class_names)} "
            f"classes; take a teacher of these classes (configs/teacher.py trains one)"
        )
    return teacher


def _from_registry(config: Config, class_names: Sequence[str]) -> Teacher:
    chosen = config.distillation.teacher
    try:
        published = entry(chosen.name).preprocessing
    except UserError as error:
        raise UserError(f"{FIELD}.name: {error}") from error
    if not chosen.weights:
        raise UserError(f"{FIELD}.weights: missing; name a workdir, a weight file, hf://owner/name, or pretrained")
    try:
        weights = read_weights(chosen.weights, model=chosen.name)
    except UserError as error:
        raise UserError(f"{FIELD}.weights: {error}") from error
    try:
        if weights.card.model != chosen.name:
            raise UserError(f"are of {weights.card.model}, not of {chosen.name}; set {FIELD}.name to theirs")
        if reason := weights.card.no_classifier(weights.classes):
            raise UserError(f"cannot teach: {reason}; take a teacher of the data's classes")
        arguments = {**weights.card.arguments, "num_classes": len(class_names), "dtype": config.model.dtype}
        if chosen.image_size:
            arguments["image_size"] = chosen.image_size
        abstract: Any = abstract_model(chosen.name, **arguments)

        def filled(paths: Sequence[str]) -> Mapping[str, Array]:
            _check_classes(weights.card.class_names, class_names)  # so that each is taken over from the weights
            shapes = variables_of(abstract)
            return {path: jnp.zeros(shapes[path].shape, shapes[path].dtype) for path in paths}

        variables, notes = adapt(weights, abstract, fresh=filled, class_names=class_names)
    except (UserError, ValueError) as error:
        raise UserError(f"{FIELD}.weights: {chosen.weights}: {error}") from error
    for note in notes:
        logging.warning("%s: %s: %s", FIELD, chosen.weights, note)
    return of_network(abstract, variables, weights.card.preprocessing or published)


def of_network(abstract: Any, variables: Any, look: Preprocessing) -> Teacher:
    """The teacher that a network is with these variables, for images that look so."""

    def apply(variables: Any, images: Array) -> Array:
        logits = bind(abstract, variables).head_logits(images)
        return jnp.mean(jnp.stack(logits), axis=0)

    function = digest([json.dumps(traits(abstract), sort_keys=True)])
    return Teacher(apply, variables, look.mean, look.std, abstract.image_size, function)


def _from_module(name: str) -> Teacher:
    module, _, function = name.partition(":")
    try:
        built = getattr(importlib.import_module(module), function)()
    except (Exception, SystemExit) as error:  # whatever the user's module raises
        raise UserError(f"{FIELD}.name: {name} failed: {_first_line(error)}") from error
    try:
        apply, variables, mean, std, image_size = built
        height, width = (image_size, image_size) if isinstance(image_size, int) else image_size
        if not callable(apply):
            raise TypeError("the first is no function")
        variables = jax.tree.map(np.asarray, variables)
        mean, std = _channels(mean), _channels(std)
        if not all(map(math.isfinite, mean)):
            raise ValueError(f"its mean is {mean}")
        if not all(0 < value < math.inf for value in std):
            raise ValueError(f"its std is {std}")
        return Teacher(apply, variables, mean, std, (int(height), int(width)), _source_of(module))
    except (TypeError, ValueError) as error:
        raise UserError(
            f"{FIELD}.name: {name} should return (apply(variables, images) -> logits, variables, mean, std, "
            f"image_size), but: {_first_line(error)}"
        ) from error


def _from_artefact(path: Place, class_names: Sequence[str], platform: str) -> Teacher:
    """A function that `jax.export` wrote, of uint8 images or of floating-point ones in [0, 1].

    Where deit_jax.export has put the names of its classes beside it, they decide about the order of the logits.
    """
    about = _about(path)
    try:
        program = read_regular(path)
        checksum = hashlib.sha256(program).hexdigest()
        if about.get("sha256", checksum) != checksum:
            raise ValueError(f"its checksum is not the one in {ABOUT}, beside it")
        exported = jax.export.deserialize(bytearray(program))
        exported.mlir_module()  # what a newer jax has written fails here, as late
        (images,) = exported.in_avals
        height, width = (int(side) for side in images.shape[1:3])
    except Exception as error:  # flatbuffers raises whatever damaged bytes make it run into
        reason = f"{_first_line(error)}{_written_by(about)}"
        raise UserError(f"{FIELD}.name: {path} cannot be read: {reason}; export it anew") from error
    if isinstance(images.shape[0], int):
        raise UserError(
            f"{FIELD}.name: {path} takes {images.shape[0]} image(s) at a time; export it with a symbolic batch size"
        )
    if platform not in [PLATFORMS.get(name, name) for name in exported.platforms]:
        raise UserError(
            f"{FIELD}.name: {path} is for {', '.join(exported.platforms)}, not for {platform}; export it for that"
        )
    columns, known = None, about.get("class_names", [])
    if known and exported.out_avals[0].shape[1:] != (len(known),):
        raise UserError(
            f"{FIELD}.name: {path} gives logits of shape {exported.out_avals[0].shape}, and {ABOUT}, beside it, names "
            f"{len(known)} classes; export it anew"
        )
    if known in ([], [str(i) for i in range(len(known))]) and known != list(class_names):
        logging.warning("%s.name: %s: %s", FIELD, path, in_order(class_names))
    elif known != list(class_names):
        try:
            _check_classes(known, class_names)
        except UserError as error:
            raise UserError(f"{FIELD}.name: {path}: {error}") from error
        names = list(map(words, known))
        columns = np.array([names.index(words(name)) for name in class_names])
    whole = jnp.issubdtype(images.dtype, jnp.integer)

    def apply(variables: Any, given: Array) -> Array:
        logits = exported.call((jnp.round(given * 255) if whole else given).astype(images.dtype))
        return logits if columns is None else logits[:, columns]

    function = digest([program, str(columns)])  # the weights are in it
    return Teacher(apply, {}, (0.0,) * 3, (1.0,) * 3, (height, width), function)


def _about(program: Place) -> dict[str, Any]:
    """What deit_jax.export has written beside a program; nothing where there is no such file."""
    path, mend = program.with_name(ABOUT), "mend or remove that file"
    if not path.exists():
        return {}
    try:
        about = read_json(path, dict, mend=mend)
    except UserError as error:
        raise UserError(f"{FIELD}.name: {error}") from error
    names = about.get("class_names")
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise UserError(f"{FIELD}.name: {path}, beside it, has no list of texts as class_names; {mend}")
    return about


def _written_by(about: Mapping[str, Any]) -> str:
    """In words, which JAX wrote a program that this one cannot read; "" where that is not known."""
    if "jax" not in about:
        return ""
    return (
        f" (jax {about['jax']} wrote it, this is {jax.__version__}; the same or a newer one reads it, if it is whole)"
    )


def is_artefact(name: str) -> bool:
    return PurePath(name).suffix == ".jaxexport"


def _check_classes(known: Sequence[str], wanted: Sequence[str]) -> None:
    """Raises `UserError` where a teacher that knows these classes lacks one that it should teach, or names tell them
    not apart."""
    there, taught = collections.Counter(map(words, known)), collections.Counter(map(words, wanted))
    lacking = [name for name in wanted if not there[words(name)]]
    if lacking:
        instead = f"knows no class {lacking[0]!r}" if known else "does not say which classes it knows"
        raise UserError(f"was trained for other classes than the data's: {instead}; take a teacher that knows them all")
    unclear = [name for name in wanted if there[words(name)] > 1 or taught[words(name)] > 1]
    if unclear:
        raise UserError(
            f"was trained for other classes than the data's, and {unclear[0]!r} stands for several of them; name each "
            f"class differently"
        )


def _source_of(module: str) -> str:
    """A digest of the file that a module is."""
    file = sys.modules[module].__file__
    return digest([read_regular(named(file, FIELD))]) if file else ""


def _channels(values: Any) -> tuple[float, ...]:
    red, green, blue = values
    return float(red), float(green), float(blue)


def _first_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {str(error).strip()}".partition("\n")[0]
