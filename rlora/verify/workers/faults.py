"""Exceptions that judging ended in: counted by type and line, and each said once."""

import logging
import threading
import traceback
from collections import Counter
from pathlib import Path

_LOG = logging.getLogger(__name__)
_PACKAGE = Path(__file__).parent.parent  # the verifier's
_SHOWN = 100  # characters
RAISED = "judging raised"  # how the step of an exception begins


class Fault(str):
    """An exception as it is counted: its type and the line of the verifier that it passed last."""


def described(error: Exception) -> Fault:
    """Return an exception as it is counted: enough to tell a bug from data."""
    frames = traceback.extract_tb(error.__traceback__)
    last = ([frame for frame in frames if Path(frame.filename).is_relative_to(_PACKAGE)] or frames)[-1]
    return Fault(f"{type(error).__name__} in {Path(last.filename).name}:{last.lineno}")


class Faults:
    """The exceptions of one verifier, in its workers and in the caller's process; usable from any thread."""

    def __init__(self) -> None:
        """Start with none."""
        self.counts: Counter[str] = Counter()
        self._lock = threading.Lock()

    def add(self, error: str, answer: str, gold: str) -> None:
        """Count an exception, as `described`, and log the first of its kind with the end of the texts it came from."""
        with self._lock:
            self.counts[error] += 1
            if self.counts[error] > 1:
                return
        _LOG.warning(
            "judging %r by the gold %r raised %s: UNPARSED; if that is no broken formula, it is a bug of the "
            "verifier (said once for each kind; Verifier.errors counts them)",
            answer[-_SHOWN:],
            gold[-_SHOWN:],
            error,
        )
