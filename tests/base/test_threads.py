"""Reading many files at a time."""

import subprocess
import sys
import threading

import pytest

from deit_jax.base.threads import map_in_threads


def test_as_map() -> None:
    assert map_in_threads(3, lambda a, b: a * b, range(50), range(1, 51)) == [a * (a + 1) for a in range(50)]
    assert map_in_threads(2, str, []) == []


def test_so_many_at_a_time() -> None:
    together = threading.Barrier(5)
    assert sorted(map_in_threads(5, lambda _: together.wait(timeout=20), range(5))) == [0, 1, 2, 3, 4]


def test_an_exception_is_raised() -> None:
    with pytest.raises(ZeroDivisionError):
        map_in_threads(2, lambda x: 1 // x, [1, 0, 1])


HANGS = """
import os, signal, threading
from deit_jax.base.threads import map_in_threads

signal.signal(signal.SIGINT, signal.default_int_handler)  # which a shell's background ignores

def read(number):
    if number == 3:
        threading.Timer(0.2, lambda: os.kill(os.getpid(), signal.SIGINT)).start()
        threading.Event().wait()

try:
    map_in_threads(2, read, range(8))
except KeyboardInterrupt:
    print("left", flush=True)
    os._exit(7)
"""


def test_a_read_that_hangs_keeps_no_signal_waiting() -> None:
    ended = subprocess.run([sys.executable, "-c", HANGS], capture_output=True, text=True, timeout=60)
    assert (ended.stdout, ended.returncode) == ("left\n", 7)
