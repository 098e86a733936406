"""Your own photos: published weights, fine-tuned on them at 224 px.

    python -m deit_jax.main --config=configs/transfer.py --config.data.dir=photos

`photos` has a folder a class, of which about a tenth is held out, or `train` and `validation` (or `test`) folders that
have. The weights are fetched on the first run. The workdir gets `predictions.csv` and `confusion.png` of the held-out
photos.

Another network: `configs/transfer.py:model=deit_tiny_patch16_224` (any of `deit_jax.list_models()`). Weights of your
own: `--config.init_from=WORKDIR_OR_FILE`. The head alone (a linear probe): `--config.optim.trainable=head`.
"""

from ml_collections import ConfigDict

from deit_jax import recipes


def get_config(argument: str | None = None) -> ConfigDict:
    arguments = recipes.arguments(argument, hardware="auto", dataset="folder", model="deit_small_patch16_224")
    return recipes.finetune(arguments.pop("model"), **arguments)
