"""Places of this machine and in buckets: how they are named, what is copied when, and that no call waits for ever."""

import errno
import os
import threading
import time
from pathlib import Path

import pytest
from emulator import proxy

from deit_jax.base import buckets, storage
from deit_jax.base.atomic import replacing
from deit_jax.base.errors import OutOfReach, TryAgain, UserError
from deit_jax.base.storage import COMMITTED, copy_whole, here, is_bucket, is_step, named, place, tensorstore, told


@pytest.mark.parametrize(
    "given", ["gs://", "gs://a", "gs://a/", "gs:///a", "gs://a//b", "gs://a/./b", "gs://a/../b", "gs:/a/b"]
)
def test_what_names_no_place_in_a_bucket(given):
    with pytest.raises(UserError, match=r"^--x: \S+ names no place in a bucket; write gs://bucket/name$"):
        place(given, "--x")


@pytest.mark.parametrize("scheme", ["s3", "http", "https", "az", "hf", "file"])
def test_other_schemes_get_a_line_that_says_what_is_read(scheme):
    line = rf"^--x: {scheme}://a/b is a URL of {scheme}, which is not read; name a folder .* as gs://bucket/name$"
    for way in (place, named):
        with pytest.raises(UserError, match=line):
            way(f"{scheme}://a/b", "--x")


def test_places_keep_their_kind(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert place("a/b", "") == tmp_path / "a" / "b"
    assert named("a/b", "") == Path("a/b")
    there = place("gs://bucket/a/b c/", "")
    assert (there.bucket, there.key, str(there)) == ("bucket", "a/b c", "gs://bucket/a/b c")
    for other in (there / "d", there.parent, there.with_name("e"), there.absolute(), there.expanduser()):
        assert is_bucket(other)
        assert str(other).startswith("gs://bucket/a")
    assert not is_bucket(tmp_path)
    assert tensorstore(there) == {"driver": "gcs", "bucket": "bucket", "path": "a/b c"}
    assert tensorstore(tmp_path) == {"driver": "file", "path": str(tmp_path)}


def test_without_gcsfs_a_line_says_what_to_install(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "deit_jax.base.buckets", None)
    with pytest.raises(UserError, match=r"^--x: gs://a/b: .* pip install 'deit_jax\[gcs\]'"):
        place("gs://a/b", "--x")


def test_files_and_folders_come_and_go_whole(bucket, tmp_path):
    root = place(bucket, "")
    for text in ("first", "second"):
        with replacing(root / "f.txt") as fresh:
            fresh.write_text(text)
            assert (root / "f.txt").exists() == (text == "second")
        assert (root / "f.txt").read_bytes() == text.encode()
    with pytest.raises(ZeroDivisionError), replacing(root / "f.txt") as fresh:
        fresh.write_text("half" * (1 // 0))
    assert (root / "f.txt").read_bytes() == b"second"
    with replacing(root / "folder") as fresh:
        (fresh / "deep").mkdir(parents=True)
        (fresh / "deep" / "empty").touch()
        (fresh / "a").write_text("a")
    with here(root) as copy:
        found = {str(path.relative_to(copy)): path.read_text() for path in copy.rglob("*") if path.is_file()}
    assert found == {"f.txt": "second", "folder/deep/empty": "", "folder/a": "a"}
    assert not copy.exists()
    with here(root / "f.txt") as copy:
        assert copy.read_text() == "second"
    with here(tmp_path) as same:
        assert same == tmp_path


def test_what_says_that_all_is_there_comes_last(bucket, tmp_path, monkeypatch):
    for name in (f"3/{COMMITTED}", f"3/state/{COMMITTED}", "3/state/z", "3/meta/a", "z"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    stored = []
    monkeypatch.setattr(buckets.BucketPath, "store", lambda self, file: stored.append(str(self.relative_to(bucket))))
    copy_whole(tmp_path, place(bucket, ""))
    assert sorted(stored[:3]) == ["3/meta/a", "3/state/z", "z"]
    assert stored[3:] == [f"3/state/{COMMITTED}", f"3/{COMMITTED}"]


def test_names_of_steps():
    assert [
        name for name in ("0", "10", "2147483647", "01", "-1", "1_0", "٣", "²", "", "9" * 5000) if is_step(name)
    ] == [*("0", "10", "2147483647")]


def test_scratch_of_dead_processes_is_removed(tmp_path, monkeypatch):
    monkeypatch.setattr(storage.tempfile, "tempdir", str(tmp_path))
    live = storage.scratch()
    left, young, other = (
        tmp_path / name for name in (f"{storage.SCRATCH}left", f"{storage.SCRATCH}young", "deit_jax-of_mine")
    )
    for folder in (left, young, other):
        folder.mkdir()
        (folder / "metrics.jsonl").touch()
    (tmp_path / f"{storage.SCRATCH}link").symlink_to(other)
    for folder in (live, left, other):
        os.utime(folder, (0, 0))
    new = storage.scratch()
    assert {*tmp_path.iterdir()} == {live, young, other, new, tmp_path / f"{storage.SCRATCH}link"}
    assert (other / "metrics.jsonl").exists()


def test_of_two_writers_of_a_new_name_one_is_first(bucket):
    name = place(f"{bucket}/new", "")
    name.write_new(b"one")
    with pytest.raises(FileExistsError):
        name.write_new(b"two")
    assert name.read_bytes() == b"one"


def test_what_is_not_there_is_an_error_of_the_systems(bucket):
    for there in (place(f"{bucket}/nothing", ""), place("gs://no-such-bucket/x", "")):
        assert not there.exists()
        for call in (there.read_bytes, there.stat, lambda there=there: list(there.iterdir())):
            with pytest.raises(FileNotFoundError) as error:
                call()
            assert (error.value.errno, error.value.filename) == (errno.ENOENT, str(there))
            assert ("bucket" in told(error.value, there)) == ("no-such-bucket" in str(there))
    there.mkdir(parents=True)  # which makes no bucket
    with pytest.raises(FileNotFoundError) as error:
        there.write_bytes(b"x")
    assert told(error.value, there) == (
        "there is no bucket gs://no-such-bucket; make it (gcloud storage buckets create gs://no-such-bucket), or name "
        "another"
    )


def test_a_bucket_that_cannot_be_asked_is_not_taken_for_an_empty_one(bucket, monkeypatch):
    async def fail(*arguments, **options):
        raise buckets.aiohttp.ClientOSError(errno.ECONNREFUSED, "refused")

    there = place(bucket, "")
    there.write_bytes(b"x")
    monkeypatch.setattr(buckets.gcsfs.GCSFileSystem, "_call", fail)
    for call in (there.exists, there.is_dir, there.is_file, there.entries, there.files, lambda: list(there.iterdir())):
        with pytest.raises(OutOfReach, match="refused"):
            call()


def test_a_call_that_does_not_end_is_left_alone(monkeypatch):
    monkeypatch.setattr(buckets, "PATIENCE", 0.2)
    with pytest.raises(TryAgain, match=r"^gs://a/b: no answer within 0 seconds; the same command goes on when the bu"):
        buckets.within(threading.Event().wait, "gs://a/b")
    # What moves much data has more time.
    assert buckets.within(lambda: time.sleep(0.5) or 7, "gs://a/b", nbytes=int(5 * buckets.SPEED)) == 7


def test_all_ways_to_read_and_write_have_a_deadline(bucket, monkeypatch):
    there = place(f"{bucket}/text", "")
    assert there.write_text("übung") == 5
    assert (there.read_text(), there.read_bytes()) == ("übung", "übung".encode())
    with pytest.raises(NotImplementedError, match="no open files in buckets"):
        there.open("rb")
    monkeypatch.setattr(buckets, "PATIENCE", 0.2)
    with proxy() as server:
        monkeypatch.setattr(buckets.backend.fsspec_backend.fs(there), "_endpoint", server.url)
        server.silent.set()
        for call in (lambda: there.write_text(""), there.read_text, lambda: there.write_bytes(b""), there.exists):
            with pytest.raises(OutOfReach, match="no answer within"):
                call()


def http_error(code):
    return buckets.gcsfs.retry.HttpError({"code": code, "message": "said so"})


def refresh_error(cause=None, **options):
    error = buckets.auth.RefreshError(cause or "no", **options)
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (refresh_error(), PermissionError),
        (refresh_error(buckets.auth.TransportError("no metadata server")), OutOfReach),
        (refresh_error(retryable=True), OutOfReach),
        (TimeoutError(), OutOfReach),
        (ConnectionResetError(errno.ECONNRESET, "reset"), OutOfReach),
        (http_error(503), OutOfReach),
        (http_error("429"), OutOfReach),
        (http_error(401), PermissionError),
        (OSError("Forbidden: https://x\nhas no storage.objects.list access"), PermissionError),
        (buckets.auth.DefaultCredentialsError("no"), PermissionError),
        (buckets.auth.TransportError("no"), OutOfReach),
        (buckets.aiohttp.ServerDisconnectedError(), OutOfReach),
        (ValueError('UNAVAILABLE: Error reading "gs://a/b"'), OutOfReach),
        (ValueError("PERMISSION_DENIED: no"), PermissionError),
        (ValueError("Bad Request: Invalid bucket name"), OSError),
        (ValueError("of another kind"), ValueError),
        (FileNotFoundError(errno.ENOENT, "of this machine", "file"), FileNotFoundError),
    ],
)
def test_errors_of_the_libraries_are_told_apart(error, kind):
    def fail():
        raise error

    with pytest.raises(kind) as known:
        buckets.within(fail, "gs://a/b")
    if kind is not OutOfReach and kind is not ValueError:
        assert known.value.strerror
    assert "\n" not in str(known.value)


def test_a_full_disk_has_a_mend_of_its_own(tmp_path):
    full, foreign = OSError(errno.ENOSPC, "No space left on device"), OSError(errno.EACCES, "Permission denied")
    assert told(full, tmp_path, "name another") == "No space left on device; make room"
    assert told(foreign, tmp_path, "name another") == "Permission denied; name another"
    assert told(foreign, tmp_path) == "Permission denied"
