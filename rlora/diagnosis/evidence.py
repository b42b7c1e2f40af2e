"""What a run left behind, read once: its configuration, its rows, and its rollouts where a disease asks for them."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from rlora.errors import RunDirError
from rlora.evaluation.subject import known_task
from rlora.rewards import CORRECT
from rlora.rewards.combined import is_sum, weights_of
from rlora.store.claim import CONFIG_FILE
from rlora.store.origin import is_supervised
from rlora.store.rollouts import RolloutFolder
from rlora.store.run_dir import END_FILE, SIZES, metrics_rows, read_json, rollout_rows
from rlora.tasks.data import OWN

Row = Mapping[str, float]
Rollouts = Mapping[int, Sequence[Mapping[str, Any]]]
YOUNG = 8
"""Steps below which most diseases are not looked for."""
_RECENT = (8, 50)  # steps that a state is read from: a quarter of the run, at least and at most
_MOST_ROLLOUTS = 4000
OF_ANSWERS = ("mathematics", "last_number", "number")
"""The judges that compare an answer with a gold."""


def _no_rollouts() -> Rollouts:
    return {}


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Evidence:
    """What a run directory says. `config` is the run's as it is stored, {} where only rows are known; `sizes` is what
    it states of the base and the data; `end` the error that ended it, {} for none; `rollouts` reads those of the newest
    steps, oldest first, the first time it is called.
    """

    rows: Sequence[Row]
    config: Mapping[str, Any] = field(default_factory=dict)
    sizes: Mapping[str, Any] = field(default_factory=dict)
    end: Mapping[str, Any] = field(default_factory=dict)
    rollouts: Callable[[], Rollouts] = field(default=_no_rollouts)

    @property
    def is_supervised(self) -> bool:
        """Whether the run is one of supervised training."""
        return is_supervised(self.config)

    @property
    def recent(self) -> Sequence[Row]:
        """The newest rows: a quarter of the run, 8 to 50; none of a run that is too young."""
        least, most = _RECENT
        return self.rows[-min(most, max(least, len(self.rows) // 4)) :] if len(self.rows) >= YOUNG else ()

    def at(self, *names: str) -> Any:
        """Return a value of the configuration by its path, None where it is not there."""
        found: Any = self.config
        for name in names:
            found = found.get(name) if isinstance(found, Mapping) else None
        return found

    @property
    def judges(self) -> tuple[str, ...]:
        """The names of the judges that reward, with the data set's own in the place of `correct`."""
        reward = self.at("reward") or CORRECT
        names = tuple(weights_of(reward)) if is_sum(reward) else (reward,)
        data = self.at("data") or {}
        own = known_task(OWN if data.get("train") else str(data.get("name", "")))
        return tuple(own.judge if name == CORRECT and own is not None else name for name in names)

    @property
    def judge_of_answers(self) -> str | None:
        """The judge that compares answers with golds, None where none does."""
        return next((name for name in self.judges if name in OF_ANSWERS), None)


def read(run_dir: Path) -> Evidence:
    """Return what the run in `run_dir` left; RunDirError for a folder that is none, and for files that are damaged."""
    if not (run_dir / CONFIG_FILE).is_file():
        raise RunDirError(f"{run_dir} is not a run directory: it holds no {CONFIG_FILE}.")
    stated = _object(run_dir / "environment.json")
    return Evidence(
        rows=metrics_rows(run_dir) if (run_dir / "metrics.jsonl").is_file() else [],
        config=read_json(run_dir / CONFIG_FILE),
        sizes=_sizes(run_dir, stated.get(SIZES)),
        end=_object(run_dir / END_FILE),
        rollouts=cache(lambda: _newest_rollouts(run_dir / "rollouts")),
    )


def _object(path: Path) -> dict[str, Any]:
    return read_json(path) if path.is_file() else {}


def _sizes(run_dir: Path, stated: Any) -> Mapping[str, Any]:
    """Return what a run states of its base; of one that states nothing, what a trained model's own folder says."""
    if isinstance(stated, dict):
        return stated
    own = run_dir / "model" / "config.json"
    found = json.loads(own.read_text(encoding="utf-8")) if own.is_file() else {}
    return {name: found[name] for name in ("model_type", "hidden_size") if name in found}


def _newest_rollouts(folder: Path) -> Rollouts:
    found: dict[int, Sequence[Mapping[str, Any]]] = {}
    number = 0
    for step, file in reversed(RolloutFolder(folder).steps().items()):
        if found and (number >= _MOST_ROLLOUTS or len(found) >= _RECENT[1]):
            break
        found[step] = rollout_rows(file)
        number += len(found[step])
    return dict(reversed(found.items()))
