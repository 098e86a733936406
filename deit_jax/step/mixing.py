"""Mixup, cutmix and label smoothing.

Examples mix in groups: consecutive rows of a batch among which row i is mixed with row `group - 1 - i`, as timm mixes
the batch of one GPU with its reverse. A group shares one lambda and one box (mode "batch"), or each pair of rows that
mix with one another has its own ("pair"), or each row ("elem"). The host draws these few numbers (`draw`), the device
mixes (`mix_images`, `mix_targets`); both images and labels are linear in what was drawn:

    image = weight * image + (1 - weight) * partner,   weight = 0 inside of the cutmix box

Where a group has rows on several devices, each of them holds both rows of its pairs (`places`): nothing of an image
travels between devices, and what is drawn for a row follows from its place in the batch, wherever that is held.
"""

from collections.abc import Sequence

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
    members: int = 1,
    mode: str = "batch",
    cutmix_minmax: tuple[float, float] = (0.0, 0.0),
) -> Mix:
    """The random numbers that mix one batch, a pure function of (seed, step, group).

    Args:
        groups: number of groups in the global batch.
        image_size: side of the square images in pixels.
        mixup: alpha of mixup's Beta(alpha, alpha) (arXiv:1710.09412); 0 for no mixup.
        cutmix: alpha of cutmix's (arXiv:1905.04899); 0 for no cutmix.
        probability: share of what draws for itself, as `mode` has it, that is mixed at all.
        switch_probability: share of that which takes cutmix where there are both.
        members: rows of a group, which "batch" does not ask for.
        mode: "batch", "pair" or "elem", who has numbers of its own.
        cutmix_minmax: sides of a box as shares of the image's, at least and below (0 <= min < max <= 1), drawn instead
            of cutmix's lambda, which need not be positive then; (0, 0): by lambda.

    Returns:
        `image_weight` float32 [groups]: of the image outside of the box, in [0, 1]; `box` int32 [groups, 4]: y0, y1,
        x0, x1 of the pixels replaced by the partner's, empty for mixup; `label_weight` float32 [groups]: of the own
        label, for cutmix the share of pixels kept. For "pair" and "elem" [groups, members], and [groups, members, 4].
    """
    count = {"batch": 1, "pair": (members + 1) // 2, "elem": members}[mode]
    image_weight, label_weight = np.ones((2, groups, count), np.float32)
    box = np.zeros((groups, count, 4), np.int32)
    bounds = [int(image_size * share) for share in cutmix_minmax]
    cutmix = 1.0 if bounds[1] else cutmix
    for group in range(groups):
        random = rng.generator(seed, "mixing", step * groups + group)
        mixed, switch = random.random((2, count))
        paste = (cutmix > 0) & ((not mixup) | (switch < switch_probability))
        alpha = np.where(paste, cutmix, mixup)
        mixed = (alpha > 0) & (mixed < probability)
        weight = random.beta(np.where(alpha > 0, alpha, 1), np.where(alpha > 0, alpha, 1))
        boxes = _inner_boxes(random, image_size, bounds, count) if bounds[1] else _boxes(random, image_size, weight)
        box[group] = np.where((mixed & paste)[:, None], boxes, 0)
        y0, y1, x0, x1 = boxes.T
        kept = np.where(paste, 1 - (y1 - y0) * (x1 - x0) / image_size**2, weight)
        label_weight[group] = np.where(mixed, kept, 1)
        image_weight[group] = np.where(mixed & ~paste, weight, 1)
    drawn = {"image_weight": image_weight, "box": box, "label_weight": label_weight}
    if mode == "batch":
        return {name: value[:, 0] for name, value in drawn.items()}
    if mode == "pair":  # the second half mirrors the first
        return {name: np.concatenate([x, x[:, : members // 2][:, ::-1]], axis=1) for name, x in drawn.items()}
    return drawn


def _boxes(random: np.random.Generator, size: int, weight: np.ndarray) -> np.ndarray:
    """Boxes [n, 4] of area `1 - weight` around uniform centres, cut at the image's border (cutmix, equation 2)."""
    side = (size * np.sqrt(1 - weight)).astype(int)
    y, x = random.integers(size, size=(2, len(weight)))
    y0, x0 = y - side // 2, x - side // 2
    return np.stack([y0, y0 + side, x0, x0 + side], axis=1).clip(0, size)


def _inner_boxes(random: np.random.Generator, size: int, bounds: Sequence[int], count: int) -> np.ndarray:
    """Boxes [count, 4] with sides uniform in `bounds` (the upper one excluded), uniform among those in the image."""
    sides = random.integers(bounds[0], bounds[1], size=(2, count))
    corner = random.integers(size - sides + 1)
    (y0, x0), (y1, x1) = corner, corner + sides
    return np.stack([y0, y1, x0, x1], axis=1)


def places(batch_size: int, *, groups: int, devices: int, accumulation: int = 1) -> Int[np.ndarray, "parts members"]:
    """Where in the batch the rows stand that devices hold, one after the other; those that mix are a part.

    A part is a group, or the rows of a group on one of several devices: some from the group's first half, and those
    that they mix with from its second. Either way row i of a part mixes with its row `members - 1 - i`. Micro-batches
    have the same rows as if all stood in order.

    Args:
        groups: in the batch.
        devices: that the batch is cut over.
        accumulation: micro-batches of a batch, see `step.split`.

    Returns:
        Each place once. Where the devices do not divide among the groups, or a device has no pairs for each
        micro-batch, all are in order, and images travel.
    """
    if devices <= groups or devices % groups or batch_size % (2 * devices * accumulation):
        return np.arange(batch_size).reshape(groups, -1)
    halves = np.arange(batch_size).reshape(groups, 2, devices // groups, -1)
    return np.concatenate([halves[:, 0], halves[:, 1, ::-1]], axis=-1).reshape(devices, -1)


def placed(mix: Mix, places: Int[np.ndarray, "parts members"]) -> Mix:
    """What `draw` drew for the groups of a batch, for the parts that devices hold of them."""
    groups = len(mix["box"])
    group, member = np.divmod(places, places.size // groups)
    per_group = mix["label_weight"].ndim == 1
    return {name: value[group[:, 0]] if per_group else value[group, member] for name, value in mix.items()}


def partners(examples: Shaped[Array, "batch ..."], mix: dict[str, Array]) -> Shaped[Array, "batch ..."]:
    """What each example is mixed with: its group, or its part of one, in reverse.

    Where these span several devices after all, this is what travels between them: so it is asked for uint8 images,
    before they become float32.
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
    # From here on [groups, 1 or members, height, width, channels].
    y0, y1, x0, x1 = jnp.moveaxis(mix["box"].reshape(groups, -1, 4, 1, 1), 2, 0)
    y, x = jnp.arange(height)[:, None], jnp.arange(width)
    inside = (y >= y0) & (y < y1) & (x >= x0) & (x < x1)
    weight = jnp.where(inside, 0.0, mix["image_weight"].reshape(groups, -1, 1, 1))[..., None]
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
    weight = mix["label_weight"].reshape(len(grouped), -1, 1)
    return (weight * grouped + (1 - weight) * grouped[:, ::-1]).reshape(smooth.shape)
