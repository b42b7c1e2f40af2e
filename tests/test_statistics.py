"""Beta intervals: their special functions against closed forms, their limits, and their coverage by simulation."""

from functools import cache
from math import comb

import pytest
import torch

from rlora.evaluation.intervals import Estimate, beta_cdf, beta_quantile, mean_score, paired_difference, t_quantile

pytestmark = pytest.mark.unit


@pytest.mark.parametrize("x", [0.001, 0.1, 0.37, 0.5, 0.9, 0.9999])
def test_incomplete_beta_equals_its_closed_forms(x) -> None:
    assert beta_cdf(x, 1, 7.5) == pytest.approx(1 - (1 - x) ** 7.5, abs=1e-13)
    assert beta_cdf(x, 3.2, 1) == pytest.approx(x**3.2, abs=1e-13)
    binomial_tail = sum(comb(30, j) * x**j * (1 - x) ** (30 - j) for j in range(4, 31))
    assert beta_cdf(x, 4, 27) == pytest.approx(binomial_tail, abs=1e-12)
    assert beta_cdf(x, 0.75, 812.3) + beta_cdf(1 - x, 812.3, 0.75) == pytest.approx(1, abs=1e-13)


def test_incomplete_beta_at_and_beyond_its_ends() -> None:
    assert [beta_cdf(x, 2, 3) for x in (-0.1, 0, 1, 1.1)] == [0, 0, 1, 1]
    assert beta_cdf(0.5, 20_000, 20_000) == pytest.approx(0.5, abs=1e-9)


def test_quantiles_equal_published_and_closed_values() -> None:
    """Clopper and Pearson's upper limit of 0 of 20 is 0.1684 (Newcombe 1998, method 5)."""
    assert beta_quantile(0.975, 1, 20) == pytest.approx(1 - 0.025 ** (1 / 20), abs=1e-12)
    assert beta_quantile(0.975, 1, 20) == pytest.approx(0.1684, abs=5e-5)
    assert beta_quantile(0.5, 7.3, 7.3) == pytest.approx(0.5, abs=1e-12)
    assert beta_quantile(0.025, 81, 183) == pytest.approx(0.2527, abs=5e-5)  # Clopper and Pearson, 81 of 263
    assert beta_quantile(0.975, 82, 182) == pytest.approx(0.3676, abs=5e-5)


def test_students_quantiles_equal_published_ones() -> None:
    for degrees, published in [(1, 12.706), (2, 4.303), (10, 2.228), (29, 2.045), (1000, 1.962)]:
        assert t_quantile(degrees) == pytest.approx(published, abs=5e-4)


def test_an_interval_of_single_trials_is_the_beta_interval() -> None:
    estimate = mean_score([1.0] * 6 + [0.0] * 24)
    assert estimate.mean == 0.2
    assert (estimate.low, estimate.high) == (beta_quantile(0.025, 6.75, 24.75), beta_quantile(0.975, 6.75, 24.75))
    assert str(Estimate(mean=0.2, low=0.087, high=0.3791)) == "20.0 % [8.7, 37.9]"


def test_scores_that_are_means_over_samples_have_narrower_intervals_than_single_samples() -> None:
    single = mean_score([1.0, 0.0] * 50)
    averaged = mean_score([0.55, 0.45] * 50)
    assert single.mean == averaged.mean == 0.5
    assert single.low == pytest.approx(0.404, abs=2e-3)
    assert averaged.high - averaged.low < 0.3 * (single.high - single.low)


def test_few_solved_problems_are_not_believed_to_show_the_spread() -> None:
    """One problem solved once in 32: the other 29 may hide problems that are solved more often."""
    estimate = mean_score([1 / 32] + [0.0] * 29)
    assert estimate.high > 0.05
    assert mean_score([1 / 32] * 15 + [0.0] * 15).high < 0.03


@pytest.mark.parametrize(
    "scores", [[0.0] * 30, [1.0] * 30, [0.5] * 30, [0.0, 1.0] * 15, [0.25, 0.75] * 15, [1.0], [0.5]]
)
def test_intervals_never_have_zero_width_and_mirror_each_other(scores) -> None:
    estimate = mean_score(scores)
    assert estimate.high - estimate.low > 0.05
    assert 0 <= estimate.low <= estimate.mean <= estimate.high <= 1
    mirrored = mean_score([1 - score for score in scores])
    assert (1 - mirrored.high, 1 - mirrored.low) == pytest.approx((estimate.low, estimate.high), abs=1e-12)
    difference = paired_difference(scores, scores)
    assert difference.mean == 0
    assert difference.high - difference.low > 0.005


def test_paired_difference_equals_newcombes_published_values() -> None:
    """Newcombe (1998), Statistics in Medicine 17:2635, method 8 without continuity correction is close to this one.

    His example of 36 pairs with 20 / 12 / 2 / 2 (both / first / second / neither) gives 0.2778 with 0.0569 to 0.4500.
    """
    new = [1.0] * 32 + [0.0] * 4
    old = [1.0] * 20 + [0.0] * 12 + [1.0] * 2 + [0.0] * 2
    difference = paired_difference(new, old)
    assert difference.mean == pytest.approx(10 / 36)
    assert difference.low == pytest.approx(0.057, abs=0.03)
    assert difference.high == pytest.approx(0.45, abs=0.03)
    opposite = paired_difference(old, new)
    assert (-opposite.high, -opposite.low) == pytest.approx((difference.low, difference.high))


def test_pairing_narrows_the_interval() -> None:
    old = [0.0] * 15 + [1.0] * 15
    alike = paired_difference([0.0] * 12 + [1.0] * 18, old)
    unlike = paired_difference([1.0] * 18 + [0.0] * 12, old)
    assert alike.mean == unlike.mean == pytest.approx(0.1)
    assert alike.high - alike.low < 0.6 * (unlike.high - unlike.low)


@pytest.mark.parametrize("probability", [0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.7, 0.9])
@pytest.mark.parametrize("count", [30, 60])
def test_exact_coverage_with_one_sample_a_problem(probability, count) -> None:
    """With one sample every population of problems gives a binomial count, so coverage is a sum, not a simulation.

    It jumps with p, since counts are whole: at 30 problems some p between these lie as low as 92.4 %, as for every
    interval that is not randomised.
    """
    coverage = 0.0
    for right in range(count + 1):
        estimate = mean_score([1.0] * right + [0.0] * (count - right))
        if estimate.low <= probability <= estimate.high:
            coverage += comb(count, right) * probability**right * (1 - probability) ** (count - right)
    assert coverage >= 0.93
    assert coverage <= 0.97 or probability < 0.1


def difficulties(mean: float, spread: float, shape: tuple[int, int], seed: int) -> torch.Tensor:
    """Beta-distributed solve rates of this mean; a small spread puts most problems near 0 or 1."""
    torch.manual_seed(seed)
    return torch.distributions.Beta(mean * spread, (1 - mean) * spread).sample(shape).double()


def scores(rates_RP: torch.Tensor, num_samples: int) -> torch.Tensor:
    return torch.distributions.Binomial(num_samples, rates_RP).sample() / num_samples


def coverage(mean: float, spread: float, num_samples: int, *, repeats: int) -> float:
    rates_RP = difficulties(mean, spread, (repeats, 30), seed=num_samples)
    limit = cache(lambda row: mean_score(row))
    estimates = [limit(tuple(sorted(row))) for row in scores(rates_RP, num_samples).tolist()]
    return sum(estimate.low <= mean <= estimate.high for estimate in estimates) / repeats


def difference_coverage(old: float, new: float, spread: float, num_samples: int, *, repeats: int) -> float:
    """Coverage of new - old where 7 problems in 10 are as hard, by rank, for one policy as for the other."""
    old_RP = difficulties(old, spread, (repeats, 30), seed=num_samples)
    ranked = difficulties(new, spread, (200_000, 1), seed=1).flatten().sort().values
    reference = difficulties(old, spread, (200_000, 1), seed=2).flatten().sort().values
    same_RP = ranked[torch.searchsorted(reference, old_RP).clamp(max=len(ranked) - 1)]
    other_RP = difficulties(new, spread, (repeats, 30), seed=3)
    new_RP = torch.where(torch.rand(repeats, 30) < 0.7, same_RP, other_RP)
    pairs = zip(scores(new_RP, num_samples).tolist(), scores(old_RP, num_samples).tolist(), strict=True)
    estimates = [paired_difference(*pair) for pair in pairs]
    return sum(estimate.low <= new - old <= estimate.high for estimate in estimates) / repeats


@pytest.mark.parametrize(("mean", "num_samples"), [(0.02, 32), (0.1, 4), (0.3, 32)])
def test_coverage_of_the_score_interval(mean, num_samples) -> None:
    found = coverage(mean, 1.0, num_samples, repeats=1000)
    assert found >= 0.93
    assert found <= 0.97 or mean < 0.1


def test_coverage_of_the_paired_difference() -> None:
    assert 0.93 <= difference_coverage(0.1, 0.3, 1.0, 4, repeats=600) <= 0.97


@pytest.mark.long
@pytest.mark.parametrize("num_samples", [4, 8, 32])
@pytest.mark.parametrize("spread", [0.5, 2.0, 20.0])
@pytest.mark.parametrize("mean", [0.02, 0.05, 0.1, 0.3, 0.5])
def test_coverage_over_the_grid(mean, spread, num_samples) -> None:
    found = coverage(mean, spread, num_samples, repeats=3000)
    print(f"coverage {found:.3f}")
    assert found >= 0.93
    assert found <= 0.97 or mean < 0.1


@pytest.mark.long
@pytest.mark.parametrize("num_samples", [1, 4, 32])
@pytest.mark.parametrize("spread", [0.7, 3.0])
@pytest.mark.parametrize(("old", "new"), [(0.02, 0.05), (0.1, 0.3), (0.3, 0.5), (0.5, 0.5), (0.5, 0.8)])
def test_coverage_of_differences_over_the_grid(old, new, spread, num_samples) -> None:
    found = difference_coverage(old, new, spread, num_samples, repeats=1500)
    print(f"coverage {found:.3f}")
    assert found >= 0.93
    assert found <= 0.97 or old < 0.1


def test_rewards_that_are_no_shares_get_students_interval() -> None:
    found = mean_score([2.0, 4.0, -3.0, 5.0])
    deviation = (((2 - 2) ** 2 + (4 - 2) ** 2 + (-3 - 2) ** 2 + (5 - 2) ** 2) / 3 / 4) ** 0.5
    assert found.mean == 2.0
    assert found.high - 2.0 == pytest.approx(2.0 - found.low) == pytest.approx(3.182446 * deviation)
    assert str(found) == "2 [-3.66, 7.66]"
    assert mean_score([3.0]) == Estimate(mean=3.0, low=3.0, high=3.0)
    gain = paired_difference([2.0, 4.0, 6.0], [1.0, 2.0, 6.0])
    assert (gain.mean, gain.high - gain.mean) == pytest.approx((1.0, 4.302653 * (1 / 3) ** 0.5))
