"""The network of a run, and what its weights say of themselves: from the config."""

import inspect
from collections.abc import Sequence
from typing import Any

from deit_jax.base.errors import UserError, nearest
from deit_jax.config.schema import Config
from deit_jax.config.sizes import FIELD, parse_sizes
from deit_jax.models import Preprocessing, VisionTransformer, abstract_model, entry, list_models
from deit_jax.weights import Card


def model_arguments(config: Config, num_classes: int) -> dict[str, Any]:
    """Keyword arguments of `create_model`; what the config leaves open stays as the named model has it.

    Raises:
        UserError: the network has nothing of the kind that a field of `config.model` asks for.
    """
    if config.model.name not in list_models():
        raise UserError(
            f"config.model.name: unknown model {config.model.name!r}{nearest(config.model.name, list_models())}"
        )
    takes = inspect.signature(entry(config.model.name).build.__init__).parameters
    wanted = _network_arguments(config, num_classes) | {"dtype": config.model.dtype}
    for name, nothing in (("drop_path", 0.0), ("remat", False)):
        if name in takes or getattr(config.model, name) != nothing:
            wanted[name] = getattr(config.model, name)
    wanted |= {name: getattr(config.model, name) for name in ("attention", "patch_embedding") if name in takes}
    for name in wanted:
        if name not in takes:
            off = "nothing" if isinstance(wanted[name], str) else "False" if name == "remat" else "0"
            raise UserError(f"config.model.{name}: {config.model.name} has none; set it to {off}")
    return wanted


def _network_arguments(config: Config, num_classes: int) -> dict[str, Any]:
    """Those of `model_arguments` that decide which function the weights compute."""
    own = ("patch_size", "width", "depth", "heads", "global_pool", "stem")
    chosen = {name: getattr(config.model, name) for name in own if getattr(config.model, name)}
    return {"image_size": config.data.image_size, "num_classes": num_classes, **chosen}


def model_of(config: Config, arguments: dict[str, Any]) -> Any:
    """The abstract model; a contradiction among its settings is a `UserError`."""
    name, token = config.model.name, config.distillation.token
    try:
        network: Any = abstract_model(name, **arguments)
    except ValueError as error:
        raise UserError(f"config.model: {error}") from error
    heads = getattr(network, "num_heads", 1)  # of a Vision Transformer; other networks have one
    if config.distillation.kind != "none" and token != (heads == 2):
        raise UserError(
            f"config.distillation.token: is {token}, and {name} has {heads} head(s); set it to "
            f"{not token}, or config.model.name to a model {'with' if token else 'without'} a distillation token"
        )
    if config.cosub.weight and isinstance(network, VisionTransformer) and not any(network.drop_path):
        raise UserError(
            f"config.cosub.weight: the copies of an image differ by stochastic depth alone, and the only block of "
            f"{name} has none; make model.depth larger, or set the weight to 0"
        )
    _check_sizes(config, network)
    return network


def _check_sizes(config: Config, network: Any) -> None:
    """Raises `UserError` where the network cannot be trained on images of the sizes that the config names."""
    patch = network.patch_embed.patch_size if isinstance(network, VisionTransformer) else 1
    for size, _ in parse_sizes(config.data.image_size_schedule):
        if size % patch:
            below = size // patch * patch
            fitting = f"{below} or {below + patch}" if below else f"{patch}"
            raise UserError(
                f"{FIELD}: {config.data.image_size_schedule!r}: {size} is not divisible by the patch size {patch} of "
                f"{config.model.name}; take {fitting}"
            )


def card_of(config: Config, class_names: Sequence[str]) -> Card:
    """What a run's weights say of themselves."""
    arguments = _network_arguments(config, len(class_names))
    preprocessing = Preprocessing(config.data.mean, config.data.std, config.data.crop_ratio)
    return Card(config.model.name, arguments, tuple(class_names), preprocessing)
