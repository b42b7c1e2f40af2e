"""Weights & Biases as a tracker; the package is imported when it is asked for."""

from collections.abc import Mapping
from typing import Any, final

from rlora.tracking.tracker import TrackedRun


@final
class WandbTracker:
    """A wandb run of the same id as the run, so that a resumed one goes on there."""

    def __init__(self, run: TrackedRun):
        """Start or go on with the wandb run."""
        import wandb

        self._run: Any = wandb.init(
            project=run.config.wandb_project,
            name=run.run_dir.name,
            id=run.run_id,
            resume="allow",
            dir=str(run.run_dir),
            mode=run.config.wandb,
            config=dict(run.values),
        )

    def write(self, values: Mapping[str, float]) -> None:
        """Record a finished step."""
        self._run.log(dict(values), step=int(values["step"]))

    def close(self, *, has_failed: bool) -> None:
        """End the wandb run with an exit code."""
        self._run.finish(exit_code=int(has_failed))
