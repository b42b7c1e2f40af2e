"""Worker processes with a deadline and a memory limit, for answers that only slow arithmetic can compare.

Workers are fresh interpreters (never forks: the parent may have threads, torch and vLLM) that import this package and
mpmath alone, and never the user's script. The deadline counts a worker's CPU time (see worker.py); wall time, five
times as long, is the backstop; it starts when the worker takes the task up. Callers may be any threads:
each takes an idle worker, or starts one, or waits.
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
from pathlib import Path
from typing import Any, BinaryIO, cast

import rlora
from rlora.errors import RloraError
from rlora.types import VerdictKind
from rlora.verify.workers import protocol
from rlora.verify.workers.faults import Faults
from rlora.verify.workers.protocol import Reply, Task

_WALL_FACTOR = 5
_START_SECONDS = 120.0  # wall time that importing Python and mpmath may take on a busy machine
_MAX_DEATHS = 2  # workers that may die at one task by something outside it


class VerifierError(RloraError, RuntimeError):
    """The verifier cannot start its workers, or was closed."""


class _DiedError(Exception):
    """A worker was ended by something outside its task, which says nothing about the task."""


class _Worker:
    """A worker process and its pipes; used by one thread at a time."""

    def __init__(self, deadline_seconds: float, memory_mb: int) -> None:
        root = str(Path(rlora.__file__).resolve().parents[1])
        paths = [root, *filter(None, [os.environ.get("PYTHONPATH")])]
        # -P keeps the working directory off the module path: a user's own mpmath.py there must not be imported.
        command = [
            sys.executable,
            "-P",
            "-m",
            "rlora.verify.workers.worker",
            str(os.getpid()),
            str(deadline_seconds),
            str(memory_mb),
        ]
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,
            process_group=0,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
        )
        self.owner = os.getpid()
        try:
            is_ready = self._receive(_START_SECONDS) is not None
        except _DiedError:
            is_ready = False
        if not is_ready:
            self.kill()
            raise VerifierError(
                f"the verifier's worker did not start ({' '.join(command)}); its error is above on stderr"
            )

    def ask(self, task: Task, seconds: float) -> Reply | None:
        """Return the reply, or None if it was late; then, and after _DiedError, the worker must be killed."""
        try:
            assert self.process.stdin is not None
            self.process.stdin.write(protocol.pack(task.message()))
        except OSError as error:
            raise _DiedError from error
        message = self._receive(_START_SECONDS)  # it says when it takes the task up
        if message is not None and "loaded" in message:
            message = self._receive(seconds)
        if message == protocol.DIED:
            raise _DiedError
        return None if message is None else protocol.reply_of(message)

    def _receive(self, seconds: float) -> dict[str, Any] | None:
        assert self.process.stdout is not None
        poll = select.poll()
        poll.register(self.process.stdout, select.POLLIN | select.POLLHUP)
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            if poll.poll(left * 1000):
                message = protocol.read(cast(BinaryIO, self.process.stdout))
                if message is None:
                    raise _DiedError
                return message
        return None

    def kill(self) -> None:
        """End the process and free its pipes."""
        if self.owner_is_self():
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

    def __init__(self, num_workers: int, deadline_seconds: float, memory_mb: int, faults: Faults) -> None:
        """Keep the limits, CPU seconds a task and MiB of address space a worker, and where exceptions are counted."""
        self.num_workers = num_workers
        self._deadline_seconds = deadline_seconds
        self._wall_seconds = _WALL_FACTOR * deadline_seconds
        self._memory_mb = memory_mb
        self._idle: list[_Worker] = []
        self._num_started = 0
        self._owner = os.getpid()
        self._condition = threading.Condition()
        self._is_closed = False
        self._faults = faults
        self._finalizer = weakref.finalize(self, _kill_all, self._idle)

    def ask(self, task: Task) -> Reply:
        """Return a worker's reply: TIMEOUT if the task passed the deadline or the memory limit."""
        reply = self._ask(task)
        if reply is None:
            return Reply(kind=VerdictKind.TIMEOUT)
        if reply.error:
            self._faults.add(reply.error, task.answer, task.gold)
        return reply

    def _ask(self, task: Task) -> Reply | None:
        worker = self._acquire()
        is_kept = False
        try:
            for _ in range(_MAX_DEATHS):
                try:
                    answer = worker.ask(task, self._wall_seconds)
                    is_kept = answer is not None
                    return answer
                except _DiedError:
                    worker.kill()
                    worker = _Worker(self._deadline_seconds, self._memory_mb)
            is_kept = True
            return None  # whatever ends worker after worker at this task may be the task after all
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
                raise VerifierError("the verifier is closed; make a new Verifier")
            if self._idle:
                return self._idle.pop()
            self._num_started += 1
        try:
            return _Worker(self._deadline_seconds, self._memory_mb)
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


def _kill_all(workers: list[_Worker]) -> None:
    for worker in workers:
        worker.kill()
