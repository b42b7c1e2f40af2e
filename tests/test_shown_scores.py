"""A mean reward is written in per cent where it is a share of problems, and as the number it is where it is not."""

import re
from pathlib import Path

import pytest
from support.runs import toy

from rlora.cohort.table import Table
from rlora.commands.card import model_card
from rlora.evaluation.intervals import Estimate
from rlora.evaluation.report import table_rows, warnings
from rlora.loop import run
from rlora.rewards import JUDGES, is_share


def quarter(completion, problem):
    return 0.25 if "1" in completion else -0.25


@pytest.mark.unit
def test_which_rewards_are_shares() -> None:
    assert [name for name in JUDGES if not is_share(name)] == ["length"]
    assert is_share(None)
    assert is_share("correct")
    assert not any(map(is_share, ("my_rewards:score", "correct=1", "correct=1 format=0.2", "quarter")))


@pytest.mark.unit
def test_an_estimate_is_written_in_per_cent_unless_it_is_no_share() -> None:
    estimate = Estimate(mean=0.25, low=0.125, high=0.5)
    assert str(estimate) == "25.0 % [12.5, 50.0]"
    assert estimate.text(is_share=False) == "0.25 [0.125, 0.5]"
    assert Estimate(mean=0.25, low=-1.5, high=2).text() == "0.25 [-1.5, 2]"


@pytest.mark.loop
def test_a_run_of_a_users_own_reward_writes_no_score_in_per_cent(tmp_path, capsys) -> None:
    config = toy(tmp_path / "run", num_steps=1)
    run_dir = run(config, reward=quarter)
    lines = capsys.readouterr().err.splitlines()
    (step,) = [line for line in lines if line.startswith("step ")]
    assert re.search(r"held-out -?0\.\d{3} ", step)
    scores = [line for line in lines if line.startswith(("greedy", "temperature"))]
    assert len(scores) == 2
    assert "%" not in "".join(scores)
    card = model_card(run_dir, toy(tmp_path / "run", num_steps=1, reward="quarter"), 1, "")
    assert re.search(r"\| held-out reward of the policy, greedy, 8 problems \| -?0\.\d+ \[", card)
    assert " %" not in card


def results(reward: str | None) -> dict:
    estimate = {"mean": 0.25, "ci95": [0.125, 0.5]}
    arm = {"avg@1": estimate, "pass@1": estimate, "mean_tokens": 3.0, "truncated_share": 0.0, "num_prompts_too_long": 0}
    one = {"num_problems": 3, "samples": 1, "arms": {"policy": arm, "base": arm}, "difference": {"avg@1": estimate}}
    return {"config": {"reward": reward}, "benchmarks": {"mine": one}}


@pytest.mark.unit
def test_an_evaluation_writes_a_mean_reward_as_a_number_and_passes_in_per_cent() -> None:
    own = {row[1]: row[2:] for row in table_rows(results("my_rewards:score"))}
    assert own["avg@1"] == ["0.25 [0.125, 0.5]"] * 3
    assert own["pass@1"] == ["25.0 % [12.5, 50.0]"] * 2 + [""]
    assert "0.25 [0.125, 0.5]; --samples 32" in warnings(results("my_rewards:score"))[0]
    assert {row[1]: row[2] for row in table_rows(results(None))}["avg@1"] == "25.0 % [12.5, 50.0]"


@pytest.mark.unit
@pytest.mark.parametrize(
    ("has_shares", "cells"), [(True, ["25.0 %", "[12.5, 50.0]"]), (False, ["0.250", "[0.125, 0.500]"])]
)
def test_the_table_of_a_sweep_writes_scores_as_what_they_are(tmp_path, has_shares, cells) -> None:
    row = {"name": "a", "state": "finished", "step": 3, "score": 0.25, "ci95": [0.125, 0.5], "reward": 0.3, "why": ""}
    condition = {"settings": {"rank": 1}, "score": 0.25, "num_seeds": 2, "difference": -0.125, "ci95": [-0.5, 0.25]}
    drawing = {"rank": 1, "learning_rate": 1e-3}
    table = Table(folder=Path(tmp_path), rows=[row | drawing], conditions=[condition] * 2, is_share=has_shares)
    lines = list(table.lines())
    assert all(cell in lines[1] for cell in cells)
    assert lines[-1].split()[4 if has_shares else 3 :] == (
        ["2", "-12.5", "[-50.0,", "+25.0]"] if has_shares else ["2", "-0.125", "[-0.500,", "+0.250]"]
    )
    table.save()
    assert (tmp_path / "plot.svg").stat().st_size > 0
