"""Whether tokens were drawn from a distribution, judged over the steps so far."""

from collections.abc import Sequence

from rlora.errors import ProofError
from rlora.proof import messages
from rlora.proof.evidence import (
    CHANCE,
    MAX_DEVIATIONS,
    SURPRISE,
    TAILS,
    Pooled,
    Scores,
    chance_of_copies,
    chance_of_count,
    slope_sums,
    surprise_sums,
    tail_sums,
)
from rlora.proof.scoring import Drawn
from rlora.types import Completion


def refuse_copies(groups: Sequence[Sequence[Completion]]) -> None:
    """Raise ProofError for completions of one prompt that are copies of each other."""
    for completions in groups:
        if chance_of_copies(completions) < CHANCE:
            raise ProofError(messages.COPIES_OF_ONE)


class Draws:
    """Sums of what drawn tokens deviate by."""

    def __init__(self) -> None:
        """Start without any."""
        self._surprise, self._slope = Pooled(spare=SURPRISE**2), Pooled()
        self._tails = [Pooled() for _ in TAILS]

    @property
    def surprise(self) -> float:
        """How far the last tokens' surprise deviates, in standard deviations."""
        return self._surprise.last.z

    def add(self, name: str, tokens: Drawn, scores: Scores, *, trainer_noise: float) -> None:
        """Add tokens that should have been drawn from the distribution of `scores`, which is called `name`.

        `trainer_noise` bounds the rounding of the scores, nats. Raises ProofError when they were not, or when their
        log-probabilities are those of another temperature.
        """
        is_first_N = tokens.is_first_N
        self._slope.add(
            slope_sums(tokens.sampler_N[is_first_N], scores.logprobs_N[is_first_N], trainer_noise=trainer_noise)
        )
        for sums in self._slope.windows():
            if sums.is_off:
                raise ProofError(messages.other_temperature(name, sums))
        self._surprise.add(surprise_sums(scores))
        for sums in self._surprise.windows():
            if abs(sums.z) > MAX_DEVIATIONS:
                raise ProofError(messages.surprising(name, sums))
        for tail, pooled, sums in zip(TAILS, self._tails, tail_sums(scores), strict=True):
            pooled.add(sums)
            for window in pooled.windows():
                if chance_of_count(window.deviation, window.weight) < CHANCE:
                    raise ProofError(messages.tail(name, tail, window))
