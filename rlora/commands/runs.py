"""List the runs in a folder: how far each is, what it earned, and whether it is running, finished, stopped or
broken.
"""

import json
import math
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import tyro
from rich.console import Console

from rlora.config import with_home
from rlora.errors import CheckpointError, DataError, RunDirError
from rlora.rewards import is_share
from rlora.store.checkpoint import CheckpointFolder
from rlora.store.cohort_dir import MEMBERS, member_dir
from rlora.store.run_dir import metrics_rows, read_json
from rlora.system.lock import holder
from rlora.text import printable, shown_score

_COMPARED = {  # what runs are told apart by -> where it is in config.json
    "method": "method",
    "rank": "lora.rank",
    "alpha": "lora.alpha",
    "layers": "lora.layers",
    "rate": "optimizer.learning_rate",
    "loss": "loss.name",
    "advantage": "advantage",
    "seed": "seed",
    "problems": "problems_per_step",
    "examples": "examples_per_step",
    "samples": "samples_per_problem",
    "data": "data.name",
    "train": "data.train",
    "model": "model.name",
}
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
    """Write one JSON object a line instead of a table, with what each run was asked for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunState:
    """What is known of a run without loading it; `age_seconds` since its last step, None where nothing was written."""

    run_dir: Path
    state: str
    step: int
    num_steps: int
    reward: float | None
    accuracy: float | None
    loss: float | None
    age_seconds: float | None
    data: str
    model: str
    setting: Mapping[str, str]
    """What the run was asked for, of what runs are compared by: method, rank, rate and the like."""
    why: str = ""
    parts: Mapping[str, float] = field(default_factory=dict)
    """Of a reward that is a sum the mean of each part in the last step, before its weight."""
    is_share: bool = True
    """Whether `accuracy` is a share of problems, as it is not where rewards are numbers of another kind."""


def state_of(run_dir: Path) -> RunState:
    """Return the state of the run in `run_dir`, which holds a config.json; reading only, whoever writes there."""
    config, rows, summary, steps, why = {}, [], {}, [], ""
    state, step = "stopped", 0
    checkpoints = CheckpointFolder(run_dir / "checkpoints")
    try:
        rows = metrics_rows(run_dir)
        step = len(rows)
        config = read_json(run_dir / "config.json")
        if (run_dir / "summary.json").is_file():
            summary = read_json(run_dir / "summary.json")
        steps = checkpoints.steps()
        if holder(run_dir) is not None:
            state = "running"
        elif summary:
            state = "finished"
        else:
            newest = checkpoints.newest()
            step = newest.step if newest is not None else 0
    except (RunDirError, CheckpointError, OSError) as error:
        state, why = "broken", str(error)
    accuracies = [row["evaluation/accuracy"] for row in rows if "evaluation/accuracy" in row]
    return RunState(
        run_dir=run_dir,
        state=state,
        step=steps[-1] if steps and state in ("running", "finished") else step,
        num_steps=int(_number(config, "num_steps") or 0),
        reward=rows[-1].get("reward/mean") if rows else None,
        accuracy=_number(summary, "policy", "accuracy") if summary else accuracies[-1] if accuracies else None,
        loss=_loss(rows, summary),
        age_seconds=_age(run_dir / "metrics.jsonl"),
        data=str(_at(config, "data", "name") or ""),
        model=str(_at(config, "model", "name") or ""),
        setting=_setting(config),
        why=why,
        parts=_parts(rows),
        is_share=is_share(_at(config, "reward")),
    )


def _parts(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    last = rows[-1] if rows else {}
    names = [name for name in last if name.startswith("reward/") and name.endswith("_mean")]
    return {name.removeprefix("reward/").removesuffix("_mean"): last[name] for name in names}


def _loss(rows: Sequence[Mapping[str, Any]], summary: Mapping[str, Any]) -> float | None:
    """Return the held-out loss of a supervised run, nats a token: the last one measured."""
    measured = [row["evaluation/loss"] for row in rows if "evaluation/loss" in row]
    return _number(summary, "policy", "nats", "mean") if summary else measured[-1] if measured else None


def _setting(config: Mapping[str, Any]) -> dict[str, str]:
    """Return the fields of a run's configuration by which runs are told apart, short, "" where there is none."""
    is_full = config.get("method") == "full"
    found = {}
    for name, path in _COMPARED.items():
        value = _at(config, *path.split("."))
        is_meant = value is not None and not (is_full and path.startswith("lora."))
        found[name] = f"{value:g}" if is_meant and isinstance(value, float) else str(value) if is_meant else ""
    return found


def _at(values: Any, *names: str) -> Any:
    """Return what lies in a JSON value under one name after the other; None where nothing does."""
    for name in names:
        values = values.get(name) if isinstance(values, Mapping) else None
    return values


def _number(values: Any, *names: str) -> float | None:
    found = _at(values, *names)
    return found if type(found) in (int, float) and math.isfinite(found) else None


def _age(path: Path) -> float | None:
    try:
        return max(0.0, datetime.now(UTC).timestamp() - path.stat().st_mtime)  # a clock may have gone back
    except OSError:
        return None


def main(arguments: Sequence[str]) -> None:
    """Run `rlora runs`; raises DataError for a folder that is not there or holds no run."""
    options = with_home(tyro.cli(RunsOptions, args=arguments, prog="rlora runs", description=_DESCRIPTION))
    folder = member_dir(options.folder)
    found = [folder] if (folder / "config.json").is_file() else [p.parent for p in _configs(folder)]
    if not found:
        raise DataError(f"{folder} holds no run; name the folder that --run-dir was in.")
    states = sorted((state_of(path) for path in found), key=lambda s: (s.age_seconds is None, s.age_seconds or 0.0))
    if options.json:
        for state in states:
            values = {name: getattr(state, name) for name in RunState.__slots__}
            print(json.dumps({**values, "run_dir": str(state.run_dir)}))
        return
    for line in _lines(states, folder, width=Console().width):
        print(printable(line))


def _configs(folder: Path) -> Iterator[Path]:
    """Yield the configurations of the runs in a folder, of the members of cohorts too, and of a cohort's own."""
    for place in ("*", f"{MEMBERS}/*", f"*/{MEMBERS}/*"):
        yield from folder.glob(f"{place}/config.json")


def _lines(states: Sequence[RunState], folder: Path, *, width: int) -> Iterator[str]:
    """Yield the table and what is broken, in lines of at most `width` characters.

    A line a run, with what differs between them; where that is too wide, a run's name in the folder has a line of its
    own, and what still is too wide stands below it in words. Nothing is cut: what is too long goes on below.
    """
    differing = [name for name in _COMPARED if len({state.setting[name] for state in states}) > 1]
    head = ["run", "state", "step", "reward", "held-out", "last step", *differing]
    head += ["parts of the reward"] if any(state.parts for state in states) else []
    rows = [dict(zip(head, _cells(state, differing), strict=False)) for state in states]
    lines = _aligned([head, *([row[name] for name in head] for row in rows)])
    if max(map(len, lines)) <= width:
        yield from lines
    else:
        yield from _broken(f"In {folder}:", width, "  ")
        yield from _below(head[1:], states, rows, folder, width)
    for state in states:
        if state.why:
            yield from _broken(f"{state.run_dir}: {state.why}", width, "  ")


def _below(
    columns: Sequence[str], states: Sequence[RunState], rows: Sequence[Mapping[str, str]], folder: Path, width: int
) -> Iterator[str]:
    """Yield two lines a run or more: its name, and the columns that fit; what does not fit in words below them."""
    fitting = len(columns)
    while fitting > 1 and _width(columns[:fitting], rows) + 2 > width:
        fitting -= 1
    shown, others = columns[:fitting], columns[fitting:]
    head, *table = _aligned([shown, *([row[name] for name in shown] for row in rows)])
    yield f"  {head}"
    for state, row, line in zip(states, rows, table, strict=True):
        name = state.run_dir.name if state.run_dir == folder else str(state.run_dir.relative_to(folder))
        yield from _broken(name, width, "    ")
        yield f"  {line}"
        words = ", ".join(f"{name} {row[name]}" for name in others if row[name] not in ("", "-"))
        yield from _broken(f"  {words}", width, "    ") if words else ()


def _broken(text: str, width: int, indent: str) -> list[str]:
    return textwrap.wrap(text, width, subsequent_indent=indent, break_on_hyphens=False)


def _width(names: Sequence[str], rows: Sequence[Mapping[str, str]]) -> int:
    return max(map(len, _aligned([names, *([row[name] for name in names] for row in rows)])))


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def _cells(state: RunState, differing: Sequence[str]) -> list[str]:
    return [
        str(state.run_dir),
        state.state,
        f"{state.step}/{state.num_steps}",
        "" if state.reward is None else f"{state.reward:.3f}",
        _held_out(state),
        "" if state.age_seconds is None else f"{_duration(state.age_seconds)} ago",
        *(state.setting[name] or "-" for name in differing),
        ", ".join(f"{name} {mean:.3f}" for name, mean in state.parts.items()),
    ]


def _held_out(state: RunState) -> str:
    if state.loss is not None:
        return f"{state.loss:.3f} nats"
    return "" if state.accuracy is None else shown_score(state.accuracy, is_share=state.is_share)


def _duration(seconds: float) -> str:
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"
