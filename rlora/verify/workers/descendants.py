"""The processes below one: known, even where they left its group and its session, and ended."""

import ctypes
import os
import signal
import sys
from contextlib import suppress

_PR_SET_CHILD_SUBREAPER = 36


def adopt_orphans() -> None:
    """Let processes below this one whose parent ends become its own children, so that none is lost sight of.

    Linux only: elsewhere such a process is found by its group alone.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def has_children() -> bool:
    """Return whether a process was started from this one and not waited for, whether it still runs or not."""
    try:
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return False
    return True


def end_descendants() -> None:
    """Kill all processes below this one and wait for its children; those that `adopt_orphans` brought are among them.

    They are stopped first, over and over until no new one is there, so that none can start another meanwhile.
    """
    if not has_children():
        return
    import psutil  # takes longer to import than a worker usually lives

    own, stopped = psutil.Process(), set()
    while new := {process.pid for process in own.children(recursive=True)} - stopped:
        for pid in new:
            _send(pid, signal.SIGSTOP)
        stopped |= new
    for pid in stopped:
        _send(pid, signal.SIGKILL)
    while has_children():
        with suppress(ChildProcessError):
            os.waitpid(-1, 0)


def _send(pid: int, number: signal.Signals) -> None:
    with suppress(ProcessLookupError, PermissionError):  # it ended by itself, or is another user's now
        os.kill(pid, number)
