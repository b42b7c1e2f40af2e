"""Who may write to the screen: rlora alone. What libraries write goes to a log, whichever way they write it.

Libraries speak through `logging`, `warnings`, progress bars, C code and processes of their own, which all end at the
descriptors 1 and 2, so those are what is diverted; `sys.stdout` and `sys.stderr` too, which need not lie on them (in a
notebook). A user's own functions are diverted with them: `--tracking.verbose True` lets all of it through.

    with Diversion() as diversion:
        diversion.keep_in(run_dir / "log.txt")
        with stage("Starting vLLM", usually="about a minute"):
            ...                     # says "Starting vLLM (about a minute) ... 41 s"; vLLM's own words are in log.txt
        say("step 1")               # the screen
        print("a library's line")   # log.txt
"""

import ctypes
import io
import logging
import os
import shlex
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any, TextIO, cast

from rlora.errors import EngineError, RloraError
from rlora.system.stages import Screen

LOG_FILE = "log.txt"
"""The log of a run, in its directory, and of an evaluation, in its output folder."""
_TAIL_LINES, _TAIL_BYTES = 8, 8192  # of a log, shown beside an error
_DESCRIPTORS = (1, 2)


class Diversion:
    """While it is entered, what is written to standard output and error goes to a log, and `screen` is the user's.

    The log is a temporary file until `keep_in` names one. At the end, by an exception too, all is as before. An error
    of the engine, and one that nobody foresaw, then has a note that names the log (`__notes__`; a traceback shows it).
    """

    def __init__(self, *, is_on: bool = True, is_quiet: bool = False):
        """Divert nothing yet; where it is not to be on, nothing ever is. The user's screen may be a quiet one."""
        self._is_on, self._is_quiet = is_on, is_quiet
        self.path: Path | None = None
        """The log, once it lies in a folder of the user's."""
        self._begin = 0  # of this start in the log
        self._saved: dict[int, int | None] = {}  # descriptor -> a copy of what it was; None where it was closed

    def __enter__(self) -> "Diversion":
        """Begin to divert, unless something is diverted already, which goes on."""
        self._is_on = self._is_on and _diversion() is None
        if not self._is_on:
            return self
        self._file: IO[bytes] = tempfile.TemporaryFile(buffering=0)  # closed at the end
        self._streams = (sys.stdout, sys.stderr)
        _flush()
        self._saved = {descriptor: _copy(descriptor) for descriptor in _DESCRIPTORS}
        self._users = tuple(map(self._users_stream, self._streams, _DESCRIPTORS))
        self.screen = Screen(self._users[1], is_quiet=self._is_quiet)
        for descriptor in _DESCRIPTORS:
            os.dup2(self._file.fileno(), descriptor)
        self._ours = tuple(_LogStream(descriptor, self) for descriptor in _DESCRIPTORS)
        self._divert_streams()
        return self

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        """Put everything back."""
        if not self._is_on:
            return
        self._is_on = False
        _flush()
        if isinstance(error, EngineError) or (isinstance(error, Exception) and not isinstance(error, RloraError)):
            error.add_note(self._note(with_lines=self.path is None or isinstance(error, EngineError)))
        self._put_streams_back()
        for descriptor, saved in self._saved.items():
            _put_back(descriptor, saved)
            if saved is not None:
                os.close(saved)
        for stream, before in zip(self._users, self._streams, strict=True):
            if stream is not before:
                with suppress(OSError):  # its reader has gone
                    stream.close()
        self._file.close()

    @property
    def output(self) -> TextIO:
        """The user's standard output."""
        return self._users[0] if self._is_on else sys.stdout

    def keep_in(self, path: Path) -> None:
        """Append to `path` from now on, below a line that says which start this is, what was said up to now first.

        A path that cannot be written is told on the screen and leaves the log where it was: it never ends a run.
        """
        if not self._is_on:
            return
        header = f"=== {datetime.now(UTC).isoformat(timespec='seconds')}  process {os.getpid()}: "
        header += shlex.join(sys.orig_argv)
        try:
            file = path.open("ab", buffering=0)
            self._begin = file.seek(0, os.SEEK_END)
            file.write(f"{header}\n".encode(errors="backslashreplace"))
        except OSError as error:
            self.screen.say(f"{path} cannot be written ({error.strerror}): what libraries say is not kept.")
            return
        _flush()
        self._file.seek(0)
        with suppress(OSError):  # a full disk, which is told where it matters
            file.write(self._file.read())
        for descriptor in _DESCRIPTORS:
            os.dup2(file.fileno(), descriptor)
        self._file.close()
        self._file, self.path = file, path
        self.screen.note(f"What libraries write goes to {path}.")

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Let a library that speaks to the user do so within the block."""
        if not self._is_on:
            yield
            return
        _flush()
        self._put_streams_back()
        for descriptor, saved in self._saved.items():
            _put_back(descriptor, saved)
        try:
            yield
        finally:
            _flush()
            for descriptor in _DESCRIPTORS:
                os.dup2(self._file.fileno(), descriptor)
            self._divert_streams()

    def _users_stream(self, stream: TextIO | None, descriptor: int) -> TextIO:
        """Return a stream that ends where `stream` did: itself, or one on the copy of the descriptor it lies on."""
        saved = self._saved[descriptor]
        if stream is None or saved is None:  # a process without a terminal, started with closed descriptors
            return open(os.devnull, "w")  # closed at the end
        try:
            lies_there = stream.fileno() == descriptor
        except (OSError, ValueError):  # a notebook's, a test's
            lies_there = False
        if not lies_there:
            return stream
        encoding = getattr(stream, "encoding", None) or "utf-8"
        return os.fdopen(os.dup(saved), "w", buffering=1, encoding=encoding, errors="backslashreplace")

    def _divert_streams(self) -> None:
        sys.stdout, sys.stderr = self._ours
        _move_handlers(dict(zip(self._streams, self._ours, strict=True)))

    def _put_streams_back(self) -> None:
        sys.stdout, sys.stderr = self._streams
        _move_handlers(dict(zip(self._ours, self._streams, strict=True)))

    def _note(self, *, with_lines: bool) -> str:
        where = f"What the libraries said is in {self.path}" if self.path else "What the libraries said"
        lines = self._last_lines() if with_lines else []
        return f"{where}; it ends with\n" + "\n".join(f"  {line}" for line in lines) if lines else f"{where}."

    def _last_lines(self) -> list[str]:
        """Return the last lines of this start; of a progress bar the last state."""
        try:
            with nullcontext(self._file) if self.path is None else self.path.open("rb") as file:
                end = file.seek(0, os.SEEK_END)
                file.seek(max(self._begin, end - _TAIL_BYTES))
                text = file.read().decode(errors="replace")
        except OSError:
            return []
        lines = [line.rsplit("\r", 1)[-1].rstrip() for line in text.replace("\r\n", "\n").split("\n")]
        return [line for line in lines if line and not line.startswith("=== ")][-_TAIL_LINES:]


class _LogStream(io.TextIOWrapper):
    """Text straight to a diverted descriptor, and by which others find the diversion."""

    def __init__(self, descriptor: int, diversion: Diversion):
        raw = _Unfailing(descriptor, "w", closefd=False)
        super().__init__(cast(Any, raw), encoding="utf-8", errors="backslashreplace", write_through=True)
        self.diversion = diversion


class _Unfailing(io.FileIO):
    """A file whose full disk is nobody's concern: whoever writes to the log is a bystander."""

    def write(self, data: Any, /) -> int:
        try:
            return super().write(data)
        except OSError:
            return len(data)


def _diversion() -> Diversion | None:
    return sys.stderr.diversion if isinstance(sys.stderr, _LogStream) else None


def screen() -> Screen:
    """Return the user's screen: what a diversion left of it, or else standard error."""
    diversion = _diversion()
    return Screen(sys.stderr, is_alone=False) if diversion is None else diversion.screen


def say(text: str) -> None:
    """Print a line of rlora's own to the user's screen, diverted or not."""
    screen().say(text)


def note(text: str) -> None:
    """Print a line of rlora's own that a quiet screen leaves out."""
    screen().note(text)


@contextmanager
def stage(title: str, *, usually: str = "") -> Iterator[None]:
    """Say on the user's screen that the block runs and how long it took: `Screen.stage`."""
    with screen().stage(title, usually=usually):
        yield


@contextmanager
def spoken_to_the_user() -> Iterator[None]:
    """Let what the block's libraries write reach the user, such as a question for a password."""
    diversion = _diversion()
    if diversion is None:
        yield
        return
    with diversion.paused():
        yield


def is_diverted() -> bool:
    """Return whether libraries write to a log, so that they may say more."""
    return _diversion() is not None


def _copy(descriptor: int) -> int | None:
    try:
        return os.dup(descriptor)
    except OSError:
        return None


def _put_back(descriptor: int, saved: int | None) -> None:
    if saved is None:
        os.close(descriptor)
    else:
        os.dup2(saved, descriptor)


def _flush() -> None:
    """Send on what Python and the C library hold back, before it would go to another place."""
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError, AttributeError):  # closed, or none
            stream.flush()
    ctypes.CDLL(None).fflush(None)


def _move_handlers(streams: dict[Any, Any]) -> None:
    """Let each handler of `logging` that writes to one of the streams write to the one that takes its place."""
    loggers = [logging.getLogger(), *logging.Logger.manager.loggerDict.values()]
    for handler in {each for logger in loggers for each in getattr(logger, "handlers", ())}:
        if isinstance(handler, logging.StreamHandler) and (stream := streams.get(handler.stream)) is not None:
            handler.setStream(stream)
