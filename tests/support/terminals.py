"""A terminal that a test writes to and reads."""

import os
import pty
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO


class Terminal:
    """What was written to a terminal of 80 columns; `stream` is its end for writing."""

    def __init__(self, stream: IO[str]):
        self.stream, self._pieces = stream, list[bytes]()

    @property
    def text(self) -> str:
        """All that was drawn, one after the other, without the codes that move the cursor."""
        written = b"".join(self._pieces).decode(errors="replace")
        return re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", written).replace("\r", "\n")


@contextmanager
def terminal(monkeypatch) -> Iterator[Terminal]:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "80")
    master, slave = pty.openpty()
    with os.fdopen(slave, "w", buffering=1) as stream:
        found = Terminal(stream)

        def read() -> None:
            while True:
                try:
                    piece = os.read(master, 65536)
                except OSError:  # the other end is closed
                    return
                found._pieces.append(piece)

        reader = threading.Thread(target=read)
        reader.start()
        yield found
    reader.join(20)
    os.close(master)
