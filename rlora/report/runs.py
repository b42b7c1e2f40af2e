"""What a report reads of run directories: runs of both kinds, members of cohorts, evaluations; reading only."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from rlora.config import differences
from rlora.errors import RunDirError
from rlora.evaluation.intervals import Estimate
from rlora.rewards import is_share
from rlora.store.cohort_dir import MEMBERS, member_dir
from rlora.store.origin import is_supervised
from rlora.store.rollouts import RolloutFolder
from rlora.store.run_dir import metrics_rows, read_json
from rlora.system.lock import holder

Kind = Literal["rl", "supervised"]
_NOT_SETTINGS = ("run_dir", "data", "preset", "branch", "tracking", "num_threads", "checkpoint", "rollouts")
_SHORT = {"optimizer.learning_rate": "rate", "lora.rank": "rank", "lora.alpha": "alpha", "lora.layers": "layers"}


@dataclass(frozen=True, kw_only=True)
class ReportedRun:
    """A run as its directory says it is: its `config`, the `rows` of its metrics, its `summary` (empty until it has
    ended), the results of its `evaluations` by folder, and `name`, by which it is told from the others of a report.
    """

    path: Path
    name: str
    kind: Kind
    config: Mapping[str, Any]
    rows: Sequence[Mapping[str, float]]
    summary: Mapping[str, Any]
    evaluations: Mapping[Path, Mapping[str, Any]]

    @property
    def is_running(self) -> bool:
        """Whether a process holds the run now."""
        return holder(self.path) is not None

    @cached_property
    def rollouts(self) -> RolloutFolder:
        """The rollouts that are kept."""
        return RolloutFolder(self.path / "rollouts")

    @property
    def has_shares(self) -> bool:
        """Whether its mean reward is a share of problems, written in per cent."""
        return is_share(self.config.get("reward"))

    @property
    def accuracy(self) -> Mapping[str, Any] | None:
        """The score of a finished run of RL on held-out problems, with its interval; None for any other."""
        policy = self.summary.get("policy", {})
        return policy if "accuracy" in policy else None


def read_run(path: Path, *, name: str | None = None) -> ReportedRun:
    """Return the run in a folder; RunDirError where there is none, or where it cannot be read."""
    if not (path / "config.json").is_file():
        raise RunDirError(f"{path} is not a run directory: it holds no config.json.")
    config = read_json(path / "config.json")
    summary = path / "summary.json"
    return ReportedRun(
        path=path,
        name=name or path.resolve().name,
        kind="supervised" if is_supervised(config) else "rl",
        config=config,
        rows=metrics_rows(path),
        summary=read_json(summary) if summary.is_file() else {},
        evaluations=_evaluations(path),
    )


def read_runs(paths: Sequence[Path]) -> list[ReportedRun]:
    """Return the runs in folders, the members of a cohort in its place, each once and under a name of its own.

    Raises RunDirError where a folder holds neither, or where runs of RL and supervised runs are mixed.
    """
    folders: list[Path] = []
    for path in map(member_dir, paths):
        members = sorted(config.parent for config in (path / MEMBERS).glob("*/config.json"))
        folders += members or [path]
    folders = list({folder.resolve(): folder for folder in folders}.values())
    runs = [read_run(folder, name=name) for folder, name in zip(folders, _names(folders), strict=True)]
    if len({run.kind for run in runs}) > 1:
        raise RunDirError("Runs of RL and supervised runs have other metrics: make a report of each kind.")
    return runs


def _names(folders: Sequence[Path]) -> list[str]:
    """Return the last part of each path, or as many as tell it from the others."""
    names: list[str] = []
    for folder in folders:
        parts, length = folder.resolve().parts, 1
        while length < len(parts) and any(
            other != folder and other.resolve().parts[-length:] == parts[-length:] for other in folders
        ):
            length += 1
        names.append("/".join(parts[-length:]))
    return names


def score_text(run: ReportedRun, mean: float, interval: Sequence[float]) -> str:
    """Return a score, or a difference of scores, with its interval: in per cent where the run's rewards are shares."""
    low, high = interval
    return Estimate(mean=mean, low=low, high=high).text(is_share=run.has_shares)


def settings_of(runs: Sequence[ReportedRun]) -> list[dict[str, str]]:
    """Return what each run has in the fields in which some differ, by a short name.

    Example:
        >>> settings_of(runs)
        [{'rate': '0.0003', 'seed': '0'}, {'rate': '0.001', 'seed': '0'}]
    """
    fields = dict.fromkeys(
        field
        for other in runs[1:]
        for line in differences(dict(runs[0].config), dict(other.config))
        if (field := line.partition(":")[0]).partition(".")[0] not in _NOT_SETTINGS
    )
    return [{_SHORT.get(field, field): _at(run.config, field) for field in fields} for run in runs]


def _at(config: Mapping[str, Any], field: str) -> str:
    value: Any = config
    for key in field.split("."):
        value = value.get(key) if isinstance(value, Mapping) else None
    return f"{value:g}" if isinstance(value, float) else str(value)


def _evaluations(run_dir: Path) -> dict[Path, Mapping[str, Any]]:
    """Return the results of the evaluations that lie in a run's folder; one that cannot be read is none."""
    found: dict[Path, Mapping[str, Any]] = {}
    for path in sorted((run_dir / "eval").glob("*/results.json")):
        results = read_json(path)
        if isinstance(results.get("benchmarks"), dict) and results["benchmarks"]:
            found[path.parent] = results
    return found
