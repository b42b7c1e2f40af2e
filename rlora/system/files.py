"""Files and folders that are either whole or absent: written under a temporary name, synced, then renamed."""

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from io import FileIO
from pathlib import Path

from rlora.errors import WriteError
from rlora.system.screen import say

_TEMPORARY = ".tmp"
_UMASK = os.umask(0o077)  # which can only be read by setting it
os.umask(_UMASK)
_USUAL_MODE = 0o666 & ~_UMASK  # what a library that writes for itself alone (0600) is corrected to
_IN_MEMORY = "rlora-adapters-"
_SCRATCH_BYTES = 1 << 30


@contextmanager
def write_atomically(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; when the block succeeds, sync it and rename it to `path`.

    When the block fails the temporary file is removed and `path` keeps what it had. Raises WriteError when the disk
    refuses.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}{_TEMPORARY}")
    with explained(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield temporary
            temporary.chmod(_USUAL_MODE)
            _sync(temporary)
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
        _sync(path.parent)


def give_usual_modes(folder: Path) -> None:
    """Let every file in a folder be read by whom the user's umask lets read."""
    for file in folder.rglob("*"):
        if file.is_file():
            file.chmod(_USUAL_MODE)


@contextmanager
def write_folder_atomically(path: Path) -> Iterator[Path]:
    """Yield a new temporary folder beside `path`; when the block succeeds, sync its files and rename it to `path`.

    Raises WriteError when the disk refuses, and for a `path` that is there already.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}{_TEMPORARY}")
    with explained(path):
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        try:
            yield temporary
            for file in temporary.iterdir():
                _sync(file)
            _sync(temporary)
            temporary.replace(path)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        _sync(path.parent)


def append_line(file: FileIO, line: str) -> None:
    """Append a line to an open unbuffered file and sync it; WriteError when the disk refuses."""
    with explained(Path(os.fsdecode(file.name))):
        rest = f"{line}\n".encode()
        while rest:
            rest = rest[file.write(rest) :]
        os.fsync(file.fileno())


def remove_temporaries(folder: Path) -> None:
    """Remove what processes that were killed while writing into `folder` or its folders left behind."""
    for path in folder.rglob(f".*{_TEMPORARY}"):
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


@contextmanager
def explained(path: Path) -> Iterator[None]:
    """Raise WriteError, which says what to do, where the disk refuses something that the block does to `path`."""
    try:
        yield
    except WriteError:
        raise
    except OSError as error:
        raise WriteError(
            f"{path} could not be written: {error.strerror or error}. Nothing that was there before is lost; make "
            "room or set the permissions, then start the same command again."
        ) from error


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def folder_in_memory(parent: Path | None = None) -> Path:
    """Return a new folder, in memory where /dev/shm has room, and remove those of processes that are gone.

    Where it has less than 1 GiB, which two versions of a large adapter take (a container's usually has 64 MiB), the
    folder lies among other temporary files, which is said. A killed process leaves its own, which would lie in memory
    until the machine starts again. Whether its process lives is told by a lock on the folder, which the kernel ends
    with its holder.
    """
    if parent is None:
        parent = _scratch_parent()
    for folder in parent.glob(f"{_IN_MEMORY}*"):
        if (lock := _lock(folder)) is not None:
            shutil.rmtree(folder, ignore_errors=True)
            os.close(lock)
    while True:
        folder = Path(tempfile.mkdtemp(prefix=_IN_MEMORY, dir=parent))
        if _lock(folder) is not None and folder.exists():  # else another process took it for one that is left
            return folder


def _scratch_parent() -> Path:
    memory, disk = Path("/dev/shm"), Path(tempfile.gettempdir())
    if not os.access(memory, os.W_OK):
        return disk
    free, free_on_disk = (shutil.disk_usage(folder).free for folder in (memory, disk))
    if free >= min(_SCRATCH_BYTES, free_on_disk):
        return memory
    say(f"{memory} has only {free >> 20} MiB free, so what the sampler is handed over lies in {disk}.")
    return disk


def _lock(folder: Path) -> int | None:
    """Lock a folder for as long as this process lives and return the descriptor; None where another holds it."""
    try:
        # a pipe would never open, and a link could lead anywhere: /dev/shm is everybody's
        descriptor = os.open(folder, os.O_RDONLY | os.O_NONBLOCK | os.O_DIRECTORY | os.O_NOFOLLOW)
    except OSError:  # gone, another user's, or no folder
        return None
    try:
        if os.fstat(descriptor).st_uid != os.geteuid():
            raise PermissionError
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        return None
    return descriptor
