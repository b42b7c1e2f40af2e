"""Who hears of a run's metrics beside its own folder: a tracker is a file and a line in `TRACKERS`, or a user's own."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

from rlora.errors import ConfigError
from rlora.registry import find_callable
from rlora.types import Group, Rollout

WandbMode = Literal["online", "offline", "disabled"]


@dataclass(frozen=True, slots=True, kw_only=True)
class TrackingConfig:
    """Where metrics go besides the run directory."""

    tracker: str | None = None
    """Who gets every step's metrics: tensorboard, trackio, wandb (online), your own my_module:my_tracker, called with
    what is known of the run (rlora/tracking/tracker.py), or several with commas between them.
    """
    wandb: WandbMode = "disabled"
    """online (needs a login), offline (files under the run directory, `wandb sync` sends them later), or disabled."""
    wandb_project: str = "rlora"
    """Project that wandb and trackio file the run under."""
    samples: int = 0
    """Rollouts that wandb and trackio show of each step whose rollouts stay (--rollouts.keep-every): what was asked,
    said, taken for the answer, and earned.
    """
    policy: bool = False
    """Give wandb the policy at the end, the last and the best one, as versions of an artifact."""
    quiet: bool = False
    """Print a line at the start and one at the end, and errors and warnings alone in between (also: --quiet)."""
    verbose: bool = False
    """Let everything that libraries and processes of theirs write reach the screen, in place of the run's log.txt."""

    def check(self) -> None:
        """Raise ConfigError for a tracker that is not there, and for values that break a rule."""
        for name in self.names:
            find_tracker(name)
        if self.samples < 0:
            raise ConfigError(f"tracking.samples is {self.samples}; it must be at least 0, and 0 shows none.")
        if self.quiet and self.verbose:
            raise ConfigError("tracking.quiet and tracking.verbose ask for opposite things; leave one of them out.")

    @property
    def names(self) -> tuple[str, ...]:
        """The trackers that are asked for."""
        asked = [name.strip() for name in (self.tracker or "").split(",") if name.strip()]
        return tuple(dict.fromkeys([*(["wandb"] if self.wandb != "disabled" else []), *asked]))

    @property
    def wandb_mode(self) -> WandbMode:
        """How wandb is to run where it is asked for: online, unless its mode is given."""
        return "online" if self.wandb == "disabled" else self.wandb


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


@runtime_checkable
class TakesRollouts(Protocol):
    """A tracker that also shows some of what was said: `tracking.samples` of a step."""

    def write_rollouts(self, step: int, rows: Sequence[Mapping[str, Any]]) -> None:
        """Take rollouts of a finished step, after `write`: the names of each row are those of `rollout_row`."""
        ...


@runtime_checkable
class TakesPolicy(Protocol):
    """A tracker that also keeps the policy, where `tracking.policy` asks for it."""

    def write_policy(self, folder: Path, *, is_best: bool) -> None:
        """Take the folder of the last policy, or of the best one, before `close`."""
        ...


def rollout_row(group: Group, rollout: Rollout) -> dict[str, Any]:
    """Return a rollout as a tracker shows it: texts as they are, which is data and may be hostile."""
    verdict = rollout.verdict
    return {
        "problem": group.prompt.problem.id,
        "prompt": group.prompt.text,
        "completion": rollout.completion.text,
        "reward": rollout.reward,
        "verdict": verdict.kind.value,
        "extracted": verdict.extracted,
    }


TRACKERS = {  # callables TrackedRun -> Tracker, by name; their packages are imported when they are asked for
    "tensorboard": "rlora.tracking.tensorboard_tracker:TensorboardTracker",
    "trackio": "rlora.tracking.trackio_tracker:TrackioTracker",
    "wandb": "rlora.tracking.wandb_tracker:WandbTracker",
}


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
