"""Toy runs with a disease, and the bases that they start from: the toy model, taught what it shall say."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rlora.config import to_json
from rlora.diagnosis import Finding, diagnose
from rlora.errors import ProofError
from rlora.evaluation.held_out import EvaluationConfig
from rlora.loop import run
from rlora.lora.config import LoraConfig
from rlora.model.sources import ModelConfig
from rlora.run_config import RunConfig
from rlora.store.rollouts import RolloutsConfig
from rlora.store.run_dir import RunDir
from rlora.supervised.loop import run as run_supervised
from rlora.system.records import line_of
from rlora.tasks import task
from rlora.train.optimizer import OptimizerConfig
from rlora.types import Problem
from support.runs import toy
from support.supervised import toy_sft

RATE = OptimizerConfig(learning_rate=9e-4)
SHORT = {"num_steps": 8, "optimizer": RATE, "evaluation": EvaluationConfig(num_problems=2)}


def digits() -> list[Problem]:
    """Return the 41 training problems of the toy's data set, whose answers are digits."""
    return task("digits").load("train")


def taught(folder: Path, answer: str | None = None, *, num_updates: int = 62) -> ModelConfig:
    """Return the toy model, all weights trained to give every digits problem this answer, or its own."""
    said = [(problem.question, answer or problem.answer) for problem in digits()]
    rows = [{"prompt": question, "completion": text} for question, text in said]
    config = toy_sft(
        folder,
        f"taught-{answer or 'sums'}".replace(" ", "-"),
        num_steps=num_updates,
        method="full",
        lora=LoraConfig(),
        examples_per_step=len(rows),
        optimizer=OptimizerConfig(learning_rate=3e-3),
    )
    evaluation, checkpoint = replace(config.evaluation, every=0), replace(config.checkpoint, every=num_updates)
    config = replace(config, evaluation=evaluation, checkpoint=checkpoint)
    run_dir = run_supervised(config, conversations=rows, test=rows[:3])
    return ModelConfig(name=str(run_dir / "model"), dtype="float32")


def sick(run_dir: Path, *, given: dict[str, Any] | None = None, **changes) -> dict[str, Finding]:
    """Train a toy run of 8 steps that differs in `changes`, and return what is found of it, by name."""
    run(toy(run_dir, **(SHORT | changes)), **(given or {}))
    return found_in(run_dir)


def stopped_by_proof(run_dir: Path, make_sampler, **changes) -> dict[str, Finding]:
    """Train a toy run that its proof ends, and return what is found of it."""
    try:
        run(toy(run_dir, **(SHORT | changes)), make_sampler=make_sampler)
    except ProofError:
        return found_in(run_dir)
    raise AssertionError("the proof let the run end well")


def found_in(run_dir: Path) -> dict[str, Finding]:
    return {found.name: found for found in diagnose(run_dir)}


def written(run_dir: Path, rows: Sequence[dict[str, float]], config: RunConfig | None = None) -> Path:
    """Write a run directory that holds these rows, by the project's own writers."""
    config = config or toy(run_dir, optimizer=RATE)
    folder = RunDir(run_dir, to_json(config), rollouts=RolloutsConfig())
    folder.begin(0)
    (run_dir / "metrics.jsonl").write_text("".join(f"{line_of(row)}\n" for row in rows))
    folder.close()
    return run_dir


def write_rows(path: Path, rows: Sequence[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)
