"""What the user sees: lines, and the stages of a start with their seconds, drawn live on a terminal."""

import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import IO, Any, cast

from rich.console import Console, RenderableType
from rich.progress import Progress, ProgressColumn, SpinnerColumn, Task, TextColumn
from rich.text import Text

from rlora.system.progress import Watch, watching
from rlora.text import printable

_DRAWN_A_SECOND = 5  # a drawing takes 1.4 ms of Python's lock, so five take 0.7 % of what the loop has


class _Console(Console):
    def on_broken_pipe(self) -> None:
        """Go on quietly where whoever read the output has gone: a display ends nothing."""
        self.quiet = True


class _Unfailing:
    """A stream on which a full disk, or a terminal that went away, is nobody's concern; a reader that has gone is told
    to the console, which is quiet from then on.
    """

    def __init__(self, stream: IO[str]):
        self._stream = stream

    def write(self, text: str) -> int:
        try:
            return self._stream.write(text)
        except BrokenPipeError:
            raise
        except OSError:
            return len(text)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except BrokenPipeError:
            raise
        except OSError:
            return

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


class Bar(Progress):
    """A bar of rich with a line below it: how far what its `watch` sees is, while something is counted."""

    def __init__(self, *columns: ProgressColumn, **drawn: Any):
        """Draw the columns, as `Screen.drawn` says."""
        self.watch = Watch()
        super().__init__(*columns, **drawn)

    def get_renderables(self) -> Iterable[RenderableType]:
        """Yield the bar, and the line where there is one."""
        yield from super().get_renderables()
        if text := self.watch.text():
            yield Text(f"  {text}", no_wrap=True, overflow="ellipsis")


class Screen:
    """What the user sees: lines, and stages of a start with their seconds.

    On a terminal a stage is a live line until it is done; in a file it is one line, of which the seconds come last. A
    quiet screen has neither, and of the lines those that must be seen.
    """

    def __init__(self, stream: IO[str], *, is_alone: bool = True, is_quiet: bool = False):
        """Write to `stream`; unless rlora `is_alone` there, a stage begins and ends with a line of its own."""
        console = _Console(file=cast(IO[str], _Unfailing(stream)), highlight=False)
        console.soft_wrap = not console.is_terminal  # a terminal breaks lines inside words, a file has no width
        self.console = console
        self.is_quiet, self._is_alone, self._open_line = is_quiet, is_alone, ""

    def say(self, text: str) -> None:
        """Print a line, above whatever is drawn live."""
        if self._open_line:
            self.console.print()
            self._open_line = ""
        self.console.print(printable(text), markup=False)

    def note(self, text: str) -> None:
        """Print a line that a quiet screen leaves out: what goes as it should."""
        if not self.is_quiet:
            self.say(text)

    @contextmanager
    def stage(self, title: str, *, usually: str = "") -> Iterator[None]:
        """Say that the block runs, how long it `usually` takes where that is known, and how long it took."""
        if self.is_quiet:
            yield
            return
        start = time.monotonic()
        name = printable(f"{title} ({usually})" if usually else title)
        try:
            if self.console.is_terminal:
                with self._live(name):
                    yield
            else:
                self._begin(f"{name} ...")
                yield
        except BaseException:
            self._end(f"{name} ...", f"failed after {_seconds(time.monotonic() - start)}")
            raise
        self._end(f"{name} ...", _seconds(time.monotonic() - start))

    def _begin(self, text: str) -> None:
        if self._is_alone:
            self.console.print(text, markup=False, end="")
            self._open_line = text
        else:
            self.say(text)

    def _end(self, text: str, how: str) -> None:
        if self._open_line == text:
            self._open_line = ""
            self.console.print(f" {how}", markup=False)
        else:
            self.say(f"{text} {how}")

    @contextmanager
    def _live(self, name: str) -> Iterator[None]:
        columns = (SpinnerColumn(), TextColumn("{task.description} ...", markup=False), _Elapsed())
        with Bar(*columns, **self.drawn()) as bar, watching(bar.watch):
            bar.add_task(name, total=None)
            yield

    def drawn(self) -> dict[str, Any]:
        """Return how a bar of rich is drawn here: on a terminal that is not quiet, leaving `sys.stdout` alone."""
        return {
            "console": self.console,
            "disable": self.is_quiet or not self.console.is_terminal,
            "transient": True,
            "refresh_per_second": _DRAWN_A_SECOND,
            "redirect_stdout": not self._is_alone,
            "redirect_stderr": not self._is_alone,
        }


class _Elapsed(ProgressColumn):
    def render(self, task: Task) -> Text:
        return Text(f"{task.elapsed or 0:.0f} s")


def _seconds(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds < 9.95 else f"{seconds:.0f} s"
