import pytest
import torch

from rlora.statistics import mean_score, paired_difference, wilson

pytestmark = pytest.mark.unit


def test_wilson_equals_published_values() -> None:
    """Newcombe (1998), Statistics in Medicine 17:857, table I, method 3: 81/263, 15/148, 0/20, 1/29."""
    for right, count, low, high in [
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ]:
        estimate = wilson(right / count, count)
        assert (estimate.low, estimate.high) == pytest.approx((low, high), abs=1e-4)


def test_scores_that_are_means_over_samples_have_narrower_intervals_than_single_samples() -> None:
    single = mean_score([1.0, 0.0] * 50)
    averaged = mean_score([0.55, 0.45] * 50)
    assert single.mean == averaged.mean == 0.5
    assert single.low == pytest.approx(0.404, abs=2e-3)
    assert averaged.high - averaged.low < 0.3 * (single.high - single.low)


@pytest.mark.parametrize("scores", [[0.0] * 30, [1.0] * 30, [0.5] * 30])
def test_intervals_never_have_zero_width(scores) -> None:
    estimate = mean_score(scores)
    assert estimate.high - estimate.low > 0.05
    difference = paired_difference(scores, scores)
    assert difference.mean == 0
    assert difference.high > 0 > difference.low or difference.high - difference.low > 0


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


@pytest.mark.parametrize("probability", [0.1, 0.3, 0.5, 0.9])
def test_coverage_of_the_score_interval(probability) -> None:
    random = torch.Generator().manual_seed(0)
    draws = (torch.rand(2000, 100, generator=random) < probability).double()
    hits = 0
    for row in draws:
        estimate = mean_score(row.tolist())
        hits += estimate.low <= probability <= estimate.high
    assert 0.93 <= hits / 2000 <= 0.97
