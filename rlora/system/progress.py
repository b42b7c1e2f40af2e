"""How far a piece of work is: who does it counts, who has a screen draws, and neither knows the other.

    with counting("completions", 64) as count:   # a sampler
        count.add(8, tokens=512)

    with watching() as watch:                    # a display, around all of it
        watch.text()                             # "8/64 completions, 512 tokens/s, left 0:07"

To count is to add to a number. What is drawn is read from there by the display's own thread, a few times a second,
so counting costs next to nothing and can fail at nothing. A thread of its own, as each member of a cohort has,
has a display of its own or none.
"""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from rlora.text import clock


class Count:
    """How much of a piece of work is done; any thread may add to it."""

    def __init__(self, unit: str, total: int):
        """Start at none of `total` things, which are called `unit`."""
        self.unit, self.total, self.done, self.tokens = unit, total, 0, 0
        self._since, self._lock = time.monotonic(), threading.Lock()

    def add(self, done: int = 1, *, tokens: int = 0) -> None:
        """Count what was finished since, and the tokens that were made."""
        with self._lock:
            self.done += done
            self.tokens += tokens

    def text(self) -> str:
        """Return it in words: done and total, tokens a second where tokens are made, the time left once it is known."""
        seconds, parts = time.monotonic() - self._since, [f"{self.done}/{self.total} {self.unit}"]
        if self.tokens and seconds > 0:
            parts.append(f"{self.tokens / seconds:.0f} tokens/s")
        if 0 < self.done < self.total:
            parts.append(f"left {clock(seconds * (self.total - self.done) / self.done)}")
        return ", ".join(parts)


class Watch:
    """What is being counted now, for a display."""

    def __init__(self) -> None:
        """See nothing yet."""
        self.counts: list[Count] = []

    def text(self) -> str:
        """Return how far the innermost piece of work is; "" where none is counted."""
        counts = tuple(self.counts)  # the thread that counts may end a piece meanwhile
        return counts[-1].text() if counts else ""


_watch: ContextVar[Watch | None] = ContextVar("watch", default=None)
_unit: ContextVar[str] = ContextVar("unit", default="")


@contextmanager
def watching(watch: Watch | None = None) -> Iterator[Watch]:
    """Let what this thread counts within the block be seen by `watch`, a new one when left out, and by it alone."""
    watch, before = watch or Watch(), _watch.get()
    _watch.set(watch)
    try:
        yield watch
    finally:
        _watch.set(before)


@contextmanager
def counting(unit: str, total: int) -> Iterator[Count]:
    """Count a piece of work of `total` things while the block runs; where nobody watches, for nobody."""
    count, watch = Count(_unit.get() or unit, total), _watch.get()
    if watch is None:
        yield count
        return
    watch.counts.append(count)
    try:
        yield count
    finally:
        watch.counts.remove(count)


@contextmanager
def counted_as(unit: str) -> Iterator[None]:
    """Call what is counted within the block by another name: an evaluation's completions are its problems."""
    before = _unit.get()
    _unit.set(unit)
    try:
        yield
    finally:
        _unit.set(before)
