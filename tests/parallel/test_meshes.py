"""Losses and evaluations do not depend on the mesh; what it is made of, and what moves over it."""

import functools
import random
import re
from unittest import mock

import jax
import numpy as np
import pytest
from tiny import replace, tiny_config

from deit_jax import parallel
from deit_jax.base.errors import UserError
from deit_jax.run.build import build
from deit_jax.run.evaluate import Evaluator, weights_of
from deit_jax.run.stream import eval_source, train_source
from deit_jax.step import erasing, mixing
from deit_jax.step.step import Normalization, student_images

STEPS = 20
CONFIG = tiny_config(optim__accumulation=2, optim__learning_rate=0.05, total_steps=STEPS, model__heads=2)
MESHES = {"one": (1, 1, 1), "data": (8, 1, 1), "fsdp": (2, 4, 1), "tensor": (2, 2, 2)}


@functools.cache
def run_on(name, config=CONFIG):
    """(losses of every step, state, evaluation) of a run on one of the meshes."""
    run = run_of(name, config)
    state, step = run.first_state(), run.train_step()
    losses = []
    for batch, _ in run.batches(0, run.total):
        state, metrics = step(state, batch, np.uint32(config.seed))
        losses.append(float(metrics["loss"]))
    # 97 examples: divided neither by 1 x 36 nor by 8 devices.
    held_out = eval_source(tiny_config(data__eval_split="test[:97]"), run.source.class_names)
    config = replace(config, "eval", batch_size=36)
    result = Evaluator(config, run.predict, held_out, run.mesh)(weights_of(state))
    return np.array(losses), state, result


def run_of(name, config=CONFIG):
    shape = MESHES[name]
    mesh = parallel.make_mesh(*shape, devices=jax.devices()[: np.prod(shape)])
    return build(config, mesh, train_source(config))


@pytest.mark.long
@pytest.mark.parametrize("name", ["data", "fsdp", "tensor"])
def test_losses_equal_one_devices(name):
    losses, state, _ = run_on(name)
    np.testing.assert_allclose(losses, run_on("one")[0], rtol=1e-5)
    # They are the losses of a network that moves: its head starts with a deviation of 0.02.
    assert np.abs(state.params["head.kernel"] - state.ema["head.kernel"]).max() > 0.002


@pytest.mark.long
@pytest.mark.parametrize("name", ["data", "fsdp", "tensor"])
def test_evaluation_counts_the_same(name):
    ours, one = run_on(name)[2], run_on("one")[2]
    assert ours.keys() == one.keys() == {"eval", "eval_ema"}
    for weights in ours:
        assert ours[weights].examples == 97
        np.testing.assert_array_equal(ours[weights].folded(1), one[weights].folded(1))
        np.testing.assert_array_equal(ours[weights].heads, one[weights].heads)
        assert ours[weights].top5 == one[weights].top5
        np.testing.assert_allclose(ours[weights].loss_sum, one[weights].loss_sum, rtol=1e-5)


@pytest.mark.long
def test_batch_statistics_are_of_the_global_batch():
    """In training, in the state and in the average that is evaluated."""
    fields = dict.fromkeys(("patch_size", "width", "depth", "heads", "drop_path"), 0) | {"name": "regnety_002"}
    config = tiny_config(total_steps=5, distillation__token=False, model__stem="cifar", **{
        f"model__{name}": value for name, value in fields.items()
    })  # fmt: skip
    (one, state, evaluated), (losses, cut, ours) = run_on("one", config), run_on("fsdp", config)
    np.testing.assert_allclose(losses, one, rtol=1e-5)
    assert len(state.stats) == 2 * sum(path.endswith("bn.scale") for path in state.params) > 0
    for path, value in state.stats.items():
        np.testing.assert_allclose(cut.stats[path], value, rtol=1e-5, atol=1e-6, err_msg=path)
        assert np.abs(value - path.endswith("var")).max() > 1e-3, path  # has moved
    for weights in evaluated:
        np.testing.assert_array_equal(ours[weights].folded(1), evaluated[weights].folded(1))


def test_fsdp_cuts_parameters_moments_and_average():
    """Four ways, to little more than a quarter: vectors and positions alone stay whole."""
    whole, state = (run_of(name).first_state() for name in ("data", "fsdp"))
    for part in ("params", "ema", "opt_state"):
        held, of = (parallel.bytes_per_device(getattr(each, part)) for each in (state, whole))
        assert 0.25 * of < held < 0.3 * of, part
    path = "blocks.1.mlp.fc1.kernel"
    moments = [leaf for keys, leaf in jax.tree_util.tree_leaves_with_path(state.opt_state) if path in str(keys)]
    assert len(moments) == 2
    for array in (state.params[path], state.ema[path], *moments):
        assert array.sharding.shard_shape(array.shape) == (24 // 4, 96)


def test_a_dimension_that_does_not_divide_stays_whole():
    mesh = parallel.make_mesh(1, 8, 1)
    tree = {"head.kernel": np.zeros((12, 10)), "blocks.0.mlp.fc1.kernel": np.zeros((16, 7))}
    placed = parallel.shardings(tree, mesh)
    assert placed["head.kernel"].is_fully_replicated
    assert placed["blocks.0.mlp.fc1.kernel"].shard_shape((16, 7)) == (2, 7)


def test_rows_of_the_only_process():
    assert parallel.local_rows(parallel.make_mesh(4, 2, 1), 24) == range(24)


def fakes(slices=2, processes=4, each=4, platform="tpu"):
    """So many processes in each slice, with so many devices each, in any order."""

    def device(i):
        facts = {"process_index": i // each, "slice_index": i // (each * processes), "platform": platform}
        return mock.NonCallableMock(spec=jax.Device, id=i, **facts)

    count = slices * processes * each
    return random.Random(0).sample([device(i) for i in range(count)], count)


@pytest.mark.parametrize(("fsdp", "tensor"), [(1, 1), (4, 1), (1, 2), (2, 2), (4, 2), (2, 8), (16, 1)])
def test_data_alone_goes_over_slices_and_processes_have_rows_in_a_row(fsdp, tensor):
    devices = fakes()
    mesh = parallel.make_mesh(-1, fsdp, tensor, slices=2, devices=devices)
    assert set(mesh.devices.flat) == set(devices)
    assert mesh.shape == {"data": 32 // (fsdp * tensor), "fsdp": fsdp, "tensor": tensor}
    for i, inside in enumerate(mesh.devices):
        assert {device.slice_index for device in inside.flat} == {2 * i // mesh.shape["data"]}
        assert len({device.process_index for device in inside.flat}) == max(1, fsdp * tensor // 4)
    fed = [parallel.local_rows(mesh, 96, process) for process in range(8)]
    assert {rows.stop - rows.start for rows in fed} == {96 * max(tensor, 4) // 32}
    assert sorted({row for rows in fed for row in rows}) == list(range(96))


@pytest.mark.parametrize(
    ("axes", "slices", "devices", "said"),
    [
        ((-1, 1, 1), 1, fakes(), "slices: is 1, and the 32 device(s) are of 2 slice(s); set it to 2"),
        ((-1, 1, 1), 4, fakes(), "slices: is 4, and the 32 device(s) are of 2 slice(s); set it to 2"),
        ((-1, 1, 1), 2, fakes(slices=1), "slices: is 2, and the 16 device(s) are of 1 slice(s); set it to 1"),
        ((-1, 1, 1), 2, fakes(slices=1, platform="gpu"), "slices: is 2, and the 16 device(s) are of 4 slice(s)"),
        ((-1, 16, 2), 2, fakes(), "slices: 2 does not divide mesh.data = 1, which alone goes over slices"),
    ],
)
def test_slices_that_there_are_not(axes, slices, devices, said):
    with pytest.raises(UserError, match=re.escape(f"config.mesh.{said}")):
        parallel.make_mesh(*axes, slices=slices, devices=devices)


def test_gpus_are_cut_into_processes_only_where_it_is_asked():
    devices = fakes(slices=1, platform="gpu")
    assert parallel.make_mesh(1, 16, 1, devices=devices).size == 16
    assert parallel.make_mesh(-1, 4, 1, slices=4, devices=devices).shape["data"] == 4
    with pytest.raises(UserError, match=r"4 does not divide mesh\.data = 2"):
        parallel.make_mesh(-1, 8, 1, slices=4, devices=devices)


def test_heads_that_do_not_divide():
    with pytest.raises(UserError, match=r"config\.mesh\.tensor: 2 does not divide the 3 heads .*; take 1 or 3"):
        build(tiny_config(), parallel.make_mesh(4, 1, 2), train_source(CONFIG))


@pytest.mark.parametrize(
    ("axes", "dtype"),
    [
        pytest.param((2, 2, 2), "float32", marks=pytest.mark.long),
        ((2, 2, 2), "bfloat16"),
        pytest.param((2, 4, 1), "bfloat16", marks=pytest.mark.long),
    ],
)
def test_weights_travel_and_tokens_do_not(axes, dtype):
    """`tensor` cuts queries, keys and values by heads, `fsdp` nothing but weights: read off the compiled step, in which
    no moved array has 11 tokens, of one image or of many in a row."""
    config = tiny_config(model__heads=2, data__image_size=12, model__dtype=dtype)
    run = build(config, parallel.make_mesh(*axes), train_source(config))
    batch, _ = next(run.batches(0, 1))
    text = run.train_step().lower(run.target, batch, np.uint32(0)).compile().as_text()

    def shapes(operations):
        found = re.findall(rf" = (.*) (?:{operations})(?:-start)?\(", text)
        return {tuple(map(int, dims.split(","))) for each in found for dims in re.findall(r"\[([\d,]+)\]", each)}

    def of_tokens(shape):
        return any(size % 11 == 0 for size in shape)

    assert not any(map(of_tokens, shapes("collective-permute|all-to-all|all-gather")))
    rows = 32 // (axes[0] * axes[1])
    reduced = shapes("all-reduce") & {(rows * 11, 24), (rows, 11, 24)}
    assert bool(reduced) == (axes[2] > 1)  # what attention and MLP add to the tokens
    if axes[1] > 1:
        assert (24, 72 // axes[2]) in shapes("all-gather")  # all rows of the weights


def test_mesh_that_does_not_fit():
    with pytest.raises(UserError, match=r"config\.mesh.*3 x 1 x 1"):
        parallel.make_mesh(3)
    with pytest.raises(UserError, match=r"config\.batch_size: 20 .* 16 .*try 16 or 32"):
        parallel.check_batch(parallel.make_mesh(8), 20, 2)


@pytest.mark.parametrize("mode", ["batch", "pair", "elem"])
@pytest.mark.parametrize("erased", [False, True])
@pytest.mark.parametrize("rows", [4, 3])
def test_what_mixes_is_on_one_device(rows, erased, mode):
    """Of a group that all eight share: read off the compiled program. With an odd number of rows on each, where that
    cannot be, partners travel as uint8. What is seen is what one device sees of the batch in its order."""
    mesh, size = parallel.make_mesh(8), 8 * rows
    settings = {"mixup": 0.8, "cutmix": 1.0, "probability": 1.0, "switch_probability": 0.5}
    mix = mixing.draw(0, 0, groups=1, members=size, mode=mode, image_size=8, **settings)
    given = {"image": np.random.default_rng(0).integers(256, size=(size, 8, 8, 3), dtype=np.uint8)}
    if erased:
        where = {"area": (0.02, 1 / 3), "aspect": (0.3, 1 / 0.3), "min_count": 1, "max_count": 2, "probability": 0.7}
        given["erasing"] = erasing.draw(0, 0, batch_size=size, image_size=8, mode="pixel", **where)
    places = mixing.places(size, groups=1, devices=8)
    order = places.ravel()
    laid = jax.tree.map(lambda x: parallel.put_batch({"": x[order]}, mesh, size)[""], given)
    laid["mix"] = parallel.put_replicated(mixing.placed(mix, places), mesh)
    see = jax.jit(functools.partial(student_images, normalize=Normalization((0.5,) * 3, (0.2,) * 3)))
    lines = see.lower(laid).compile().as_text().splitlines()
    moving = [line for line in lines if re.search(r" (collective-permute|all-to-all|all-gather)(-start)?\(", line)]
    assert bool(moving) == (rows == 3)
    assert [line for line in moving if not re.search(r" = \(?(u8|s32|u32)\[" if erased else r" = \(?u8\[", line)] == []
    np.testing.assert_allclose(see(laid), see({**given, "mix": mix})[order], atol=1e-6)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_type_that_gradients_are_summed_in(dtype):
    """Of the dense layers that compute in bfloat16: the products that make their gradients, before any compiler.

    What compilers for TPUs and GPUs make of it is tested with those.
    """
    config = tiny_config(optim__gradient_dtype=dtype, model__dtype="bfloat16")
    run = build(config, parallel.make_mesh(8), train_source(config))
    batch, _ = next(run.batches(0, 1))
    text = run.train_step().lower(run.target, batch, np.uint32(0)).as_text()
    kernel = run.model.blocks[0].mlp.fc1.kernel.shape
    made = re.findall(rf"dot_general.*-> tensor<{kernel[0]}x{kernel[1]}x(\w+)>", text)
    assert set(made) == {{"float32": "f32", "bfloat16": "bf16"}[dtype]}


@pytest.mark.long
def test_gradients_in_bfloat16_train_nearly_the_same():
    losses = {}
    for dtype in ("float32", "bfloat16"):
        config = tiny_config(optim__gradient_dtype=dtype, model__dtype="bfloat16", total_steps=6)
        run = build(config, parallel.make_mesh(8), train_source(config))
        state, step = run.first_state(), run.train_step()
        told = []
        for batch, _ in run.batches(0, 6):
            state, metrics = step(state, batch, np.uint32(0))
            told.append(float(metrics["loss"]))
        losses[dtype] = told
        assert {str(value.dtype) for value in state.params.values()} == {"float32"}
    np.testing.assert_allclose(losses["bfloat16"], losses["float32"], rtol=5e-3)
    assert losses["bfloat16"] != losses["float32"]
