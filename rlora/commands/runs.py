"""List the runs in a folder: how far each is, what it earned, and whether it is running, finished, stopped or
broken.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import tyro
from rich.console import Console
from rich.table import Table

from rlora.errors import CheckpointError, DataError, RunDirError
from rlora.store.checkpoint import CheckpointFolder
from rlora.store.run_dir import metrics_rows, read_json
from rlora.system.lock import holder

_DESCRIPTION = """\
List the runs in a folder, newest first.

running: a process holds it. finished: it reached its end. stopped: its last checkpoint is whole, and the command that \
started it goes on from there. broken: no checkpoint of it can be used."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunsOptions:
    """The options of `rlora runs`."""

    folder: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="DIR")] = Path("runs")
    """Folder whose subfolders are runs, or a run itself."""
    json: bool = False
    """Write one JSON object a line instead of a table."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunState:
    """What is known of a run without loading it; `age_seconds` since its last step, None where nothing was written."""

    run_dir: Path
    state: str
    step: int
    num_steps: int
    reward: float | None
    accuracy: float | None
    age_seconds: float | None
    data: str
    model: str
    why: str = ""


def state_of(run_dir: Path) -> RunState:
    """Return the state of the run in `run_dir`, which holds a config.json; reading only, whoever writes there."""
    config, rows, summary, why = {}, [], {}, ""
    try:
        rows = metrics_rows(run_dir)
        config = read_json(run_dir / "config.json")
        if (run_dir / "summary.json").is_file():
            summary = read_json(run_dir / "summary.json")
    except RunDirError as error:
        why = str(error)
    checkpoints = CheckpointFolder(run_dir / "checkpoints")
    state, step = "stopped", len(rows)
    if holder(run_dir) is not None:
        state = "running"
    elif summary:
        state = "finished"
    elif not why:
        try:
            newest = checkpoints.newest()
            step = newest.step if newest is not None else 0
        except CheckpointError as error:
            why = str(error)
    if why:
        state = "broken"
    steps = checkpoints.steps()
    accuracies = [row["evaluation/accuracy"] for row in rows if "evaluation/accuracy" in row]
    return RunState(
        run_dir=run_dir,
        state=state,
        step=steps[-1] if steps and state in ("running", "finished") else step,
        num_steps=int(config.get("num_steps", 0)),
        reward=rows[-1]["reward/mean"] if rows else None,
        accuracy=summary["policy"]["accuracy"] if summary else accuracies[-1] if accuracies else None,
        age_seconds=_age(run_dir / "metrics.jsonl"),
        data=str(config.get("data", {}).get("name", "")),
        model=str(config.get("model", {}).get("name", "")),
        why=why,
    )


def _age(path: Path) -> float | None:
    try:
        return datetime.now(UTC).timestamp() - path.stat().st_mtime
    except OSError:
        return None


def main(arguments: Sequence[str]) -> None:
    """Run `rlora runs`; raises DataError for a folder that is not there or holds no run."""
    options = tyro.cli(RunsOptions, args=arguments, prog="rlora runs", description=_DESCRIPTION)
    folder = options.folder
    found = [folder] if (folder / "config.json").is_file() else [p.parent for p in folder.glob("*/config.json")]
    if not found:
        raise DataError(f"{folder} holds no run; name the folder that --run-dir was in.")
    states = sorted((state_of(path) for path in found), key=lambda s: (s.age_seconds is None, s.age_seconds or 0.0))
    if options.json:
        for state in states:
            values = {name: getattr(state, name) for name in RunState.__slots__}
            print(json.dumps({**values, "run_dir": str(state.run_dir)}))
        return
    Console().print(_table(states))
    for state in states:
        if state.why:
            print(f"{state.run_dir}: {state.why}")


def _table(states: Sequence[RunState]) -> Table:
    table = Table("run", "state", "step", "reward", "held-out", "last step", "data", "model")
    for state in states:
        table.add_row(
            str(state.run_dir),
            state.state,
            f"{state.step}/{state.num_steps}",
            "" if state.reward is None else f"{state.reward:.3f}",
            "" if state.accuracy is None else f"{100 * state.accuracy:.1f} %",
            "" if state.age_seconds is None else f"{_duration(state.age_seconds)} ago",
            state.data,
            state.model,
        )
    return table


def _duration(seconds: float) -> str:
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"
