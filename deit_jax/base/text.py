"""Text of others' making, such as the names of their classes and files, made fit to be shown."""

import re

# Control characters, with which a terminal can be told to do things; what turns the direction of writing; surrogates,
# by which Python stands for bytes that are no UTF-8.
_UNFIT = re.compile("[\0-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def printable(text: str) -> str:
    r"""The text with what cannot or should not reach a terminal escaped: `\n`, `\x1b`, `\udcff`."""
    return _UNFIT.sub(lambda sign: ascii(sign[0])[1:-1], text)


def shortened(text: str, length: int) -> str:
    """The text, or where it is longer than `length` characters its beginning and its end."""
    if len(text) <= length:
        return text
    head = length // 2
    return f"{text[:head]}…{text[len(text) - (length - head - 1) :]}"
