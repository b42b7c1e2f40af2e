"""Shares, means, changes and slopes with intervals: a sign is one where chance would not have made it.

A run is looked at for a dozen diseases at a time, and the steps of a run are not independent: intervals of steps are
therefore of 99.8 %, and every disease asks for a size besides.
"""

from collections.abc import Sequence
from functools import lru_cache
from math import sqrt

from rlora.evaluation.intervals import Estimate, beta_quantile

_TAIL = 0.001
_Z = 1.959963984540054


def share(count: float, total: float) -> Estimate:
    """Return count / total with Wilson's 95 % interval; of nothing, anything from 0 to 1.

    Example:
        >>> share(0, 40).high < 0.1
        True
    """
    if total <= 0:
        return Estimate(mean=0.0, low=0.0, high=1.0)
    p, weight = count / total, _Z**2 / total
    middle = (p + weight / 2) / (1 + weight)
    half = _Z * sqrt(p * (1 - p) / total + weight / (4 * total)) / (1 + weight)
    return Estimate(mean=p, low=max(0.0, min(p, middle - half)), high=min(1.0, max(p, middle + half)))


def mean(values: Sequence[float]) -> Estimate:
    """Return the mean of values with Student's interval; of one value or none, which say nothing, a boundless one."""
    count = len(values)
    middle = sum(values) / max(1, count)
    if count < 2:
        return _boundless(middle)
    half = _t(count - 1) * sqrt(_variance(values) / count)
    return Estimate(mean=middle, low=middle - half, high=middle + half)


def change(before: Sequence[float], after: Sequence[float]) -> Estimate:
    """Return mean(after) - mean(before) with Welch's interval; a boundless one where a side has fewer than two."""
    if min(len(before), len(after)) < 2:
        return _boundless(0.0)
    middle = sum(after) / len(after) - sum(before) / len(before)
    parts = [_variance(values) / len(values) for values in (before, after)]
    if sum(parts) == 0:
        return Estimate(mean=middle, low=middle, high=middle)
    degrees = sum(parts) ** 2 / sum(
        part**2 / (len(values) - 1) for part, values in zip(parts, (before, after), strict=True)
    )
    half = _t(max(1, int(degrees))) * sqrt(sum(parts))
    return Estimate(mean=middle, low=middle - half, high=middle + half)


def slope(xs: Sequence[float], ys: Sequence[float]) -> Estimate:
    """Return the slope of a line through points by least squares, with Student's interval; boundless below three."""
    count = len(xs)
    if count < 3 or len(set(xs)) < 2:
        return _boundless(0.0)
    x, y = sum(xs) / count, sum(ys) / count
    spread = sum((each - x) ** 2 for each in xs)
    rise = sum((a - x) * (b - y) for a, b in zip(xs, ys, strict=True)) / spread
    left = sum((b - y - rise * (a - x)) ** 2 for a, b in zip(xs, ys, strict=True))
    half = _t(count - 2) * sqrt(left / (count - 2) / spread)
    return Estimate(mean=rise, low=rise - half, high=rise + half)


def thirds(values: Sequence[float]) -> tuple[Sequence[float], Sequence[float]]:
    """Return the first and the last third of a run's values."""
    size = len(values) // 3
    return values[:size], values[len(values) - size :]


def _variance(values: Sequence[float]) -> float:
    middle = sum(values) / len(values)
    return sum((value - middle) ** 2 for value in values) / (len(values) - 1)


@lru_cache(maxsize=4096)
def _t(degrees: int) -> float:
    """Return the quantile of Student's t that leaves `_TAIL` above it."""
    x = beta_quantile(2 * _TAIL, degrees / 2, 0.5)  # of degrees / (degrees + t^2)
    return sqrt(degrees * (1 / x - 1))


def _boundless(middle: float) -> Estimate:
    return Estimate(mean=middle, low=float("-inf"), high=float("inf"))
