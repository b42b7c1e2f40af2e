"""What rewards tell, in bits, beside the numbers of the policy that learns from them."""

import json

import pytest
from support.rollouts import completion, group
from support.runs import toy

from rlora.loop import run
from rlora.rollout import reward_bits, rollout_metrics
from rlora.tracking.tally import Tally

SIZE = {"problems_per_step": 4, "samples_per_problem": 64}  # enough for a random model to be right at times


def of_rewards(*rewards: float):
    return group([1], [completion([2])] * len(rewards), rewards)


@pytest.mark.unit
@pytest.mark.parametrize(
    ("rewards", "bits"),
    [((1, 1, 1, 1), 0.0), ((0, 0), 0.0), ((1, 0), 2.0), ((1, 0, 0, 0), 4 * 0.8112781), ((0.1, 0.2, 0.3, 0.4), 8.0)],
)
def test_rewards_tell_the_entropy_of_how_they_fall(rewards, bits) -> None:
    assert reward_bits(of_rewards(*rewards)) == pytest.approx(bits)


@pytest.mark.unit
def test_bits_are_a_mean_over_rollouts_and_none_without_them() -> None:
    groups = [of_rewards(1, 0), of_rewards(1, 1, 1, 1, 1, 1)]
    assert rollout_metrics(groups, num_problems=2)["information/bits_per_rollout"] == pytest.approx(2 / 8)
    assert rollout_metrics([], num_problems=1)["information/bits_per_rollout"] == 0.0


@pytest.mark.unit
def test_a_tally_of_a_checkpoint_before_bits_were_counted_goes_on() -> None:
    tally = Tally(**{name: value for name, value in Tally().to_json().items() if name != "bits"})
    tally.add({"reward/mean": 0.0})
    assert tally.bits == 0.0
    tally.add({"reward/mean": 0.0, "information/bits_per_rollout": 0.5, "rollout/num_completions": 8})
    assert tally.bits == 4.0


@pytest.mark.loop
def test_bits_add_up_over_a_run_that_goes_on(tmp_path) -> None:
    folder = tmp_path / "run"
    run(toy(folder, **SIZE, num_steps=1))
    run(toy(folder, **SIZE, num_steps=3))
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    of_steps = [row["information/bits_per_rollout"] * row["rollout/num_completions"] for row in rows]
    assert sum(of_steps) > 0
    assert [row["information/bits"] for row in rows] == pytest.approx([sum(of_steps[: n + 1]) for n in range(3)])
    numbers = json.loads((folder / "summary.json").read_text())["num_parameters"]
    assert rows[-1]["information/bits_per_number"] == pytest.approx(rows[-1]["information/bits"] / numbers)
