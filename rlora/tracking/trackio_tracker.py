"""trackio as a tracker: a database on this machine, which `trackio show --project PROJECT` shows.

It lies where trackio keeps it ($TRACKIO_DIR), and nothing is sent unless trackio's own variables name a server.
"""

from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from typing import Any, final

from rlora.errors import MissingDependencyError
from rlora.tracking.tracker import TrackedRun, TrackingConfig


@final
class TrackioTracker:
    """A trackio run named after the run directory and the run's id, so that a resumed one goes on there.

    Steps that it has already, which a run that was killed does again, are left as they are.
    """

    def __init__(self, run: TrackedRun):
        """Start or go on with the trackio run."""
        import trackio
        from trackio.sqlite_storage import SQLiteStorage

        project, name = run.config.wandb_project, f"{run.run_dir.name}-{run.run_id[:6]}"
        self._trackio: Any = trackio
        self._run: Any = trackio.init(
            project, name, config=dict(run.values), resume="allow", embed=False, auto_log_gpu=False, auto_log_cpu=False
        )
        rows = SQLiteStorage.get_logs(project, name, run_id=self._run.id)
        self._known = {int(row["step"]) for row in rows if "seconds/step" in row}
        self._num_steps = int(run.values["num_steps"])

    @staticmethod
    def check(config: TrackingConfig) -> None:
        """Raise MissingDependencyError without the package."""
        if find_spec("trackio") is None:
            raise MissingDependencyError(
                "tracking.tracker names trackio, which is not installed: pip install 'rlora[trackio]', or leave it out."
            )

    def write(self, values: Mapping[str, float]) -> None:
        """Record a finished step."""
        step = int(values["step"])
        self._num_steps = step + 1
        if step not in self._known:
            self._run.log({name: value for name, value in values.items() if name != "step"}, step=step)

    def write_rollouts(self, step: int, rows: Sequence[Mapping[str, Any]]) -> None:
        """Record some rollouts of a finished step as a table."""
        if step not in self._known:
            self._run.log({"rollouts": self._trackio.Table(data=[dict(row) for row in rows])}, step=step)

    def write_scores(self, scores: Mapping[str, float]) -> None:
        """Record the scores as `final/NAME`, at the number of finished steps, which is the policy's version."""
        self._run.log({f"final/{name}": score for name, score in scores.items()}, step=self._num_steps)

    def close(self, *, has_failed: bool) -> None:
        """Write what is left."""
        if self._trackio.context_vars.current_run.get() is self._run:
            self._trackio.finish()  # and not once more when the process ends
        else:
            self._run.finish()
