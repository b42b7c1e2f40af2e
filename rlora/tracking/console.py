"""The live progress of a run: one line a finished step and, on a terminal, what the current step is doing."""

import time
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager, ExitStack
from types import TracebackType

from rich.progress import BarColumn, MofNCompleteColumn, ProgressColumn, Task, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from rlora.system.progress import watching
from rlora.system.screen import screen
from rlora.system.stages import Bar, Screen
from rlora.text import clock, shown_score

_LONGEST, _WIDE = 78, 150  # characters of a step's line, and of a screen on which the phases follow
PHASES = ("sample", "verify", "train", "swap", "evaluate", "save")


class _Phase(ProgressColumn):
    """What the step is doing and for how many seconds it has been: whole numbers, which go on while an engine works."""

    def render(self, task: Task) -> Text:
        """Return the phase, nothing before the first one."""
        phase = task.fields["phase"]
        return Text(f"{phase} {time.monotonic() - task.fields['since']:.0f} s" if phase else "")


class Display:
    """Prints a line a step, with the time left; a progress bar names the phase while a step runs, and below it stands
    how far that is.

    The bar begins with the first phase: before, a start's own stages are drawn (`rlora.system.screen`).
    """

    def __init__(self, num_steps: int, on: Screen | None = None, *, has_shares: bool = True):
        """Show a run of `num_steps` on a screen, the user's by default; `has_shares`: held-out scores in per cent."""
        self._has_shares = has_shares
        self._screen = on or screen()
        self._num_steps = num_steps
        self._seconds: list[float] = []
        self._watching = ExitStack()
        self._progress = Bar(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            _Phase(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[left]}"),
            **self._screen.drawn(),
        )
        self._task = self._progress.add_task("training", total=num_steps, phase="", since=0.0, left="")

    def __enter__(self) -> "Display":
        """Draw from the first phase on."""
        if self._screen.console.is_terminal:
            self._watching.enter_context(watching(self._progress.watch))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop drawing."""
        self._progress.stop()
        self._watching.close()

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

    def note(self, text: str) -> None:
        """Print a line, unless the screen is quiet."""
        self._screen.note(text)

    def opening(self, text: str) -> None:
        """Print what a run begins with: on a quiet screen its first line, and the warnings below it."""
        first, *others = text.split("\n")
        self.say(first)
        for line in others:
            (self.say if line.startswith("Warning: ") else self.note)(line)

    def closing(self, summary: str, table: Table, lines: Iterable[str]) -> None:
        """Print how a run ended: a table with lines around it, or on a quiet screen the summary alone."""
        if self._screen.is_quiet:
            self.say(summary)
            return
        title, *others = lines
        self.say(title)
        self._screen.console.print(table)
        for line in others:
            self.say(line)

    def stage(self, title: str) -> AbstractContextManager[None]:
        """Say that the block runs, and how long it took."""
        return self._screen.stage(title)

    def step(self, values: Mapping[str, float]) -> None:
        """Print a finished step."""
        self._seconds.append(values["seconds/step"])
        done = int(values["step"]) + 1
        recent = self._seconds[-5:]
        left = (self._num_steps - done) * sum(recent) / len(recent)
        width = self._screen.console.width
        self.note(
            step_line(values, num_steps=self._num_steps, seconds_left=left, width=width, has_shares=self._has_shares)
        )
        self._progress.update(self._task, completed=done, left=f"left {clock(left)}")


def step_line(
    values: Mapping[str, float], *, num_steps: int, seconds_left: float, width: int = 80, has_shares: bool = True
) -> str:
    """Return a finished step as a line of at most 78 characters; where `width` leaves room, the phases' seconds follow.

    A held-out score stands in the place of the tokens a second, in per cent if such scores are shares. A number that is
    wider than usual pushes out what is least missed.
    """
    if "reward/mean" not in values:
        return _supervised_line(values, num_steps=num_steps, seconds_left=seconds_left)
    kl, held_out = values.get("agreement/kl_k3"), values.get("evaluation/accuracy")
    rate = f"{values['throughput/sampled_tokens_per_second']:>5.0f} tokens/s"
    cells = {
        "step": f"step {int(values['step']) + 1:>4}/{num_steps}",
        "reward": f"reward {values['reward/mean']:.3f}",
        "kl": f"KL {'-' if kl is None else f'{kl:.1e}':<7}",
        "cut": f"cut {100 * values['rollout/truncated_share']:>3.0f} %",
        "rate": f"{rate if held_out is None else f'held-out {shown_score(held_out, is_share=has_shares)}':<15}",
        "left": f"left {clock(seconds_left)}",
    }
    for least in ("cut", "kl", "left"):
        if len("  ".join(filter(None, cells.values()))) > _LONGEST:
            cells[least] = ""
    line = "  ".join(filter(None, cells.values()))
    phases = " ".join(f"{name} {values[f'seconds/{name}']:.1f}" for name in PHASES if f"seconds/{name}" in values)
    with_phases = f"{line}  {values['seconds/step']:.1f} s ({phases})"
    return with_phases if len(with_phases) <= width and width >= _WIDE else line


def _supervised_line(values: Mapping[str, float], *, num_steps: int, seconds_left: float) -> str:
    """Return a finished update of supervised training; a held-out loss stands in the place of the tokens a second."""
    held_out = values.get("evaluation/loss")
    rate = f"{values['throughput/trained_tokens_per_second']:>5.0f} tokens/s"
    cells = (
        f"step {int(values['step']) + 1:>4}/{num_steps}",
        f"loss {values['loss/value']:.4f}",
        f"gradient {values['optimizer/grad_norm']:<8.2g}",
        f"{rate if held_out is None else f'held-out {held_out:.4f}':<15}",
        f"left {clock(seconds_left)}",
    )
    return "  ".join(cells)
