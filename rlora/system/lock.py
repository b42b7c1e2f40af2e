"""One writer for a folder: a lock that the kernel lets go when its holder dies, however it dies."""

import fcntl
import json
import os
import socket
from pathlib import Path
from typing import IO

from rlora.errors import RunDirError

LOCK_FILE = "lock"


class FolderLock:
    """Held from construction until `release` or the end of the process; says who holds it."""

    def __init__(self, folder: Path, *, option: str = "--run-dir"):
        """Take the lock of `folder`, which must exist; RunDirError names the process that holds it, and the `option` by
        which another folder is chosen.
        """
        self._file: IO[str] = (folder / LOCK_FILE).open("a+", encoding="utf-8")
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            by = _read(self._file)
            self._file.close()
            raise RunDirError(
                f"{folder} is being written by process {by.get('pid', 'unknown')} on {by.get('host', 'unknown')}; "
                f"wait for it, stop it, or choose another {option}."
            ) from error
        self._file.truncate(0)
        self._file.write(json.dumps({"pid": os.getpid(), "host": socket.gethostname()}))
        self._file.flush()

    def release(self) -> None:
        """Let the folder go; the file stays, since removing it would race with the next holder."""
        self._file.close()


def holder(folder: Path) -> dict[str, object] | None:
    """Return the pid and host of the process that is writing `folder`, or None if there is none."""
    try:
        file = (folder / LOCK_FILE).open(encoding="utf-8")
    except FileNotFoundError:
        return None
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return _read(file)
    return None


def _read(file: IO[str]) -> dict[str, object]:
    file.seek(0)
    try:
        return dict(json.loads(file.read()))
    except ValueError:  # between its holder's truncation and writing
        return {}
