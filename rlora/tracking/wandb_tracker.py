"""Weights & Biases as a tracker; the package is imported when it is asked for."""

from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, final

from rlora.errors import ConfigError, MissingDependencyError
from rlora.tracking.tracker import TrackedRun, TrackingConfig

_REFUSALS = ("UsageError", "AuthenticationError")  # of a login; what else fails there is a bystander's


@final
class WandbTracker:
    """A wandb run of the same id as the run, so that a resumed one goes on there."""

    def __init__(self, run: TrackedRun):
        """Start or go on with the wandb run."""
        import wandb

        self._wandb: Any = wandb
        self._artifact_name = f"policy-{run.run_id}"
        self._run: Any = wandb.init(
            project=run.config.wandb_project,
            name=run.run_dir.name,
            id=run.run_id,
            resume="allow",
            dir=str(run.run_dir),
            mode=run.config.wandb_mode,
            config=dict(run.values),
        )

    @staticmethod
    def check(config: TrackingConfig) -> None:
        """Raise MissingDependencyError without the package, and ConfigError for `online` without a login; on a terminal
        wandb asks for one.
        """
        if find_spec("wandb") is None:
            raise MissingDependencyError(
                f"tracking.wandb is {config.wandb_mode!r}, and wandb is not installed: pip install wandb, or leave "
                "it out."
            )
        if config.wandb_mode != "online":
            return
        try:
            import wandb

            wandb.login(verify=False)
        except Exception as error:
            if type(error).__name__ in _REFUSALS:
                raise ConfigError(
                    f"tracking.wandb is 'online', and there is no login: {error} Run `wandb login`, set WANDB_API_KEY, "
                    "or use --tracking.wandb offline."
                ) from error

    def write(self, values: Mapping[str, float]) -> None:
        """Record a finished step."""
        self._run.log(dict(values), step=int(values["step"]))

    def write_rollouts(self, step: int, rows: Sequence[Mapping[str, Any]]) -> None:
        """Record some rollouts of a finished step as a table."""
        columns = list(rows[0])
        self._run.log({"rollouts": self._wandb.Table(columns, [list(row.values()) for row in rows])}, step=step)

    def write_policy(self, folder: Path, *, is_best: bool) -> None:
        """Keep a policy as a version of the run's artifact, called `last` or `best`."""
        artifact = self._wandb.Artifact(self._artifact_name, type="policy")
        artifact.add_dir(str(folder))
        self._run.log_artifact(artifact, aliases=["best" if is_best else "last"])

    def write_scores(self, scores: Mapping[str, float]) -> None:
        """Put the scores into the wandb run's summary, as `final/NAME`."""
        self._run.summary.update({f"final/{name}": score for name, score in scores.items()})

    def close(self, *, has_failed: bool) -> None:
        """End the wandb run with an exit code."""
        self._run.finish(exit_code=int(has_failed))
