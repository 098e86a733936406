import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden_files import assert_close, load

from deit_jax.step import mixing

SIZE = 23
BOTH = {"mixup": 0.8, "cutmix": 1.0, "probability": 1.0, "switch_probability": 0.5}


def draw(seed: int = 0, step: int = 0, *, groups: int = 1, image_size: int = SIZE, **settings: float) -> mixing.Mix:
    return mixing.draw(seed, step, groups=groups, image_size=image_size, **(BOTH | settings))


def on_device(mix: mixing.Mix) -> dict:
    return {name: jax.device_put(value) for name, value in mix.items()}


def given(image_weight: list[float], box: list[tuple[int, ...]], label_weight: list[float]) -> dict:
    """A mix as if it had been drawn."""
    box = np.array(box, np.int32)
    return on_device({"image_weight": np.float32(image_weight), "box": box, "label_weight": np.float32(label_weight)})


def is_cutmix(mix: mixing.Mix) -> np.ndarray:
    return (mix["image_weight"] == 1) & (mix["label_weight"] < 1)


def photos(batch: int, height: int, width: int) -> np.ndarray:
    """Images in which every value tells its example, row, column and channel."""
    shape = (batch, height, width, 3)
    return np.arange(np.prod(shape), dtype=np.float32).reshape(shape)


# Where it is mixed.


@pytest.mark.parametrize("accumulation", [1, 2, 3])
@pytest.mark.parametrize(("groups", "devices", "rows"), [(1, 8, 4), (2, 4, 12), (3, 12, 6), (4, 4, 6), (4, 2, 12)])
def test_devices_hold_pairs_whole(groups, devices, rows, accumulation):
    batch = devices * rows
    places = mixing.places(batch, groups=groups, devices=devices, accumulation=accumulation)
    assert sorted(places.ravel().tolist()) == list(range(batch))
    partner = np.arange(batch).reshape(groups, -1)[:, ::-1].ravel()
    np.testing.assert_array_equal(partner[places], places[:, ::-1])
    # The micro-batches of `step.split` have the rows that they have in order.
    for i in range(accumulation):
        assert set(places.ravel()[i::accumulation] % accumulation) == {i}
    together = devices <= groups or rows % (2 * accumulation)
    assert len(places) == (groups if together else devices)
    if not together:
        assert places.shape == (devices, rows)  # a part is what a device holds


def test_rows_stay_in_order_where_pairs_cannot():
    for given in ({"groups": 1, "devices": 8}, {"groups": 3, "devices": 4}, {"groups": 2, "devices": 3}):
        np.testing.assert_array_equal(mixing.places(24, **given).ravel(), np.arange(24))


@pytest.mark.parametrize("mode", ["batch", "pair", "elem"])
def test_a_row_mixes_as_in_its_place(mode):
    places = mixing.places(24, groups=2, devices=4)
    order = places.ravel()
    mix, images = draw(groups=2, members=12, mode=mode), jax.device_put(photos(24, SIZE, SIZE))
    laid = on_device(mixing.placed(mix, places))
    np.testing.assert_array_equal(mix_images(images[order], laid), mix_images(images, on_device(mix))[order])
    labels, given = jnp.arange(24) % 5, {"num_classes": 5, "smoothing": 0.1}
    expected = mixing.mix_targets(labels, on_device(mix), **given)
    np.testing.assert_array_equal(mixing.mix_targets(labels[order], laid, **given), expected[order])


# What is drawn.


@jax.jit
def mix_images(images, mix):
    return mixing.mix_images(images, mixing.partners(images, mix), mix)


def test_draws_depend_on_seed_and_step_alone():
    before = draw(3, 5, groups=7)
    draw(3, 6, groups=7)
    np.random.default_rng().random(11)
    again = draw(3, 5, groups=7)
    for name, value in before.items():
        np.testing.assert_array_equal(again[name], value)


def test_every_seed_step_and_group_draws_its_own():
    lambdas = [draw(seed, step, groups=5, cutmix=0)["label_weight"] for seed in (0, 1) for step in (0, 1, 2)]
    assert len(np.unique(np.concatenate(lambdas))) == 2 * 3 * 5


def test_what_is_drawn_has_the_shapes_and_types_stated():
    mix = draw(groups=5)
    kinds = {name: (value.shape, value.dtype) for name, value in mix.items()}
    assert kinds == {
        "image_weight": ((5,), np.float32),
        "box": ((5, 4), np.int32),
        "label_weight": ((5,), np.float32),
    }


def test_boxes_lie_within_the_image_and_labels_keep_the_share_of_its_pixels():
    mix = draw(groups=3000, mixup=0)
    y0, y1, x0, x1 = mix["box"].T
    assert (y0 >= 0).all()
    assert (x0 >= 0).all()
    assert (y1 <= SIZE).all()
    assert (x1 <= SIZE).all()
    assert (y1 >= y0).all()
    assert (x1 >= x0).all()
    assert (mix["image_weight"] == 1).all()
    np.testing.assert_allclose(mix["label_weight"], 1 - (y1 - y0) * (x1 - x0) / SIZE**2, rtol=1e-6, atol=1e-7)
    # Among so many there are boxes cut at each border, and whole ones, which are squares.
    for border in (y0 == 0, x0 == 0, y1 == SIZE, x1 == SIZE):
        assert border.mean() > 0.1
    whole = (y0 > 0) & (x0 > 0) & (y1 < SIZE) & (x1 < SIZE)
    assert whole.mean() > 0.1
    np.testing.assert_array_equal((y1 - y0)[whole], (x1 - x0)[whole])


def test_mixup_has_no_box_and_labels_weigh_as_images_do():
    mix = draw(groups=101, cutmix=0)
    assert not mix["box"].any()
    np.testing.assert_array_equal(mix["image_weight"], mix["label_weight"])
    assert (mix["label_weight"] > 0).all()
    assert (mix["label_weight"] < 1).all()


@pytest.mark.parametrize("alpha", [0.2, *(pytest.param(a, marks=pytest.mark.long) for a in (0.8, 1.0, 3.0))])
def test_mixup_weights_have_the_moments_of_their_beta(alpha):
    """Of Beta(a, a): mean 1/2, variance 1 / (4 (2a + 1)), and a symmetric fourth moment 3 / (16 (2a + 1) (2a + 3))."""
    weight = draw(groups=4000, mixup=alpha, cutmix=0)["label_weight"].astype(np.float64) - 0.5
    for power, moment in ((1, 0), (2, 1 / 4 / (2 * alpha + 1)), (4, 3 / 16 / (2 * alpha + 1) / (2 * alpha + 3))):
        error = np.std(weight**power) / np.sqrt(len(weight))
        assert abs(np.mean(weight**power) - moment) < 4 * error


@pytest.mark.parametrize("alpha", [pytest.param(0.5, marks=pytest.mark.long), 1.0])
def test_cutmix_boxes_cover_pixels_as_often_as_the_papers(alpha):
    """Against equation 2 of arXiv:1905.04899 drawn here: sides sqrt(1 - lambda), centre uniform, cut at the border."""
    count, random = 6000, np.random.default_rng(1)
    side = (SIZE * np.sqrt(1 - random.beta(alpha, alpha, count))).astype(int)[:, None]
    pixel = np.arange(SIZE)

    def covered(low, high):
        return (pixel >= low) & (pixel < high)

    low_y, low_x = (random.integers(SIZE, size=(count, 1)) - side // 2 for _ in range(2))
    paper = np.einsum("by,bx->yx", *[covered(low, low + side).astype(float) for low in (low_y, low_x)]) / count
    y0, y1, x0, x1 = (edge[:, None] for edge in draw(groups=count, mixup=0, cutmix=alpha)["box"].T)
    ours = np.einsum("by,bx->yx", covered(y0, y1).astype(float), covered(x0, x1).astype(float)) / count
    assert ours[SIZE // 2, SIZE // 2] > ours[0, 0] + 0.1
    np.testing.assert_allclose(ours, paper, atol=5 * np.sqrt(2 * 0.25 / count))


@pytest.mark.parametrize("probability", [0.0, 0.3, 1.0])
def test_so_many_groups_are_mixed(probability):
    mix = draw(groups=2000, mixup=0.8, cutmix=0, probability=probability)
    share = (mix["label_weight"] < 1).mean()
    assert abs(share - probability) <= 4 * np.sqrt(probability * (1 - probability) / 2000)
    unmixed = mix["label_weight"] == 1
    assert (mix["image_weight"][unmixed] == 1).all()
    assert not mix["box"][unmixed].any()


@pytest.mark.parametrize("alpha", [0.8, 1.0])
@pytest.mark.parametrize("switch", [0.0, 0.3, 1.0])
def test_so_many_of_them_take_cutmix(alpha, switch):
    """Also where both alphas are one number: which is meant must not hang on their being equal."""
    mix = draw(groups=2000, image_size=997, mixup=alpha, cutmix=alpha, switch_probability=switch)
    assert abs(is_cutmix(mix).mean() - switch) <= 4 * np.sqrt(switch * (1 - switch) / 2000) + 0.005  # empty boxes


def test_whether_a_group_is_mixed_says_nothing_of_how():
    mix = draw(groups=4000, image_size=997, probability=0.5, switch_probability=0.5)
    mixed = mix["label_weight"] < 1
    assert abs(mixed.mean() - 0.5) < 4 * 0.5 / np.sqrt(4000) + 0.005
    assert abs(is_cutmix(mix)[mixed].mean() - 0.5) < 4 * 0.5 / np.sqrt(2000) + 0.005


@pytest.mark.parametrize(("name", "share"), [("mixup", 1.0), ("cutmix", 0.0)])
def test_without_one_of_them_the_other_is_always_taken(name, share):
    mix = draw(groups=300, image_size=997, switch_probability=0.5, **{name: 0.0})
    assert is_cutmix(mix).mean() == pytest.approx(share, abs=0.02)


def test_without_both_nothing_is_mixed():
    mix = draw(groups=5, mixup=0, cutmix=0)
    assert (mix["label_weight"] == 1).all()
    assert (mix["image_weight"] == 1).all()
    assert not mix["box"].any()


# What it does to images and labels.


def test_mixup_blends_each_row_with_its_mirror_in_the_group():
    images = photos(10, 7, 11)  # two groups of five, whose middle rows mix with themselves
    mix = given([0.75, 0.5], [(0, 0, 0, 0)] * 2, [0.75, 0.5])
    partner = [4, 3, 2, 1, 0, 9, 8, 7, 6, 5]
    weight = np.repeat([0.75, 0.5], 5)[:, None, None, None]
    wanted = weight * images + (1 - weight) * images[partner]
    np.testing.assert_allclose(mix_images(jax.device_put(images), mix), wanted, rtol=1e-6)


def test_cutmix_pastes_exactly_the_box_of_the_partner():
    images = photos(6, 7, 11)
    boxes = [(2, 5, 3, 10), (0, 7, 10, 11)]
    mixed = np.asarray(mix_images(jax.device_put(images), given([1.0, 1.0], boxes, [0.5, 0.5])))
    for i, partner in enumerate([2, 1, 0, 5, 4, 3]):
        y0, y1, x0, x1 = boxes[i // 3]
        wanted = images[i].copy()
        wanted[y0:y1, x0:x1] = images[partner, y0:y1, x0:x1]
        np.testing.assert_array_equal(mixed[i], wanted)


def test_drawn_boxes_are_pasted_as_their_labels_say():
    """From the draw to the pixels: the share of own pixels in each mixed image is its label's weight."""
    groups, members = 13, 3
    mix = draw(2, 7, groups=groups, mixup=0)
    own = np.zeros((groups, members, SIZE, SIZE, 1), np.float32)
    own[:, 0] = 1  # the first row of a group is white, its partner, the last one, black
    mixed = np.asarray(mix_images(jax.device_put(own.reshape(-1, SIZE, SIZE, 1)), on_device(mix)))
    mixed = mixed.reshape(own.shape)
    np.testing.assert_allclose(mixed[:, 0].mean(axis=(1, 2, 3)), mix["label_weight"], rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(mixed[:, 2].mean(axis=(1, 2, 3)), 1 - mix["label_weight"], rtol=1e-5, atol=1e-6)
    assert not mixed[:, 1].any()


def test_a_group_may_be_as_wide_as_the_batch():
    images = photos(5, 2, 3)
    mixed = mix_images(jax.device_put(images), given([0.25], [(0, 0, 0, 0)], [0.25]))
    np.testing.assert_allclose(mixed, 0.25 * images + 0.75 * images[::-1], rtol=1e-6)


def test_one_row_a_group_mixes_with_nobody():
    images, mix = photos(3, 5, 7), on_device(draw(groups=3, image_size=5))
    np.testing.assert_allclose(mix_images(jax.device_put(images), mix), images, rtol=1e-6)
    targets = mixing.mix_targets(jnp.array([0, 1, 1]), mix, num_classes=2, smoothing=0.0)
    np.testing.assert_allclose(targets, [[1, 0], [0, 1], [0, 1]], atol=1e-7)


def test_no_group_sees_another():
    images, mix = photos(6, 7, 11), on_device(draw(1, groups=2, image_size=7))
    other = images.copy()
    other[3:] = -1
    before, after = (np.asarray(mix_images(jax.device_put(x), mix)) for x in (images, other))
    np.testing.assert_array_equal(before[:3], after[:3])
    assert (before[3:] != after[3:]).any()


def test_label_smoothing_by_hand():
    mix = given([1.0], [(0, 0, 0, 0)], [1.0])
    targets = mixing.mix_targets(jnp.array([2, 0, 4]), mix, num_classes=5, smoothing=0.1)
    wanted = [[0.02, 0.02, 0.92, 0.02, 0.02], [0.92, 0.02, 0.02, 0.02, 0.02], [0.02, 0.02, 0.02, 0.02, 0.92]]
    np.testing.assert_allclose(targets, wanted, atol=1e-7)


def test_mixed_and_smoothed_labels_by_hand():
    """timm's mixup_target: both one-hot vectors smoothed, 0.2 over four classes, then mixed by lambda."""
    mix = given([0.75, 0.4], [(0, 0, 0, 0)] * 2, [0.75, 0.4])
    targets = mixing.mix_targets(jnp.array([3, 1, 2, 2]), mix, num_classes=4, smoothing=0.2)
    on, off = 0.85, 0.05
    wanted = [
        [off, 0.25 * on + 0.75 * off, off, 0.75 * on + 0.25 * off],
        [off, 0.75 * on + 0.25 * off, off, 0.25 * on + 0.75 * off],
        [off, off, on, off],
        [off, off, on, off],
    ]
    np.testing.assert_allclose(targets, wanted, atol=1e-7)


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.9])
def test_mixing_conserves_the_mass_of_labels(smoothing):
    """Each row stays a distribution, and each class keeps, over a group, the mass that its examples bring."""
    groups, members, classes = 11, 4, 7
    labels = np.random.default_rng(0).integers(classes, size=groups * members)
    mix = on_device(draw(groups=groups))
    targets = np.asarray(mixing.mix_targets(jax.device_put(labels), mix, num_classes=classes, smoothing=smoothing))
    assert (targets >= 0).all()
    np.testing.assert_allclose(targets.sum(axis=1), 1, atol=1e-6)
    brought = np.eye(classes)[labels] * (1 - smoothing) + smoothing / classes
    kept, brought = (x.reshape(groups, members, classes).sum(axis=1) for x in (targets, brought))
    np.testing.assert_allclose(kept, brought, atol=1e-6)


def test_images_and_labels_mix_with_the_same_partner_by_the_same_weight():
    """One-hot images, of one pixel a class, come out as the targets do, whatever mixup drew."""
    labels = np.array([0, 3, 1, 4, 2, 2, 1, 0, 4, 3])
    mix = on_device(draw(5, groups=2, image_size=1, cutmix=0))
    images = jax.device_put(np.eye(5, dtype=np.float32)[labels][:, None, None, :])
    mixed = mix_images(images, mix)[:, 0, 0]
    targets = mixing.mix_targets(jax.device_put(labels), mix, num_classes=5, smoothing=0.0)
    np.testing.assert_allclose(mixed, targets, atol=1e-7)


# Modes: who has numbers of its own.

GOLDEN = load("mixing.npz")
CASES = [f"{mode}-{box}" for mode in ("batch", "pair", "elem") for box in ("alpha", "minmax")]


def golden(case: str, name: str) -> np.ndarray:
    return GOLDEN[f"{case}/{name}"]


def as_drawn(case: str) -> dict:
    """What timm drew, as if it had been drawn here: for "pair" the second half of the rows mirrors the first."""
    weight = np.where(golden(case, "cutmix"), 1, golden(case, "lambda"))
    drawn = {"image_weight": weight, "box": golden(case, "box"), "label_weight": golden(case, "label_weight")}
    if case.startswith("pair"):
        drawn = {name: np.concatenate([value, value[::-1]]) for name, value in drawn.items()}
    mix = {name: value if case.startswith("batch") else value[None] for name, value in drawn.items()}
    return given(*mix.values())


@pytest.mark.parametrize("case", CASES)
def test_batches_mix_as_timms(case):
    assert golden(case, "cutmix").any()
    mix = as_drawn(case)
    assert_close(mix_images(jax.device_put(GOLDEN["images"]), mix), golden(case, "mixed"), "mixing.npz", "images")
    targets = mixing.mix_targets(jnp.array(GOLDEN["labels"], jnp.int32), mix, num_classes=5, smoothing=0.1)
    assert_close(targets, golden(case, "targets"), "mixing.npz", "targets")


class Replay(np.random.Generator):
    """Gives the whole numbers that timm drew."""

    def __init__(self, numbers: np.ndarray):
        super().__init__(np.random.PCG64())
        self.numbers = list(numbers)

    def integers(self, *bounds, size=None):
        drawn = np.stack([self.numbers.pop(0), self.numbers.pop(0)])
        low, high = (0, *bounds)[-2:]
        assert (drawn >= low).all()
        assert (drawn < high).all()
        return drawn


@pytest.mark.parametrize("case", CASES)
def test_boxes_are_timms(case):
    pasted = golden(case, "whole")[:, 0] >= 0
    replay, count = Replay(golden(case, "whole")[pasted].T), int(pasted.sum())
    if case.endswith("minmax"):
        boxes = mixing._inner_boxes(replay, 11, (int(0.2 * 11), int(0.9 * 11)), count)
    else:
        boxes = mixing._boxes(replay, 11, golden(case, "lambda")[pasted])
    np.testing.assert_array_equal(boxes, golden(case, "box")[pasted])
    assert not replay.numbers


def reference(images, labels, mix, classes):
    """Row by row, from the facts: the partner is the unmixed row that mirrors it in the group."""
    groups, members = mix["label_weight"].shape
    mixed, targets = images.copy(), np.zeros((len(images), classes))
    for group in range(groups):
        for row in range(members):
            own, other = group * members + row, group * members + members - 1 - row
            y0, y1, x0, x1 = mix["box"][group, row]
            weight = mix["image_weight"][group, row]
            mixed[own] = weight * images[own] + (1 - weight) * images[other]
            mixed[own, y0:y1, x0:x1] = images[other, y0:y1, x0:x1]
            targets[own, labels[own]] += mix["label_weight"][group, row]
            targets[own, labels[other]] += 1 - mix["label_weight"][group, row]
    return mixed, targets


@pytest.mark.parametrize("mode", ["pair", "elem"])
@pytest.mark.parametrize("members", [4, 5])
@pytest.mark.parametrize("minmax", [(0.0, 0.0), (0.3, 0.8)])
def test_pairs_and_elements_mix_as_a_reference_row_by_row(mode, members, minmax):
    mix = draw(2, groups=3, members=members, mode=mode, cutmix_minmax=minmax, probability=0.8)
    assert mix["box"].shape == (3, members, 4)
    images = np.random.default_rng(0).normal(size=(3 * members, SIZE, SIZE, 3)).astype(np.float32)
    labels = np.random.default_rng(1).integers(7, size=3 * members)
    mixed, targets = reference(images, labels, mix, 7)
    np.testing.assert_allclose(mix_images(jax.device_put(images), on_device(mix)), mixed, atol=1e-6)
    ours = mixing.mix_targets(jax.device_put(labels), on_device(mix), num_classes=7, smoothing=0.0)
    np.testing.assert_allclose(ours, targets, atol=1e-6)
    mirrored = {name: (value == value[:, ::-1]).all() for name, value in mix.items()}
    assert set(mirrored.values()) == {mode == "pair"}
    assert len(np.unique(mix["label_weight"])) > 5


@pytest.mark.parametrize("mode", ["pair", "elem"])
def test_every_pair_and_element_draws_its_own(mode):
    weights = draw(groups=2, members=10, mode=mode, cutmix=0)["label_weight"]
    assert len(np.unique(weights)) == 2 * {"pair": 5, "elem": 10}[mode]
    np.testing.assert_array_equal(draw(groups=1, members=10, mode=mode, cutmix=0)["label_weight"], weights[:1])


@pytest.mark.parametrize("mode", ["batch", "elem"])
def test_sides_between_bounds_are_uniform_and_their_boxes_inside(mode):
    mix = draw(groups=4000, members=1, mode=mode, mixup=0, cutmix=0, cutmix_minmax=(0.2, 0.5))
    y0, y1, x0, x1 = mix["box"].reshape(-1, 4).T
    for low, high in ((y0, y1), (x0, x1)):
        sides, counts = np.unique(high - low, return_counts=True)
        assert sides.tolist() == list(range(4, 11))  # int(0.2 * 23) to int(0.5 * 23), excluded
        assert abs(counts / 4000 - 1 / 7).max() < 5 * np.sqrt(1 / 7 * 6 / 7 / 4000)
        corners = low[high - low == 4]
        assert (corners.min(), corners.max()) == (0, SIZE - 4)  # the last row and column are reached
    assert np.corrcoef(y1 - y0, x1 - x0)[0, 1] == pytest.approx(0, abs=4 / np.sqrt(4000))
    kept = 1 - (y1 - y0) * (x1 - x0) / SIZE**2
    np.testing.assert_allclose(mix["label_weight"].ravel(), kept, rtol=1e-6)
