"""Mathematics as a judge: the answer of a completion against the problem's, by `rlora.verify`.

Nothing outside this file and `rlora.verify` knows of numbers, boxes or strictness.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import final

from rlora.text import shortened
from rlora.types import Problem, Sample, StopReason, Verdict
from rlora.verify import JudgeRequest, Verifier, is_prose

STRICT = "strict"
_MOST_DOUBTED = 500


@final
class Mathematics:
    """Reward 1 for an answer that equals the problem's, else 0.

    Each verdict has the measure "strict": what it would be if the last number of a text were never its answer. It
    follows from how the answer was found; only completions whose answer is such a number are judged a second time.

    Example:
        >>> judge = Mathematics(Verifier(), last_number=True)
        >>> judge.measures
        {'strict': True}
    """

    def __init__(
        self, verifier: Verifier, *, last_number: bool = False, is_number: bool = False, is_worked_out: bool = True
    ):
        """Judge with `verifier`.

        Args:
            verifier: Compares answers; its owner closes it.
            last_number: Let the last number of a text be its answer. Where problems are hard a stray last number is
                luck, so there the answer must be marked.
            is_number: Ask for a number that was worked out, so that repeating "27 + 85" earns nothing.
            is_worked_out: Refuse an answer that is less worked out than the problem's, as a formula of the question is.
        """
        self._verifier, self._last_number = verifier, last_number
        self._is_number, self._is_worked_out = is_number, is_worked_out

    @property
    def measures(self) -> Mapping[str, bool]:
        """The strict rule, which says the same as the verdict where no last number is taken anyway."""
        return {STRICT: self._last_number}

    def judge(self, samples: Sequence[Sample]) -> list[Verdict]:
        """Return one verdict a sample, in order."""
        return self._verifier.judge_many([self._request(sample) for sample in samples], with_strict=True)

    def equal(self, a: str, b: str) -> bool:
        """Whether two answers are the same, exactly."""
        return self._verifier.equal(a, b)

    def explain(self, sample: Sample) -> Iterator[str]:
        """Yield how the answer was found and compared."""
        return self._verifier.explain(self._request(sample)).lines()

    def doubts(self, problems: Sequence[Problem]) -> Iterator[str]:
        """Yield what of the problems' answers no completion is rewarded for, or none but one of the same words.

        At most 500 problems are looked at, evenly.
        """
        looked_at = problems[:: -(-len(problems) // _MOST_DOUBTED) or 1]
        requests = [
            JudgeRequest(
                text=f"\\boxed{{{problem.answer}}}",
                gold=problem.answer,
                question=problem.question,
                is_number=self._is_number,
                is_worked_out=self._is_worked_out,
            )
            for problem in looked_at
        ]
        verdicts = self._verifier.judge_many(requests)
        refused = [one for one, verdict in zip(looked_at, verdicts, strict=True) if not verdict.is_correct]
        as_words = [one for one in looked_at if one not in refused and is_prose(one.answer)]
        for found, why in (
            (refused, "earn nothing, not even by a completion that gives them as they are"),
            (as_words, "are read as words, which are compared letter by letter: no other wording earns a reward"),
        ):
            if found:
                yield (
                    f"Warning: {len(found)} of {len(looked_at)} answers, as {shortened(found[0].answer)!r} of "
                    f"{found[0].id}, {why}. `rlora verify --gold G --answer A` explains single ones; a judge of your "
                    "own is --reward my_module:my_function."
                )

    def _request(self, sample: Sample) -> JudgeRequest:
        return JudgeRequest(
            text=sample.completion.text,
            gold=sample.problem.answer,
            question=sample.problem.question,
            is_truncated=sample.completion.stop is StopReason.LENGTH,
            last_number=self._last_number,
            is_number=self._is_number,
            is_worked_out=self._is_worked_out,
        )
