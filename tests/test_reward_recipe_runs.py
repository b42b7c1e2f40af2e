"""Recipes with rewards of one's own, in whole toy runs: each is short, in one file, and trains."""

import os
import subprocess
import sys
from dataclasses import replace

import pytest
from support.policies import ROOT
from support.runs import rows

from rlora.loop import run
from rlora.recipes import find_recipe
from rlora.rewards import JudgeConfig
from rlora.store.run_dir import rollout_rows

pytestmark = pytest.mark.loop
RECIPES = ("json_schema", "python_code", "gym")


@pytest.fixture(autouse=True)
def path(monkeypatch) -> None:
    monkeypatch.setattr(sys, "path", [*sys.path])  # a recipe's folder is added to it


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_is_short_and_trains(name, tmp_path) -> None:
    file = ROOT / "recipes" / f"{name}.py"
    assert len(file.read_text().splitlines()) <= 60
    preset = find_recipe(str(file)).presets["toy"]
    run_dir = run(replace(preset, run_dir=str(tmp_path / "run"), num_steps=2, judge=JudgeConfig(num_workers=1)))
    assert len(rows(run_dir)) == 2
    rollouts = rollout_rows(run_dir / "rollouts" / "step-000000.jsonl")
    reasons = {"json_schema": "no ", "python_code": "Error", "gym": "no <answer>"}
    assert all(row["reward"] == 0 and reasons[name] in row["reason"] for row in rollouts)


def test_the_command_runs_a_recipe_of_ones_own_in_one_file(tmp_path) -> None:
    size = ["--preset", "toy", "--run-dir", "run", "--num-steps", "1", "--evaluation.num-problems", "2"]
    command = [sys.executable, str(ROOT / "recipes" / "json_schema.py"), *size, "--judge.num-workers", "1"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120, env=environment)
    assert done.returncode == 0, done.stderr
    assert len(rows(tmp_path / "run")) == 1
