"""TensorBoard's event files, written by who calls.

tensorboardX has a `SummaryWriter`, too, which leaves writing to a thread; when the disk is full that ends, and the next
few calls wait for it for ever.
"""

import logging
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast


class Events:
    """A new event file in a folder, which is made.

    Args:
        step: of the run so far; what older files tell of later ones is void.
    """

    def __init__(self, folder: Path, *, step: int):
        self._where = folder
        self._file: Any = None
        try:
            folder.mkdir(exist_ok=True)
            # The suffix: files are named by the second, and one started within the same would replace the other.
            self._file = _library("event_file_writer").EventsWriter(str(folder / "events"), f".{step}")
            protocol = _library("proto.event_pb2")
            start = protocol.SessionLog(status=protocol.SessionLog.START)
            self._write(step=step + 1, session_log=start)
        except OSError as error:
            self._give_up(error)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Writes the values of a step, through to the disk; one that does not take them ends the file with a word."""
        if self._file:
            try:
                for name, value in values.items():
                    self._write(step=step, summary=_library("summary").scalar(name, value))
                self._file.flush()
            except OSError as error:
                self._give_up(error)

    def close(self) -> None:
        if self._file:
            try:
                self._file.close()
            except OSError as error:
                self._give_up(error)

    def _write(self, **content: Any) -> None:
        self._file.write_event(_library("proto.event_pb2").Event(wall_time=time.time(), **content))

    def _give_up(self, error: OSError) -> None:
        logging.warning("%s: %s; nothing more is written there", self._where, error.strerror)
        self._file = None


def _library(module: str) -> Any:
    """A module of tensorboardX, imported as if torch were not there: it would load it only to accept its tensors."""
    hidden = "torch" not in sys.modules
    if hidden:
        sys.modules["torch"] = cast(Any, None)
    try:
        return __import__(f"tensorboardX.{module}", fromlist=["*"])
    finally:
        if hidden:
            del sys.modules["torch"]
