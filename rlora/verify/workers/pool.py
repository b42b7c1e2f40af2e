"""Worker processes with deadlines and a memory limit, for work that may take forever or end its process.

Workers are fresh interpreters (never forks: the parent may have threads, torch and vLLM) that import this package and
what their job needs, and never the user's script. One deadline counts a worker's CPU time (see worker.py), the other
wall time; both start when the worker takes the task up. Callers may be any threads: each takes an idle worker, or
starts one, or waits.
"""

import contextlib
import os
import select
import signal
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any, BinaryIO, cast

import rlora
from rlora.errors import RloraError
from rlora.verify.workers import protocol
from rlora.verify.workers.protocol import Message

_START_SECONDS = 120.0  # wall time that importing Python and what the job needs may take on a busy machine
_MAX_DEATHS = 2  # workers that may die at one task by something outside it
_END_SECONDS = 1.0  # wall time in which a worker that is told to end ends what is below it


class VerifierError(RloraError, RuntimeError):
    """Workers cannot be started, or were closed."""


class Ended(StrEnum):
    """What ended a task in place of a reply."""

    CPU = "cpu"  # it passed its deadline of CPU time
    WALL = "wall"  # it passed its deadline of wall time
    MEMORY = "memory"
    LEFT = "left"  # it was done and left processes behind, which were ended
    DIED = "died"  # its process ended, and so did that of a second try


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """How a task ended without a reply; `how` says it in words where the kind does not."""

    kind: Ended
    how: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What a task may take: seconds of CPU and of wall time, and MiB of its worker's address space."""

    cpu_seconds: float
    wall_seconds: float
    memory_mb: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """What workers do: the module whose `job(settings)` they call, what they are called in errors, what is set in their
    environment.

    Example:
        >>> Job(module="rlora.verify.workers.judge_pair", title="the verifier").settings
        {}
    """

    module: str
    title: str
    settings: Message = field(default_factory=dict)
    environment: Mapping[str, str] = field(default_factory=dict)


class _DiedError(Exception):
    """A worker was ended by something that may lie outside its task."""


class _Worker:
    """A worker process and its pipes; used by one thread at a time."""

    def __init__(self, job: Job, limits: Limits) -> None:
        root = str(Path(rlora.__file__).resolve().parents[1])
        paths = [root, *filter(None, [os.environ.get("PYTHONPATH")])]
        # -P keeps the working directory off the module path: a user's own mpmath.py there must not be imported.
        command = [
            sys.executable,
            "-P",
            "-m",
            "rlora.verify.workers.worker",
            str(os.getpid()),
            str(limits.cpu_seconds),
            str(limits.memory_mb),
            job.module,
        ]
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,
            process_group=0,
            env={**os.environ, **job.environment, "PYTHONPATH": os.pathsep.join(paths)},
        )
        self.owner = os.getpid()
        try:
            self._send(job.settings)
            first = self._receive(_START_SECONDS)
        except _DiedError:
            first = None
        if first is None or "refused" in first:
            self.kill()
            why = "its error is above on stderr" if first is None else f"it raised\n{first['refused']}"
            raise VerifierError(f"{job.title}'s worker did not start ({' '.join(command)}); {why}")

    def ask(self, task: Message, seconds: float) -> Message | None:
        """Return the reply, or None if it was late; then, and after _DiedError, the worker must be killed."""
        self._send(task)
        message = self._receive(_START_SECONDS)  # it says when it takes the task up
        if message is not None and "loaded" in message:
            message = self._receive(seconds)
        if message is not None and message.get("ended") == Ended.DIED:
            raise _DiedError(message["how"])
        return message

    def _send(self, message: Message) -> None:
        assert self.process.stdin is not None
        data = memoryview(protocol.pack(message))
        try:
            while data:  # a raw pipe may take a part
                data = data[self.process.stdin.write(data) :]
        except OSError as error:
            raise _DiedError("its process was ended") from error

    def _receive(self, seconds: float) -> dict[str, Any] | None:
        assert self.process.stdout is not None
        poll = select.poll()
        poll.register(self.process.stdout, select.POLLIN | select.POLLHUP)
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            if poll.poll(left * 1000):
                message = protocol.read(cast(BinaryIO, self.process.stdout))
                if message is None:
                    raise _DiedError("its process was ended")
                return message
        return None

    def kill(self) -> None:
        """End the process, with all that is below it, and free its pipes."""
        if self.owner_is_self():
            self.process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):  # it is stopped itself
                self.process.wait(_END_SECONDS)
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)  # the worker and its child
            self.process.wait()
        for stream in (self.process.stdin, self.process.stdout):
            if stream is not None:
                stream.close()

    def owner_is_self(self) -> bool:
        """Whether this process started the worker; false in a fork of it, which must leave the worker alone."""
        return getattr(self, "owner", os.getpid()) == os.getpid()


class Pool:
    """At most `num_workers` workers, started when first needed and replaced when they pass a limit."""

    def __init__(self, job: Job, limits: Limits, *, num_workers: int) -> None:
        """Keep what workers do, and within which limits."""
        self.num_workers = num_workers
        self._job, self._limits = job, limits
        self._idle: list[_Worker] = []
        self._num_started = 0
        self._owner = os.getpid()
        self._condition = threading.Condition()
        self._is_closed = False
        self._finalizer = weakref.finalize(self, _kill_all, self._idle)

    def ask(self, task: Message) -> Message | Failure:
        """Return a worker's reply to a task, or how the task ended without one.

        A task at which its process ended is tried once more: something else may have ended it.
        """
        worker = self._acquire()
        is_kept, how = False, ""
        try:
            for _ in range(_MAX_DEATHS):
                try:
                    reply = worker.ask(task, self._limits.wall_seconds)
                    is_kept = reply is not None
                    return _outcome(reply)
                except _DiedError as error:
                    how = str(error)
                    worker.kill()
                    worker = _Worker(self._job, self._limits)
            is_kept = True
            return Failure(kind=Ended.DIED, how=how)
        finally:
            self._release(worker, is_kept)

    def _acquire(self) -> _Worker:
        with self._condition:
            if self._owner != os.getpid():  # a fork of the process that made the pool: its workers are not ours
                self._idle.clear()
                self._num_started, self._owner = 0, os.getpid()
            while not self._is_closed and not self._idle and self._num_started >= self.num_workers:
                self._condition.wait()
            if self._is_closed:
                raise VerifierError(f"{self._job.title} is closed; make a new one")
            if self._idle:
                return self._idle.pop()
            self._num_started += 1
        try:
            return _Worker(self._job, self._limits)
        except BaseException:
            with self._condition:
                self._num_started -= 1
                self._condition.notify()
            raise

    def _release(self, worker: _Worker, is_kept: bool) -> None:
        with self._condition:
            is_kept = is_kept and not self._is_closed
            if is_kept:
                self._idle.append(worker)
            else:
                self._num_started -= 1
            self._condition.notify()
        if not is_kept:
            worker.kill()

    def close(self) -> None:
        """End the idle workers now and the busy ones when they answer."""
        with self._condition:
            self._is_closed = True
            self._condition.notify_all()
            idle = list(self._idle)
            self._num_started -= len(idle)
            self._idle.clear()
        _kill_all(idle)


def _outcome(reply: Message | None) -> Message | Failure:
    if reply is None:
        return Failure(kind=Ended.WALL)
    return Failure(kind=Ended(reply["ended"])) if "ended" in reply else reply


def _kill_all(workers: list[_Worker]) -> None:
    for worker in workers:
        worker.kill()
