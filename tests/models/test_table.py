"""The model table in the docs says what the code does."""

import math
import re
from pathlib import Path

import pytest
from flax import nnx

from deit_jax.benchmark import forward_flops
from deit_jax.models import VisionTransformer, entry, flatten, list_models

TEXT = (Path(__file__).parents[2] / "docs" / "models.md").read_text()
PAPERS = {
    **{"deit": "2012.12877", "deit3": "2204.07118", "vit": "2010.11929", "gap": "2205.01580"},
    **{"regnety": "2003.13678", "resnet50": "1512.03385", "tf": "1905.11946"},
}


def rows() -> dict[str, list[str]]:
    """The cells of each model's row in the first table, its name left out."""
    lines = [line.strip("| ").split(" | ") for line in TEXT.split("\n\n")[1].splitlines()]
    assert lines[0] == ["Model", "Parameters (M)", "GMACs", "Top-1 (%)", "Trained on", "Paper"]
    return {cells[0].strip("`"): cells[1:] for cells in lines[2:]}


def rounded(number: float, printed: str) -> str:
    """`number` with as many digits after the point as `printed` has."""
    return f"{number:.{len(printed.partition('.')[2])}f}"


def test_every_model_has_its_row():
    assert list(rows()) == list_models()


@pytest.mark.long
def test_parameters_are_those_of_the_code(outline):
    for name, (printed, *_) in rows().items():
        count = sum(math.prod(shape.shape) for shape in flatten(outline(name), nnx.Param).values())
        assert printed == rounded(count / 1e6, printed), name


@pytest.mark.long
def test_gmacs_are_those_of_the_code(outline):
    wrong = {}
    for name, (_, printed, *_) in rows().items():
        counted = rounded(forward_flops(outline(name)) / 2e9, printed)
        if printed != counted:
            wrong[name] = (printed, counted)
    assert wrong == {}


def test_gmacs_are_those_of_the_papers_formula():
    """With D the width and N the tokens, 12 N D^2 + 2 N^2 D in a block, 3 P^2 D for a patch, 1,000 D in a head."""
    for name, (_, printed, *_) in rows().items():
        if entry(name).build is not VisionTransformer:
            continue
        arguments = entry(name).arguments
        patch, size = map(int, re.search(r"patch(\d+)\D+(\d+)$", name).groups())
        width, heads, pools = arguments["width"], 1 + ("distilled" in name), "_gap_" in name
        patches = (size // patch) ** 2
        tokens = patches + heads * (not pools)
        block = 12 * tokens * width**2 + 2 * tokens**2 * width
        count = arguments["depth"] * block + patches * 3 * patch**2 * width + heads * 1000 * width + pools * width**2
        assert printed == rounded(count / 1e9, printed), name


def test_data_and_papers_are_those_of_the_registry():
    for name, (*_, top1, data, paper) in rows().items():
        assert re.fullmatch(r"[78]\d\.\d", top1) or name in ("regnety_032", "resnet50"), name
        published = entry(name).pretrained
        assert data == ("21k, 1k" if published and "_in21k_" in published.repository else "1k"), name
        number = PAPERS["gap" if "_gap_" in name else name.split("_")[0]]
        assert paper == f"[{number}](https://arxiv.org/abs/{number})", name


def test_published_weights_are_those_of_the_registry():
    table = TEXT[TEXT.index("| Model | Tag |") :].partition("\n\n")[0]
    lines = [line.strip("| ").split(" | ") for line in table.splitlines()]
    assert lines[0] == ["Model", "Tag", "Crop ratio", "Licence"]
    known = {}
    for names, tag, ratios, licence in lines[2:]:
        names = re.findall(r"`([^`]+)`", names)
        names = [name if len(name) > 1 else names[0][:-1] + name for name in names]
        ratios = ratios.split(", ") * len(names)
        for name, ratio in zip(names, ratios, strict=False):
            known[name] = (f"timm/{name}.{tag.split('`')[1]}", float(ratio), licence.lower().replace(" ", "-"))
    assert known == {
        name: (entry(name).pretrained.repository, entry(name).preprocessing.crop_ratio, entry(name).pretrained.licence)
        for name in list_models()
        if entry(name).build is not VisionTransformer
    }
