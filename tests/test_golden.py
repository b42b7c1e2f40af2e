"""Nothing changes unseen: whole runs give the bits that they gave before, and a run of an older version goes on."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from golden.runs import machine, record_path
from support.policies import ROOT

from rlora.sampler.base import is_vllm_installed

GOLDEN = ROOT / "tests" / "golden"


def run_here(out: Path, *options: str) -> dict:
    """Return the digests of the golden runs, made in a process of their own."""
    command = [sys.executable, str(GOLDEN / "runs.py"), str(out), *options]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr
    return json.loads(out.read_text())


def recorded() -> dict:
    if not record_path().is_file():
        pytest.skip(f"no golden record for {machine()}; to make one before a change: tests/golden/runs.py --record")
    return json.loads(record_path().read_text())["runs"]


@pytest.mark.loop
def test_toy_runs_give_the_recorded_bits(tmp_path) -> None:
    expected = recorded()
    for name, found in run_here(tmp_path / "out.json").items():
        assert found == expected[name], name


@pytest.mark.long
@pytest.mark.vllm
@pytest.mark.skipif(not is_vllm_installed(), reason="vLLM is not installed")
def test_the_quickstarts_first_steps_give_the_recorded_bits(tmp_path) -> None:
    expected = recorded()["quickstart"]
    assert run_here(tmp_path / "out.json", "--quickstart")["quickstart"] == expected


@pytest.mark.loop
def test_a_run_of_the_version_before_the_wings_goes_on(tmp_path) -> None:
    """Written by the last commit before the code was divided into wings: two steps, the last checkpoint alone."""
    folder = tmp_path / "run_before"
    shutil.copytree(GOLDEN / "run_before", folder)
    options = ["--preset", "toy", "--num-steps", "3", "--problems-per-step", "4", "--samples-per-problem", "16"]
    options += ["--optimizer.learning-rate", "1e-3", "--evaluation.num-problems", "8", "--evaluation.every", "0"]
    command = [sys.executable, str(ROOT / "recipes" / "arithmetic.py"), "--run-dir", folder.name, *options]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert [json.loads(line)["step"] for line in (folder / "metrics.jsonl").read_text().splitlines()] == [0, 1, 2]
    assert {path.name for path in (folder / "checkpoints").iterdir()} == {"step-000002", "step-000003"}
    assert (folder / "summary.json").is_file()
