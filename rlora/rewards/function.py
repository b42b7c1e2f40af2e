"""A user's function as a judge: `score(completion, problem) -> reward`, or `-> (reward, reason)`.

It runs in this process, in order, and nothing bounds its time: a function that hangs hangs the run.
"""

import inspect
import time
from collections.abc import Callable, Sequence
from numbers import Real
from typing import Any, final

from rlora.errors import ConfigError, RewardError
from rlora.rewards.judge import REWARD_RULE, is_reward, shown
from rlora.system.screen import spoken_to_the_user
from rlora.types import Problem, Sample, StopReason, Verdict, VerdictKind

RewardFunction = Callable[[str, Problem], Any]


@final
class FunctionJudge:
    """Rewards by a function of the completion's text and its problem.

    A reward of 1 or more counts as right (CORRECT); anything less is WRONG, or TRUNCATED where the token limit cut the
    completion off. The kind is what pass@k, the curriculum and the shares of groups count; the reward is what trains.

    Example:
        >>> def short(completion, problem):
        ...     return 1 / (1 + len(completion)), "shorter is better"
        >>> judge = FunctionJudge(short, name="my_rewards:short")
    """

    def __init__(self, function: RewardFunction, *, name: str):
        """Judge by `function`, which errors call `name`; ConfigError for one that does not take two arguments."""
        try:
            signature = inspect.signature(function)
        except ValueError:  # of a built-in, which does not say what it takes
            signature = None
        if signature is not None:
            try:
                signature.bind("", None)
            except TypeError as error:
                raise ConfigError(
                    f"the reward function {name}{signature} cannot be called with (completion, problem): {error}. "
                    "Define it as `def score(completion: str, problem: rlora.types.Problem) -> float`."
                ) from error
        self._function, self._name = function, name

    def judge(self, samples: Sequence[Sample]) -> list[Verdict]:
        """Return one verdict a sample, in order; RewardError for what is no reward.

        An exception of the function is raised as what it is, with a note on the completion.
        """
        with spoken_to_the_user():  # what a user's function prints is for the user
            return [self._verdict(sample) for sample in samples]

    def _verdict(self, sample: Sample) -> Verdict:
        start = time.perf_counter()
        try:
            value = self._function(sample.completion.text, sample.problem)
        except Exception as error:
            error.add_note(f"raised by the reward function {self._name} on {shown(sample)}")
            raise
        reward, reason = self._checked(value, sample)
        kind = VerdictKind.CORRECT if reward >= 1 else VerdictKind.WRONG
        if kind is VerdictKind.WRONG and sample.completion.stop is StopReason.LENGTH:
            kind = VerdictKind.TRUNCATED
        return Verdict(kind=kind, reward=reward, reason=reason, seconds=time.perf_counter() - start)

    def _checked(self, value: Any, sample: Sample) -> tuple[float, str]:
        reward, reason = value if isinstance(value, tuple) and len(value) == 2 else (value, "")
        if not isinstance(reward, Real) or not isinstance(reason, str):
            raise RewardError(
                f"the reward function {self._name} returned {value!r} on {shown(sample)}; it must return a number, or "
                "a number and a text as its reason."
            )
        if not is_reward(reward):
            raise RewardError(
                f"the reward function {self._name} returned {value!r} on {shown(sample)}; a reward must be "
                f"{REWARD_RULE}."
            )
        return float(reward), reason
