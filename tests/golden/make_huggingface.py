"""Writes huggingface.npz and huggingface.json: small models of transformers, their logits and gradients.

    pip install torch==2.13.0 transformers==5.23.0
    OMP_NUM_THREADS=2 python tests/golden/make_huggingface.py

One thread would add up in another order. Reading needs neither. In the npz, for each CASE: `CASE/weights/NAME` and
`CASE/gradients/NAME` by the names that transformers 5 has in memory, `CASE/images` [batch, height, width, 3],
`CASE/labels`, `CASE/logits`; the loss is the mean cross-entropy of the logits. In the JSON, for each CASE: `config`, as
save_pretrained wrote it, and `published`, the name in the file that it wrote for every name in memory.
"""

import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
import transformers

# Sizes are all different, in a case and between the cases; the epsilons matter at these weights.
CASES: dict[str, tuple[Any, Any, dict[str, Any]]] = {
    "vit": (
        transformers.ViTForImageClassification,
        transformers.ViTConfig,
        {"hidden_size": 10, "num_attention_heads": 2, "intermediate_size": 17, "num_hidden_layers": 3, "image_size": 12}
        | {"patch_size": 4, "num_labels": 5, "layer_norm_eps": 1e-12},
    ),
    "deit": (
        transformers.DeiTForImageClassification,
        transformers.DeiTConfig,
        {"hidden_size": 9, "num_attention_heads": 3, "intermediate_size": 13, "num_hidden_layers": 2}
        | {"image_size": [10, 15], "patch_size": 5, "num_labels": 7, "layer_norm_eps": 1e-3},
    ),
    "deit_with_teacher": (
        transformers.DeiTForImageClassificationWithTeacher,
        transformers.DeiTConfig,
        {"hidden_size": 14, "num_attention_heads": 2, "intermediate_size": 11, "num_hidden_layers": 2}
        | {"image_size": 14, "patch_size": 7, "num_labels": 3, "layer_norm_eps": 1e-6},
    ),
}


def randomize(model: torch.nn.Module, generator: torch.Generator) -> None:
    """No parameter keeps a special value: biases are not 0, scales not 1."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            centre = 1.0 if "layernorm" in name and name.endswith("weight") else 0.0
            parameter.copy_(centre + 0.3 * torch.randn(parameter.shape, generator=generator))


def published_names(model: Any) -> tuple[dict[str, str], dict[str, Any]]:
    """The file's name for every name in memory, known by the values, and the config."""
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        saved = safetensors.torch.load_file(Path(folder) / "model.safetensors")
        config = json.loads((Path(folder) / "config.json").read_text())
    state = model.state_dict()
    names = {
        name: [other for other, theirs in saved.items() if torch.equal(value, theirs)] for name, value in state.items()
    }
    assert len(saved) == len(names)
    assert all(len(found) == 1 for found in names.values())
    return {name: found[0] for name, found in names.items()}, config


def main() -> None:
    arrays: dict[str, np.ndarray] = {}
    facts: dict[str, Any] = {"versions": {"torch": torch.__version__, "transformers": transformers.__version__}}
    for seed, (case, (build, configure, sizes)) in enumerate(CASES.items()):
        generator = torch.Generator().manual_seed(seed)
        model = build(configure(**sizes, attn_implementation="eager")).eval()
        randomize(model, generator)
        size = sizes["image_size"]
        height, width = size if isinstance(size, list) else (size, size)
        images = torch.randn((3, 3, height, width), generator=generator)
        labels = torch.randint(sizes["num_labels"], (3,), generator=generator)
        logits = model(images).logits
        torch.nn.functional.cross_entropy(logits, labels).backward()
        arrays[f"{case}/images"] = images.permute(0, 2, 3, 1).numpy()
        arrays[f"{case}/labels"] = labels.numpy()
        arrays[f"{case}/logits"] = logits.detach().numpy()
        for name, parameter in model.named_parameters():
            arrays[f"{case}/weights/{name}"] = parameter.detach().numpy()
            arrays[f"{case}/gradients/{name}"] = parameter.grad.numpy()
        published, config = published_names(model)
        facts[case] = {"config": config, "published": published}
    np.savez(Path(__file__).with_name("huggingface.npz"), **arrays)
    Path(__file__).with_name("huggingface.json").write_text(json.dumps(facts, indent=1) + "\n")


if __name__ == "__main__":
    main()
