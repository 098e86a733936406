"""ViT (arXiv:2010.11929), DeiT (arXiv:2012.12877) and DeiT-III (arXiv:2204.07118), every parameter by timm's name."""

import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from deit_jax.models.attention import Attention
from deit_jax.models.inputs import check_images
from deit_jax.models.keys import repeat
from deit_jax.models.layers import (
    DType,
    LayerNorm,
    LayerScale,
    Linear,
    Mlp,
    PatchEmbedding,
    drop_path,
    drop_path_rates,
    drop_path_scales,
    weight_init,
)
from deit_jax.models.positions import resize_positions, sincos_positions

Images = Float[Array | np.ndarray, "batch height width channels"]
Tokens = Float[Array, "batch tokens dim"]
Pooled = Float[Array, "batch features"]
Logits = Float[Array, "batch classes"]


class Block(nnx.Module):
    """Encoder block: attention and MLP, each normalised first and added to its input, with stochastic depth.

    `layer_scale` is the initial factor of both branches' channels; with 0 there are none.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        mlp_ratio: float,
        *,
        layer_scale: float,
        norm_eps: float,
        attention: str,
        dtype: DType,
        rngs: nnx.Rngs,
    ):
        self.norm1 = LayerNorm(width, eps=norm_eps, dtype=dtype, rngs=rngs)
        self.attn = Attention(width, heads, implementation=attention, dtype=dtype, rngs=rngs)
        self.ls1 = LayerScale(width, layer_scale) if layer_scale else None
        self.norm2 = LayerNorm(width, eps=norm_eps, dtype=dtype, rngs=rngs)
        self.mlp = Mlp(width, int(width * mlp_ratio), dtype=dtype, rngs=rngs)
        self.ls2 = LayerScale(width, layer_scale) if layer_scale else None

    def __call__(
        self, x: Tokens, scales: Float[Array, "2 batch"] | None = None, *, first: int | None = None
    ) -> Float[Array, "batch outputs dim"]:
        """The result for all tokens, or for the `first` ones only.

        `scales` multiplies each example's two branches, see `drop_path_scales`; None leaves both as they are.
        """
        attn_scale, mlp_scale = (None, None) if scales is None else scales
        x = x[:, :first] + drop_path(_scaled(self.attn(self.norm1(x), first), self.ls1), attn_scale)
        return x + drop_path(_scaled(self.mlp(self.norm2(x)), self.ls2), mlp_scale)


# Jitted by itself, so that blocks of the same shapes are traced, differentiated and lowered once, not each anew: at
# depth 12 in a third of the time. XLA inlines the calls.
@partial(jax.jit, static_argnames="first")
def _run_block(
    block: Block, x: Tokens, scales: Float[Array, "2 batch"] | None, *, first: int | None
) -> Float[Array, "batch outputs dim"]:
    return block(x, scales, first=first)


def _scaled(branch: Tokens, layer_scale: LayerScale | None) -> Tokens:
    return branch if layer_scale is None else layer_scale(branch)


def _grid(size: tuple[int, int], patch_size: int) -> tuple[int, int]:
    """Rows and columns of patches in an image of that height and width."""
    if any(side < 1 or side % patch_size for side in size):
        raise ValueError(f"image_size {size[0]} x {size[1]} is not divisible by patch_size {patch_size}")
    return size[0] // patch_size, size[1] // patch_size


class PreLogits(nnx.Module):
    """The ViT paper's extra layer before the classifier: dense, then tanh."""

    def __init__(self, width: int, outputs: int, *, rngs: nnx.Rngs):
        self.fc = Linear(width, outputs, rngs=rngs)

    def __call__(self, x: Float[Array, "*batch dim"]) -> Float[Array, "*batch out"]:
        return jnp.tanh(self.fc(x))


class VisionTransformer(nnx.Module):
    """ViT, DeiT and DeiT-III on normalised NHWC images.

    Args:
        image_size: height and width in pixels, or one number for both; each divisible by `patch_size`.
        num_classes: classes of the head; 0 leaves the heads out, so that the model returns pooled features.
        width, depth, heads, mlp_ratio: size of the encoder; `width` divisible by `heads`.
        distilled: adds DeiT's distillation token and its head.
        dist_head: False leaves that head out, though not the token; the class head alone decides.
        class_token: False leaves the class token out (with `global_pool="avg"` only).
        class_position: False gives positions to the patches alone, not to the class and distillation tokens.
        positions: "learned", or fixed sines and cosines, "sincos2d", see `sincos_positions`: no variable, and of the
            patches alone, whatever `class_position` says.
        global_pool: "token" classifies the class token; "avg" the mean of the patch tokens.
        fc_norm: whether that mean is normalised, by `fc_norm`; False: the tokens are, by `norm`, before it is taken.
        pre_logits: an extra dense layer and tanh before the head, of this width (True: of the model's width).
        layer_scale: initial value of the factors of every branch, see `LayerScale`; 0: without them.
        norm_eps: added to the variance in every layer normalisation.
        drop_path: stochastic depth rate of the last block.
        drop_path_schedule: of the others: "linear" grows from 0 at the first, "constant" is the last one's for all.
        dtype: of the computation; parameters, softmax, normalisation statistics and logits are float32 always.
        attention: "einsum", "xla" or "cudnn", see `Attention`.
        patch_embedding: "conv" or "linear", see `PatchEmbedding`.
        remat: recompute each block in the backward pass instead of keeping its activations.

    Raises:
        ValueError: the arguments contradict each other.
    """

    def __init__(
        self,
        *,
        image_size: int | tuple[int, int] = 224,
        patch_size: int = 16,
        num_classes: int = 1000,
        width: int = 768,
        depth: int = 12,
        heads: int = 12,
        mlp_ratio: float = 4.0,
        distilled: bool = False,
        dist_head: bool = True,
        class_token: bool = True,
        class_position: bool = True,
        positions: str = "learned",
        global_pool: str = "token",
        fc_norm: bool = True,
        pre_logits: bool | int = False,
        layer_scale: float = 0.0,
        norm_eps: float = 1e-6,
        drop_path: float = 0.0,
        drop_path_schedule: str = "linear",
        dtype: DType = jnp.float32,
        attention: str = "einsum",
        patch_embedding: str = "linear",
        remat: bool = False,
        rngs: nnx.Rngs,
    ):
        size = (image_size, image_size) if isinstance(image_size, int) else (image_size[0], image_size[1])
        grid = _grid(size, patch_size)
        if global_pool not in ("token", "avg"):
            raise ValueError(f"global_pool {global_pool!r} is none of token, avg")
        if positions not in ("learned", "sincos2d"):
            raise ValueError(f"positions {positions!r} is none of learned, sincos2d")
        if positions == "sincos2d" and (width % 4 or width < 8):
            raise ValueError(f'width {width} is not divisible by 4, or under 8, which positions="sincos2d" do not fit')
        if global_pool == "token" and not class_token:
            raise ValueError('class_token=False leaves global_pool="token" nothing to classify: use global_pool="avg"')
        if distilled and (global_pool == "avg" or pre_logits):
            raise ValueError('distilled=True classifies two tokens: it excludes global_pool="avg" and pre_logits')
        self.image_size = size
        self.num_classes = num_classes
        self.num_patches = math.prod(grid)
        self.num_prefix_tokens = class_token + distilled
        self.num_heads = 1 + (distilled and dist_head)
        self.class_position = class_position and positions == "learned"
        self.global_pool = global_pool
        self.drop_path = drop_path_rates(drop_path, depth, drop_path_schedule)
        self.dtype = jnp.dtype(dtype)
        self.remat = remat

        def tokens(count: int) -> nnx.Param:
            return nnx.Param(weight_init(rngs.params(), (1, count, width), jnp.float32))

        self.patch_embed = PatchEmbedding(patch_size, width, form=patch_embedding, dtype=self.dtype, rngs=rngs)
        self.cls_token = tokens(1) if class_token else None
        self.dist_token = tokens(1) if distilled else None
        positioned = self.num_patches + self.num_prefix_tokens * self.class_position
        self.pos_embed = tokens(positioned) if positions == "learned" else None
        block = partial(
            Block, width, heads, mlp_ratio, layer_scale=layer_scale, norm_eps=norm_eps, attention=attention, dtype=dtype
        )
        self.blocks = nnx.List(repeat(block, depth, rngs))
        # From here on an image is one or two vectors: float32 costs nothing.
        of_mean, last = global_pool == "avg" and fc_norm, LayerNorm(width, eps=norm_eps, rngs=rngs)
        self.norm = None if of_mean else last
        self.fc_norm = last if of_mean else None
        features = width if pre_logits is True else pre_logits or width
        self.pre_logits = PreLogits(width, features, rngs=rngs) if pre_logits else None
        self.head = Linear(features, num_classes, rngs=rngs) if num_classes else None
        self.head_dist = Linear(features, num_classes, rngs=rngs) if num_classes and self.num_heads == 2 else None

    def __call__(self, images: Images, *, train: bool = False, key: Array | None = None) -> Logits | tuple[Logits, ...]:
        """Logits in float32 `[batch, num_classes]` (`[batch, features]` when `num_classes` is 0).

        A distilled model gives the mean of its heads, with `train=True` the pair `(cls_logits, dist_logits)`. `key`
        draws the stochastic depth of a training step.

        Raises:
            ValueError: the images have another size, or training with stochastic depth has no key.
        """
        if train and key is None and any(self.drop_path):
            raise ValueError("training with drop_path > 0 needs a key: model(images, train=True, key=key)")
        logits = self.head_logits(images, key=key if train else None)
        if len(logits) == 1:
            return logits[0]
        return logits if train else (logits[0] + logits[1]) / 2

    def head_logits(self, images: Images, *, key: Array | None = None) -> tuple[Logits, ...]:
        """The logits of every head: `(class,)`, or `(class, distillation)`; stochastic depth only with a `key`."""
        return self.classify(self.head_features(images, key=key))

    def classify(self, features: tuple[Pooled, ...]) -> tuple[Logits, ...]:
        """The logits of every head for what each of them classifies; that itself where there are no heads."""
        heads = (self.head, self.head_dist)
        return tuple(x if head is None else head(x) for head, x in zip(heads, features, strict=False))

    def head_features(self, images: Images, *, key: Array | None = None) -> tuple[Pooled, ...]:
        """What each head classifies, normalised, in float32; `key` as in `head_logits`."""
        x = self._embed(images)
        scales = None
        if key is not None and any(self.drop_path):
            scales = drop_path_scales(self.drop_path, len(images), key)
        # The heads read the class and distillation tokens: the last block need not compute the others.
        first = [None] * (len(self.blocks) - 1) + [self.num_heads if self.global_pool == "token" else None]
        for i, block in enumerate(self.blocks):
            run = partial(_run_block, first=first[i])
            x = (jax.checkpoint(run) if self.remat else run)(block, x, None if scales is None else scales[i])
        return self._pool(x)

    def set_input_size(self, image_size: tuple[int, int]) -> None:
        """From now on takes images of this height and width: learned positions are resized to their grid.

        Raises:
            ValueError: the patches do not divide them.
        """
        before, after = (_grid(size, self.patch_embed.patch_size) for size in (self.image_size, image_size))
        if before == after:
            return
        if self.pos_embed is not None:
            prefix = self.num_prefix_tokens if self.class_position else 0
            self.pos_embed = nnx.Param(resize_positions(self.pos_embed[...], prefix, before, after))
        self.image_size, self.num_patches = image_size, math.prod(after)

    def attention_maps(self, images: Images) -> Float[Array, "depth batch heads tokens tokens"]:
        """The attention weights of every block: row q of a map is the distribution of token q over all tokens."""
        x = self._embed(images)
        maps = []
        for block in self.blocks:
            maps.append(block.attn.maps(block.norm1(x)))
            x = block(x)
        return jnp.stack(maps)

    def tokens_after(self, images: Images, block: int) -> Tokens:
        """The tokens after a block, counted from 0, in float32; the class and distillation tokens come first."""
        x = self._embed(images)
        for each in self.blocks[: block + 1]:
            x = each(x)
        return x.astype(jnp.float32)

    def _embed(self, images: Images) -> Tokens:
        """Prefix and patch tokens with their positions, `[batch, tokens, width]`."""
        check_images(images, self.image_size)

        def for_each(tokens: nnx.Param) -> Tokens:
            # Cast last: the gradient is summed over images, on all devices, in the parameter's own type.
            return jnp.tile(jnp.asarray(tokens), (images.shape[0], 1, 1)).astype(self.dtype)

        patches = self.patch_embed(jnp.asarray(images))
        if self.pos_embed is None:
            grid = _grid(self.image_size, self.patch_embed.patch_size)
            positions = jnp.asarray(sincos_positions(grid, patches.shape[-1]), self.dtype)
        else:
            positions = for_each(self.pos_embed)
        prefix = [for_each(token) for token in (self.cls_token, self.dist_token) if token is not None]
        if self.class_position:
            return jnp.concatenate([*prefix, patches], axis=1) + positions
        return jnp.concatenate([*prefix, patches + positions], axis=1)

    def _pool(self, x: Tokens) -> tuple[Pooled, ...]:
        """Normalised float32 features, one array for each head."""
        average = self.global_pool == "avg"
        pooled = x[:, self.num_prefix_tokens :] if average else x[:, : self.num_heads]
        if self.norm is not None:
            pooled = self.norm(pooled)
        if average:
            pooled = pooled.mean(axis=1, dtype=jnp.float32)[:, None]
        if self.fc_norm is not None:
            pooled = self.fc_norm(pooled)
        if self.pre_logits is not None:
            pooled = self.pre_logits(pooled)
        return tuple(pooled[:, i] for i in range(pooled.shape[1]))
