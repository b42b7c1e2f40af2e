"""Chromium by its DevTools protocol, over a pipe: the standard library alone, no port, and it ends with its parent.

Messages are JSON objects that end with a NUL byte, read by Chromium from descriptor 3 and written to 4 (its option
--remote-debugging-pipe). Events wait in the pipe until the next call, in the order in which they happened.
"""

import fcntl
import json
import os
import select
import shutil
import signal
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

_FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update", "--disable-dev-shm-usage", "--hide-scrollbars"),
    *("--disable-background-timer-throttling", "--disable-renderer-backgrounding", "--lang=en-US"),
    # the core of what "no network" means: every name and address but this machine's own is unknown
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1, EXCLUDE localhost",
)


class BrowserError(Exception):
    """The browser refused something, or a script in the page raised."""


class Chromium:
    """One process of Chromium; `on_event` is told each event: its session, its name, its values."""

    def __init__(self, program: str, on_event: Callable[[str, str, dict[str, Any]], None]):
        self._on_event, self._profile = on_event, tempfile.mkdtemp(prefix="rlora-browser-")
        to_child, self._write = os.pipe()
        self._read, from_child = os.pipe()
        there, back = (fcntl.fcntl(one, fcntl.F_DUPFD, 10) for one in (to_child, from_child))  # clear of 3 and 4
        quiet = os.open(os.devnull, os.O_RDWR)
        arguments = [program, "--remote-debugging-pipe", f"--user-data-dir={self._profile}", *_FLAGS, "about:blank"]
        actions = [(os.POSIX_SPAWN_DUP2, old, new) for old, new in ((there, 3), (back, 4), (quiet, 1), (quiet, 2))]
        self._pid = os.posix_spawn(program, arguments, os.environ, file_actions=actions, setpgroup=0)
        for one in (to_child, from_child, there, back, quiet):
            os.close(one)
        self._rest, self._number = b"", 0

    def call(self, method: str, values: dict[str, Any] | None = None, *, session: str = "", seconds: float = 60) -> Any:
        """Return what a method answers; BrowserError where it refuses, or does not answer in time."""
        number, until = self.send(method, values, session=session), time.monotonic() + seconds
        while True:
            answer = self._message(until - time.monotonic())
            if answer is None:
                raise BrowserError(f"{method} took more than {seconds:g} s.")
            if answer.get("id") == number:
                if "error" in answer:
                    raise BrowserError(f"{method}: {answer['error']['message']}")
                return answer["result"]

    def send(self, method: str, values: dict[str, Any] | None = None, *, session: str = "") -> int:
        """Call a method without waiting for what it answers, and return the call's number."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": values or {}}
        if session:
            message["sessionId"] = session
        rest = json.dumps(message).encode() + b"\0"
        while rest:
            rest = rest[os.write(self._write, rest) :]
        return self._number

    def listen(self, seconds: float) -> None:
        """Hear what has happened, and what happens for some time."""
        until = time.monotonic() + seconds
        while self._message(max(0.0, until - time.monotonic())) is not None:
            pass

    def _message(self, seconds: float) -> dict[str, Any] | None:
        until = time.monotonic() + seconds
        parts = [self._rest]
        while b"\0" not in parts[-1]:
            if not select.select([self._read], [], [], max(0.0, until - time.monotonic()))[0]:
                self._rest = b"".join(parts)
                return None
            data = os.read(self._read, 1 << 20)
            if not data:
                raise BrowserError("Chromium ended by itself.")
            parts.append(data)
        line, _, self._rest = b"".join(parts).partition(b"\0")
        message = json.loads(line)
        if "method" in message:
            self._on_event(message.get("sessionId", ""), message["method"], message["params"])
        return message

    def close(self) -> None:
        """End the process and its children, and remove what it kept."""
        for end in (self._write, self._read):
            os.close(end)
        with suppress(ProcessLookupError):
            os.killpg(self._pid, signal.SIGKILL)
        os.waitpid(self._pid, 0)
        shutil.rmtree(self._profile, ignore_errors=True)
