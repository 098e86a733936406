"""Whole trainings, step by step as torch's and timm's from the same weights on the same batches.

See golden/make_trajectories.py: AdamW by decay groups, cosine with warm-up, moving average, erased and mixed images;
LAMB with binary cross-entropy and layer scale, as DeiT-III; a hard teacher with the distillation token.
"""

import jax
import numpy as np
import pytest
from flax import nnx
from golden import make_trajectories as theirs
from golden_files import assert_close, load
from tiny import tiny_config, tiny_run

from deit_jax.models import flatten

GOLDEN = load("trajectories.npz")
FIELDS = {
    "batch_size": theirs.BATCH,
    "total_steps": theirs.STEPS,
    "model__patch_size": theirs.PATCH,
    "model__width": theirs.WIDTH,
    "model__depth": theirs.DEPTH,
    "model__heads": theirs.HEADS,
    "model__drop_path": 0.0,
    "data__image_size": theirs.SIZE,
    "data__mean": theirs.MEAN,
    "data__std": theirs.STD,
    "optim__scale_by_batch": False,
    "optim__warmup_steps": theirs.WARMUP,
    "optim__warmup_learning_rate": theirs.START,
    "optim__min_learning_rate": theirs.FLOOR,
    "optim__weight_decay": theirs.DECAY,
    "ema__decay": theirs.EMA,
}
CASES = {
    "deit": {"model__name": "deit_tiny_patch16_224", "distillation__token": False},
    "deit3": {
        "model__name": "deit3_small_patch16_224",
        "distillation__token": False,
        "optim__name": "lamb",
        "loss__kind": "binary_cross_entropy",
        "loss__binarize": True,
    },
    "distilled": {"distillation__kind": "hard", "distillation__teacher__name": "recorded:elsewhere"},
}


@pytest.mark.parametrize(
    "case", [case if case == "distilled" else pytest.param(case, marks=pytest.mark.long) for case in CASES]
)
def test_a_training_is_torchs(case):
    fields = {"optim__learning_rate": theirs.PEAK[case], "mixing__label_smoothing": theirs.SMOOTHING[case]}
    run = tiny_run(tiny_config(**FIELDS, **fields, **CASES[case]), [str(i) for i in range(theirs.CLASSES)])
    params = {path: leaf.shape for path, leaf in flatten(run.model, nnx.Param).items()}
    assert params == theirs.shapes(case)

    def teacher(variables, images, recorded):
        return jax.nn.one_hot(recorded["labels"], theirs.CLASSES)

    step = run.train_step(teacher if case == "distilled" else None)
    state, losses = run.first_state(theirs.weights(case)), []
    for t in range(theirs.STEPS):
        state, metrics = step(state, theirs.batch(t) | {"place": np.arange(theirs.BATCH)}, np.uint32(0), None)
        losses.append(metrics["loss"])
    assert_close(np.array(losses), GOLDEN[f"{case}/losses"], "trajectories.npz", "losses")
    for name in params:
        excerpt = theirs.excerpt(name, np.asarray(state.ema[name]))
        assert_close(excerpt, GOLDEN[f"{case}/ema/{name}"], "trajectories.npz", "average", err_msg=name)
