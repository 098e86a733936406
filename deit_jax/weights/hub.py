"""Where weights are that are named rather than given as files: on the Hugging Face hub, or published for a model."""

import contextlib
import hashlib
import logging
import os
import re
from pathlib import Path
from types import ModuleType

from deit_jax.base.caches import cache_folder
from deit_jax.base.errors import UserError
from deit_jax.models import Pretrained, entry, list_models
from deit_jax.weights.files import INDEX, shards
from deit_jax.weights.folders import CONFIG, PROCESSOR, WEIGHT_FILES, weight_file

PREFIX = "hf://"


def fetch(address: str) -> Path:
    """The folder with the configs and weights of `hf://owner/name[@revision]`.

    It is that of huggingface_hub's cache, which also serves where there is no network.

    Raises:
        UserError: the address is malformed, unknown, or neither on this machine nor within reach; or a file in the
            cache is not what was published.
    """
    match = re.fullmatch(r"hf://([\w.-]+/[\w.-]+)(?:@([\w./-]+))?", address)
    if not match:
        raise UserError(f"{address}: is no address of the hub; write {PREFIX}owner/name or {PREFIX}owner/name@revision")
    repository, revision = match.groups()
    config = _file(repository, revision, CONFIG)
    if config is None:
        raise UserError(f"{address}: has no {CONFIG}, which tells the model; fetch its weight file and name that")
    folder = config.parent
    commit = folder.name  # so that all files are of one, whatever a branch becomes meanwhile
    try:
        found = any(_file(repository, commit, name) for name in WEIGHT_FILES)
    except UserError:
        found = any((folder / name).exists() for name in WEIGHT_FILES)
        if not found:
            raise
    if not found:
        raise UserError(f"{address}: has {CONFIG} but none of {', '.join(WEIGHT_FILES)}; name another repository")
    with contextlib.suppress(UserError):  # not every repository has one, and `read_folder` says so
        _file(repository, commit, PROCESSOR)
    chosen = weight_file(folder) or folder / WEIGHT_FILES[0]
    for name in sorted(shards(chosen)) if chosen.name.endswith(INDEX) else [chosen.name]:
        if _file(repository, commit, name) is None:
            raise UserError(f"{address}: has {chosen.name} but not {name}, which it names; name another repository")
        _check_blob(folder / name)
    return folder


def of_imagenet(address: str) -> bool:
    """Whether an address of the hub is that of weights which timm has published for the classes of ImageNet-1k."""
    match = re.match(rf"{PREFIX}timm/(\w+)\.\w*in1k(@|$)", address)
    return match is not None and match[1] in list_models()


def is_published(file: Path) -> bool:
    """Whether a file is the authors' own, by its name and its content."""
    published = (entry(model).pretrained for model in list_models())
    return any(_sha256(file).startswith(one.digest) for one in published if one and one.checkpoint == file.name)


def pretrained(model: str) -> Path:
    """The file with the published weights of a model.

    Looked for in `own_folder()`, as NAME.safetensors or under the authors' own file name, then in the cache of
    huggingface_hub, then on the hub.

    Raises:
        UserError: none are published or within reach, or a file is not what was published.
    """
    published = entry(model).pretrained
    if published is None:
        raise UserError(f"{model}: no published weights are known; name a file, or train it")
    own = own_folder()
    if (own / f"{model}.safetensors").is_file():
        return own / f"{model}.safetensors"
    if published.checkpoint and (own / published.checkpoint).is_file():
        _check_digest(own / published.checkpoint, published.digest)
        return own / published.checkpoint
    authors = f", or the authors' {published.checkpoint}," if published.checkpoint else ""
    mend = f"or put its file {published.file} as {model}.safetensors{authors} into {own}"
    file = _cached(published) or _file(published.repository, published.revision, published.file, mend)
    if file is None:
        raise UserError(f"{PREFIX}{published.repository}: has no {published.file} any more; {mend[3:]}")
    _check_blob(file)
    return file


def own_folder() -> Path:
    """For files that a user fetched herself."""
    return cache_folder() / "weights"


def _cached(published: Pretrained) -> Path | None:
    """The weights in the cache of huggingface_hub, where they are there; of its main branch if not of the revision."""
    hub = _library(published.repository)
    for revision in (published.revision, "main"):
        found = hub.try_to_load_from_cache(published.repository, published.file, revision=revision)
        if isinstance(found, str):
            if revision != published.revision:
                logging.warning(
                    "%s: its main branch is cached and taken, not %s", published.repository, published.revision
                )
            return Path(found)
    return None


def _file(repository: str, revision: str | None, name: str, mend: str = "or name a file") -> Path | None:
    """A file of a repository in the cache, fetched where it is not there yet; None where the repository has none."""
    at = f"{repository}@{revision}" if revision not in (None, "main") else repository
    hub = _library(at)
    from huggingface_hub import errors

    try:
        return Path(hub.hf_hub_download(repository, name, revision=revision))
    except errors.RemoteEntryNotFoundError:
        return None
    except errors.GatedRepoError as error:
        raise UserError(
            f"{PREFIX}{at}: its owner gives access on request; log in with `hf auth login`, {mend}"
        ) from error
    except (errors.RepositoryNotFoundError, errors.RevisionNotFoundError, errors.HFValidationError) as error:
        raise UserError(
            f"{PREFIX}{at}: there is no such repository or revision on the hub; check it, {mend}"
        ) from error
    except (OSError, errors.HfHubHTTPError) as error:  # LocalEntryNotFoundError is one
        raise UserError(
            f"{PREFIX}{at}: {name} is not in this machine's cache and cannot be fetched "
            f"({_reason(error)}); connect to the network, {mend}"
        ) from error


def _library(repository: str) -> ModuleType:
    """huggingface_hub; `UserError` where it has no place for its cache."""
    os.environ.setdefault("HF_HUB_VERBOSITY", "error")  # the reason of a failure is told by `_file`, once
    # Not at the top: a second to import, and it fixes its cache by the environment of that moment.
    import huggingface_hub as hub
    from huggingface_hub import constants

    try:
        Path(constants.HF_HUB_CACHE).expanduser()
    except RuntimeError as error:
        raise UserError(
            f"{PREFIX}{repository}: there is no home folder, and so no place for what is fetched; "
            f"set HF_HOME to a folder, or name one with the weights"
        ) from error
    return hub


def _reason(error: BaseException) -> str:
    cause = error.__cause__ or error
    return str(cause).strip().partition("\n")[0] or type(cause).__name__


def _check_blob(file: Path) -> None:
    """A large file of the cache is a link to one that is named by its SHA-256."""
    blob = file.resolve()
    if re.fullmatch("[0-9a-f]{64}", blob.name):
        _check_digest(blob, blob.name)


def _check_digest(file: Path, digest: str) -> None:
    """`UserError` unless the file's SHA-256 begins with `digest`."""
    found = _sha256(file)
    if not found.startswith(digest):
        raise UserError(
            f"{file}: is not what was published: its SHA-256 begins {found[:8]}, not {digest[:8]}; "
            f"delete it and fetch it anew"
        )


def _sha256(file: Path) -> str:
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()
