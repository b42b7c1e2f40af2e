"""Generated additions: "What is 27 + 85?", with operands from 2 to 99, split by unordered pair.

No pair of the test split appears in training in either order, so a policy cannot score by having seen the sum.
"""

import torch

from rlora.seeding import derive_seed, generator
from rlora.tasks.data import DataConfig
from rlora.tasks.select import refuse_filters
from rlora.types import Problem

INSTRUCTION = "Answer with the number only."
LOWEST, HIGHEST = 2, 99
TEST_PAIRS = 500


def load(split: str, data: DataConfig) -> list[Problem]:
    """Return the "train" or "test" problems: 4,851 unordered pairs in all, 500 of them for the test."""
    refuse_filters(data, name="arithmetic")
    pairs = [(a, b) for a in range(LOWEST, HIGHEST + 1) for b in range(a, HIGHEST + 1)]
    order = torch.randperm(len(pairs), generator=generator("arithmetic", "split")).tolist()
    chosen = order[:TEST_PAIRS] if split == "test" else order[TEST_PAIRS:]
    return [_problem(split, *pairs[index]) for index in chosen]


def load_digits(split: str, data: DataConfig) -> list[Problem]:
    """Return sums of two digits that are a digit themselves: small enough for a model of random weights to hit by
    chance.
    """
    refuse_filters(data, name="digits")
    pairs = [(a, b) for a in range(10) for b in range(a, 10 - a)]
    return [_problem(split, a, b) for index, (a, b) in enumerate(pairs) if (index % 4 == 0) == (split == "test")]


def _problem(split: str, a: int, b: int) -> Problem:
    if derive_seed("arithmetic", "order", a, b) % 2:
        a, b = b, a
    return Problem(
        id=f"arithmetic/{split}/{a}+{b}", question=f"What is {a} + {b}?", answer=str(a + b), source="arithmetic"
    )
