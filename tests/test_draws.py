"""What drawn tokens say about their sampler, where the policy is certain: counts with closed forms."""

import math
from dataclasses import replace

import pytest
import torch
from support.rollouts import completion

from rlora.errors import ProofError
from rlora.proof.draws import Draws
from rlora.proof.evidence import CHANCE, TAILS, Scores, chance_of_repeats, scores_of, tail_sums
from rlora.proof.scoring import Drawn, drawn
from rlora.types import Completion

pytestmark = pytest.mark.unit

ONE = [0.97, 0.01, 0.01, 0.01]
DISTRIBUTIONS = {
    "peaked": [0.9999, 0.0001, 0.0, 0.0],
    "certain": [1.0, 0.0, 0.0, 0.0],
    "levels": ONE,
    "uniform": [0.25] * 4,
    "mixed": [0.5, 0.395, 0.1, 0.005],
}


@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_an_honest_draw_lies_in_a_tail_with_its_probability_from_any_distribution(name) -> None:
    p_V = torch.tensor(DISTRIBUTIONS[name], dtype=torch.float64)
    found = [0.0, 0.0]
    for token, chance in enumerate(p_V.tolist()):
        if chance > 0:
            for place, sums in enumerate(tail_sums(scores_of(p_V.log()[None], torch.tensor([token])))):
                found[place] += chance * sums.deviation
    assert found == pytest.approx([1 - tail for tail in TAILS], abs=1e-9)


def test_draws_of_a_cut_distribution_have_no_tail() -> None:
    """top-p 0.9 keeps the two likeliest tokens of "mixed" alone."""
    p_V = torch.tensor(DISTRIBUTIONS["mixed"], dtype=torch.float64)
    scores = scores_of(p_V.log().repeat(2000, 1), torch.tensor([0, 1]).repeat(1000))
    assert [sums.deviation for sums in tail_sums(scores)] == [0.0, 0.0]


def steps(draws: Draws, tokens: Drawn, scores: Scores, *, number: int) -> None:
    for _ in range(number):
        draws.add("the policy", tokens, scores, trainer_noise=0.01)


def test_a_policy_that_always_says_the_same_is_not_accused_over_many_steps() -> None:
    """Once each token was given a random place within its mass, by the tokens: the same step, 64 times, added up."""
    draws = Draws()
    for first in (5, 7, 11, 13):
        answer = replace(completion([first, 3]), logprobs=(-1e-4, -1e-4))
        tokens = drawn([(range(9), [answer] * 64)], length=8)
        p_NV = torch.full((128, 16), 1e-4 / 15)
        ids_N = tokens.micro_batch.target_N
        p_NV[torch.arange(128), ids_N] = 1 - 1e-4
        steps(draws, tokens, scores_of(p_NV.log(), ids_N), number=64)


def test_a_cut_tail_is_still_seen_beside_certain_tokens() -> None:
    p_V = torch.tensor([0.6, 0.25, 0.1, 0.05])
    answers = [replace(completion([step % 2]), logprobs=(float(p_V[step % 2].log()),)) for step in range(64)]
    tokens = drawn([(range(9), answers)], length=8)
    scores = scores_of(p_V.log().repeat(64, 1), tokens.micro_batch.target_N)
    draws = Draws()
    draws.add("the policy", tokens, scores, trainer_noise=0.01)
    with pytest.raises(ProofError, match=r"top-p, top-k or min-p is on|likelier than draws"):
        steps(draws, tokens, scores, number=8)


def answers_of(*chances: float) -> list[Completion]:
    return [replace(completion([4, place]), logprobs=(0.0, math.log(p))) for place, p in enumerate(chances)]


def test_repeats_have_the_chance_that_their_own_probabilities_give_them() -> None:
    some = answers_of(0.5, 0.25)
    none, one = [replace(each, token_ids=(9, 9)) for each in some], [some[0], completion([9, 9])]
    assert chance_of_repeats(some, none) == 1.0
    assert chance_of_repeats(some, one) == pytest.approx(1 - 0.5 * 0.75)
    assert chance_of_repeats(some, some) == pytest.approx(0.125)


def test_a_seed_that_is_ignored_is_told_from_a_first_token_without_doubt() -> None:
    """All first tokens are certain and all second ones open: before, first tokens alone were compared."""
    some = answers_of(*[0.02] * 24)
    others = [replace(each, token_ids=(4, 100 + place)) for place, each in enumerate(some)]
    assert chance_of_repeats(some, others) == pytest.approx(1.0)
    assert chance_of_repeats(some, some) < CHANCE
    certain = answers_of(*[0.999] * 24)
    assert chance_of_repeats(certain, certain) > 0.9
