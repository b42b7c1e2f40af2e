"""Who hears of a run's metrics beside its own folder: a tracker is a file and a line in `TRACKERS`, or a user's own."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

from rlora.errors import ConfigError
from rlora.registry import find_callable

WandbMode = Literal["online", "offline", "disabled"]


@dataclass(frozen=True, slots=True, kw_only=True)
class TrackingConfig:
    """Where metrics go besides the run directory."""

    tracker: str | None = None
    """Your own my_module:my_tracker, called with what is known of the run (rlora/tracking/tracker.py); it gets every
    step's metrics.
    """
    wandb: WandbMode = "disabled"
    """online (needs a login), offline (files under the run directory, `wandb sync` sends them later), or disabled."""
    wandb_project: str = "rlora"
    """Project that wandb files the run under."""
    verbose: bool = False
    """Let everything that libraries and processes of theirs write reach the screen, in place of the run's log.txt."""

    def check(self) -> None:
        """Raise ConfigError for a tracker that is not there."""
        if self.tracker in TRACKERS:
            raise ConfigError(f"tracking.tracker is {self.tracker!r}; that one is asked for by --tracking.wandb MODE.")
        for name in self.names:
            find_tracker(name)

    @property
    def names(self) -> tuple[str, ...]:
        """The trackers that are asked for."""
        return (*(["wandb"] if self.wandb != "disabled" else []), *([self.tracker] if self.tracker else []))


@dataclass(frozen=True, slots=True, kw_only=True)
class TrackedRun:
    """What a tracker is told of a run: its folder, an id that stays when it is resumed, and its configuration.

    `values` is the whole configuration as JSON, nested; `config` how it is tracked.
    """

    run_dir: Path
    run_id: str
    values: Mapping[str, Any]
    config: TrackingConfig


class Tracker(Protocol):
    """Hears of each finished step. One that raises, at its start too, is left out from then on, and the run goes on.

    What makes it may have a `check(config)`, which is called before anything loads and raises ConfigError.

    Example:
        >>> class Printer:
        ...     def __init__(self, run): self.name = run.run_dir.name
        ...     def write(self, values): print(self.name, values["step"], values["reward/mean"])
        ...     def close(self, *, has_failed): pass
    """

    def write(self, values: Mapping[str, float]) -> None:
        """Take the numbers of a finished step, all finite; `values["step"]` says which."""
        ...

    def close(self, *, has_failed: bool) -> None:
        """End; `has_failed` says whether an error, or a signal, ended the run."""
        ...


@runtime_checkable
class TakesScores(Protocol):
    """A tracker that also hears how a run ended."""

    def write_scores(self, scores: Mapping[str, float]) -> None:
        """Take the scores on held-out problems (`rlora.summary.scores_of`), before `close`."""
        ...


TRACKERS = {"wandb": "rlora.tracking.wandb_tracker:WandbTracker"}  # callables TrackedRun -> Tracker


def find_tracker(name: str) -> Callable[[TrackedRun], Tracker]:
    """Return what makes the tracker of this name; ConfigError where nothing has it, or what has it cannot be called."""
    unknown = f"tracking.tracker is {name!r}"
    return find_callable(name, TRACKERS, unknown=unknown, called="TrackedRun -> Tracker")


def check_trackers(config: TrackingConfig) -> None:
    """Raise ConfigError, or MissingDependencyError, where a tracker knows already that it cannot start."""
    for name in config.names:
        check = getattr(find_tracker(name), "check", None)
        if callable(check):
            check(config)
