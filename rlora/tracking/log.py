"""Where the metrics of a run go: `metrics.jsonl`, the display, and the trackers that are asked for."""

import math
from collections.abc import Callable, Mapping
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
from rlora.tracking.tracker import TakesScores, TrackedRun, Tracker, TrackingConfig, find_tracker


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
    ):
        """Open the log of the run in `run_dir`; trackers go on with the run of the same `run_id`.

        The display is drawn on the user's screen, or on another one.
        """
        self._path = run_dir / "metrics.jsonl"
        self._file: FileIO | None = None
        self.display = Display(num_steps, screen)
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

    def write(self, values: Mapping[str, float]) -> None:
        """Write the numbers of a finished step; NonFiniteError where one is not finite."""
        if wrong := [name for name, value in values.items() if not math.isfinite(value)]:
            raise NonFiniteError(f"metrics that are not finite: {', '.join(wrong)}; nothing of this step is written.")
        if self._file is None:
            self._file = FileIO(self._path, "a")
        append_line(self._file, line_of(values))
        for name, tracker in self._trackers.items():
            if name not in self._failed:
                self._tell(name, lambda tracker=tracker: tracker.write(values))
        self.display.step(values)

    def write_scores(self, scores: Mapping[str, float]) -> None:
        """Tell the trackers that take them the scores of a finished run, by name."""
        for name, tracker in self._trackers.items():
            if name not in self._failed and isinstance(tracker, TakesScores):
                self._tell(name, lambda tracker=tracker: tracker.write_scores(scores))

    def _tell(self, name: str, message: Callable[[], None]) -> None:
        """Start a tracker, or give it a message, on the user's screen: a run's address, a question for a key.

        One that fails is said to, hears of no further step, and is closed with the run if it was started.
        """
        try:
            with spoken_to_the_user():
                message()
        except (Exception, SystemExit) as error:  # a bystander never ends a run
            self._failed.add(name)
            self.display.say(
                f"The tracker {name} failed and hears of no further step ({type(error).__name__}: {error}); every step "
                f"is in {self._path}."
            )
