"""The sample of a test's combinations holds every pair of values, in an eighth of the cases."""

import itertools

import pytest
from support.pairwise import pairwise

pytestmark = pytest.mark.unit
VALUES = {"has_bases": [True, False], "inputs": [64, 50, 576, 2, 1000, 2024], "rank": range(11), "rows": [1, 2, 9, 133]}
CASES = [dict(zip(VALUES, values, strict=True)) for values in itertools.product(*VALUES.values())]


def test_every_pair_of_values_is_in_the_sample() -> None:
    sample = [CASES[index] for index in pairwise(CASES)]
    for one, other in itertools.combinations(VALUES, 2):
        pairs = {(case[one], case[other]) for case in sample}
        assert pairs == set(itertools.product(VALUES[one], VALUES[other]))
    assert len(sample) < len(CASES) / 7


def test_the_sample_is_the_same_each_time_and_of_one_parameter_all() -> None:
    assert pairwise(CASES) == pairwise([dict(case) for case in CASES])
    assert pairwise([{"rows": rows} for rows in range(5)]) == [0, 1, 2, 3, 4]
