"""One door to every kind of data: built-in digits, image folders and TFDS data sets."""

from collections.abc import Sequence

from deit_jax.base.text import printable
from deit_jax.data.folder import open_folder
from deit_jax.data.memory import open_digits
from deit_jax.data.records import Source
from deit_jax.data.tfds import open_tfds


def open_source(
    *, name: str, directory: str, split: str, class_names: Sequence[str] | None = None, field: str = "split"
) -> Source:
    """Opens a split.

    Args:
        name: `digits`, `folder`, or a TFDS name such as `cifar10` or `imagenet_v2/matched-frequency:3.0.0`.
        directory: the image folder, or TFDS's data directory ("": its own default); unused for digits.
        split: a TFDS split expression such as `train`, `train[:90%]` or `train+validation`.
        class_names: the label order to use, from the train split or a checkpoint; the split's own when None.
        field: the config field that `split` came from, for messages.

    Raises:
        UserError: the data, the split or one of its classes is not there; the line says which and how to mend it.
    """
    if name == "digits":
        return open_digits(split, class_names=class_names, field=field)
    if name == "folder":
        return open_folder(directory, split, class_names=class_names, field=field)
    return open_tfds(name, directory, split, class_names=class_names, field=field)


def describe_data(source: Source, held_out: Source) -> str:
    """In a line, what is trained on and what is evaluated: "81 photos of 3 classes (dress, hat, shoes), 9 held out".

    Of many classes the first few are named. Photos that are in both splits are told.
    """
    names = source.class_names
    first = ", ".join(map(printable, names[:5])) + (", ..." if len(names) > 5 else "")
    evaluated = {held_out.name(i) for i in range(len(held_out))}
    shared = sum(source.name(i) in evaluated for i in range(len(source)))
    told = (
        f"{len(held_out):,} held out" if not shared else f"{len(held_out):,} to evaluate, {shared:,} of them trained on"
    )
    return f"{len(source):,} photos of {len(names):,} classes ({first}), {told}"
