"""The worker process: reads pairs of answers on its input and writes whether they are the same.

It forks, and the child does the comparing: each task runs under a timer of the child's own CPU time whose signal the
kernel delivers as death (SIGPROF's default), so no code, not even C, can outlast it, and a busy machine does not
shorten it. The parent, a fresh interpreter without threads whose state no answer ever touched, answers for the dead
child and forks the next, which so finds mpmath loaded. A task is answered twice: when its timer starts, and when it
is decided.

Both end when their input ends or their parent is another. PR_SET_PDEATHSIG is not used: it fires when the *thread*
that started the worker ends.
"""

import contextlib
import mmap
import os
import resource
import select
import signal
import sys
from collections.abc import Callable
from typing import BinaryIO

_POLL_SECONDS = 2.0
_OVER_MEMORY = 3
_IS_BUSY = 0  # the byte that a child shares with its parent


def limit_memory(megabytes: int) -> None:
    """Bound this process's address space, so that what needs more raises MemoryError."""
    size = megabytes * 2**20
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (size if hard == resource.RLIM_INFINITY else min(size, hard), hard))


def _private_output() -> BinaryIO:
    """Return a stream on the real output, and point file descriptor 1 at stderr, so that no print breaks a frame."""
    output = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)
    return output


def serve(parent: int, seconds: float, output: BinaryIO, shared: mmap.mmap) -> None:
    """Answer tasks until the input ends or the process has another parent; dies of a task that passes its deadline."""
    from rlora.verify.comparison.decide import Step
    from rlora.verify.workers import protocol
    from rlora.verify.workers.faults import described
    from rlora.verify.workers.judge_pair import judge_pair

    source = os.fdopen(0, "rb", buffering=0, closefd=False)
    while True:
        while not select.select([0], [], [], _POLL_SECONDS)[0]:
            if os.getppid() != parent:
                return
        request = protocol.read(source)
        if request is None:
            return
        shared[_IS_BUSY] = 1
        task = protocol.task_of(request)
        output.write(protocol.pack({"loaded": True}))
        steps: list[Step] = []
        error = ""
        signal.setitimer(signal.ITIMER_PROF, seconds)
        try:
            kind = judge_pair(
                task.gold, task.answer, is_rounding=task.is_rounding, trace=steps if task.is_traced else None
            )
        except MemoryError:
            os._exit(_OVER_MEMORY)
        except Exception as failure:  # parsers fail in any way on text, which is data
            kind, error = "unparsed", described(failure)  # the caller says so, since it may be a bug all the same
        signal.setitimer(signal.ITIMER_PROF, 0)
        shared[_IS_BUSY] = 0
        output.write(protocol.pack(protocol.reply_message(kind, steps, error)))


def _ended(work: Callable[[], None], parent: int) -> int | None:
    """Let a forked child work and return how it ended, as `os.waitpid` says it; None, with the child killed, if the
    parent is gone meanwhile."""
    lifeline, held = os.pipe()  # readable as soon as the child, which alone holds the other end, is dead
    child = os.fork()
    if child == 0:
        os.close(lifeline)
        with contextlib.suppress(OSError):  # the caller closed its pipes
            work()
        os._exit(0)
    os.close(held)
    while not select.select([lifeline], [], [], _POLL_SECONDS)[0]:
        if os.getppid() != parent:
            os.kill(child, signal.SIGKILL)
            return None
    os.close(lifeline)
    return os.waitpid(child, 0)[1]


def _is_limit(status: int) -> bool:
    """Whether a child died of its deadline or its memory limit, rather than of something outside its task."""
    if os.WIFSIGNALED(status):
        return os.WTERMSIG(status) == signal.SIGPROF
    return os.WEXITSTATUS(status) == _OVER_MEMORY


def main() -> None:
    """Serve until the input ends; arguments: the parent's process id, CPU seconds a task, MiB of address space."""
    parent, seconds, megabytes = int(sys.argv[1]), float(sys.argv[2]), int(sys.argv[3])
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides what an interrupt means
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    output = _private_output()
    limit_memory(megabytes)
    from rlora.verify.workers import judge_pair, protocol  # noqa: F401 - loads mpmath before the first fork

    output.write(protocol.pack({"ready": True}))
    shared = mmap.mmap(-1, 1)
    own = os.getpid()
    while True:
        status = _ended(lambda: serve(own, seconds, output, shared), parent)
        if status is None or status == 0:  # the input ended
            return
        if shared[_IS_BUSY]:
            message = protocol.reply_message("timeout", [], "") if _is_limit(status) else protocol.DIED
            output.write(protocol.pack(message))
            shared[_IS_BUSY] = 0


if __name__ == "__main__":
    main()
