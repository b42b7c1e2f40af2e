"""Runs of the toy preset: made, stopped, read and compared."""

import dataclasses
import json
from pathlib import Path

import pytest

from rlora.loop import run
from rlora.run_config import RunConfig
from rlora.sampler.build import build_sampler
from rlora.store.run_dir import metrics_rows
from support.engines import Around
from support.policies import ROOT
from support.recipes import presets


def toy(run_dir: Path, **changes) -> RunConfig:
    preset = presets(ROOT / "recipes" / "arithmetic.py")["toy"]
    return dataclasses.replace(preset, run_dir=str(run_dir), **changes)


def rows(run_dir: Path) -> list[dict]:
    return metrics_rows(run_dir)


def without_clock(row: dict) -> dict:
    return {k: v for k, v in row.items() if not k.startswith(("seconds/", "throughput/", "memory/"))}


SIZE = {"problems_per_step": 6, "samples_per_problem": 64, "num_steps": 5}  # every step has something to learn from


class Stop(Exception):
    """What the test stops a run with."""


class StopsAfter(Around):
    """Samples as usual `count` times for training, then raises Stop."""

    def __init__(self, sampler, count: int):
        self._sampler, self._left = sampler, count

    def load(self, adapters) -> None:
        self._sampler.load(adapters)

    def sample(self, requests, sampling, *, seed):
        if requests[0].key[0] == "train" and requests[0].key[1] != "probe":
            if self._left == 0:
                raise Stop
            self._left -= 1
        return self._sampler.sample(requests, sampling, seed=seed)


def stopped(config, *, after: int) -> None:
    with pytest.raises(Stop):
        run(config, make_sampler=lambda spec: StopsAfter(build_sampler(spec), after))


def assert_same_run(run_dir: Path, straight: Path, *, but: tuple[str, ...] = (), pattern: str = "adapter*/*") -> None:
    """Metrics (times apart), rollouts, policies, checkpoints and scores are equal, the files byte for byte."""
    assert [without_clock(row) for row in rows(run_dir)] == [without_clock(row) for row in rows(straight)]
    for files_of in ("rollouts/*.jsonl", pattern, "checkpoints/*/tensors.safetensors"):
        expected = {str(path.relative_to(straight)): path.read_bytes() for path in straight.glob(files_of)}
        found = {str(path.relative_to(run_dir)): path.read_bytes() for path in run_dir.glob(files_of)}
        assert found == expected
        assert expected
    path, straight_path = (
        {file.name: file.read_bytes() for file in folder.glob("trajectory/*")} for folder in (run_dir, straight)
    )
    assert path == straight_path
    scores = [json.loads((folder / "summary.json").read_text()) for folder in (run_dir, straight)]
    for name in ("base", "policy", "difference", "num_steps", "max_kl_k3"):
        assert name in but or scores[0][name] == scores[1][name]
