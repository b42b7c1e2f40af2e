"""Where the metrics of a run go: `metrics.jsonl`, the display, and the trackers that are asked for."""

import math
import shlex
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from io import FileIO
from pathlib import Path
from types import TracebackType
from typing import Any

from rlora.errors import NonFiniteError
from rlora.system.files import append_line
from rlora.system.records import line_of
from rlora.system.screen import spoken_to_the_user
from rlora.system.stages import Screen
from rlora.tracking.console import Display
from rlora.tracking.tracker import (
    TakesPolicy,
    TakesRollouts,
    TakesScores,
    TrackedRun,
    Tracker,
    TrackingConfig,
    find_tracker,
    rollout_row,
)
from rlora.types import Group

Health = Callable[[Sequence[Mapping[str, float]]], str | None]
"""Given the rows of `metrics.jsonl` so far, returns in a sentence what is off; None where nothing is."""


class MetricsLog:
    """Writes each step once: a JSON line, a record of each tracker, a line on the display.

    The JSON line is part of the run, and a disk that refuses it ends the run; trackers are bystanders.
    """

    def __init__(
        self,
        run_dir: Path,
        config: TrackingConfig,
        *,
        num_steps: int,
        run_id: str,
        run_config: Mapping[str, Any],
        screen: Screen | None = None,
        health: Health | None = None,
        has_shares: bool = True,
    ):
        """Open the log of the run in `run_dir`; trackers go on with the run of the same `run_id`.

        The display is drawn on the user's screen, or on another one. What `health` says after a step is printed, once
        until it says something else. `has_shares` says that held-out scores are to be written in per cent.
        """
        self._path, self._config = run_dir / "metrics.jsonl", config
        self._health, self._said, self._rows = health, "", list[Mapping[str, float]]()
        self._file: FileIO | None = None
        self.display = Display(num_steps, screen, has_shares=has_shares)
        run = TrackedRun(run_dir=run_dir, run_id=run_id, values=run_config, config=config)
        self._failed: set[str] = set()
        self._trackers: dict[str, Tracker] = {}
        for name in config.names:
            self._tell(name, lambda name=name: self._trackers.update({name: find_tracker(name)(run)}))

    def __enter__(self) -> "MetricsLog":
        """Start the display."""
        self.display.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close everything."""
        self.display.__exit__(kind, error, trace)
        if self._file is not None:
            self._file.close()
        for name, tracker in self._trackers.items():
            self._tell(name, lambda tracker=tracker: tracker.close(has_failed=kind is not None))

    def begin(self, rows: Sequence[Mapping[str, float]], *, step: int) -> None:
        """Show that a run goes on from `step`, which has these rows in its log."""
        self._rows = list(rows)
        self.display.begin(step)

    def write(self, values: Mapping[str, float]) -> None:
        """Write the numbers of a finished step; NonFiniteError where one is not finite."""
        if wrong := [name for name, value in values.items() if not math.isfinite(value)]:
            raise NonFiniteError(f"metrics that are not finite: {', '.join(wrong)}; nothing of this step is written.")
        if self._file is None:
            self._file = FileIO(self._path, "a")
        append_line(self._file, line_of(values))
        for name, tracker in self._listening(object):
            self._tell(name, lambda tracker=tracker: tracker.write(values))
        self.display.step(values)
        self._say_health(values)

    def write_rollouts(self, step: int, groups: Sequence[Group]) -> None:
        """Tell the trackers that take them `tracking.samples` rollouts of a finished step, of many groups."""
        if not (self._config.samples and groups and (trackers := self._listening(TakesRollouts))):
            return
        rounds = range(max(len(group.rollouts) for group in groups))
        pairs = [(group, group.rollouts[place]) for place in rounds for group in groups if place < len(group.rollouts)]
        rows = [rollout_row(group, rollout) for group, rollout in pairs[: self._config.samples]]
        for name, tracker in trackers:
            self._tell(name, lambda tracker=tracker: tracker.write_rollouts(step, rows))

    def write_scores(self, scores: Mapping[str, float]) -> None:
        """Tell the trackers that take them the scores of a finished run, by name."""
        for name, tracker in self._listening(TakesScores):
            self._tell(name, lambda tracker=tracker: tracker.write_scores(scores))

    def write_policy(self, folder: Path, *, is_best: bool = False) -> None:
        """Give the trackers that take it the policy in a folder, where `tracking.policy` asks for it."""
        if self._config.policy and folder.is_dir():
            for name, tracker in self._listening(TakesPolicy):
                self._tell(name, lambda tracker=tracker: tracker.write_policy(folder, is_best=is_best))

    def _listening(self, kind: type[Any]) -> list[tuple[str, Any]]:
        """Return the trackers of a kind that have not failed, by name."""
        return [
            (name, tracker)
            for name, tracker in self._trackers.items()
            if name not in self._failed and isinstance(tracker, kind)
        ]

    def _say_health(self, values: Mapping[str, float]) -> None:
        if self._health is None:
            return
        self._rows.append(values)
        try:
            found = self._health(self._rows) or ""
        except Exception as error:  # a bystander never ends a run
            self._health = None
            found = f"The run's health is not looked at any more ({type(error).__name__}: {error})."
        if found and found != self._said:
            self.display.say(f"{found.rstrip('.')}: see `rlora check {shlex.quote(str(self._path.parent))}`.")
        self._said = found

    def _tell(self, name: str, message: Callable[[], None]) -> None:
        """Start a tracker, or give it a message, on the user's screen: a run's address, a question for a key.

        One that fails is said to, hears of no further step, and is closed with the run if it was started.
        """
        try:
            with nullcontext() if self._config.quiet else spoken_to_the_user():
                message()
        except (Exception, SystemExit) as error:  # a bystander never ends a run
            self._failed.add(name)
            self.display.say(
                f"The tracker {name} failed and hears of no further step ({type(error).__name__}: {error}); every step "
                f"is in {self._path}."
            )
