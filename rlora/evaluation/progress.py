"""How far the sampling of a benchmark is."""

import time
from contextlib import ExitStack

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn

from rlora.evaluation.engine import Benchmark
from rlora.evaluation.samples import SampleFile
from rlora.system.progress import watching
from rlora.system.screen import is_diverted
from rlora.system.stages import Bar
from rlora.text import printable


class Display:
    """A bar on a terminal, with the completions of the batch below it; a line a batch elsewhere."""

    def __init__(self, console: Console, benchmark: Benchmark, arm: str, samples: SampleFile):
        """Show the sampling of one arm of a benchmark, of which some problems may be there."""
        self._console, self._title = console, printable(f"{benchmark.name}, {arm}")
        self._total = len(benchmark.problems)
        self._done = sum(problem in samples for problem in benchmark.problems)
        self._tokens, self._started, self._watching = 0, time.monotonic(), ExitStack()
        columns = (TextColumn("{task.description}", markup=False), BarColumn(bar_width=24), MofNCompleteColumn())
        self._bar = Bar(
            *columns,
            TextColumn("{task.fields[rate]:.0f} tokens/s, left"),
            TimeRemainingColumn(),
            console=console,
            disable=not console.is_terminal,
            refresh_per_second=5,
            redirect_stdout=not is_diverted(),  # else it would take from the log what libraries write
            redirect_stderr=not is_diverted(),
        )
        self._task = self._bar.add_task(self._title, total=self._total, completed=self._done, rate=0.0)

    def __enter__(self) -> "Display":
        """Start drawing."""
        if self._done > 0:
            self._console.print(f"{self._title}: {self._done} of {self._total} problems are there", markup=False)
        self._bar.start()
        self._watching.enter_context(watching(self._bar.watch))
        return self

    def __exit__(self, *_: object) -> None:
        """Stop drawing."""
        self._watching.close()
        self._bar.stop()

    def advance(self, problems: int, tokens: int) -> None:
        """Count a finished batch."""
        self._done, self._tokens = self._done + problems, self._tokens + tokens
        rate = self._tokens / max(1e-9, time.monotonic() - self._started)
        self._bar.update(self._task, completed=self._done, rate=rate)
        if not self._console.is_terminal:
            self._console.print(
                f"{self._title}: {self._done}/{self._total} problems, {rate:.0f} tokens/s", markup=False
            )
