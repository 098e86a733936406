"""The hub and published weights, on a cache made up here, without a network."""

import hashlib
import json
from unittest.mock import MagicMock

import huggingface_hub
import numpy as np
import pytest
from flax import nnx
from huggingface_hub import constants
from weight_samples import assert_same_arrays, bare, sample

import deit_jax
from deit_jax.base.errors import UserError
from deit_jax.models import entry, flatten
from deit_jax.weights import files, folders, hub, read_weights, tables
from deit_jax.weights.imagenet import WNIDS

TINY = "deit_tiny_patch16_224"
COMMIT = "0123456789abcdef0123456789abcdef01234567"
REPOSITORY = entry(TINY).pretrained.repository
REVISION = entry(TINY).pretrained.revision


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """An empty cache; the library reads the environment when it is imported, and its constants at every call."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    return tmp_path / "hub"


def put(cache, repository, contents, *, revision="main"):
    """Lays files as huggingface_hub does: blobs by their hash, links to them by commit, the commit by revision."""
    place = cache / f"models--{repository.replace('/', '--')}"
    for folder in ("blobs", "refs", f"snapshots/{COMMIT}"):
        (place / folder).mkdir(parents=True, exist_ok=True)
    (place / "refs" / revision).write_text(COMMIT)
    for name, content in contents.items():
        large = name.endswith((".safetensors", ".bin"))
        blob = place / "blobs" / (hashlib.sha256 if large else hashlib.sha1)(content).hexdigest()
        blob.write_bytes(content)
        (place / "snapshots" / COMMIT / name).symlink_to(f"../../blobs/{blob.name}")
    return place


def folder_contents(tmp_path, **arguments):
    folders.write_folder(tmp_path / "made", sample(TINY, image_size=10, **arguments))
    return {path.name: path.read_bytes() for path in (tmp_path / "made").iterdir()}


def file_content(tmp_path, weights):
    return bare(tmp_path / "made.safetensors", weights).read_bytes()


@pytest.mark.parametrize("revision", ["main", "v1.0", COMMIT])
def test_a_cached_repository_is_read_offline(cache, tmp_path, revision):
    put(cache, "owner/my.model-1", folder_contents(tmp_path), revision=revision)
    address = "hf://owner/my.model-1" + ("" if revision == "main" else f"@{revision}")
    weights = read_weights(address)
    assert_same_arrays(sample(TINY, image_size=10).variables, weights.variables)
    assert weights.card.class_names == ("class 0", "class 1", "class 2")


def test_what_is_neither_cached_nor_within_reach(cache, tmp_path):
    put(cache, "owner/name", folder_contents(tmp_path))
    for address in ("hf://owner/other", "hf://owner/name@v2"):
        with pytest.raises(
            UserError, match=rf"{address}: .* not in this machine's cache .*; connect to the network, or"
        ):
            read_weights(address)
    for address in ("hf://name", "hf://", "hf://a/b/c", "hf://a/b@", "hf://a/b c"):
        with pytest.raises(UserError, match="is no address of the hub; write hf://owner/name"):
            read_weights(address)


def test_without_a_network_the_message_is_the_same(monkeypatch):
    def unreachable(*arguments, **options):
        raise huggingface_hub.errors.LocalEntryNotFoundError("Got: ConnectError\nmore") from OSError("Name not known")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", unreachable)
    with pytest.raises(UserError, match=r"hf://a/b: .* cannot be fetched \(Name not known\); connect") as error:
        read_weights("hf://a/b")
    assert "\n" not in str(error.value)


def test_without_a_home_folder_it_says_what_to_set(monkeypatch):
    def unknown(uid):
        raise KeyError(uid)

    monkeypatch.setattr(constants, "HF_HUB_CACHE", "~/.cache/huggingface/hub")  # as the library has it then
    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.setattr("pwd.getpwuid", unknown)
    for origin, model in (("hf://a/b", ""), ("pretrained", TINY)):
        with pytest.raises(
            UserError, match=r"^hf://\S+: there is no home folder, .*; set HF_HOME to a folder, or name"
        ):
            read_weights(origin, model=model)


def online(monkeypatch, cache):
    """Makes the hub have what the cache has, and nothing else."""
    real = huggingface_hub.hf_hub_download

    def download(repository, name, revision=None):
        try:
            return real(repository, name, revision=revision)
        except huggingface_hub.errors.LocalEntryNotFoundError as error:
            raise huggingface_hub.errors.RemoteEntryNotFoundError("404", response=MagicMock()) from error

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)


def test_a_changed_blob_is_refused(cache, tmp_path):
    place = put(cache, "owner/name", folder_contents(tmp_path))
    blob = (place / "snapshots" / COMMIT / "model.safetensors").resolve()
    content = bytearray(blob.read_bytes())
    content[-5] ^= 1
    blob.write_bytes(content)
    with pytest.raises(UserError, match=rf"blobs/{blob.name}: is not what was published: .*; delete it and fetch"):
        read_weights("hf://owner/name")


def test_a_repository_without_config_or_weights(cache, tmp_path, monkeypatch):
    contents = folder_contents(tmp_path)
    put(cache, "owner/weights", {"model.safetensors": contents["model.safetensors"]})
    put(cache, "owner/config", {"config.json": contents["config.json"]})
    for repository, lacking in (("weights", "config.json"), ("config", "model.safetensors")):
        with pytest.raises(
            UserError, match=rf"{repository}\S*: {lacking} is not in this machine's cache and cannot be"
        ):
            read_weights(f"hf://owner/{repository}")
    online(monkeypatch, cache)
    with pytest.raises(UserError, match=r"hf://owner/weights: has no config\.json"):
        read_weights("hf://owner/weights")
    with pytest.raises(UserError, match=r"hf://owner/config: has config\.json but none of model\.safetensors"):
        read_weights("hf://owner/config")


def test_a_pickle_is_taken_where_there_is_nothing_else(cache, tmp_path, monkeypatch):
    contents = folder_contents(tmp_path)
    put(cache, "owner/old", {"config.json": contents["config.json"], "pytorch_model.bin": b"a pickle"})
    assert (hub.fetch("hf://owner/old") / "pytorch_model.bin").is_file()  # without a network
    online(monkeypatch, cache)
    assert (hub.fetch("hf://owner/old") / "pytorch_model.bin").is_file()


def shards(tmp_path):
    """The contents of a repository whose weights are in two files."""
    contents = folder_contents(tmp_path)
    tensors, _ = files.read_tensors(tmp_path / "made" / "model.safetensors")
    places = {name: f"model-0000{i % 2 + 1}-of-00002.safetensors" for i, name in enumerate(sorted(tensors))}
    for file in set(places.values()):
        part = [(name, tensors[name]) for name in tensors if places[name] == file]
        files.write_safetensors(tmp_path / file, part, {})
        contents[file] = (tmp_path / file).read_bytes()
    del contents["model.safetensors"]
    return contents | {"model.safetensors.index.json": json.dumps({"weight_map": places}).encode()}


def test_a_repository_of_several_files(cache, tmp_path, monkeypatch):
    contents = shards(tmp_path)
    place = put(cache, "owner/large", contents)
    assert_same_arrays(sample(TINY, image_size=10).variables, read_weights("hf://owner/large").variables)
    online(monkeypatch, cache)
    assert_same_arrays(sample(TINY, image_size=10).variables, read_weights("hf://owner/large").variables)
    second = place / "snapshots" / COMMIT / "model-00002-of-00002.safetensors"
    blob = second.resolve()
    second.unlink()
    with pytest.raises(UserError, match=rf"hf://owner/large: has model\S*\.json but not {second.name}, which it names"):
        read_weights("hf://owner/large")
    second.symlink_to(blob)
    blob.write_bytes(b"other")
    with pytest.raises(UserError, match="is not what was published"):
        read_weights("hf://owner/large")


@pytest.mark.parametrize(
    ("repository", "imagenet"),
    [
        (REPOSITORY, True),
        (f"timm/{TINY}.fb_in22k_ft_in1k", True),
        (f"timm/{TINY}.of_my_birds", False),
        ("timm/swin_tiny.ms_in1k", False),
        (f"owner/{TINY}.fb_in1k", False),
    ],
)
def test_a_thousand_classes_without_names_are_imagenets_where_timm_published_them(
    cache, tmp_path, request, repository, imagenet
):
    request.getfixturevalue("small")
    config = json.dumps({"architecture": TINY, "num_classes": 1000}).encode()
    content = file_content(tmp_path, sample(TINY, image_size=20, num_classes=1000))
    put(cache, repository, {"config.json": config, "model.safetensors": content})
    for revision in ("", "@main"):
        assert read_weights(f"hf://{repository}{revision}").card.class_names == (WNIDS if imagenet else ())


@pytest.mark.usefixtures("small")
class TestPretrained:
    """With the registry's networks made small."""

    def test_a_thousand_classes_are_imagenets(self, cache, tmp_path):
        for classes, names in ((1000, WNIDS), (999, ())):
            weights = sample(TINY, image_size=20, num_classes=classes)
            own = tmp_path / "home" / "deit_jax" / "weights"
            own.mkdir(parents=True, exist_ok=True)
            bare(own / f"{TINY}.safetensors", weights)
            assert read_weights("pretrained", model=TINY).card.class_names == names

    """With the registry's networks made small."""

    @pytest.mark.parametrize("revision", ["main", REVISION])
    def test_from_the_hubs_cache(self, cache, tmp_path, caplog, revision):
        weights = sample(TINY, image_size=20)
        put(cache, REPOSITORY, {"model.safetensors": file_content(tmp_path, weights)}, revision=revision)
        found = read_weights("pretrained", model=TINY)
        assert ("its main branch is cached" in caplog.text) == (revision == "main")
        assert_same_arrays(weights.variables, found.variables)
        assert (found.card.model, found.card.preprocessing) == (TINY, entry(TINY).preprocessing)

    def test_by_create_model(self, cache, tmp_path):
        weights = sample(TINY, image_size=20)
        put(cache, REPOSITORY, {"model.safetensors": file_content(tmp_path, weights)})
        model = deit_jax.create_model(TINY, rngs=nnx.Rngs(0), pretrained=True, num_classes=7, image_size=10)
        fresh = flatten(deit_jax.create_model(TINY, rngs=nnx.Rngs(0), num_classes=7, image_size=10))
        resized, same = ["pos_embed"], flatten(model)
        for path, value in weights.variables.items():
            if path.startswith("head."):
                np.testing.assert_array_equal(same[path], fresh[path])
            elif path not in resized:
                np.testing.assert_array_equal(same[path], value.astype(np.float32))
        assert same["pos_embed"].shape == (1, 5, 6)

    def test_from_the_users_own_folder(self, tmp_path):
        own = tmp_path / "home" / "deit_jax" / "weights"
        own.mkdir(parents=True)
        weights = sample(TINY, image_size=20)
        bare(own / f"{TINY}.safetensors", weights)
        assert hub.pretrained(TINY) == own / f"{TINY}.safetensors"
        assert_same_arrays(weights.variables, read_weights("pretrained", model=TINY).variables)

    def test_of_a_repository_of_which_another_file_is_cached(self, cache, monkeypatch):
        put(cache, REPOSITORY, {"config.json": b"{}"})
        with pytest.raises(UserError, match=r"model\.safetensors is not in this machine's cache and cannot be fetched"):
            read_weights("pretrained", model=TINY)
        online(monkeypatch, cache)
        with pytest.raises(UserError, match=rf"hf://{REPOSITORY}: has no model\.safetensors any more; put its file"):
            read_weights("pretrained", model=TINY)

    def test_a_changed_blob_is_refused(self, cache, tmp_path):
        place = put(cache, REPOSITORY, {"model.safetensors": file_content(tmp_path, sample(TINY))})
        next((place / "blobs").iterdir()).write_bytes(b"other")
        with pytest.raises(UserError, match="is not what was published"):
            read_weights("pretrained", model=TINY)


def test_facebooks_own_file_has_to_have_the_hash_in_its_name(tmp_path):
    own = tmp_path / "home" / "deit_jax" / "weights"
    own.mkdir(parents=True)
    file = own / entry(TINY).pretrained.checkpoint
    file.write_bytes(b"something else")
    with pytest.raises(
        UserError, match=rf"{file.name}: is not what was published: its SHA-256 begins .*, not a1311bcf"
    ):
        hub.pretrained(TINY)


def test_the_hash_of_facebooks_file_is_that_of_its_first_digits(tmp_path, monkeypatch):
    content = b"as published"
    name = f"x-{hashlib.sha256(content).hexdigest()[:8]}.pth"
    (tmp_path / name).write_bytes(content)
    hub._check_digest(tmp_path / name, name.rpartition("-")[2].removesuffix(".pth"))


def test_without_network_it_says_what_to_put_where(tmp_path):
    own = tmp_path / "home" / "deit_jax" / "weights"
    message = (
        rf"hf://{REPOSITORY}@{REVISION}: model\.safetensors is not in this machine's cache .*; connect to the "
        rf"network, or put its file model\.safetensors as {TINY}\.safetensors, or the authors' {TINY}-a1311bcf\.pth, "
        rf"into {own}"
    )
    with pytest.raises(UserError, match=message) as error:
        deit_jax.create_model(TINY, rngs=nnx.Rngs(0), pretrained=True)
    assert "\n" not in str(error.value)


def test_the_folder_follows_the_environment(tmp_path, monkeypatch):
    assert hub.own_folder() == tmp_path / "home" / "deit_jax" / "weights"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert hub.own_folder() == tmp_path / ".cache" / "deit_jax" / "weights"


def test_timms_repository_on_the_hub(cache, tmp_path, request):
    request.getfixturevalue("small")
    config = {"architecture": f"{TINY}.fb_in1k", "num_classes": 3}
    weights = sample(TINY, image_size=20)
    content = file_content(tmp_path, weights)
    put(cache, "timm/x", {"config.json": json.dumps(config).encode(), "model.safetensors": content})
    assert read_weights("hf://timm/x").card.model == TINY
    assert tables.TIMM.names("norm.scale") == ("norm.weight",)
