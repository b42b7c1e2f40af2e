"""What a user names as my_module:name, in whole toy runs."""

import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace

import pytest
from support import evaluations
from support.runs import assert_same_run, rows, toy

from rlora.evaluation.run import evaluate_benchmarks
from rlora.loop import run
from rlora.store.run_dir import read_json
from rlora.tasks import DataConfig
from rlora.tracking import TrackingConfig
from rlora.train.losses import LossConfig

pytestmark = pytest.mark.loop

MODULE = """
import json
from rlora.sampler.torch_sampler import TorchSampler
from rlora.tasks import TASKS
from rlora.train.losses import importance_weighted

sums = TASKS["digits"]
said = []

def length(text, problem):
    assert problem.question.startswith("What is ")
    return len(text) / 4 - 0.5, f"{len(text)} characters"

def weighted(inputs, config):
    assert config.name == "own_parts:weighted"
    said.append("loss")
    return importance_weighted(inputs, config)

class Mine(TorchSampler):
    def sample(self, requests, sampling, *, seed):
        said.append("sampler")
        return super().sample(requests, sampling, seed=seed)

class Notes:
    def __init__(self, run):
        assert run.values["num_steps"] == 2
        self.file = (run.run_dir / "notes.jsonl").open("a")

    def write(self, values):
        self.file.write(json.dumps(values) + chr(10))

    def close(self, *, has_failed):
        self.file.write(json.dumps({"has_failed": has_failed}))
        self.file.close()

class Fails(Notes):
    def write(self, values):
        raise RuntimeError("the server is gone")

class NeverStarts:
    def __init__(self, run):
        raise ConnectionError("no server")

class Leaves(Notes):
    def __init__(self, run):
        raise SystemExit(1)

class HearsTheEnd(Notes):
    def write_scores(self, scores):
        self.file.write(json.dumps(scores) + chr(10))
"""
OPTIONS = {
    "--data": "sums", "--reward": "length", "--loss.name": "weighted", "--sampler.kind": "Mine",
    "--tracking.tracker": "Notes",
}  # fmt: skip


@pytest.fixture
def own(tmp_path, monkeypatch) -> Iterator[str]:
    (tmp_path / "own_parts.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])  # the working directory is added to it
    yield "own_parts"
    sys.modules.pop("own_parts", None)


def test_a_users_reward_trains_and_is_what_held_out_problems_score(own, tmp_path) -> None:
    run_dir = run(toy(tmp_path / "run", num_steps=2, reward=f"{own}:length", samples_per_problem=32))
    kinds = set()
    for step, row in enumerate(rows(run_dir)):
        rollouts = [json.loads(line) for line in (run_dir / f"rollouts/step-{step:06d}.jsonl").read_text().splitlines()]
        for rollout in rollouts:
            assert rollout["reward"] == len(rollout["text"]) / 4 - 0.5
            kinds.add(rollout["verdict"])
            assert rollout["reason"] == f"{len(rollout['text'])} characters"
            right = rollout["reward"] >= 1
            assert rollout["verdict"] == (
                "correct" if right else "truncated" if rollout["stop"] == "length" else "wrong"
            )
        rewards = [rollout["reward"] for rollout in rollouts]
        assert row["reward/mean"] == pytest.approx(sum(rewards) / len(rewards))
        shares = [row[f"groups/{kind}_share"] for kind in ("all_right", "mixed", "all_wrong")]
        assert sum(shares) == pytest.approx(1)
        assert min(shares) >= 0
        assert row["groups/wrong_consensus_share"] == 0  # no answers are extracted
        assert row["optimizer/is_empty_batch"] == 0
    assert {"correct", "wrong"} <= kinds
    summary = read_json(run_dir / "summary.json")
    assert -0.5 <= summary["greedy"]["policy"]["accuracy"] <= 1.5
    assert "base_strict" not in summary["greedy"]
    assert (run_dir / "adapter-best").is_dir()
    assert read_json(run_dir / "config.json")["reward"] == f"{own}:length"

    output = tmp_path / "eval"
    results = evaluate_benchmarks(
        evaluations.toy(output, run=str(run_dir), samples=3, limit=4, reward=f"{own}:length")
    )["benchmarks"]["digits"]
    for arm in ("policy", "base"):
        samples = evaluations.rows(output / f"samples-digits-{arm}.jsonl")
        scores = [sample.get("reward", float(sample["verdict"] == "correct")) for sample in samples]
        assert scores == [len(sample["text"]) / 4 - 0.5 for sample in samples]
        assert results["arms"][arm]["avg@3"]["mean"] == pytest.approx(sum(scores) / 12)
        assert "pass@2" in results["arms"][arm]
        assert not any(measure.startswith(("maj", "strict")) for measure in results["arms"][arm])


def test_a_run_of_ones_own_parts_is_the_run_of_the_parts_that_they_wrap(own, tmp_path) -> None:
    reward = f"{own}:length"
    plain = run(toy(tmp_path / "plain", num_steps=2, reward=reward))
    config = toy(
        tmp_path / "own",
        num_steps=2,
        reward=reward,
        data=DataConfig(name=f"{own}:sums"),
        loss=LossConfig(name=f"{own}:weighted"),
        tracking=TrackingConfig(tracker=f"{own}:Notes"),
    )
    run_dir = run(replace(config, sampler=replace(config.sampler, kind=f"{own}:Mine")))
    assert_same_run(run_dir, plain)
    assert {"loss", "sampler"} == set(sys.modules[own].said)
    *notes, last = (run_dir / "notes.jsonl").read_text().splitlines()
    assert list(map(json.loads, notes)) == rows(run_dir)
    assert json.loads(last) == {"has_failed": False}


def test_a_tracker_that_fails_is_left_out_and_the_run_goes_on(own, tmp_path, capsys) -> None:
    run_dir = run(toy(tmp_path / "run", num_steps=2, tracking=TrackingConfig(tracker=f"{own}:Fails")))
    assert len(rows(run_dir)) == 2
    assert (run_dir / "notes.jsonl").read_text() == '{"has_failed": false}'
    said = capsys.readouterr().err
    assert said.count("The tracker own_parts:Fails failed and hears of no further step (RuntimeError: the server") == 1


@pytest.mark.parametrize(
    ("name", "why"), [("NeverStarts", "(ConnectionError: no server)"), ("Leaves", "(SystemExit: 1)")]
)
def test_a_tracker_that_does_not_start_is_left_out_and_the_run_goes_on(own, tmp_path, capsys, name, why) -> None:
    run_dir = run(toy(tmp_path / "run", num_steps=2, tracking=TrackingConfig(tracker=f"{own}:{name}")))
    assert len(rows(run_dir)) == 2
    assert (run_dir / "summary.json").is_file()
    said = capsys.readouterr().err
    assert said.count(f"The tracker own_parts:{name} failed and hears of no further step {why}") == 1


def test_a_tracker_hears_the_scores_that_the_summary_holds(own, tmp_path) -> None:
    run_dir = run(toy(tmp_path / "run", num_steps=2, tracking=TrackingConfig(tracker=f"{own}:HearsTheEnd")))
    scores = json.loads((run_dir / "notes.jsonl").read_text().splitlines()[2])
    summary = read_json(run_dir / "summary.json")
    assert scores["greedy/policy"] == summary["policy"]["accuracy"]
    assert scores["sampled/base"] == summary["sampled"]["base"]["accuracy"]
    assert [scores["greedy/difference_low"], scores["greedy/difference_high"]] == summary["difference"]["ci95"]
    assert len(scores) == 18


def test_the_command_finds_them_beside_it_and_their_names_are_the_runs(own, tmp_path) -> None:
    """With Python's own working directory left out of its path, as it is for the installed `rlora`."""
    options = [word for option, name in OPTIONS.items() for word in (option, f"{own}:{name}")]
    size = ["--preset", "toy", "--run-dir", "run", "--num-steps", "2", "--evaluation.num-problems", "2"]
    command = [sys.executable, "-P", "-m", "rlora", "train", "arithmetic", *size, *options]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert len(rows(tmp_path / "run")) == 2
    assert read_json(tmp_path / "run" / "summary.json")["data"] == f"{own}:sums"
    command[command.index(f"{own}:length")] = "number"
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 1
    assert "reward: 'own_parts:length' -> 'number'" in done.stderr
    evaluate = [
        "eval",
        "--preset",
        "toy",
        "--run",
        "run",
        "--benchmark",
        f"{own}:sums",
        "--limit",
        "2",
        "--samples",
        "2",
    ]
    command = [sys.executable, "-P", "-m", "rlora", *evaluate, "--output", "scores"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert len((tmp_path / "scores" / f"samples-{own}.sums-policy.jsonl").read_text().splitlines()) == 4
    assert read_json(tmp_path / "scores" / "results.json")["benchmarks"][f"{own}:sums"]["num_trained_on"] == 0
