"""What a user names as my_module:name, in whole toy runs."""

import json
import sys
from collections.abc import Iterator

import pytest
from support import evaluations
from support.runs import rows, toy

from rlora.evaluation.run import evaluate_benchmarks
from rlora.loop import run
from rlora.store.run_dir import read_json

pytestmark = pytest.mark.loop

MODULE = """
def length(text, problem):
    assert problem.question.startswith("What is ")
    return len(text) / 4 - 1.5, f"{len(text)} characters"
"""


@pytest.fixture
def own(tmp_path, monkeypatch) -> Iterator[str]:
    (tmp_path / "own_parts.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])  # the working directory is added to it
    yield "own_parts"
    sys.modules.pop("own_parts", None)


def test_a_users_reward_trains_and_is_what_held_out_problems_score(own, tmp_path) -> None:
    run_dir = run(toy(tmp_path / "run", num_steps=2, reward=f"{own}:length", samples_per_problem=32))
    for step, row in enumerate(rows(run_dir)):
        rollouts = [json.loads(line) for line in (run_dir / f"rollouts/step-{step:06d}.jsonl").read_text().splitlines()]
        for rollout in rollouts:
            assert rollout["reward"] == len(rollout["text"]) / 4 - 1.5
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
    summary = read_json(run_dir / "summary.json")
    assert -1.5 <= summary["greedy"]["policy"]["accuracy"] <= 0.5
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
        assert scores == [len(sample["text"]) / 4 - 1.5 for sample in samples]
        assert results["arms"][arm]["avg@3"]["mean"] == pytest.approx(sum(scores) / 12)
        assert "pass@2" in results["arms"][arm]
        assert not any(measure.startswith(("maj", "strict")) for measure in results["arms"][arm])
