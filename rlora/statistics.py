"""Confidence intervals of mean scores and of paired differences that do not collapse on few problems or extreme scores.

Estimand: the mean, over the population of problems that these were drawn from, of the expected score of a problem.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import sqrt

Z95 = 1.959963984540054


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """A value with its 95 % confidence interval."""

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        """Return the estimate in per cent."""
        return f"{100 * self.mean:.1f} % [{100 * self.low:.1f}, {100 * self.high:.1f}]"


def wilson(mean: float, count: float) -> Estimate:
    """Return Wilson's score interval for a proportion of `count` trials (Wilson 1927); never of zero width."""
    spread = Z95**2 / count
    center = (mean + spread / 2) / (1 + spread)
    half = Z95 / (1 + spread) * sqrt(mean * (1 - mean) / count + spread / (4 * count))
    return Estimate(mean=mean, low=max(0.0, center - half), high=min(1.0, center + half))


def mean_score(scores_P: Sequence[float]) -> Estimate:
    """Return the mean of scores in [0, 1], one a problem, with Wilson's interval at the effective number of trials.

    A problem's score may itself be a mean over samples; the effective number is then p (1 - p) / variance of the mean,
    and at least the number of problems.
    """
    count = len(scores_P)
    mean = sum(scores_P) / count
    variance_of_mean = sum((score - mean) ** 2 for score in scores_P) / max(1, count - 1) / count
    effective = mean * (1 - mean) / variance_of_mean if variance_of_mean > 0 else count
    return wilson(mean, max(count, effective))


def paired_difference(new_P: Sequence[float], old_P: Sequence[float]) -> Estimate:
    """Return mean(new - old) over the same problems with the square-and-add interval for paired proportions.

    Source: Newcombe (1998), Statistics in Medicine 17:2635, method 10: Wilson's limits of both, joined with their
    correlation.
    """
    new, old = mean_score(new_P), mean_score(old_P)
    count = len(new_P)
    covariance = sum((a - new.mean) * (b - old.mean) for a, b in zip(new_P, old_P, strict=True)) / count
    variances = sum((a - new.mean) ** 2 for a in new_P) / count * (sum((b - old.mean) ** 2 for b in old_P) / count)
    correlation = covariance / sqrt(variances) if variances > 0 else 0.0
    below, above = (new.mean - new.low, old.high - old.mean), (new.high - new.mean, old.mean - old.low)

    def joined(left: float, right: float) -> float:
        return sqrt(max(0.0, left**2 - 2 * correlation * left * right + right**2))

    mean = new.mean - old.mean
    return Estimate(mean=mean, low=max(-1.0, mean - joined(*below)), high=min(1.0, mean + joined(*above)))
