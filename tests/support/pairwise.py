"""Which combinations of a test's parameters are a sample of all: those that hold every pair of two values."""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import pytest


def pairwise(cases: Sequence[Mapping[str, Any]]) -> list[int]:
    """Return the indices of some cases in which each pair of two parameters' values that occurs in any occurs.

    Greedy and without chance: always the first case with the most pairs that are still missing. So every value of every
    parameter is in the sample, and of 2 x 6 x 11 x 4 combinations about an eighth.
    """
    held = [values_and_pairs(case) for case in cases]
    missing, chosen = set().union(*held), []
    while missing:
        best = max(range(len(cases)), key=lambda index: len(held[index] & missing))
        chosen.append(best)
        missing -= held[best]
    return sorted(chosen)


def values_and_pairs(case: Mapping[str, Any]) -> set[tuple[tuple[str, str], ...]]:
    """Return each parameter's value in a case, and each pair of two parameters' values."""
    values = sorted((name, key(value)) for name, value in case.items())
    return {*itertools.combinations(values, 1), *itertools.combinations(values, 2)}


def key(value: Any) -> str:
    """Return what tells a parameter's value from its others, the same in every process."""
    return getattr(value, "__qualname__", None) or repr(value)


def mark_the_rest_long(items: Sequence[pytest.Item]) -> None:
    """Of tests marked `pairwise`, mark what is not in the sample as `long`."""
    by_test: dict[str, list[Any]] = {}
    for item in items:
        if item.get_closest_marker("pairwise"):
            by_test.setdefault(item.nodeid.partition("[")[0], []).append(item)
    for cases in by_test.values():
        chosen = set(pairwise([case.callspec.params for case in cases]))
        for index, case in enumerate(cases):
            if index not in chosen:
                case.add_marker(pytest.mark.long)
