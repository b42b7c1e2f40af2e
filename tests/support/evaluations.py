"""Evaluations with the toy model, and a sampler that counts."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from rlora.evaluation.config import PRESETS, EvalConfig
from rlora.sampler.base import Sampler
from rlora.system.records import rows_in
from rlora.types import Completion, SampleRequest, SamplingParams


def toy(output: Path | str, **changes) -> EvalConfig:
    changes.setdefault("model", None if "run" in changes or "adapter" in changes else "toy")
    return dataclasses.replace(PRESETS["toy"], output=str(output), **changes)


def rows(file: Path) -> list[dict]:
    return rows_in(file)[0]


class Counting:
    """Counts the requests that reach a sampler, and fails after some calls."""

    def __init__(self, sampler: Sampler, *, calls: int = 10_000):
        self.sampler, self.keys, self.calls = sampler, [], calls

    def load(self, adapters) -> None:
        self.sampler.load(adapters)

    def sample(
        self, requests: Sequence[SampleRequest], sampling: SamplingParams, *, seed: int
    ) -> list[list[Completion]]:
        if requests and requests[0].key[0] == "benchmark":
            if self.calls == 0:
                raise KeyboardInterrupt
            self.calls -= 1
            self.keys += [(request.key[1], request.policy) for request in requests]
        return self.sampler.sample(requests, sampling, seed=seed)

    def close(self) -> None:
        self.sampler.close()
