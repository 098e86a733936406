"""Weights, and what is known of them: which network they are for, its classes, and how images are prepared."""

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

from deit_jax.models import Preprocessing


@dataclasses.dataclass(frozen=True)
class Card:
    """What is known of weights beside the arrays.

    It travels with them: in the meta of checkpoints, in the header of safetensors files.
    """

    model: str = ""  # a name of the registry; "" where the weights do not tell
    arguments: Mapping[str, Any] = dataclasses.field(default_factory=dict)  # overrides of `create_model`
    class_names: tuple[str, ...] = ()  # empty where the weights do not tell
    preprocessing: Preprocessing | None = None  # None: not known, nor is `model`

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
        preprocessing = content["preprocessing"]
        return cls(
            model=model,
            # JSON has lists alone: an image size was a tuple.
            arguments={k: tuple(v) if isinstance(v, list) else v for k, v in arguments.items()},
            class_names=tuple(names),
            preprocessing=None if preprocessing is None else Preprocessing.from_json(preprocessing),
        )


@dataclasses.dataclass(frozen=True)
class Weights:
    """Host arrays by our paths, in our layouts and the dtypes that they are stored in, and their card."""

    variables: Mapping[str, Any]
    card: Card
