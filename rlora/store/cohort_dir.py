"""The folder of a cohort: where the run of each of its members lies, and how one is named."""

from pathlib import Path

MEMBERS = "members"
"""The folder of a cohort in which its members' run directories are."""


def member_dir(run: str | Path) -> Path:
    """Return the run directory that `COHORT:MEMBER` names; any other path as it is.

    Example:
        >>> member_dir("runs/sweep:lr0.0003-s1")
        PosixPath('runs/sweep/members/lr0.0003-s1')
    """
    folder, colon, name = str(run).rpartition(":")
    member = Path(folder) / MEMBERS / name
    return member if colon and name and "/" not in name and member.is_dir() else Path(run)
