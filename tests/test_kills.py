"""SIGKILL at random moments: every run that goes on ends equal to the one that was never killed."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from support.policies import ROOT
from support.runs import assert_same_run, rows, without_clock

from rlora.cohort.fates import fate_of
from rlora.store.cohort_dir import MEMBERS


def kill(folder: Path, number: int, seed: int, *what: str) -> list[Path]:
    """Return the folders of runs that were killed; the one that was not is `straight` beside them."""
    command = [sys.executable, "-m", "support.kills", str(folder), str(number), str(seed), *what]
    done = subprocess.run(command, cwd=ROOT / "tests", capture_output=True, text=True, timeout=60 + 60 * number)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout.splitlines()[-1])
    assert len(report["kills"]) == number
    return [folder / one["run"] for one in report["kills"]]


def assert_same_runs(killed: list[Path]) -> None:
    for each in killed:
        assert_same_run(each, each.parent / "straight")


def assert_same_cohorts(killed: list[Path]) -> None:
    for each in killed:
        straight = each.parent / "straight"
        for name in ("halvings.json", "table.json", "plot.png", "adapter/adapter_model.safetensors"):
            assert (each / name).read_bytes() == (straight / name).read_bytes()
        names = sorted(path.name for path in (straight / MEMBERS).iterdir() if path.is_dir())
        assert len(names) == 4
        for name in names:
            here, there = each / MEMBERS / name, straight / MEMBERS / name
            if (there / "summary.json").is_file():
                assert_same_run(here, there)
            assert fate_of(here) == fate_of(there)
            assert [without_clock(row) for row in rows(here)] == [without_clock(row) for row in rows(there)]


@pytest.mark.loop
def test_ten_kills_at_random_moments(tmp_path) -> None:
    assert_same_runs(kill(tmp_path, 10, 1))


@pytest.mark.loop
def test_three_kills_of_a_cohort_at_random_moments(tmp_path) -> None:
    assert_same_cohorts(kill(tmp_path, 3, 3, "cohort"))


@pytest.mark.long
def test_a_hundred_kills_at_random_moments(tmp_path) -> None:
    assert_same_runs(kill(tmp_path, 100, 2))


@pytest.mark.long
def test_a_hundred_kills_of_a_cohort_at_random_moments(tmp_path) -> None:
    assert_same_cohorts(kill(tmp_path, 100, 4, "cohort"))
