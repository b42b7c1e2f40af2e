"""Where the metrics of a run go: `metrics.jsonl`, the display, and wandb when asked."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

from rlora.system.files import append_line
from rlora.system.screen import spoken_to_the_user
from rlora.tracking.console import Display

WandbMode = Literal["online", "offline", "disabled"]


@dataclass(frozen=True, slots=True, kw_only=True)
class TrackingConfig:
    """Where metrics go besides the run directory."""

    wandb: WandbMode = "disabled"
    """online (needs a login), offline (files under the run directory, `wandb sync` sends them later), or disabled."""
    wandb_project: str = "rlora"
    """Project that wandb files the run under."""
    verbose: bool = False
    """Let everything that libraries and processes of theirs write reach the screen, in place of the run's log.txt."""


class MetricsLog:
    """Writes each step once: a JSON line, a line on the display, a wandb record."""

    def __init__(
        self, run_dir: Path, config: TrackingConfig, *, num_steps: int, run_id: str, run_config: Mapping[str, Any]
    ):
        """Open the log of the run in `run_dir`; wandb goes on with the run of the same `run_id`."""
        self._path = run_dir / "metrics.jsonl"
        self._file: FileIO | None = None
        self.display = Display(num_steps)
        self._wandb: Any = None
        if config.wandb != "disabled":
            import wandb

            with spoken_to_the_user():  # the run's address, a question for the key
                self._wandb = wandb.init(
                    project=config.wandb_project,
                    name=run_dir.name,
                    id=run_id,
                    resume="allow",
                    dir=str(run_dir),
                    mode=config.wandb,
                    config=dict(run_config),
                )

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
        if self._wandb is not None:
            with spoken_to_the_user():
                self._wandb.finish(exit_code=int(kind is not None))

    def write(self, values: Mapping[str, float]) -> None:
        """Write the numbers of a finished step; all must be finite."""
        if wrong := [name for name, value in values.items() if not math.isfinite(value)]:
            raise ValueError(f"metrics that are not finite: {', '.join(wrong)}")
        if self._file is None:
            self._file = FileIO(self._path, "a")
        append_line(self._file, json.dumps(values))
        if self._wandb is not None:
            self._wandb.log(dict(values), step=int(values["step"]))
        self.display.step(values)
