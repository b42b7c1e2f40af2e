"""What a judge is: samples in, a verdict with a reward for each out."""

from collections.abc import Iterator, Mapping, Sequence
from numbers import Real
from typing import Protocol, cast, runtime_checkable

from rlora.errors import RewardError
from rlora.types import Problem, Sample, Verdict

MAX_REWARD = 1e6
REWARD_RULE = f"finite, from -{MAX_REWARD:g} to {MAX_REWARD:g}"


class Judge(Protocol):
    """Says what completions earn. The same samples must get the same rewards, or runs do not repeat."""

    def judge(self, samples: Sequence[Sample]) -> list[Verdict]:
        """Return one verdict a sample, in order."""
        ...


@runtime_checkable
class AnswerJudge(Judge, Protocol):
    """A judge of answers, two of which may be the same though their texts differ: evaluation counts majorities."""

    @property
    def measures(self) -> Mapping[str, bool]:
        """The names of its verdicts' measures, and whether they can differ from the verdict itself."""
        ...

    def equal(self, a: str, b: str) -> bool:
        """Whether two extracted answers are the same."""
        ...

    def explain(self, sample: Sample) -> Iterator[str]:
        """Yield the verdict on a sample with what led to it, line by line, for a person."""
        ...


@runtime_checkable
class Explains(Judge, Protocol):
    """A judge that can say what led to a verdict."""

    def explain(self, sample: Sample) -> Iterator[str]:
        """Yield the verdict on a sample with what led to it, line by line, for a person."""
        ...


@runtime_checkable
class DoubtsAnswers(Judge, Protocol):
    """A judge that can tell beforehand which answers of problems it hardly ever rewards."""

    def doubts(self, problems: Sequence[Problem]) -> Iterator[str]:
        """Yield a line for a person about each kind of such answers."""
        ...


def judged(judge: Judge, samples: Sequence[Sample]) -> list[Verdict]:
    """Return the judge's verdicts on the samples, checked.

    Raises:
        RewardError: There is not one verdict a sample, or a reward is none (`is_reward`).
    """
    verdicts = judge.judge(samples)
    name = type(judge).__name__
    if len(verdicts) != len(samples):
        raise RewardError(f"{name} gave {len(verdicts)} verdicts on {len(samples)} samples; give one each, in order.")
    for sample, verdict in zip(samples, verdicts, strict=True):
        if not isinstance(verdict, Verdict):
            raise RewardError(f"{name} gave {verdict!r} on {shown(sample)}, which is no rlora.types.Verdict.")
        if not is_reward(verdict.reward):
            raise RewardError(
                f"{name} gave the reward {verdict.reward!r} on {shown(sample)}; it must be {REWARD_RULE}."
            )
    return verdicts


def is_reward(value: object) -> bool:
    """Return whether a value can be trained on: a number of a size that differences and squares of it are finite."""
    return isinstance(value, Real) and bool(abs(cast(float, value)) <= MAX_REWARD)


def measures_of(judge: Judge) -> Mapping[str, bool]:
    """Return the measures of a judge: by name, whether they can differ from the verdict; none where it has none."""
    return judge.measures if isinstance(judge, AnswerJudge) else {}


def sees_groups(judge: Judge) -> bool:
    """Return whether a judge's rewards depend on a problem's other completions, as those of a `group_reward` do."""
    return getattr(judge, "sees_groups", False) is True


def doubts_of(judge: Judge, problems: Sequence[Problem]) -> Iterator[str]:
    """Yield what a judge says beforehand about problems' answers; nothing where it looks at none."""
    if isinstance(judge, DoubtsAnswers):
        yield from judge.doubts(problems)


def explain(judge: Judge, sample: Sample) -> Iterator[str]:
    """Yield the verdict on a sample, line by line, with what led to it where the judge says so."""
    if isinstance(judge, Explains):
        yield from judge.explain(sample)
        return
    (verdict,) = judged(judge, [sample])
    yield f"verdict     {verdict.kind.upper()}"
    yield f"reward      {verdict.reward:g}"
    yield f"reason      {verdict.reason or 'none given'}"


def shown(sample: Sample, *, characters: int = 200) -> str:
    """Return a sample as an error names it: the problem's id and how the completion begins."""
    text = sample.completion.text
    return f"the completion {text[:characters] + ('...' if len(text) > characters else '')!r} of {sample.problem.id}"
