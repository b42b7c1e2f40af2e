"""What a cohort says: a line a step of all, and what becomes of single members, whose own words are in files."""

import shlex
import statistics
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from rlora.cohort.members import Member
from rlora.run_config import RunConfig
from rlora.store.cohort_dir import MEMBERS
from rlora.system.screen import note, say, screen
from rlora.text import clock

if TYPE_CHECKING:
    from rlora.cohort.table import Table

_LONGEST = 78
_SHOWN_NAMES = 12


class CohortDisplay:
    """Prints a line once all running members have finished a step."""

    def __init__(self, config: RunConfig, num_members: int):
        """Show members of a run like `config`."""
        self._num_steps, self._num_members = config.num_steps, num_members
        self._rewards: dict[int, dict[str, float]] = {}
        self._since, self._seconds = time.monotonic(), list[float]()

    def say(self, text: str) -> None:
        """Print a line."""
        say(text)

    def opening(self, members: Iterable[Member], folder: Path) -> None:
        """Say who is trained, and where each one's words are."""
        names = [member.name for member in members]
        more = f" and {len(names) - _SHOWN_NAMES} more" if len(names) > _SHOWN_NAMES else ""
        say(f"A cohort of {len(names)} on one base: {', '.join(names[:_SHOWN_NAMES])}{more}.")
        note(f"Each is a run in {folder / MEMBERS}, and what it says is beside it: {folder / MEMBERS}/NAME.txt")

    def step(self, name: str, values: Mapping[str, float], *, num_running: int) -> None:
        """Count a member's finished step, and print it with those of the others once it is the last of them."""
        step = int(values["step"])
        rewards = self._rewards.setdefault(step, {})
        rewards[name] = values["reward/mean"]
        if len(rewards) < num_running:
            return
        now = time.monotonic()
        self._seconds.append(now - self._since)
        self._since = now
        recent = self._seconds[-5:]
        left = (self._num_steps - step - 1) * sum(recent) / len(recent)
        note(step_line(step + 1, self._num_steps, rewards, seconds_left=left))
        del self._rewards[step]

    def closing(self, table: "Table") -> None:
        """Print the table, and what may be done with it; on a quiet screen who is the best."""
        if screen().is_quiet:
            say(f"{table.folder}: {len(table.rows)} members, the best by held-out score: {table.best or 'none scored'}")
            return
        for line in table.lines():
            say(line)
        if table.best is None:
            return
        folder = shlex.quote(str(table.folder))
        say(f"The best one's adapter is in {folder}/adapter, rate against score in {folder}/plot.png. Next:")
        say(f"  rlora eval --run {folder}:{table.best} --benchmark aime2024,aime2025,aime2026")
        say(f"  rlora runs {folder}")


def step_line(done: int, num_steps: int, rewards: Mapping[str, float], *, seconds_left: float) -> str:
    """Return a finished step of all members as a line: the best and the worst by name, and the median."""
    best, worst = max(rewards, key=rewards.__getitem__), min(rewards, key=rewards.__getitem__)
    cells = [
        f"step {done:>4}/{num_steps}",
        f"{len(rewards)} members, reward {rewards[best]:.3f} {best}",
        f"median {statistics.median(rewards.values()):.3f}",
        f"{rewards[worst]:.3f} {worst}",
        f"left {clock(seconds_left)}",
    ]
    line = "  ".join(cells)
    return line if len(line) <= _LONGEST else "  ".join([*cells[:3], cells[4]])
