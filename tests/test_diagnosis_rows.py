"""The diagnosis of runs whose rows are written, where the toy model gets no such disease in seconds; and intervals."""

import math
import random
import time

import pytest
from support.sick import found_in, written

from rlora.diagnosis import DISEASES, Finding, diagnose, health
from rlora.diagnosis.answers import deal
from rlora.diagnosis.finding import per_cent
from rlora.diagnosis.statistics import change, mean, share, slope
from rlora.errors import RunDirError
from rlora.store.run_dir import write_json

pytestmark = pytest.mark.unit


def row(step: int, **changes: float) -> dict[str, float]:
    """Return the row of a healthy step of 4 groups of 16, but for changes; names have _ for their slash."""
    noise = random.Random(step).uniform(-1, 1)
    values = {
        "step": step,
        "reward/mean": 0.3 + 0.01 * step + 0.05 * noise,
        "groups/mixed_share": 0.75,
        "groups/all_right_share": 0.0,
        "groups/all_wrong_share": 0.25,
        "groups/num_without_signal": 1,
        "rollout/num_completions": 64,
        "rollout/mean_tokens": 100.0 + 10 * noise,
        "rollout/truncated_share": 0.05,
        "verdict/no_answer_share": 0.02,
        "verdict/unparsed_share": 0.0,
        "policy/entropy": 1.0 + 0.1 * noise,
        "agreement/kl_k3": 1e-3 * (1 + 0.3 * noise),
        "optimizer/is_empty_batch": 0.0,
        "proof/canary_is_decided_base": 1.0,
        "proof/canary_ratio_base": 9.0,
        "proof/canary_num_uncertain": 20,
        "proof/rollouts_served_fraction": 1 + 0.1 * noise,
        "proof/rollouts_deviations": noise,
    }
    return values | {name.replace("_", "/", 1): value for name, value in changes.items()}


def found(tmp_path, make) -> dict[str, Finding]:
    return found_in(written(tmp_path / "run", [row(step, **make(step)) for step in range(30)]))


def test_written_healthy_rows_have_no_finding(tmp_path) -> None:
    assert found(tmp_path, lambda step: {}) == {}


def test_written_rows_whose_kl_grows_are_found(tmp_path) -> None:
    name = "agreement_kl_k3"
    grows = found(tmp_path, lambda step: {name: 1e-3 * math.exp(0.15 * step) * (1 + 0.1 * (step % 3))})
    assert list(grows) == ["kl_growing"]
    assert "trainer and sampler drift apart since step 16" in grows["kl_growing"].what
    small = found(tmp_path / "small", lambda step: {name: 1e-6 * math.exp(0.15 * step)})
    assert small == {}  # it grows as fast, and biases nothing


def test_written_rows_whose_entropy_collapses_without_reward_are_found(tmp_path) -> None:
    entropy = {"policy_entropy": 0.02}
    gone = found(tmp_path, lambda step: {"reward_mean": 0.3} | (entropy if step >= 12 else {}))
    assert list(gone) == ["entropy_collapse"]
    assert "since step 12" in gone["entropy_collapse"].what
    assert found(tmp_path / "learned", lambda step: entropy if step >= 12 else {}) == {}  # the reward rises with it


def test_written_rows_whose_reward_is_lost_are_found(tmp_path) -> None:
    lost = found(tmp_path, lambda step: {"reward_mean": (0.6 if step < 14 else 0.1) + 0.02 * (step % 3)})
    assert list(lost) == ["reward_fell"]
    assert lost["reward_fell"].what == "the reward fell, and stays low since step 20: from 62 % to 12 %."


def test_written_rows_of_which_the_sampler_serves_a_part_are_found(tmp_path) -> None:
    part = {"proof_rollouts_served_fraction": 0.8, "proof_rollouts_deviations": -2.0}  # no step shows it alone
    served = found(tmp_path, lambda step: part)
    assert list(served) == ["part_served"]
    assert "the sampler serves 0.80 of the update since step 22: over 8 steps" in served["part_served"].what
    assert "5.7 standard errors" in served["part_served"].what


def test_written_rows_with_hardly_any_signal_are_found(tmp_path) -> None:
    rare = {"groups_mixed_share": 0.0, "groups_all_wrong_share": 1.0, "groups_num_without_signal": 4}
    seldom = found(tmp_path, lambda step: {} if step == 29 else rare | {"rollout_num_completions": 64 * 4})
    assert seldom["no_signal"].what.startswith("only 2.6 % of the groups (at most 7.3 %)")


def test_what_passes_by_itself_is_no_finding(tmp_path) -> None:
    passing = found(tmp_path, lambda step: {"rollout_truncated_share": 0.9 - 0.02 * step})
    assert passing == {}
    lasting = found(tmp_path / "lasting", lambda step: {"rollout_truncated_share": 0.6 + 0.01 * (step % 3)})
    assert list(lasting) == ["truncation"]


def test_an_error_that_ended_a_run_is_named(tmp_path) -> None:
    run_dir = written(tmp_path / "run", [row(step) for step in range(12)])
    write_json(run_dir / "end.json", {"error": "NonFiniteError", "message": "the loss is nan", "num_steps": 12})
    assert found_in(run_dir)["ended"].what == "NonFiniteError ended the run at step 12: the loss is nan"


def test_a_folder_that_is_no_run_is_refused(tmp_path) -> None:
    with pytest.raises(RunDirError, match="is not a run directory: it holds no"):
        diagnose(tmp_path)


def test_health_is_one_clause_and_cheap() -> None:
    silent = {"groups_mixed_share": 0.0, "groups_all_wrong_share": 1.0, "groups_num_without_signal": 4}
    rows = [row(step, **(silent if step >= 4 else {})) for step in range(12)]
    assert health(rows) == "no group has rewards that differ since step 4"
    assert health(rows[:7]) is None  # 12 groups of 3 steps may be chance
    assert health([]) is None
    long = [row(step) for step in range(1000)]
    health(long)
    best = min(_seconds(lambda: health(long)) for _ in range(5))
    assert best < 1e-3


def test_health_of_a_supervised_run_sees_its_held_out_loss_rise() -> None:
    rows = [{"step": step, "loss/value": 2.0 - 0.01 * step} for step in range(61)]
    for step in range(0, 61, 10):
        rows[step]["evaluation/loss"] = 2.0 + (-0.02 * step if step < 30 else 0.02 * (step - 40))
    assert health(rows) == "the held-out loss rises since step 20, while the trained one falls"
    assert health(rows[:31]) is None


def _seconds(work) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def test_every_disease_is_silent_of_a_run_that_has_no_rows(tmp_path) -> None:
    assert diagnose(written(tmp_path / "run", [])) == []
    assert len({disease.__name__ for disease in DISEASES}) == len(DISEASES)


def rollout(problem: str, gold: str, extracted: str) -> dict[str, str]:
    verdict = "correct" if gold == extracted else "wrong"
    return {"problem": problem, "gold": gold, "extracted": extracted, "verdict": verdict}


def test_a_deal_is_the_mean_over_all_other_problems() -> None:
    step = [rollout("a", "1", "1"), rollout("a", "1", "2"), rollout("b", "2", "2"), rollout("c", "2.0", "")]
    dealt = deal(step, "2")
    assert [one.given for one in dealt] == [0.5, 1.0, 0.0]
    # of a's two answers, 1 is right for none of b and c, 2 for both; b's 2 is right for c alone; c gave none
    assert [one.dealt for one in dealt] == [0.5, 0.5, 0.0]
    assert [one.top for one in dealt] == [0.5, 1.0, 0.0]


def test_a_wilson_interval_is_that_of_the_literature() -> None:
    # Newcombe (1998), Statistics in Medicine 17:857, table I: 81 of 263, 15 of 148, 0 of 20
    for count, total, low, high in ((81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611)):
        found = share(count, total)
        assert (round(found.low, 4), round(found.high, 4)) == (low, high)


def test_changes_of_pure_noise_are_hardly_ever_sure() -> None:
    draw, wrong = random.Random(0), 0
    for _ in range(2000):
        values = [draw.gauss(0, 1) for _ in range(12)]
        moved = change(values[:6], values[6:])
        wrong += not moved.low <= 0 <= moved.high
    assert wrong <= 12  # 4 of 2,000 are expected


def test_means_and_slopes_of_too_few_values_say_nothing() -> None:
    assert mean([1.0]).high == math.inf
    assert slope([1, 2], [3, 4]).low == -math.inf
    assert slope([1, 2, 3, 4], [1, 2, 3, 4.0]).low == pytest.approx(1)
    assert [per_cent(value) for value in (0.0, 0.00046, 0.0123, 0.5)] == ["0 %", "0.046 %", "1.2 %", "50 %"]
