"""Judges of how something is said, whatever it says: parts of a sum more than rewards of their own."""

from collections.abc import Sequence
from typing import final

from rlora.rewards.function import kind_of
from rlora.types import Sample, StopReason, Verdict
from rlora.verify import Verifier
from rlora.verify.extraction.extract import extract


@final
class Format:
    """Reward 1 for a completion that marks an answer, in any of the ways that the verifier knows, else 0."""

    def __init__(self, _verifier: Verifier, *, is_worked_out: bool = True):
        """Take the arguments of every judge; none matters to it."""

    def judge(self, samples: Sequence[Sample]) -> list[Verdict]:
        """Return one verdict a sample, in order."""
        return [self._verdict(sample) for sample in samples]

    def _verdict(self, sample: Sample) -> Verdict:
        is_cut = sample.completion.stop is StopReason.LENGTH
        found = extract(sample.completion.text, is_truncated=is_cut, question=sample.problem.question)
        reward = float(found.kind is None)
        reason = "" if reward else f"no answer: {found.rule}"
        return Verdict(kind=kind_of(reward, sample), reward=reward, extracted=found.text, reason=reason)


@final
class Length:
    """Reward the number of tokens of a completion, its end among them: give it a small negative weight."""

    def __init__(self, _verifier: Verifier, *, is_worked_out: bool = True):
        """Take the arguments of every judge; none matters to it."""

    def judge(self, samples: Sequence[Sample]) -> list[Verdict]:
        """Return one verdict a sample, in order."""
        lengths = [float(len(sample.completion.token_ids)) for sample in samples]
        return [
            Verdict(kind=kind_of(length, sample), reward=length)
            for sample, length in zip(samples, lengths, strict=True)
        ]
