"""One way to take a folder: a run's, or an evaluation's. Neither takes one that holds something else."""

from pathlib import Path

from rlora.errors import RunDirError
from rlora.system.files import explained, remove_temporaries
from rlora.system.lock import LOCK_FILE, FolderLock

CONFIG_FILE = "config.json"  # what makes a folder a run's or an evaluation's: written first, once it is locked


def claim(path: Path, *, holds: str, option: str, marked_by: str = CONFIG_FILE) -> FolderLock:
    """Lock a folder for this process, made if need be, and remove what a killed one left half written there.

    Args:
        path: A new folder, an empty one, or one that has the file `marked_by`.
        holds: What it should be, for errors: "a run directory".
        option: The option that names another one.
        marked_by: The file that makes it one.

    Raises:
        RunDirError: It holds something else, cannot be made, or another process holds it.

    Example:
        >>> lock = claim(Path("runs/a"), holds="a run directory", option="--run-dir")
        >>> lock.release()
    """
    try:
        is_claimed = (path / marked_by).is_file()
        if not is_claimed and path.exists() and (not path.is_dir() or _has_foreign_files(path)):
            raise RunDirError(f"{path} exists and is not {holds}; choose another {option}.")
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunDirError(f"{path} cannot be made ({error.strerror}); choose another {option}.") from error
    lock = FolderLock(path, option=option)
    try:
        with explained(path):
            remove_temporaries(path)
    except BaseException:
        lock.release()
        raise
    return lock


def _has_foreign_files(path: Path) -> bool:
    return any(entry.name != LOCK_FILE and not entry.name.startswith(".") for entry in path.iterdir())
