"""Weights, and what is known of them: which network they are for, its classes, and how images are prepared."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from deit_jax.models import Preprocessing

HEADS = ("head", "head_dist", "head.fc", "fc", "classifier")  # of Vision Transformers, RegNets, ResNets, EfficientNets
SINGLE_LABEL = "single_label_classification"


@dataclasses.dataclass(frozen=True)
class Card:
    """What is known of weights beside the arrays.

    It travels with them: in the meta of checkpoints, in the header of safetensors files.
    """

    model: str = ""  # a name of the registry; "" where the weights do not tell
    arguments: Mapping[str, Any] = dataclasses.field(default_factory=dict)  # overrides of `create_model`
    class_names: tuple[str, ...] = ()  # empty where the weights do not tell
    preprocessing: Preprocessing | None = None  # None: not known, nor is `model`
    problem_type: str = ""  # as transformers' configs have it; "" is `SINGLE_LABEL`

    def to_json(self) -> dict[str, Any]:
        """The content of a JSON object, as reading it gives it back: with lists for tuples."""
        return json.loads(json.dumps(dataclasses.asdict(self)))

    @classmethod
    def from_json(cls, content: Any) -> "Card":
        """The card of `to_json`'s content; `ValueError`, `TypeError` or `KeyError` where it is something else."""
        model, arguments, names = content["model"], content["arguments"], content["class_names"]
        if not (isinstance(model, str) and isinstance(arguments, dict) and isinstance(names, list)):
            raise TypeError("model, arguments and class_names are no text, object and list")
        if not all(isinstance(name, str) for name in names):
            raise TypeError("class_names are not all text")
        if not all(_is_plain(value) for value in arguments.values()):
            raise TypeError("arguments are not all numbers, words, and lists of numbers")
        preprocessing, problem_type = content["preprocessing"], content.get("problem_type", "")  # older cards have none
        if not isinstance(problem_type, str):
            raise TypeError("problem_type is no text")
        return cls(
            model=model,
            # JSON has lists alone: an image size was a tuple.
            arguments={k: tuple(v) if isinstance(v, list) else v for k, v in arguments.items()},
            class_names=tuple(names),
            preprocessing=None if preprocessing is None else Preprocessing.from_json(preprocessing),
            problem_type=problem_type,
        )

    def no_classifier(self, classes: int) -> str:
        """In words, why the softmax of so many logits says nothing about a photo; "" where it tells its class."""
        if self.problem_type not in ("", SINGLE_LABEL):
            return f"its head is for {self.problem_type}, and probabilities here are of one class among several"
        if classes == 1:
            return "its head has one logit, and classifiers here have two classes or more"
        return ""


def _is_plain(value: Any) -> bool:
    numbers = value if isinstance(value, list) else [value]
    return all(isinstance(number, int | float) for number in numbers) or value is None or isinstance(value, str)


@dataclasses.dataclass(frozen=True)
class Weights:
    """Host arrays by our paths, in our layouts and the dtypes that they are stored in, and their card."""

    variables: Mapping[str, Any]
    card: Card

    @property
    def classes(self) -> int:
        """The logits of its heads; 0 where it has none."""
        return classes_of({path: np.shape(value) for path, value in self.variables.items()})


def classes_of(shapes: Mapping[str, Sequence[int]]) -> int:
    """The logits of a network whose variables, by path, have these shapes; 0 where it has no head."""
    kernels = (shapes.get(f"{name}.kernel") for name in HEADS)
    return next((kernel[-1] for kernel in kernels if kernel), 0)
