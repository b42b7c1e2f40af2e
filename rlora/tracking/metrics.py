"""The metrics of one step: flat `area/name` numbers, with the seconds of each phase."""

import resource
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager


class StepMetrics:
    """Collects the numbers of a step; `step` counts finished iterations, so it is that of the policy that sampled."""

    def __init__(self, step: int, on_phase: Callable[[str], None] = lambda _: None):
        """Start the clock; `on_phase` is told each phase as it begins."""
        self.step, self._on_phase = step, on_phase
        self.values: dict[str, float] = {}
        self._start = time.perf_counter()

    def update(self, values: Mapping[str, float]) -> None:
        """Add numbers; a name is set once a step."""
        if repeated := values.keys() & self.values.keys():
            raise ValueError(f"metrics set twice in a step: {', '.join(sorted(repeated))}")
        self.values.update(values)

    @contextmanager
    def timed(self, phase: str) -> Iterator[None]:
        """Add the block's seconds to `seconds/PHASE`."""
        self._on_phase(phase)
        start = time.perf_counter()
        try:
            yield
        finally:
            name = f"seconds/{phase}"
            self.values[name] = self.values.get(name, 0.0) + time.perf_counter() - start

    def finished(self) -> dict[str, float]:
        """Return all numbers, with the step's seconds, tokens a second, and the process's peak memory in bytes."""
        total = time.perf_counter() - self._start
        if "rollout/num_tokens" not in self.values and "batch/num_trained_tokens" in self.values:  # nothing was sampled
            return {
                "step": self.step,
                **self.values,
                "seconds/step": total,
                **_throughput(self.values),
                "memory/peak_resident_bytes": peak_resident_bytes(),
            }
        tokens = self.values.get("rollout/num_tokens", 0)
        sampling = self.values.get("seconds/sample", 0.0)
        return {
            "step": self.step,
            **self.values,
            "seconds/step": total,
            "throughput/sampled_tokens_per_second": tokens / sampling if sampling else 0.0,
            "throughput/tokens_per_second": tokens / total,
            "memory/peak_resident_bytes": peak_resident_bytes(),
        }


def _throughput(values: Mapping[str, float]) -> dict[str, float]:
    """Return what supervised training computes a second: trained tokens, and positions without padding."""
    seconds = max(values["seconds/train"], 1e-9)
    used = values["batch/num_positions"] * (1 - values["batch/padding_share"])
    return {
        "throughput/trained_tokens_per_second": values["batch/num_trained_tokens"] / seconds,
        "throughput/positions_per_second": used / seconds,
    }


def peak_resident_bytes() -> int:
    """Return the most memory this process ever had resident, in bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
