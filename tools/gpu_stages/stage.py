"""What a stage is, what it is given, and how it measures seconds and memory."""

import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent.parent
RECORDS = "gpu.jsonl"
GIB = 2**30


class CheckError(Exception):
    """What a stage measured breaks what it is there to show."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """A stage: what it runs, the seconds it may take, the seconds below which starting it is no use, and what for.

    `environment` holds variables that have to be set before its process starts.
    """

    run: Callable[["Context"], None]
    limit_s: int
    least_s: int
    why: str
    environment: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Context:
    """What a stage is given: its name and limit, the folders for records and made models, and whether it rehearses."""

    stage: str
    limit_s: float
    out: Path
    models: Path
    is_tiny: bool

    def say(self, **fields: Any) -> None:
        """Write what was measured as one line, at once and synced: whatever happens next, it is kept."""
        line = json.dumps({"stage": self.stage, "at": round(time.time(), 2)} | fields)
        with (self.out / RECORDS).open("a") as file:
            file.write(line + "\n")
            file.flush()
            os.fsync(file.fileno())
        print(line, flush=True)

    def records(self, stage: str) -> list[dict[str, Any]]:
        """Return what a stage has written into this folder so far, oldest first, less lines that a kill cut short."""
        path, records = self.out / RECORDS, []
        for line in path.read_text().splitlines() if path.is_file() else ():
            with suppress(json.JSONDecodeError):
                records.append(json.loads(line))
        return [record for record in records if record["stage"] == stage]

    def run_dir(self, name: str) -> Path:
        """Return the path of a run that begins anew: what an earlier check left there would count as finished."""
        path = self.out / f"run-{name}"
        shutil.rmtree(path, ignore_errors=True)
        return path


class Clock:
    """Seconds and peak memory (GiB, PyTorch's count) by phase, with the device's work finished at both ends of each.

    `ballast` bytes are held by the check itself and left out of the peaks. Without a GPU there are no peaks.
    """

    def __init__(self, ballast: int = 0):
        """Start with no phase."""
        self._ballast, self._phase = ballast, ""
        self.seconds: dict[str, float] = {}
        self.peak_gib: dict[str, float] = {}

    @contextmanager
    def timed(self, phase: str) -> Iterator[None]:
        """Measure the block; the seconds of a phase that comes again replace the first's."""
        self.begin(phase)
        start = time.perf_counter()
        yield
        self.begin("")
        self.seconds[phase] = time.perf_counter() - start

    def begin(self, phase: str) -> None:
        """Note the peak of the phase that ends here, and count from here for `phase`; an empty name counts nothing."""
        import torch

        if not torch.cuda.is_available():
            return
        torch.cuda.synchronize()
        if self._phase:
            peak = (torch.cuda.max_memory_allocated() - self._ballast) / GIB
            self.peak_gib[self._phase] = max(self.peak_gib.get(self._phase, 0.0), round(peak, 2))
        torch.cuda.reset_peak_memory_stats()
        self._phase = phase


def used_memory() -> dict[str, float]:
    """Return the GiB of the card that are used now, by anyone, and how many it has; nothing without a GPU."""
    import torch

    if not torch.cuda.is_available():
        return {}
    free, total = torch.cuda.mem_get_info()
    return {"used_gib": round((total - free) / GIB, 2), "card_gib": round(total / GIB, 2)}


def digest(*values: Any) -> str:
    """Return twelve characters that differ when any of the values does."""
    return hashlib.sha256(repr(values).encode()).hexdigest()[:12]
