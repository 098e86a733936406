"""Writing whole or not at all."""

import os
import stat

import pytest

from deit_jax.base.atomic import replacing


def names(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def test_a_file_takes_the_place_of_another_when_it_is_whole(tmp_path):
    path = tmp_path / "new" / "f.txt"
    for text in ("first", "second"):
        with replacing(path) as fresh:
            fresh.write_text(text)
            assert path.read_text() == "first" if text == "second" else not path.exists()
        assert path.read_text() == text
    assert names(tmp_path) == ["new", "new/f.txt"]


def test_a_folder_takes_the_place_of_none_or_of_an_empty_one(tmp_path):
    (tmp_path / "empty").mkdir()
    for name in ("none", "empty"):
        with replacing(tmp_path / name) as fresh:
            fresh.mkdir()
            (fresh / "f").touch()
    assert names(tmp_path) == ["empty", "empty/f", "none", "none/f"]
    with pytest.raises(OSError, match="none") as error, replacing(tmp_path / "none") as fresh:
        fresh.mkdir()
    assert error.value.filename == str(tmp_path / "none")
    assert names(tmp_path) == ["empty", "empty/f", "none", "none/f"]


def fail(path, *, folder, error):
    with replacing(path) as fresh:
        if folder:
            fresh.mkdir()
        (fresh / "inner" if folder else fresh).write_text("half")
        raise error


@pytest.mark.parametrize("error", [ValueError("x"), OSError("x"), KeyboardInterrupt()])
@pytest.mark.parametrize("folder", [True, False])
def test_what_fails_leaves_nothing(tmp_path, error, folder):
    (tmp_path / "f").write_text("before")
    with pytest.raises(type(error)):
        fail(tmp_path / "f", folder=folder, error=error)
    assert [path.read_text() for path in tmp_path.iterdir()] == ["before"]


def test_errors_name_what_should_have_been_written(tmp_path):
    (tmp_path / "file").touch()
    for path in (tmp_path / "file" / "f", tmp_path / "f"):
        with pytest.raises(OSError, match=r"/f'$") as error, replacing(path) as fresh:
            (fresh / "missing" / "inner").touch()
        assert error.value.filename == str(path)
        assert str(os.getpid()) not in str(error.value)
    assert names(tmp_path) == ["file"]


def test_modes_are_those_of_any_new_file(tmp_path):
    before = os.umask(0o027)
    try:
        with replacing(tmp_path / "f") as fresh:
            fresh.touch()
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "f").stat().st_mode) == 0o640
