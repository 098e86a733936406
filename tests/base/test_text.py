"""Others' text: nothing of it reaches a terminal as a command, and everything else as it is."""

import os

import pytest

from deit_jax.base.text import printable, shortened


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("Straße, 熊, café, e\u0301, 👩\u200d🔬, \xa0\u3000", None),
        ("a\x1b[2J\x1b]0;title\x07b", r"a\x1b[2J\x1b]0;title\x07b"),
        ("a\nb\rc\td\0", r"a\nb\rc\td\x00"),
        ("\x7f\x85\x9b31m", r"\x7f\x85\x9b31m"),
        ("gpj.\u202eexe\u2066\u2028", r"gpj.\u202eexe\u2066\u2028"),
        (os.fsdecode(b"Stra\xdfe"), r"Stra\udcdfe"),
        (r"C:\new", None),
    ],
)
def test_what_no_terminal_should_see_is_escaped(text, shown):
    assert printable(text) == (text if shown is None else shown)
    printable(text).encode()


def test_long_text_keeps_its_beginning_and_its_end():
    assert shortened("abcdefghij", 10) == "abcdefghij"
    assert shortened("abcdefghijk", 10) == "abcde…hijk"
    assert shortened("abcdefghijk", 5) == "ab…jk"
