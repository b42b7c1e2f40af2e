"""TensorBoard as a tracker: event files in the run directory, which `tensorboard --logdir RUNS` shows; nothing is sent.

The package's own records are written, without its thread, which needs neither TensorFlow nor PyTorch.
"""

import os
import socket
import time
from collections.abc import Mapping
from importlib.util import find_spec
from typing import Any, cast, final

from rlora.errors import MissingDependencyError
from rlora.tracking.tracker import TrackedRun, TrackingConfig

FOLDER = "tensorboard"


@final
class TensorboardTracker:
    """Scalars by step. A run that goes on says from which step: what was written of it and of later ones is hidden."""

    def __init__(self, run: TrackedRun):
        """Open an event file of this start, beside those of earlier ones."""
        from tensorboard.compat.proto import event_pb2, summary_pb2
        from tensorboard.summary.writer.record_writer import RecordWriter

        events, summaries = cast(Any, event_pb2), cast(Any, summary_pb2)  # whose classes are made at import
        self._event, self._session, self._summary = events.Event, events.SessionLog, summaries.Summary
        (run.run_dir / FOLDER).mkdir(exist_ok=True)
        name = f"events.out.tfevents.{time.time():010.0f}.{socket.gethostname()}.{os.getpid()}"  # the order of starts
        self._writer = RecordWriter((run.run_dir / FOLDER / name).open("ab"))
        self._add(file_version="brain.Event:2")
        self._num_steps, self._has_begun = int(run.values["num_steps"]), False

    @staticmethod
    def check(config: TrackingConfig) -> None:
        """Raise MissingDependencyError without the package."""
        if find_spec("tensorboard") is None:
            raise MissingDependencyError(
                "tracking.tracker names tensorboard, which is not installed: pip install 'rlora[tensorboard]', or "
                "leave it out."
            )

    def write(self, values: Mapping[str, float]) -> None:
        """Record a finished step."""
        step = int(values["step"])
        self._begin(step)
        self._write(values, step)
        self._num_steps = step + 1

    def write_scores(self, scores: Mapping[str, float]) -> None:
        """Record the scores as `final/NAME`, at the number of finished steps, which is the policy's version."""
        self._begin(self._num_steps)
        self._write({f"final/{name}": score for name, score in scores.items()}, self._num_steps)

    def _begin(self, step: int) -> None:
        if not self._has_begun:
            start = self._session(status=self._session.START)
            self._add(step=step, session_log=start)
            self._has_begun = True

    def _write(self, values: Mapping[str, float], step: int) -> None:
        scalars = [self._summary.Value(tag=name, simple_value=value) for name, value in values.items()]
        self._add(step=step, summary=self._summary(value=scalars))

    def _add(self, **event: Any) -> None:
        """Write an event, whole: after a kill the file has all that was reported before."""
        self._writer.write(self._event(wall_time=time.time(), **event).SerializeToString())
        self._writer.flush()

    def close(self, *, has_failed: bool) -> None:
        """Close the file."""
        self._writer.close()
