"""A sum of judges: `--reward correct=1.0 format=0.2 length=-0.001`."""

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import final

from rlora.errors import ConfigError
from rlora.rewards.config import DEFAULTS, JudgeConfig
from rlora.rewards.function import FunctionJudge, kind_of
from rlora.rewards.judge import AnswerJudge, Judge, doubts_of, explain, judged, sees_groups
from rlora.types import Problem, Sample, Verdict
from rlora.verify.workers.faults import RAISED

CORRECT = "correct"
"""The part that is the data set's own judge."""
_WORDS = re.compile(r"[\s,]+")


def is_sum(reward: str) -> bool:
    """Return whether a reward's text has weights or several words, rather than the name of one judge."""
    return "=" in reward or len(_WORDS.split(reward.strip())) > 1


def weights_of(reward: str) -> dict[str, float]:
    """Return the weights in the text of a sum, in order; words are set apart by spaces or commas.

    Raises:
        ConfigError: A part has no weight, one that is no finite number, or two.

    Example:
        >>> weights_of("correct=1.0 format=0.2")
        {'correct': 1.0, 'format': 0.2}
    """
    weights: dict[str, float] = {}
    for word in filter(None, _WORDS.split(reward.strip())):
        name, equals, weight = word.partition("=")
        if not name or not equals:
            raise ConfigError(
                f"the reward {reward!r} is a sum, and its part {word!r} has no weight; write NAME=WEIGHT for each, as "
                "in correct=1.0 format=0.2."
            )
        if name in weights:
            raise ConfigError(f"the reward {reward!r} names the part {name!r} twice; give it one weight.")
        weights[name] = _weight(weight, name)
    return weights


def _weight(text: str, name: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise ConfigError(f"the weight of the reward {name!r} is {text!r}; it must be a finite number: {name}=1.0.")
    return value


def is_share(reward: str | None) -> bool:
    """Return whether the mean of a reward is the share of completions that earn it, and so is written in per cent.

    That is so of rlora's judges that earn 0 or 1, the data set's own among them (None, or `correct`). What a user's
    function, a sum or a length earns is a number of its own kind.

    Example:
        >>> is_share("number"), is_share("correct=1 format=0.2")
        (True, False)
    """
    return reward in (None, "", CORRECT, "mathematics", "last_number", "number", "format")


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """A judge of a sum, and what its rewards are multiplied by; 0 has it logged and train nothing."""

    judge: Judge
    weight: float


@final
class Combined:
    """Rewards the weighted sum of the parts' rewards, within the bounds that the configuration sets.

    What counts as right is what the part `correct` says, or else the first part that judges answers; where there is
    neither, a sum of at least 1. Each verdict has the rewards of the parts, before their weights.
    """

    def __init__(self, parts: Mapping[str, Part], config: JudgeConfig = DEFAULTS):
        """Judge by the parts, by name."""
        self._parts, self._config = parts, config
        answers = [name for name, part in parts.items() if isinstance(part.judge, AnswerJudge)]
        self._deciding = CORRECT if CORRECT in parts else next(iter(answers), None)

    def judge(self, samples: Sequence[Sample]) -> list[Verdict]:
        """Return one verdict a sample, in order; RewardError for what is no reward."""
        verdicts = {name: judged(part.judge, samples) for name, part in self._parts.items()}
        return [
            self._verdict(sample, {name: given[index] for name, given in verdicts.items()})
            for index, sample in enumerate(samples)
        ]

    def doubts(self, problems: Sequence[Problem]) -> Iterator[str]:
        """Yield what the parts say beforehand about problems' answers."""
        for part in self._parts.values():
            yield from doubts_of(part.judge, problems)

    def explain(self, sample: Sample) -> Iterator[str]:
        """Yield the verdict on a sample, and how each part came to its reward."""
        (verdict,) = judged(self, [sample])
        yield f"verdict     {verdict.kind.upper()}"
        terms = (f"{part.weight:g} x {name} {verdict.parts[name]:g}" for name, part in self._parts.items())
        yield f"reward      {verdict.reward:g} = {' + '.join(terms)}{', clipped' * self._config.is_clipped}"
        for name, part in self._parts.items():
            yield f"{name}:"
            for line in explain(part.judge, sample):
                yield f"  {line}"

    @property
    def sees_groups(self) -> bool:
        """Whether a reward depends on the other completions of the problem."""
        return any(sees_groups(part.judge) for part in self._parts.values())

    def close(self) -> None:
        """End the workers of the parts."""
        for part in self._parts.values():
            if isinstance(part.judge, FunctionJudge | Combined):
                part.judge.close()

    def _verdict(self, sample: Sample, parts: Mapping[str, Verdict]) -> Verdict:
        reward = self._config.clipped(sum(self._parts[name].weight * given.reward for name, given in parts.items()))
        deciding = None if self._deciding is None else parts[self._deciding]
        failed = [given.reason for given in parts.values() if given.reason.startswith(RAISED)]
        reasons = [f"{name}: {given.reason}" for name, given in parts.items() if given.reason]
        return Verdict(
            kind=kind_of(reward, sample) if deciding is None else deciding.kind,
            reward=reward,
            extracted="" if deciding is None else deciding.extracted,
            reason="; ".join(failed or reasons),
            seconds=sum(given.seconds for given in parts.values()),
            parts={name: given.reward for name, given in parts.items()},
        )
