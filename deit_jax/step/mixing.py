"""Mixup, cutmix and label smoothing.

Examples mix in groups: consecutive rows of a batch that share one lambda and one box, and among which row i is mixed
with row `group - 1 - i`, as timm mixes the batch of one GPU with its reverse. The host draws a group's few numbers
(`draw`), the device mixes (`mix_images`, `mix_targets`); both images and labels are linear in what was drawn:

    image = weight * image + (1 - weight) * partner,   weight = 0 inside of the cutmix box
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Shaped

from deit_jax.base import rng

Mix = dict[str, np.ndarray]


def draw(
    seed: int,
    step: int,
    *,
    groups: int,
    image_size: int,
    mixup: float,
    cutmix: float,
    probability: float,
    switch_probability: float,
) -> Mix:
    """The random numbers that mix one batch, a pure function of (seed, step, group).

    Args:
        groups: number of groups in the global batch.
        image_size: side of the square images in pixels.
        mixup: alpha of mixup's Beta(alpha, alpha) (arXiv:1710.09412); 0 for no mixup.
        cutmix: alpha of cutmix's (arXiv:1905.04899); 0 for no cutmix.
        probability: share of groups that are mixed at all.
        switch_probability: share of the mixed groups that take cutmix where both alphas are positive.

    Returns:
        `image_weight` float32 [groups]: of the image outside of the box, in [0, 1]; `box` int32 [groups, 4]: y0, y1,
        x0, x1 of the pixels replaced by the partner's, empty for mixup; `label_weight` float32 [groups]: of the own
        label, for cutmix the share of pixels kept.
    """
    image_weight, label_weight = np.ones(groups, np.float32), np.ones(groups, np.float32)
    box = np.zeros((groups, 4), np.int32)
    for group in range(groups):
        random = rng.generator(seed, "mixing", step * groups + group)
        mixed, switch = random.random(2)
        paste = cutmix > 0 and (not mixup or switch < switch_probability)
        alpha = cutmix if paste else mixup
        if not alpha or mixed >= probability:
            continue
        weight = random.beta(alpha, alpha)
        if paste:
            box[group] = y0, y1, x0, x1 = _box(random, image_size, weight)
            weight = 1 - (y1 - y0) * (x1 - x0) / image_size**2
        else:
            image_weight[group] = weight
        label_weight[group] = weight
    return {"image_weight": image_weight, "box": box, "label_weight": label_weight}


def _box(random: np.random.Generator, size: int, weight: float) -> tuple[int, int, int, int]:
    """A box of area `1 - weight` around a uniform centre, cut at the image's border (cutmix, equation 2)."""
    side = int(size * np.sqrt(1 - weight))
    y, x = random.integers(size, size=2).tolist()
    y0, x0 = y - side // 2, x - side // 2
    return max(y0, 0), min(y0 + side, size), max(x0, 0), min(x0 + side, size)


def partners(examples: Shaped[Array, "batch ..."], mix: dict[str, Array]) -> Shaped[Array, "batch ..."]:
    """What each example is mixed with: its group in reverse.

    Where a group spans several devices this is what travels between them: so it is asked for uint8 images, before they
    become float32.
    """
    groups = len(mix["box"])
    return examples.reshape(groups, -1, *examples.shape[1:])[:, ::-1].reshape(examples.shape)


def mix_images(
    images: Float[Array, "batch height width channels"],
    others: Float[Array, "batch height width channels"],
    mix: dict[str, Array],
) -> Float[Array, "batch height width channels"]:
    """Mixes a batch with its partners as drawn."""
    groups, (batch, height, width, channels) = len(mix["box"]), images.shape
    grouped, other = (x.reshape(groups, batch // groups, height, width, channels) for x in (images, others))
    y0, y1, x0, x1 = (edge[:, None, None] for edge in mix["box"].T)
    y, x = jnp.arange(height)[:, None], jnp.arange(width)
    inside = (y >= y0) & (y < y1) & (x >= x0) & (x < x1)  # [groups, height, width]
    weight = jnp.where(inside, 0.0, mix["image_weight"][:, None, None])[:, None, :, :, None]
    return ((1 - weight) * other + weight * grouped).reshape(images.shape)


def mix_targets(
    labels: Int[Array, " batch"], mix: dict[str, Array], *, num_classes: int, smoothing: float
) -> Float[Array, "batch classes"]:
    """Class probabilities of a mixed batch; each row sums to 1.

    Args:
        smoothing: probability mass, in [0, 1), that is spread evenly over all classes (arXiv:1512.00567).
    """
    one_hot = jax.nn.one_hot(labels, num_classes)
    smooth = one_hot * (1 - smoothing) + smoothing / num_classes
    grouped = smooth.reshape(len(mix["label_weight"]), -1, num_classes)
    weight = mix["label_weight"][:, None, None]
    return (weight * grouped + (1 - weight) * grouped[:, ::-1]).reshape(smooth.shape)
