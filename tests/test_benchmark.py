import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deit_jax import benchmark
from deit_jax.base.errors import UserError
from deit_jax.data.decode import decode
from deit_jax.models import VisionTransformer, abstract_model, bind, flatten, forward_flops
from deit_jax.models.registry import MODELS, Entry
from deit_jax.parallel import hosts, peak
from deit_jax.step import mixing
from deit_jax.step.step import student_images

MODEL = ["--model=small", "--batch_size=8"]
CONFIG = f"--config={Path(__file__).parents[1] / 'configs' / 'quickstart.py'}"
MODEL_FIELDS = {
    *("images_per_second", "batch_ms", "batch_ms_range", "first_batch_seconds", "memory_peak_bytes"),
    *("flops_per_image", "flops_per_second", "matmul_peak_flops", "utilisation"),
    *("benchmark", "model", "image_size", "batch_size", "batches", "dtype", "attention", "remat"),
    *("device", "device_count", "cpus", "load_average", "jax", "command"),
}
DATA_FIELDS = {
    *("images_per_second", "batch_ms", "first_batch_seconds", "replaced"),
    *("benchmark", "config", "data", "examples", "image_size", "batch_size", "batches", "threads", "prefetch"),
    *("cpus", "load_average", "jax", "command"),
}


@pytest.fixture(autouse=True)
def _small(monkeypatch):
    """A model and matrices that take no time."""
    arguments = {"image_size": 16, "patch_size": 8, "width": 12, "depth": 2, "heads": 3}
    monkeypatch.setitem(MODELS, "small", Entry(VisionTransformer, arguments))
    monkeypatch.setattr(peak, "MATMULS_CPU", (64, 2))
    monkeypatch.setattr(benchmark, "CLASSES", 7)


def run(capsys, *argv: str) -> dict:
    assert benchmark.main(argv) == 0
    return json.loads(capsys.readouterr().out.splitlines()[-1])


def check(result: dict) -> None:
    """What holds whatever the machine."""
    low, high = result["batch_ms_range"]
    assert 0 < low <= result["batch_ms"] <= high
    speed = result["images_per_second"]
    assert speed == pytest.approx(8000 / result["batch_ms"], rel=0.01)
    assert result["flops_per_second"] == pytest.approx(speed * result["flops_per_image"], rel=0.01)
    assert result["utilisation"] == pytest.approx(result["flops_per_second"] / result["matmul_peak_flops"], abs=1e-3)
    assert (result["device"], result["device_count"]) == ("cpu", jax.device_count())
    assert (result["dtype"], result["attention"], result["image_size"]) == ("float32", "einsum", 16)


@pytest.mark.long
def test_train_full(capsys, tmp_path):
    file = tmp_path / "train.json"
    argv = ["train", *MODEL, "--batches=3", "--parts=full", f"--output={file}"]
    result = run(capsys, *argv)
    check(result)
    assert result.keys() == MODEL_FIELDS | {"parts"}
    assert (result["benchmark"], result["parts"], result["model"]) == ("train", "full", "small")
    assert result["flops_per_image"] == 3 * forward_flops(abstract_model("small", num_classes=7))
    assert result["command"] == " ".join(["python -m deit_jax.benchmark", *argv])
    assert json.loads(file.read_text()) == result


@pytest.mark.long
def test_train_core_with_other_settings(capsys):
    flags = ["--image_size=24", "--dtype=bfloat16", "--attention=xla", "--remat"]
    result = run(capsys, "train", *MODEL, "--batches=3", *flags)
    assert result.keys() == MODEL_FIELDS | {"parts"}
    chosen = {name: result[name] for name in ("parts", "image_size", "dtype", "attention", "remat")}
    assert chosen == {"parts": "core", "image_size": 24, "dtype": "bfloat16", "attention": "xla", "remat": True}


@pytest.mark.long
@pytest.mark.parametrize("name", ["train", "infer"])
def test_all_that_devices_do_together_has_a_time_limit(name, capsys, monkeypatch):
    done = []
    monkeypatch.setattr(hosts, "at", lambda doing, compiling=False: done.append((doing, compiling)))
    run(capsys, name, *MODEL, "--batches=2")
    products = [("large matrix products", True)]
    measured = [(f"batch {batch} of 2", False) for batch in (1, 2)]
    begun = done.index(("the first batch", True))
    assert ("its start", True) in done[:begun]
    assert all(compiling for _, compiling in done[:begun])
    assert done[begun + 1 :] == [*measured, *products, *measured, *products]


def test_infer(capsys):
    result = run(capsys, "infer", *MODEL, "--batches=3")
    check(result)
    assert result.keys() == MODEL_FIELDS
    assert result["flops_per_image"] == forward_flops(abstract_model("small", num_classes=7))


def test_data_decodes_an_image_for_each_of_its_places_in_the_stream(capsys, monkeypatch):
    decoded = []

    def counting(image, **options):
        decoded.append(image)
        return decode(image, **options)

    monkeypatch.setattr("deit_jax.data.pipeline.decode", counting)
    result = run(capsys, "data", CONFIG, "--batches=30", "--config.data.threads=1")
    assert result.keys() == DATA_FIELDS
    assert (result["config"], result["data"], result["threads"], result["batches"]) == ("quickstart", "digits", 1, 30)
    assert result["images_per_second"] > 0
    assert result["replaced"] == 0
    assert len(decoded) == 30 * result["batch_size"] > result["examples"]


def test_data_is_compared_with_crop_and_flip_alone(capsys):
    settings = ["--batches=4", "--compare", "--config.data.threads=1", "--config.data.image_size=64"]
    result = run(capsys, "data", CONFIG, *settings, "--config.data.augment=rand-n8-p1")
    assert result.keys() == DATA_FIELDS | {"times_crop_and_flip"}
    assert result["times_crop_and_flip"] > 2  # eight operations of 15 cost more than enlarging an 8 x 8 picture
    with pytest.raises(UserError, match=r"--compare: .* set config\.data\.augment"):
        run(capsys, "data", CONFIG, *settings)


@pytest.mark.parametrize(("name", "gmacs"), [("tiny", 1.26), ("small", 4.61), ("base", 17.58)])
def test_forward_flops_are_those_that_timm_states(name, gmacs):
    model = abstract_model(f"deit_{name}_patch16_224")
    assert forward_flops(model) / 2e9 == pytest.approx(gmacs, rel=0.01)


def test_forward_flops_are_nearly_those_that_xla_counts():
    # The mean of all tokens: for the class token alone the last block computes less than the formula has.
    model = abstract_model("deit_tiny_patch16_224", num_classes=10, global_pool="avg")
    images = jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32)
    lowered = jax.jit(lambda params, images: bind(model, params).head_logits(images)).lower(flatten(model), images)
    # XLA counts softmax, GELU and normalisation, too.
    assert 1 < lowered.cost_analysis()["flops"] / forward_flops(model) < 1.1


@pytest.mark.long
def test_the_core_step_is_the_recipe_without_its_extras():
    _, config = benchmark._parse(benchmark.train, [*MODEL, "--batches=1", "--parts=full"], trains=True)
    run = benchmark._noise_run(config)
    batch, _ = next(run.batches(0, 1))

    @jax.jit
    def mixed(batch):
        images = student_images(batch, run.normalize)
        return {
            "image": images,
            "target": mixing.mix_targets(batch["label"], batch["mix"], num_classes=7, smoothing=0.1),
        }

    seed = np.uint32(config.seed)
    full, full_metrics = run.train_step()(run.first_state(), batch, seed)
    core, core_metrics = run.jit_step(benchmark._core_step(run))(run.first_state(), mixed(batch), seed)
    assert float(core_metrics["loss"]) == pytest.approx(float(full_metrics["loss"]), rel=1e-5)
    assert int(core.step) == int(full.step) == 1
    # Not the parameters: Adam's first update is the sign even of a gradient that is zero up to rounding.
    moments = zip(*map(jax.tree.leaves, (core.opt_state, full.opt_state)), strict=True)
    for core_moment, full_moment in moments:
        np.testing.assert_allclose(core_moment, full_moment, rtol=1e-3, atol=1e-7)
    assert all((core.params[path] != core.ema[path]).any() for path in core.params if path.endswith(".kernel"))


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "first argument is nothing, should be one of train, infer, data"),
        (["trian"], "first argument is trian"),
        (["--model=small", "train"], "first argument is --model=small"),
        (["train", "--batch_size=8", "--batches=1"], "--model: missing; one of deit_tiny_patch16_224"),
        (["train", "--model=small", "--batches=1"], "--batch_size: missing"),
        (["infer", *MODEL], "--batches: missing"),
        (["data", "--batches=3"], "--config: missing"),
        (["data", CONFIG], "--batches: missing"),
        (["train", "--model=deit_tiny", "--batch_size=8", "--batches=1"], "--model.*did you mean deit_tiny_patch16"),
        (["train", *MODEL, "--batches=0"], "--batches=0: .* positive"),
        (["train", "--model=small", "--batch_size=-8", "--batches=1"], "--batch_size=-8: .* positive"),
        (["train", *MODEL, "--batches=three"], "batches"),
        (
            ["train", "--model=small", "--batch_size=9", "--batches=1"],
            "--batch_size: 9 is not divisible by the 8 devices",
        ),
        (["train", *MODEL, "--batches=1", "--image_size=17"], "image_size 17.*not divisible by patch_size 8"),
        (["train", *MODEL, "--batches=1", "--parts=all"], "parts.*core"),
        (["train", *MODEL, "--batches=1", "--dtype=float16"], "dtype.*bfloat16"),
        (["infer", *MODEL, "--batches=1", "--parts=core"], "--parts: unknown flag"),
        (["infer", *MODEL, "--batchs=1"], "--batchs: unknown flag; did you mean batches"),
        (["infer", *MODEL, "--batches=1", "more"], "more: not a flag"),
        (["infer", *MODEL, "--batches=1", "--output=no/such/file.json"], "--output: there is no folder .*no/such"),
        (["data", CONFIG, "--batches=1", "--config.data.thread=1"], "config.data.thread: unknown field"),
        (["data", CONFIG, "--batches=1", "--config.data.train_split=tran"], "tran"),
    ],
)
def test_bad_input(argv, message):
    with pytest.raises(UserError, match=message):
        benchmark.main(argv)


def test_the_first_process_alone_looks_for_the_folder_of_the_result(monkeypatch):
    """It alone writes, and the others need not have it."""

    def started(*given):
        raise UserError("it went on")

    monkeypatch.setattr(benchmark.cli, "start_hosts", lambda *given: False)
    monkeypatch.setattr(benchmark.cli, "start_jax", started)
    with pytest.raises(UserError, match="it went on"):
        benchmark.main(["infer", *MODEL, "--batches=1", "--output=no/such/file.json"])


def test_help(capsys):
    assert benchmark.main(["--help"]) == 0
    assert "benchmark data --config" in capsys.readouterr().out


@pytest.mark.parametrize(("name", "flag"), [("train", "--parts"), ("infer", "--image_size"), ("data", "--batches")])
def test_help_of_each_benchmark(capsys, name, flag):
    with pytest.raises(SystemExit, match="0"):
        benchmark.main([name, "--help"])
    assert flag in capsys.readouterr().out
