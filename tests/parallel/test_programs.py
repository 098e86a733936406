"""What is read from the text of compiled programs: those of this machine's compiler, and lines as others write them."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from deit_jax import parallel
from deit_jax.parallel.plan import Arrays, compile_ahead, what_moves
from deit_jax.parallel.programs import collectives, estimated_cycles

PARTS, ROWS, INPUTS, OUTPUTS, TURNS = 8, 16, 6, 10, 3


def text(*lines: str, more: str = "") -> str:
    """A program whose entry has these instructions."""
    return (
        f"HloModule jit_step\n\n{more}\nENTRY %main (p: f32[2]) -> f32[2] {{\n"
        + "".join(f"  {line}\n" for line in lines)
        + "}\n"
    )


def test_this_machines_compiler_sums_a_gradient_over_its_devices():
    mesh = parallel.make_mesh()
    weights = jax.ShapeDtypeStruct((INPUTS, OUTPUTS), jnp.float32, sharding=parallel.replicated(mesh))
    rows = jax.ShapeDtypeStruct((ROWS, INPUTS), jnp.float32, sharding=NamedSharding(mesh, P("data")))
    step = jax.jit(jax.grad(lambda w, x: jnp.sum((x @ w) ** 2)), out_shardings=parallel.replicated(mesh))
    (found,) = compile_ahead(step, weights, rows).collectives
    ((dtype, shape),) = found.arrays  # the product may be the transposed one
    assert (found.kind, found.times, dtype, sorted(shape)) == ("all-reduce", 1, "f32", [INPUTS, OUTPUTS])


def test_what_is_in_a_loop_counts_each_turn():
    mesh = parallel.make_mesh()
    rows = jax.ShapeDtypeStruct((ROWS, INPUTS), jnp.float32, sharding=NamedSharding(mesh, P("data")))

    def turn(carry: jax.Array, _: None) -> tuple[jax.Array, None]:
        return jnp.sin(carry + carry.sum(axis=0)), None  # the next turn needs the sum

    step = jax.jit(lambda x: jax.lax.scan(turn, x, length=TURNS)[0])
    found = compile_ahead(step, rows).collectives
    assert sum(each.times for each in found if each.kind == "all-reduce") == TURNS


@pytest.mark.parametrize(
    ("lines", "kind", "arrays"),
    [
        pytest.param(  # of a TPU; layouts have parentheses, too
            ["%all-reduce.1 = (f32[]{:T(128)}, /*index=1*/bf16[192,8]{1,0:T(8,128)(2,1)S(1)}) all-reduce(%a, %b)"],
            "all-reduce",
            [("f32", ()), ("bf16", (192, 8))],
            id="synchronous",
        ),
        pytest.param(  # a start gives what it was given as well
            [
                "%collective-permute-start.2 = (u8[1,4,8,8,3]{4,3}, u8[1,4,8,8,3]{4,3}, u32[]{:S(2)}, u32[]{:S(2)}) "
                "collective-permute-start(%x), channel_id=4",
                "%collective-permute-done.2 = u8[1,4,8,8,3]{4,3} collective-permute-done(%collective-permute-start.2)",
            ],
            "collective-permute",
            [("u8", (1, 4, 8, 8, 3))],
            id="start and done",
        ),
        pytest.param(
            [
                '%all-gather.1 = bf16[192,8]{1,0} all-gather(%p), channel_id=12, frontend_attributes={chain_id="1"}',
                '%all-gather.2 = bf16[192,8]{1,0} all-gather(%p), channel_id=12, frontend_attributes={chain_id="1"}',
            ],
            "all-gather",
            [("bf16", (192, 8))],
            id="spread over others",
        ),
        pytest.param(
            ["%fusion.3 = f32[2]{0} fusion(%p), kind=kCustom, calls=%all-reduce-scatter.1"],
            "reduce-scatter",
            [("f32", (2,))],
            id="part of a sum",
        ),
        pytest.param(
            [
                "%send.1 = (f32[2,8,128]{2,1,0:T(8,128)}, u32[], token[]) send(%x, %t), channel_id=4, "
                'frontend_attributes={_xla_megascale_transfer_type="ALL_REDUCE"}',
                "%recv.1 = (f32[2,8,128]{2,1,0:T(8,128)}, u32[], token[]) recv(%t), channel_id=5, "
                'frontend_attributes={_xla_megascale_transfer_type="ALL_REDUCE"}',
            ],
            "dcn all-reduce",
            [("f32", (2, 8, 128))],
            id="between slices",
        ),
    ],
)
def test_forms_of_other_compilers(lines, kind, arrays):
    inner = "%all-reduce-scatter.1 (x: f32[8]) -> f32[2] {\n  %r = f32[8]{0} all-reduce(%x), channel_id=1\n}\n"
    (found,) = collectives(text(*lines, more=inner))
    assert (found.kind, [tuple(array) for array in found.arrays]) == (kind, arrays)


LOOP = """%body.1 (p: s32[]) -> s32[] {
  %all-reduce.5 = f32[3]{0} all-reduce(%x), to_apply=%add, metadata={op_name="jit(step)/while/body/psum"}
  %fusion = f32[3]{0} fusion(%x), backend_config={"window_config":{"estimated_cycles":"700"}}
}

%condition.1 (p: s32[]) -> pred[] {
  %constant.9 = s32[]{:T(128)} constant(5)
  ROOT %lt = pred[]{:T(512)} compare(%p, %constant.9), direction=LT
}
"""


@pytest.mark.parametrize(("noted", "turns"), [("", 5), (', backend_config={"known_trip_count":{"n":"4"}}', 4)])
def test_turns_of_a_loop(noted, turns):
    """As the compiler notes them, else the number that the condition compares with."""
    copy = '%copy = f32[3]{0} copy(%x), backend_config={"window_config":{"estimated_cycles":"11"}}'
    program = text(f"%while.1 = s32[] while(%p), condition=%condition.1, body=%body.1{noted}", copy, more=LOOP)
    (found,) = collectives(program)
    assert (found.times, found.operation) == (turns, "jit(step)/while/body/psum")
    assert estimated_cycles(program) == 11 + turns * 700


def moves(line: str, *beside: str, data_parallel: bool) -> str:
    """What the first collective moves: parameters of 6 x 10, 2 x 3 x 5, 16 x 7; 4 rows, 7 classes; images of 8 x 8."""
    shapes = [(INPUTS, OUTPUTS), (1, 2, 3, 5), (16, 7)]
    arrays = Arrays(shapes, PARTS, targets=(4, 7), pixels=(8, 8, 3), data_parallel=data_parallel)
    found = collectives(text(line, *beside))
    (name,) = {group["moves"] for group in what_moves(found, arrays) if group["kind"] == found[0].kind}
    return name


@pytest.mark.parametrize(
    ("shape", "kind", "replicas", "cut"),
    [
        ("f32[10,6]", "all-reduce", "gradients", "gradients"),
        ("f32[1234]", "all-reduce", "gradients", "activations"),  # all gradients in one
        ("f32[5,6]", "all-reduce", "gradients", "gradients"),  # neighbours merged, and transposed
        ("f32[4,15]", "all-reduce", "activations", "gradients"),  # as many numbers, but four rows of something
        ("f32[3,10]", "all-reduce", "activations", "gradients"),  # no neighbours
        ("f32[15]", "reduce-scatter", "gradients", "gradients"),
        ("bf16[6,10]", "all-gather", "activations", "parameters"),
        ("bf16[6,10]", "all-to-all", "activations", "activations"),
        ("bf16[6,10]", "collective-permute", "activations", "activations"),
        ("u8[1,4,8,8,3]", "collective-permute", "images", "images"),
        ("u8[4,192]", "collective-permute", "images", "images"),  # in another shape
        ("f32[4,8,8,3]", "collective-permute", "float images", "float images"),
        ("f32[4,8,8,3]", "all-reduce", "float images", "float images"),  # as XLA gathers, by a masked sum
        ("f32[4,5,7]", "all-reduce", "activations", "activations"),
        ("f32[1,4,7]", "collective-permute", "targets", "targets"),
        ("f32[4,7]", "reduce-scatter", "gradients", "gradients"),  # a quarter of the head, of 16 features
        ("bf16[4,5,6]", "all-to-all", "activations", "activations"),
        ("s32[4,1,4]", "collective-permute", "indices", "indices"),
        ("pred[]", "all-reduce", "indices", "indices"),
        ("f32[]", "all-reduce", "scalars", "scalars"),
        ("f32[2,8,128]", "all-gather", "activations", "activations"),
    ],
)
def test_collectives_are_named_by_what_they_move(shape, kind, replicas, cut):
    line = f"%c = {shape} {kind}(%x), channel_id=1"
    assert moves(line, data_parallel=True) == replicas
    assert moves(line, data_parallel=False) == cut


@pytest.mark.parametrize(
    ("shape", "kind", "named"),
    [
        ("f32[6,10]", "all-gather", "gradients"),
        ("f32[2,8,128]", "all-gather", "gradients"),  # packed, as they come from another slice
        ("f32[9,4,128]", "all-reduce", "gradients"),  # of a kernel of three by three pixels and three channels
        ("f32[9,6,128]", "all-reduce", "activations"),
        ("f32[2,1,128]", "all-reduce", "scalars"),  # packed, too: the loss, and that of the labels alone
        ("f32[3,5]", "reduce-scatter", "gradients"),  # a quarter, or half
        ("f32[6,11]", "all-gather", "activations"),
        ("f32[6,10]", "all-to-all", "activations"),
        ("f32[6,10]", "collective-permute", "activations"),
    ],
)
def test_gradients_are_gathered_where_they_are_summed_in_parts(shape, kind, named):
    between = (
        "%s = (f32[2,8,128], u32[], token[]) send(%x, %t), channel_id=2, "
        'frontend_attributes={_xla_megascale_transfer_type="ALL_REDUCE"}',
        "%r = f32[15] reduce-scatter(%x), channel_id=3",
    )
    for beside in between:
        assert moves(f"%c = {shape} {kind}(%x), channel_id=1", beside, data_parallel=True) == named


def test_logits_have_the_shape_of_targets_but_are_of_what_is_differentiated():
    line = '%c = f32[4,7] collective-permute(%x), channel_id=1, metadata={{op_name="jit(train_step)/{}"}}'
    assert moves(line.format("rev"), data_parallel=True) == "targets"
    assert moves(line.format("jvp()/dot_general"), data_parallel=True) == "activations"


def test_groups_have_counts_and_bytes():
    lines = [f"%r.{i} = (f32[6,10], f32[], bf16[10,6]) all-reduce(%a, %b, %c), channel_id={i}" for i in range(2)]
    lines.append('%g = bf16[60] all-reduce(%d), channel_id=9, metadata={op_name="jit(step)/last"}')
    arrays = Arrays([(6, 10)], 8, targets=(4, 7), pixels=(8, 8, 3), data_parallel=True)
    groups = {(group["dtype"], group["moves"]): group for group in what_moves(collectives(text(*lines)), arrays)}
    assert {key: (group["count"], group["bytes"]) for key, group in groups.items()} == {
        ("f32", "gradients"): (2, 2 * 240),
        ("bf16", "gradients"): (3, 3 * 120),
        ("f32", "scalars"): (2, 8),
    }
