"""What every benchmark reports: figures beside their targets, measured in processes of their own."""

import importlib.util
import json
import os
import statistics
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent


class PartError(RuntimeError):
    """A part of the benchmark failed; the others are measured all the same."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """One measured figure beside its target; `at_most` says on which side of the target it should lie."""

    name: str
    value: float
    unit: str
    target: float
    against: str
    note: str
    at_most: bool = True

    @property
    def met(self) -> bool:
        return self.value <= self.target if self.at_most else self.value >= self.target

    def row(self) -> dict[str, Any]:
        values = asdict(self)
        values["target"] = f"{'<=' if values.pop('at_most') else '>='} {self.target:g}"
        return values | {"met": self.met}


def child(*arguments: str) -> dict[str, Any]:
    """Run a part and return the JSON that it prints."""
    print(f"running {' '.join(arguments)} ...", file=sys.stderr, flush=True)
    done = subprocess.run([sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True, env=os.environ)
    line = next((line for line in done.stdout.splitlines() if line.startswith("RESULT")), None)
    if done.returncode or line is None:
        raise PartError(f"{' '.join(arguments)} failed:\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}")
    return json.loads(line.removeprefix("RESULT"))


def missing_modules(*names: str) -> list[str]:
    """Return what is not installed of these, as a sentence that says how to get it."""
    found = [name for name in names if importlib.util.find_spec(name) is None]
    return [f"{', '.join(found)} (`make setup-dev bench-site` installs them)"] if found else []


def ratio(ones: list[float], others: list[float]) -> float:
    """Return the median of the ratios within each round.

    A machine that is shared may have two speeds, a fifth apart, for minutes each: the ratio of two medians would then
    compare one arm's fast rounds with the other's slow ones whenever the speed changes half-way.
    """
    return statistics.median(one / other for one, other in zip(ones, others, strict=True))
