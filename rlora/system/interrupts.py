"""SIGINT and SIGTERM as one exception, raised between writes; a second signal ends the process at once."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupted(KeyboardInterrupt):
    """A signal asked the run to end; `code` is the conventional exit status, 128 + its number."""

    def __init__(self, number: int):
        """Name the signal by its number."""
        super().__init__(signal.Signals(number).name)
        self.code = 128 + number


class Interrupts:
    """While it is entered, the first SIGINT or SIGTERM raises Interrupted, and after a write rather than within it."""

    def __init__(self) -> None:
        """Install nothing yet."""
        self._pending: int | None = None
        self._is_writing = False
        self._previous: dict[int, object] = {}

    def __enter__(self) -> "Interrupts":
        """Take over the signals; only a main thread can, elsewhere they stay as they are."""
        if threading.current_thread() is threading.main_thread():
            self._previous = {number: signal.signal(number, self._on_signal) for number in _SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        """Give the signals back."""
        for number, handler in self._previous.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    @contextmanager
    def held_back(self) -> Iterator[None]:
        """Finish the block before a signal is raised."""
        self._is_writing = True
        try:
            yield
        finally:
            self._is_writing = False
        if self._pending is not None:
            raise Interrupted(self._pending)

    def _on_signal(self, number: int, _frame: FrameType | None) -> None:
        for each in _SIGNALS:
            signal.signal(each, signal.SIG_DFL)  # the second one ends the process
        self._pending = number
        if not self._is_writing:
            raise Interrupted(number)
