"""The worker process: reads tasks on its input and writes what a job makes of each.

It forks, and the child does the work: each task runs under a timer of the child's own CPU time whose signal the
kernel delivers as death (SIGPROF's default), so no code, not even C, can outlast it, and a busy machine does not
shorten it. The parent, a fresh interpreter without threads whose state no task ever touched, answers for the dead
child and forks the next, which so finds loaded what the job needs. A task is answered twice: when its timer starts,
and when it is done. A child that leaves processes behind is ended with them.

Both end when their input ends or their parent is another. PR_SET_PDEATHSIG is not used: it fires when the *thread*
that started the worker ends.
"""

import contextlib
import importlib
import mmap
import os
import resource
import select
import signal
import sys
import traceback
from collections.abc import Callable
from typing import BinaryIO

from rlora.verify.workers import protocol
from rlora.verify.workers.descendants import adopt_orphans, end_descendants, has_children
from rlora.verify.workers.protocol import Message

_POLL_SECONDS = 2.0
_IDLE, _BUSY, _OVER_MEMORY, _LEFT_PROCESSES = range(4)  # the byte that a child shares with its parent

Work = Callable[[Message], Message]


def limit_memory(megabytes: int) -> None:
    """Bound this process's address space, so that what needs more raises MemoryError."""
    size = megabytes * 2**20
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (size if hard == resource.RLIM_INFINITY else min(size, hard), hard))


def _private_streams() -> tuple[BinaryIO, BinaryIO]:
    """Return streams on the real input and output, and point descriptor 0 at nothing and 1 at standard error, so that
    neither a print nor a question of the job's breaks a frame.
    """
    streams = os.fdopen(os.dup(0), "rb", buffering=0), os.fdopen(os.dup(1), "wb", buffering=0)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    os.dup2(2, 1)
    return streams


def serve(parent: int, seconds: float, source: BinaryIO, output: BinaryIO, shared: mmap.mmap, work: Work) -> None:
    """Do tasks until the input ends or the process has another parent; dies of a task that passes its deadline."""
    own = os.getpid()
    while True:
        while not select.select([source], [], [], _POLL_SECONDS)[0]:
            if os.getppid() != parent:
                return
        task = protocol.read(source)
        if task is None:
            return
        shared[0] = _BUSY
        output.write(protocol.pack({"loaded": True}))
        signal.setitimer(signal.ITIMER_PROF, seconds)
        try:
            reply = work(task)
        except MemoryError:
            reply = None
        if os.getpid() != own:  # a fork that a task made came back with it
            os._exit(0)
        signal.setitimer(signal.ITIMER_PROF, 0)
        if reply is None or has_children():
            shared[0] = _OVER_MEMORY if reply is None else _LEFT_PROCESSES
            os._exit(0)
        sys.stdout.flush()
        shared[0] = _IDLE
        output.write(protocol.pack(reply))


def _ended(work: Callable[[], None], parent: int, wakeup: int) -> int | None:
    """Let a forked child work and return how it ended, as `os.waitpid` says it; None if the parent is gone meanwhile.

    `wakeup` is readable whenever a signal has come, that of an ended child among them.
    """
    child = os.fork()
    if child == 0:
        signal.set_wakeup_fd(-1)
        for number in (signal.SIGCHLD, signal.SIGTERM):
            signal.signal(number, signal.SIG_DFL)
        adopt_orphans()
        with contextlib.suppress(OSError):  # the caller closed its pipes
            work()
        os._exit(0)
    while True:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return status
        if os.getppid() != parent:
            return None
        if select.select([wakeup], [], [], _POLL_SECONDS)[0]:
            os.read(wakeup, 4096)


def _end_of(status: int, state: int) -> Message:
    """Return what to say of a child that ended at a task."""
    if state == _OVER_MEMORY:
        return {"ended": "memory"}
    if state == _LEFT_PROCESSES:
        return {"ended": "left"}
    if not os.WIFSIGNALED(status):
        return {"ended": "died", "how": f"it ended its process with code {os.WEXITSTATUS(status)}"}
    if os.WTERMSIG(status) == signal.SIGPROF:
        return {"ended": "cpu"}
    return {"ended": "died", "how": f"its process was ended by {signal.Signals(os.WTERMSIG(status)).name}"}


def _waker() -> int:
    """Return a descriptor that a signal makes readable; SIGTERM ends this process, and what is below it."""
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides what an interrupt means
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    return reading


def main() -> None:
    """Serve until the input ends; arguments: the parent's process id, CPU seconds a task, MiB of address space, and the
    module whose `job(settings)` returns what is done with a task. The settings are the first frame.
    """
    parent, seconds, megabytes, module = int(sys.argv[1]), float(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
    wakeup = _waker()
    source, output = _private_streams()
    sys.stdout.reconfigure(line_buffering=True)  # pyright: ignore[reportAttributeAccessIssue] - it is a TextIOWrapper
    adopt_orphans()
    limit_memory(megabytes)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # writing a dump takes longer than the deadline
    settings = protocol.read(source)
    if settings is None:
        return
    try:
        work = importlib.import_module(module).job(settings)  # loads what it needs before the first fork
    except Exception as error:
        output.write(protocol.pack({"refused": "".join(traceback.format_exception(error))}))
        return
    output.write(protocol.pack({"ready": True}))
    shared = mmap.mmap(-1, 1)
    own = os.getpid()
    try:
        while True:
            status = _ended(lambda: serve(own, seconds, source, output, shared, work), parent, wakeup)
            end_descendants()
            if status is None or (status == 0 and shared[0] == _IDLE):  # the input ended
                return
            if shared[0] != _IDLE:
                message = _end_of(status, shared[0])
                shared[0] = _IDLE
                output.write(protocol.pack(message))
    finally:
        end_descendants()


if __name__ == "__main__":
    main()
