"""One writer for a folder: a lock that the kernel lets go when its holder dies, however it dies."""

import fcntl
import json
import os
import socket
from pathlib import Path
from typing import IO

from rlora.errors import RunDirError, WriteError
from rlora.system.screen import say

LOCK_FILE = "lock"


class FolderLock:
    """Held from construction until `release` or the end of the process; says who holds it."""

    def __init__(self, folder: Path, *, option: str = "--run-dir"):
        """Take the lock of `folder`, which must exist; RunDirError names the process that holds it, and the `option` by
        which another folder is chosen. The folder itself is held open, so that no other can pass for it.
        """
        try:
            self._file: IO[str] = (folder / LOCK_FILE).open("a+", encoding="utf-8")
            self.folder, self._held = folder, os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        except OSError as error:
            raise RunDirError(
                f"{folder} cannot be written ({error.strerror or error}): set the permissions, or choose another "
                f"{option}."
            ) from error
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            by = _read(self._file)
            self.release()
            raise RunDirError(
                f"{folder} is being written by process {by.get('pid', 'unknown')} on {by.get('host', 'unknown')}; "
                f"wait for it, stop it, or choose another {option}."
            ) from error
        except OSError as error:  # some network file systems have no locks
            say(
                f"Warning: {folder} lies on a file system that cannot lock files ({error.strerror}), so a second "
                "process that writes there would not be noticed: start one at a time."
            )
        self._file.truncate(0)
        self._file.write(json.dumps({"pid": os.getpid(), "host": socket.gethostname()}))
        self._file.flush()

    def release(self) -> None:
        """Let the folder go; the file stays, since removing it would race with the next holder."""
        self._file.close()
        os.close(self._held)

    def check_in_place(self) -> None:
        """Raise WriteError where the folder was moved or removed since it was locked: what is written by its path would
        begin another one.
        """
        held = os.fstat(self._held)
        try:
            there = os.stat(self.folder)
        except OSError:
            there = None
        if there is None or (there.st_dev, there.st_ino) != (held.st_dev, held.st_ino):
            what = "removed" if held.st_nlink == 0 else "moved or removed"
            raise WriteError(
                f"{self.folder} was {what} while this process was writing there, so nothing more is written. Where it "
                "went, it is whole up to its last checkpoint: put it back and start the same command again."
            )


def holder(folder: Path) -> dict[str, object] | None:
    """Return the pid and host of the process that is writing `folder`, or None if there is none.

    Raises RunDirError where its lock cannot be read.
    """
    try:
        file = (folder / LOCK_FILE).open(encoding="utf-8")
    except FileNotFoundError:
        return None
    except OSError as error:
        raise RunDirError(f"{folder / LOCK_FILE} cannot be read: {error.strerror or error}.") from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return _read(file)
        except OSError:  # no locks there
            return None
    return None


def _read(file: IO[str]) -> dict[str, object]:
    file.seek(0)
    try:
        return dict(json.loads(file.read()))
    except (ValueError, TypeError, RecursionError):  # between its holder's truncation and writing
        return {}
