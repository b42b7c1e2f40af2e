"""Write what a run's directory holds as one HTML page."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from rlora.config import with_home
from rlora.diagnosis import diagnose
from rlora.errors import ConfigError
from rlora.report.of_adapter import adapter_part
from rlora.report.runs import ReportedRun, read_runs
from rlora.report.write import MAX_ROLLOUTS, page_of, write_report
from rlora.system.screen import say, stage

DESCRIPTION = """\
Write runs as one HTML file: what was run, what came out, a diagnosis, charts, and a browser of the rollouts.

It reads run directories only (of training, supervised training, cohorts and their members), so it can be made on
another machine, and the file opens anywhere, without a network. Several runs are laid over each other, coloured by
run."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportOptions:
    """The options of `rlora report`."""

    runs: Annotated[tyro.conf.Positional[tuple[Path, ...]], tyro.conf.arg(metavar="RUN")]
    """Run directories, or the folders of cohorts."""
    to: Path | None = None
    """The file; report.html in the (first) run directory when left out."""
    max_rollouts: int = MAX_ROLLOUTS
    """At most so many rollouts: steps are left out evenly, and it is said of how many."""

    def check(self) -> None:
        """Raise ConfigError for a value that breaks a rule."""
        if not self.runs:
            raise ConfigError("name the run directory: rlora report runs/a.")
        if self.max_rollouts < 1:
            raise ConfigError(f"--max-rollouts is {self.max_rollouts}; it must be at least 1.")


def main(arguments: Sequence[str]) -> None:
    """Run `rlora report`."""
    options = with_home(tyro.cli(ReportOptions, args=arguments, prog="rlora report", description=DESCRIPTION))
    options.check()
    runs = read_runs(options.runs)
    with stage(f"Reading {_named(runs)}"):
        findings = {run.name: diagnose(run.path) for run in runs}
        page = page_of(runs, findings, adapter=adapter_part(runs), max_rollouts=options.max_rollouts)
    path = options.to or options.runs[0] / "report.html"
    write_report(page, path)
    if page.pack.num_left_out:
        say(f"{page.pack.num_left_out} steps' rollouts are left out: --max-rollouts says how many may be in the page.")
    say(f"{path}: {path.stat().st_size / 1e6:.1f} MB, {len(page.pack):,} rollouts. Open it in a browser.")


def _named(runs: Sequence[ReportedRun]) -> str:
    return str(runs[0].path) if len(runs) == 1 else f"{len(runs)} runs"
