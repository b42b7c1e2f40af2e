"""What a run's summary and its bounds need of the steps before: kept in the checkpoint, since the log is only a log."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

_COMPARED = ("agreement/kl_k3", "agreement/mean_abs_logprob_difference")


@dataclass(slots=True, kw_only=True)
class Tally:
    """Counts over the finished steps of one run: their number, the last mean reward, of some metrics the first and the
    largest value, the seconds by phase (`step`: all of them), and the bits that the rewards told.

    Example:
        >>> Tally.of([{"step": 0, "reward/mean": 0.5, "seconds/step": 2.0}])
        Tally(num_steps=1, reward=0.5, first={}, largest={}, seconds={'step': 2.0}, bits=0.0)
    """

    num_steps: int = 0
    reward: float | None = None
    first: dict[str, float] = field(default_factory=dict)
    largest: dict[str, float] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    bits: float = 0.0

    @classmethod
    def of(cls, rows: Iterable[Mapping[str, float]]) -> "Tally":
        """Return the tally of the metrics of steps, in order."""
        tally = cls()
        for row in rows:
            tally.add(row)
        return tally

    def add(self, row: Mapping[str, float]) -> None:
        """Count a finished step."""
        self.num_steps += 1
        self.reward = row.get("reward/mean")
        for name in _COMPARED:
            if name in row:
                self.first.setdefault(name, row[name])
                self.largest[name] = max(row[name], self.largest.get(name, row[name]))
        self.bits += bits_of(row) or 0.0
        for name, value in row.items():
            if name.startswith("seconds/"):
                phase = name.removeprefix("seconds/")
                self.seconds[phase] = self.seconds.get(phase, 0.0) + value

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON values; `Tally(**values)` is the way back."""
        return {name: getattr(self, name) for name in self.__slots__}


def bits_of(row: Mapping[str, float]) -> float | None:
    """Return the bits that the rewards of a step told; None where nothing was rewarded, or before they were logged."""
    bits = row.get("information/bits_per_rollout")
    return None if bits is None else bits * row["rollout/num_completions"]
