"""JSON of others: what comes back, and the line about what does not."""

import json
import os

import pytest

from deit_jax.base.errors import UserError
from deit_jax.base.forms import MAX_BYTES, MAX_DEPTH, parse_json, read_json

DEEP = 100_000
BAD = {
    "empty": (b"", "is no JSON: Expecting value: line 1 column 1"),
    "torn": (b'{"a": 1', "is no JSON: Expecting ',' delimiter"),
    "two": (b"{} {}", "is no JSON: Extra data"),
    "not text": (b'{"a": "\xff"}', "is no UTF-8: invalid start byte at byte 7"),
    "a list": (b"[1]", "is no JSON object"),
    "null": (b"null", "is no JSON object"),
    "deep lists": (b"[" * DEEP + b"]" * DEEP, "is nested more than 32 deep"),
    "deep objects": (b'{"a":' * DEEP + b"1" + b"}" * DEEP, "is nested more than 32 deep"),
    "a little too deep": (b'{"a":' * 33 + b"1" + b"}" * 33, "is nested more than 32 deep"),
    "twice": (b'{"x": {"a": 1, "b": 2, "b": 2}}', "has b twice"),
    "NaN": (b'{"a": NaN}', "has the number NaN, which is not finite"),
    "-Infinity": (b'{"a": [-Infinity]}', "has the number -Infinity, which is not finite"),
    "a float without end": (b'{"a": 1e999}', "has the number 1e999, which is not finite"),
    "a whole number without end": (b'{"a": ' + b"9" * 5000 + b"}", "has a number of 5000 digits"),
    "long": (b'{"a": "' + b" " * MAX_BYTES + b'"}', "is longer than 32,000,000 bytes"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_no_object_is_one_line_with_the_mend(tmp_path, name):
    content, reason = BAD[name]
    (tmp_path / "x.json").write_bytes(content)
    with pytest.raises(UserError) as error:
        read_json(tmp_path / "x.json", dict, mend="remove it")
    assert str(error.value).startswith(f"{tmp_path}/x.json: {reason}")
    assert str(error.value).endswith("; remove it")
    assert len(str(error.value)) < 300


def test_what_is_there_comes_back(tmp_path):
    deepest = json.loads('{"a":' * MAX_DEPTH + "1" + "}" * MAX_DEPTH)
    for content in ({}, {"a": [1, -2.5, None, True, "é", {}], "b": 10**18 - 1}, deepest):
        (tmp_path / "x.json").write_text(json.dumps(content))
        assert read_json(tmp_path / "x.json", dict) == content
        (tmp_path / "x.json").write_text("\ufeff" + json.dumps(content, ensure_ascii=False), encoding="utf-8")
        assert read_json(tmp_path / "x.json", dict) == content  # as some editors save it
    assert parse_json("[1]") == [1] == parse_json(b"[1]")


def test_what_is_no_file_is_told(tmp_path):
    with pytest.raises(UserError, match=r"none\.json: cannot be read: No such file or directory; fetch it anew$"):
        read_json(tmp_path / "none.json", dict)
    with pytest.raises(UserError, match=r"is no regular file"):
        read_json(tmp_path, dict)
    os.mkfifo(tmp_path / "pipe.json")
    with pytest.raises(UserError, match=r"pipe\.json: is no regular file"):
        read_json(tmp_path / "pipe.json", list)
