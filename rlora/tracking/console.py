"""The live progress of a run: one line a finished step and, on a terminal, what the current step is doing."""

import time
from collections.abc import Mapping
from contextlib import AbstractContextManager
from types import TracebackType

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
)
from rich.text import Text

from rlora.system.screen import screen
from rlora.system.stages import Screen

_LONGEST, _WIDE = 78, 150  # characters of a step's line, and of a screen on which the phases follow
PHASES = ("sample", "verify", "train", "swap", "evaluate", "save")


class _Phase(ProgressColumn):
    """What the step is doing and for how many seconds it has been: whole numbers, which go on while an engine works."""

    def render(self, task: Task) -> Text:
        """Return the phase, nothing before the first one."""
        phase = task.fields["phase"]
        return Text(f"{phase} {time.monotonic() - task.fields['since']:.0f} s" if phase else "")


class Display:
    """Prints a line a step, with the time left; a progress bar names the phase while a step runs.

    The bar begins with the first phase: before, a start's own stages are drawn (`rlora.system.screen`).
    """

    def __init__(self, num_steps: int, on: Screen | None = None):
        """Show a run of `num_steps` on a screen, the user's by default."""
        self._screen = on or screen()
        self._num_steps = num_steps
        self._seconds: list[float] = []
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            _Phase(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[left]}"),
            **self._screen.drawn(),
        )
        self._task = self._progress.add_task("training", total=num_steps, phase="", since=0.0, left="")

    @property
    def console(self) -> Console:
        """What tables are printed on."""
        return self._screen.console

    def __enter__(self) -> "Display":
        """Draw from the first phase on."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop drawing."""
        self._progress.stop()

    def phase(self, name: str) -> None:
        """Say what the current step is doing."""
        self._progress.start()
        self._progress.update(self._task, phase=name, since=time.monotonic())

    def begin(self, step: int) -> None:
        """Show that a run goes on from `step`."""
        self._progress.update(self._task, completed=step)

    def say(self, text: str) -> None:
        """Print a line above the progress bar."""
        self._screen.say(text)

    def stage(self, title: str) -> AbstractContextManager[None]:
        """Say that the block runs, and how long it took."""
        return self._screen.stage(title)

    def step(self, values: Mapping[str, float]) -> None:
        """Print a finished step."""
        self._seconds.append(values["seconds/step"])
        done = int(values["step"]) + 1
        recent = self._seconds[-5:]
        left = (self._num_steps - done) * sum(recent) / len(recent)
        self.say(step_line(values, num_steps=self._num_steps, seconds_left=left, width=self.console.width))
        self._progress.update(self._task, completed=done, left=f"left {clock(left)}")


def step_line(values: Mapping[str, float], *, num_steps: int, seconds_left: float, width: int = 80) -> str:
    """Return a finished step as a line of at most 78 characters; where `width` leaves room, the phases' seconds follow.

    A held-out score stands in the place of the tokens a second. A number that is wider than usual pushes out what is
    least missed.
    """
    kl, held_out = values.get("agreement/kl_k3"), values.get("evaluation/accuracy")
    rate = f"{values['throughput/sampled_tokens_per_second']:>5.0f} tokens/s"
    cells = {
        "step": f"step {int(values['step']) + 1:>4}/{num_steps}",
        "reward": f"reward {values['reward/mean']:.3f}",
        "kl": f"KL {'-' if kl is None else f'{kl:.1e}':<7}",
        "cut": f"cut {100 * values['rollout/truncated_share']:>3.0f} %",
        "rate": f"{rate if held_out is None else f'held-out {100 * held_out:.1f} %':<15}",
        "left": f"left {clock(seconds_left)}",
    }
    for least in ("cut", "kl", "left"):
        if len("  ".join(filter(None, cells.values()))) > _LONGEST:
            cells[least] = ""
    line = "  ".join(filter(None, cells.values()))
    phases = " ".join(f"{name} {values[f'seconds/{name}']:.1f}" for name in PHASES if f"seconds/{name}" in values)
    with_phases = f"{line}  {values['seconds/step']:.1f} s ({phases})"
    return with_phases if len(with_phases) <= width and width >= _WIDE else line


def clock(seconds: float) -> str:
    """Return seconds as a clock shows them: 4:05, or 2h07."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes:02}" if hours else f"{minutes}:{rest:02}"
