"""Sums of rewards, failures that earn what is stated, and groups: in judges, in runs and in evaluations."""

import json
import sys
from collections.abc import Iterator
from dataclasses import replace

import pytest
from support import evaluations
from support.rollouts import completion, group, sample
from support.runs import rows, toy

from rlora.config import cli
from rlora.errors import ConfigError, RewardError, RunDirError
from rlora.evaluation.run import evaluate_benchmarks
from rlora.loop import run
from rlora.rewards import JudgeConfig, as_judge, check_judge, doubts_of, explain, judged, open_judge, opened
from rlora.rollout import rollout_metrics
from rlora.store.run_dir import read_json, rollout_rows, write_json
from rlora.types import Problem, VerdictKind
from rlora.verify import Verifier

pytestmark = pytest.mark.unit

OWN = """
from rlora import group_reward

def fails(text, problem):
    return 1 / 0

@group_reward
def longest(completions, problem):
    return [float(len(each) == max(map(len, completions))) for each in completions]

number = 3
"""


@pytest.fixture
def own_module(tmp_path, monkeypatch) -> Iterator[str]:
    (tmp_path / "own_rewards.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    yield "own_rewards"
    sys.modules.pop("own_rewards", None)


@pytest.fixture(scope="module")
def verifier() -> Iterator[Verifier]:
    with Verifier() as made:
        yield made


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("correct=1 format", "'correct=1 format' is a sum, and its part 'format' has no weight; write NAME=WEIGHT"),
        (
            "correct=1 format=half",
            "the weight of the reward 'format' is 'half'; it must be a finite number: format=1.0",
        ),
        ("correct=nan", "the weight of the reward 'correct' is 'nan'; it must be a finite number"),
        ("length=1,length=2", "names the part 'length' twice; give it one weight"),
        ("correct=1 shape=1", "the reward 'shape' is unknown; it must be one of correct, mathematics"),
        ("correct=1 own_nowhere:f=1", "there is no module 'own_nowhere'"),
        ("correct=1 own_rewards:number=1", "is 3; it must be a function"),
        ("=1", "its part '=1' has no weight"),
    ],
)
def test_a_sum_that_is_none_is_refused(own_module, words, message) -> None:
    with pytest.raises(ConfigError, match=message):
        check_judge(words, own="number")


def test_a_sum_weighs_logs_and_clips_its_parts_and_counts_as_right_what_its_judge_of_answers_says(verifier) -> None:
    words = "correct=1.0 format=0.25 length=-0.5"
    judge = open_judge(words, verifier, own="number")
    texts = ["\\boxed{7}", "7 or so", "\\boxed{8}"]
    verdicts = judged(judge, [sample(text) for text in texts])
    assert [verdict.parts for verdict in verdicts] == [
        {"correct": 1.0, "format": 1.0, "length": 1.0},
        {"correct": 0.0, "format": 0.0, "length": 1.0},
        {"correct": 0.0, "format": 1.0, "length": 1.0},
    ]
    assert [verdict.reward for verdict in verdicts] == [0.75, -0.5, -0.25]
    assert [verdict.is_correct for verdict in verdicts] == [True, False, False]
    assert verdicts[2].extracted == "8"
    config = JudgeConfig(min_reward=-0.3, max_reward=0.5)
    clipped = open_judge(words.replace(" ", ","), verifier, own="number", config=config)
    assert [verdict.reward for verdict in judged(clipped, [sample(text) for text in texts])] == [0.5, -0.3, -0.25]
    lines = list(explain(clipped, sample("\\boxed{7}")))
    assert lines[:4] == [
        "verdict     CORRECT",
        "reward      0.5 = 1 x correct 1 + 0.25 x format 1 + -0.5 x length 1, clipped",
        "correct:",
        "  verdict     CORRECT",
    ]
    with pytest.raises(ConfigError, match="bound a sum, and the reward 'correct' is none: make it one, as correct=1"):
        open_judge("correct", verifier, own="number", config=config)


def test_a_sum_without_a_judge_of_answers_is_right_from_one_on(verifier) -> None:
    judge = open_judge("format=1 length=0", verifier)
    (good,), (cut,) = judged(judge, [sample("\\boxed{7}")]), judged(judge, [sample("well", is_cut=True)])
    assert (good.kind, cut.kind) == (VerdictKind.CORRECT, VerdictKind.TRUNCATED)
    assert list(doubts_of(open_judge("number=1", verifier), [sample("", answer="}").problem]))
    with pytest.raises(ConfigError, match="'correct' is a data set's own judge, and there is no data set here"):
        open_judge("correct=1", verifier)


def test_the_parts_of_rewards_are_metrics_and_written_with_the_rollouts(tmp_path) -> None:
    reward = "correct=1.0 length=-0.01"
    run_dir = run(toy(tmp_path / "run", num_steps=1, reward=reward))
    (row,) = rows(run_dir)
    rollouts = rollout_rows(run_dir / "rollouts" / "step-000000.jsonl")
    lengths = [rollout["parts"]["length"] for rollout in rollouts]
    assert lengths == [len(rollout["token_ids"]) for rollout in rollouts]
    assert row["reward/length_mean"] == pytest.approx(sum(lengths) / len(lengths))
    assert all(
        rollout["reward"] == rollout["parts"]["correct"] - 0.01 * rollout["parts"]["length"] for rollout in rollouts
    )
    assert all((rollout["verdict"] == "correct") == (rollout["parts"]["correct"] == 1) for rollout in rollouts)
    assert read_json(run_dir / "config.json")["reward"] == reward


def test_a_sum_is_typed_as_words_and_a_run_of_before_goes_on(tmp_path) -> None:
    typed = cli({"toy": toy(tmp_path / "run")}, description="", arguments=["--reward", "a=1", "b=-0.5", "--seed", "3"])
    assert (typed.reward, typed.seed) == ("a=1 b=-0.5", 3)
    config = toy(tmp_path / "run", num_steps=1, reward="number")
    run_dir = run(config)
    stored = read_json(run_dir / "config.json")
    del stored["judge"]  # as an rlora without it wrote it
    write_json(run_dir / "config.json", stored)
    run(replace(config, num_steps=2, judge=JudgeConfig(on_failure="go_on", seconds=9.0)))
    assert len(rows(run_dir)) == 2
    with pytest.raises(RunDirError, match=r"judge\.failed_reward: 0\.0 -> -1\.0"):
        run(replace(config, num_steps=3, judge=JudgeConfig(failed_reward=-1.0)))


def test_a_function_in_this_process_that_fails_ends_it_or_earns_what_is_stated() -> None:
    def odd(text: str, problem: Problem) -> float:
        return {"nan": float("nan"), "good": 1.0}[text]

    config = JudgeConfig(on_failure="go_on", failed_reward=-1.0)
    found = judged(as_judge(odd, name="mine:odd", config=config), [sample(text) for text in ("good", "nan", "other")])
    assert [verdict.reward for verdict in found] == [1.0, -1.0, -1.0]
    assert found[2].reason == "judging raised an error: mine:odd raised KeyError: 'other'"
    rollouts = [
        replace(each, verdict=verdict)
        for each, verdict in zip(group([1], [completion([2])] * 3, [0, 0, 0]).rollouts, found, strict=True)
    ]
    made = replace(group([1], [completion([2])] * 3, [0, 0, 0]), rollouts=tuple(rollouts))
    assert rollout_metrics([made], num_problems=1)["verdict/num_raised"] == 2


def test_a_failed_part_of_a_sum_is_counted_and_earns_what_is_stated(own_module, verifier) -> None:
    config = JudgeConfig(num_workers=1, on_failure="go_on", failed_reward=-1.0)
    with opened(open_judge(f"format=1 {own_module}:fails=0.5", verifier, config=config)) as judge:
        (verdict,) = judged(judge, [sample("\\boxed{7}")])
    assert (verdict.reward, verdict.parts) == (0.5, {"format": 1.0, f"{own_module}:fails": -1.0})
    assert verdict.reason == f"judging raised an error: {own_module}:fails raised ZeroDivisionError: division by zero"


def test_what_was_judged_as_a_group_is_not_joined_by_more(own_module, tmp_path) -> None:
    size = {"limit": 2, "reward": f"{own_module}:longest", "base": False, "judge": JudgeConfig(num_workers=1)}
    output = tmp_path / "eval"
    results = evaluate_benchmarks(evaluations.toy(output, samples=2, **size))["benchmarks"]["digits"]
    assert results["arms"]["base"]["avg@2"]["mean"] >= 0.5  # one of each two is the longest
    with pytest.raises(
        ConfigError, match="2 completions of each problem of digits were judged as a group, which 1 more"
    ):
        evaluate_benchmarks(evaluations.toy(output, samples=3, **size))
    single = evaluate_benchmarks(evaluations.toy(tmp_path / "one", samples=1, **size))["benchmarks"]["digits"]
    assert single["arms"]["base"]["avg@1"]["mean"] == 1.0  # the longest of one


def test_a_sum_scores_a_benchmark_and_its_parts_are_kept(tmp_path) -> None:
    output = tmp_path / "eval"
    evaluate_benchmarks(evaluations.toy(output, samples=2, limit=2, base=False, reward="correct=1 length=-0.5"))
    samples = evaluations.rows(output / "samples-digits-base.jsonl")
    for row in samples:
        assert row["parts"]["length"] == row["num_tokens"]
        assert row.get("reward", 0.0) == row["parts"]["correct"] - 0.5 * row["num_tokens"]


def test_an_evaluation_of_before_goes_on_and_one_that_is_bounded_otherwise_does_not(tmp_path) -> None:
    output = tmp_path / "eval"
    size = {"samples": 1, "limit": 2, "base": False, "reward": "correct=1 length=-0.5"}
    evaluate_benchmarks(evaluations.toy(output, **size))
    (stored,) = [
        file
        for file in output.glob("*.json")
        if "judge" in read_json(file).get("config", {})
        and "subject" in read_json(file)
        and "benchmarks" not in read_json(file)
    ]
    values = read_json(stored)
    del values["config"]["judge"]  # as an rlora without it wrote it
    write_json(stored, values)
    evaluate_benchmarks(evaluations.toy(output, **size))
    with pytest.raises(RunDirError, match=r"judge\.max_reward: None -> 0\.5"):
        evaluate_benchmarks(evaluations.toy(output, judge=JudgeConfig(max_reward=0.5), **size))


def test_a_wrong_reward_is_refused_before_anything_is_written(tmp_path, own_module) -> None:
    for reward, message in (
        ("own_nowhere:f", "there is no module 'own_nowhere'"),
        (f"{own_module}:none", "has no 'none'"),
        ("correct=1 shape=1", "the reward 'shape' is unknown"),
        ("correct=much", "the weight of the reward 'correct' is 'much'"),
    ):
        with pytest.raises(ConfigError, match=message):
            run(toy(tmp_path / "run", reward=reward))
    assert not (tmp_path / "run").exists()


def test_a_failure_ends_a_run_and_the_same_run_goes_on_with_what_is_stated(tmp_path, own_module) -> None:
    size = {"num_steps": 1, "reward": f"format=1 {own_module}:fails=1"}
    config = toy(tmp_path / "run", judge=JudgeConfig(num_workers=1), **size)
    with pytest.raises(
        RewardError, match=f"{own_module}:fails raised ZeroDivisionError: division by zero on the completion"
    ):
        run(config)
    run_dir = run(replace(config, judge=JudgeConfig(num_workers=1, on_failure="go_on")))
    (row,) = rows(run_dir)
    assert row["verdict/num_raised"] == row["rollout/num_completions"]
    assert row[f"reward/{own_module}:fails_mean"] == 0.0
    assert json.loads((run_dir / "config.json").read_text())["judge"]["on_failure"] == "go_on"
