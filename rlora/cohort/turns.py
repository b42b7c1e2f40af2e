"""Threads that compute one at a time, so that each can be written as if it were alone.

A member of a cohort is the loop itself, in a thread. It computes until it asks for something that is better answered
for all at once, and waits there while the others compute. Nothing is computed at the same time, so nothing has to be
locked, and the order is always the same.
"""

import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Literal


class SentAway(BaseException):
    """Raised where a member waits, when the cohort ends before it: it unwinds as after a signal."""


class Turn:
    """One member's thread. `question` is what it waits for; None while it computes, and once it has ended.

    Example:
        >>> turn = Turn("a", lambda turn: turn.ask("how many?") + 1)
        >>> turn.go_on()  # until it asks
        >>> turn.question
        'how many?'
        >>> turn.go_on(41)
        >>> turn.result()
        42
    """

    def __init__(self, name: str, work: Callable[["Turn"], Any]):
        """Let `work` compute in a thread of its own, which starts at the first `go_on`."""
        self.name, self.question = name, None
        self._work, self._result, self._error, self._answer = work, None, None, None
        self._state: Literal["new", "computing", "waiting", "ended"] = "new"
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    @property
    def has_ended(self) -> bool:
        """Whether the work has returned or raised."""
        return self._state == "ended"

    def _run(self) -> None:
        try:
            self._result = self._work(self)
        except BaseException as error:  # it is for the caller of `result`
            self._error = error
        self._enter("ended")

    def _enter(self, state: Literal["computing", "waiting", "ended"]) -> None:
        with self._changed:
            self._state = state
            self._changed.notify_all()

    def ask(self, question: Any) -> Any:
        """In the thread: wait for an answer while others compute, and return it."""
        self.question = question
        self._enter("waiting")
        with self._changed:
            self._changed.wait_for(lambda: self._state == "computing")
        answer, self.question, self._answer = self._answer, None, None
        if isinstance(answer, BaseException):
            raise answer
        return answer

    def go_on(self, answer: Any = None) -> None:
        """In the caller: let the thread compute until it asks or ends; an exception as the answer is raised in it.

        A signal's exception may leave this while the thread computes; `end` waits for it.
        """
        is_new, self._answer = self._state == "new", answer
        self._enter("computing")
        if is_new:
            self._thread.start()
        self._wait()

    def _wait(self) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self._state != "computing")

    def end(self) -> None:
        """In the caller: have the thread unwind, wherever it is, and wait until it has."""
        if self._state == "new":
            self._state = "ended"
            return
        self._wait()
        while not self.has_ended:
            self.go_on(SentAway())
        self._thread.join()

    def result(self) -> Any:
        """Return what the work returned, or raise what it raised."""
        if self._error is not None:
            raise self._error
        return self._result


def end_all(turns: list[Turn]) -> None:
    """End every thread; what they raise while they unwind is lost to the exception that ends them."""
    for turn in turns:
        with suppress(Exception):
            turn.end()
