"""A trained model in Python, with all that a photo has to go through: `deit_jax.open("runs/transfer")`."""

import dataclasses
import functools
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeAlias, overload

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from PIL import Image

from deit_jax.base.errors import UserError
from deit_jax.data.decode import CorruptImage, from_array, from_pillow
from deit_jax.data.files import read_image
from deit_jax.data.transforms import eval_transform
from deit_jax.models import Network, Preprocessing, VisionTransformer, bind, entry, flatten
from deit_jax.step.step import Normalization
from deit_jax.weights import Card, open_model
from deit_jax.weights.imagenet import words

Photo: TypeAlias = str | os.PathLike[str] | Image.Image | np.ndarray
AT_ONCE = 32  # photos that pass through the model together


@dataclasses.dataclass(frozen=True, eq=False)
class Prediction:
    """What a model says of one photo.

    Attributes:
        names: of the classes.
        probabilities: float32, of each of them.
    """

    names: tuple[str, ...]
    probabilities: Float[np.ndarray, " classes"]

    @property
    def name(self) -> str:
        """Of the best class; ImageNet's in words."""
        return self.top(1)[0][0]

    @property
    def probability(self) -> float:
        """Of the best class."""
        return self.top(1)[0][1]

    def top(self, count: int = 5) -> list[tuple[str, float]]:
        """(name, probability) of the best classes, best first."""
        best = np.argsort(-self.probabilities, kind="stable")[:count]
        return [(words(self.names[i]), float(self.probabilities[i])) for i in best]

    def __str__(self) -> str:
        return ", ".join(f"{name} {probability:.1%}" for name, probability in self.top(3))

    __repr__ = __str__


@dataclasses.dataclass(frozen=True, eq=False)
class Classifier:
    """What `open` gives. Call it with a photo, or several.

    Attributes:
        model: bound to float32 weights.
        card: what the weights say of themselves.
    """

    model: Network
    card: Card

    @property
    def name(self) -> str:
        """Of the model, as `list_models` has it."""
        return self.card.model

    @functools.cached_property
    def names(self) -> tuple[str, ...]:
        """Of the classes, one for each logit: the indices as text where the weights do not tell, and none where the
        head does not tell classes of which a photo has one."""
        if self.card.no_classifier(self.model.num_classes):
            return ()
        return self.card.class_names or tuple(map(str, range(self.model.num_classes)))

    @property
    def image_size(self) -> int:
        """Side of the square images that the model takes, in pixels."""
        return self.model.image_size[0]

    @property
    def preprocessing(self) -> Preprocessing:
        """What the weights expect of images."""
        return self.card.preprocessing or entry(self.card.model).preprocessing

    @property
    def normalize(self) -> Normalization:
        """From uint8 images to the model's input; a part of jitted functions."""
        return Normalization(self.preprocessing.mean, self.preprocessing.std)

    def preprocess(self, photo: Photo) -> np.ndarray:
        """A photo cut for this model, uint8 `[image_size, image_size, 3]`, as evaluation and `predict` cut it.

        Args:
            photo: a path, a Pillow image (turned as its EXIF orientation says), or an array, uint8 `[height, width]`,
                `[height, width, 3]` or `[height, width, 4]`, of values from 0 to 255.

        Raises:
            UserError: it cannot be read, or is no such array.
        """
        if isinstance(photo, str | os.PathLike):
            try:
                return self.read(os.fspath(photo))
            except CorruptImage as error:
                raise UserError(f"{photo}: {error}") from error
        try:
            pixels = from_pillow(photo) if isinstance(photo, Image.Image) else from_array(photo)
        except CorruptImage as error:
            raise UserError(f"a photo that was given: {error}") from error
        return eval_transform(pixels, size=self.image_size, crop_ratio=self.preprocessing.crop_ratio)

    def read(self, path: str) -> np.ndarray:
        """As `preprocess` for a path, with the errors of `read_image`."""
        return read_image(path, image_size=self.image_size, crop_ratio=self.preprocessing.crop_ratio)

    @overload
    def __call__(self, photos: Photo) -> Prediction: ...  # type: ignore[overload-overlap]  # a path is a sequence

    @overload
    def __call__(self, photos: Sequence[Photo]) -> list[Prediction]: ...

    def __call__(self, photos: Photo | Sequence[Photo]) -> Prediction | list[Prediction]:
        """What the model says of a photo, see `preprocess`, or of each of a list of them.

        Raises:
            UserError: a photo cannot be read, or the head tells no classes.
        """
        if not self.names:
            raise UserError(f"{self.name} has no head that tells classes; take its features")
        told = [Prediction(self.names, row) for row in self._run(photos, self._probabilities)]
        return told[0] if _is_photo(photos) else told

    def features(self, photos: Photo | Sequence[Photo], *, layer: int | None = None) -> np.ndarray:
        """What the model makes of photos before it classifies them, float32.

        Args:
            photos: as in a call.
            layer: a block, counted from 0, or from the last by negative numbers.

        Returns:
            `[photos, width]`, what the head classifies (of a distilled model the mean of its two tokens); with `layer`
            `[photos, tokens, width]`, the tokens after that block, class and distillation token first, not yet
            normalised. Without the first axis for one photo.

        Raises:
            UserError: a photo cannot be read; or there is no such layer.
        """
        if layer is None:
            rows = self._run(photos, self._features)
        else:
            rows = self._run(photos, functools.partial(self._tokens, layer=block_of(self.model, layer, "layer")))
        return rows[0] if _is_photo(photos) else rows

    def attention(self, photo: Photo) -> Float[np.ndarray, "depth heads tokens tokens"]:
        """The attention weights of every block and head: row q is the distribution of token q over all tokens.

        The class token and the distillation token come first, then the patches row by row.
        `deit_jax.classifier.rollout` makes one map of them.

        Raises:
            UserError: the photo cannot be read, or the model has no attention.
        """
        if not isinstance(self.model, VisionTransformer):
            raise UserError(f"{self.name} has no attention; open a Vision Transformer's weights")
        return self._run(photo, self._maps)[0]

    def forward(self, variables: dict[str, Array], images: Array) -> tuple[Array, Array]:
        """(probabilities, features) of uint8 images, as a part of jitted functions; without a head no probabilities."""
        model = bind(self.model, variables)
        features = model.head_features(self.normalize(images))
        logits = jnp.mean(jnp.stack(model.classify(features)), axis=0)
        classes = logits[:, : self.model.num_classes]  # none where there is no head: then they are the features
        return jax.nn.softmax(classes), jnp.mean(jnp.stack(features), axis=0)

    def _run(self, photos: Photo | Sequence[Photo], function: Any) -> np.ndarray:
        """A row a photo; of photos beyond `AT_ONCE` one batch after another, few sizes of which are compiled."""
        given: Sequence[Photo] = [photos] if _is_photo(photos) else list(photos)  # type: ignore[list-item, arg-type]
        if not given:
            raise UserError("no photos: the list is empty; give at least one")
        rows = []
        for start in range(0, len(given), AT_ONCE):
            images = [self.preprocess(photo) for photo in given[start : start + AT_ONCE]]
            padded = 1 << (len(images) - 1).bit_length()  # to a power of two
            batch = np.zeros((padded, *images[0].shape), np.uint8)
            batch[: len(images)] = images
            rows.append(np.asarray(function(self._variables, batch))[: len(images)])
        joined = np.concatenate(rows)
        if not np.isfinite(joined).all():
            raise UserError(f"{self.name}: its output is not finite; the weights are damaged")
        return joined

    @functools.cached_property
    def _variables(self) -> dict[str, Array]:
        return flatten(self.model)

    @functools.cached_property
    def _probabilities(self) -> Any:
        return jax.jit(lambda variables, images: self.forward(variables, images)[0])

    @functools.cached_property
    def _features(self) -> Any:
        return jax.jit(lambda variables, images: self.forward(variables, images)[1])

    @functools.cached_property
    def _tokens(self) -> Any:
        def tokens(variables: dict[str, Array], images: Array, layer: int) -> Array:
            model: Any = bind(self.model, variables)
            return model.tokens_after(self.normalize(images), layer)

        return jax.jit(tokens, static_argnames="layer")

    @functools.cached_property
    def _maps(self) -> Any:
        def maps(variables: dict[str, Array], images: Array) -> Array:
            model: Any = bind(self.model, variables)
            return jnp.swapaxes(model.attention_maps(self.normalize(images)), 0, 1)

        return jax.jit(maps)


def open(weights: str | Path, *, model: str = "", ema: bool | None = None, **overrides: Any) -> Classifier:
    """The classifier that weights are of.

    Args:
        weights: a workdir or checkpoint (its best step, its average; `@latest`, `@STEP`, `#raw`, `#ema` choose
            otherwise), a `.safetensors` or `.pth` file, a Hugging Face folder, `hf://owner/name`, or `pretrained`.
        model: its name, where the weights do not tell.
        ema: True for the moving average, False for the raw weights.
        **overrides: arguments of the model that do not touch its weights, such as `dtype`.

    Raises:
        UserError: the weights cannot be read, or want images that are not square.
    """
    network, card = open_model(weights, model=model, ema=ema, **overrides)
    height, width = network.image_size
    if height != width:
        raise UserError(f"{weights} is for images of {height} x {width}; photos are cut to squares")
    return Classifier(network, card)


def rollout(maps: Float[np.ndarray, "depth heads tokens tokens"]) -> Float[np.ndarray, "tokens tokens"]:
    """Attention rollout (arXiv:2005.00928, equation 1): how much of each input token reaches each output token.

    Every block passes on (A + I) / 2, A the mean of its heads and I the residual connection, rows scaled to sum 1; the
    result is the product over the blocks, the last one on the left.
    """
    identity = np.eye(maps.shape[-1])
    flow = identity
    for heads in maps:
        step = heads.mean(axis=0, dtype=np.float64) + identity
        flow = step / step.sum(axis=1, keepdims=True) @ flow
    return flow


def block_of(model: Network, number: int, field: str) -> int:
    """The index from 0 of a block, which may be counted from the last; `UserError` where there is none of it."""
    if not isinstance(model, VisionTransformer):
        raise UserError(f"{field}: is for Vision Transformers, whose blocks have one shape; leave it out")
    depth = len(model.blocks)
    if not -depth <= number < depth:
        raise UserError(f"{field}: {number} is none of the model's {depth}; give 0 to {depth - 1}, or -1 for the last")
    return number % depth


def _is_photo(photos: Any) -> bool:
    return isinstance(photos, str | os.PathLike | Image.Image) or (isinstance(photos, np.ndarray) and photos.ndim < 4)
