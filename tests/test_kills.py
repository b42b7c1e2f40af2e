"""SIGKILL at random moments: every run that goes on ends equal to the one that was never killed."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from support.policies import ROOT
from support.runs import assert_same_run


def kill(folder: Path, number: int, seed: int) -> None:
    command = [sys.executable, "-m", "support.kills", str(folder), str(number), str(seed)]
    done = subprocess.run(command, cwd=ROOT / "tests", capture_output=True, text=True, timeout=60 + 30 * number)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout.splitlines()[-1])
    assert len(report["kills"]) == number
    for one in report["kills"]:
        assert_same_run(folder / one["run"], folder / "straight")


@pytest.mark.loop
def test_ten_kills_at_random_moments(tmp_path) -> None:
    kill(tmp_path, 10, seed=1)


@pytest.mark.long
def test_a_hundred_kills_at_random_moments(tmp_path) -> None:
    kill(tmp_path, 100, seed=2)
