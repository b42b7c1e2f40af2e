"""A user's function as a judge: of one completion, or, marked by `group_reward`, of all completions of a problem."""

import inspect
from collections.abc import Callable, Sequence
from typing import Any, final

from rlora.errors import ConfigError, RewardError
from rlora.rewards.callers import Called, Caller, InProcess
from rlora.rewards.config import DEFAULTS, JudgeConfig
from rlora.rewards.judge import shown
from rlora.rewards.returned import is_group_reward
from rlora.system.progress import counting
from rlora.types import Problem, Sample, StopReason, Verdict, VerdictKind
from rlora.verify.workers.faults import RAISED

RewardFunction = Callable[[str, Problem], Any]


def check_function(function: RewardFunction, *, name: str) -> None:
    """Raise ConfigError for a function that does not take two arguments; errors call it `name`."""
    try:
        signature = inspect.signature(function)
    except ValueError:  # of a built-in, which does not say what it takes
        return
    try:
        signature.bind("", None)
    except TypeError as error:
        first = "completions" if is_group_reward(function) else "completion"
        raise ConfigError(
            f"the reward function {name}{signature} cannot be called with ({first}, problem): {error}. "
            "Define it as `def score(completion: str, problem: rlora.types.Problem) -> float`."
        ) from error


def kind_of(reward: float, sample: Sample) -> VerdictKind:
    """Return how a reward counts that no rule of answers stands behind: right from 1 on."""
    if reward >= 1:
        return VerdictKind.CORRECT
    return VerdictKind.TRUNCATED if sample.completion.stop is StopReason.LENGTH else VerdictKind.WRONG


@final
class FunctionJudge:
    """Rewards by a function of the completion's text (or of all of a problem's) and the problem.

    A reward of 1 or more counts as right (CORRECT); anything less is WRONG, or TRUNCATED where the token limit cut the
    completion off. The kind is what pass@k, the curriculum and the shares of groups count; the reward is what trains.

    Example:
        >>> def short(completion, problem):
        ...     return 1 / (1 + len(completion)), "shorter is better"
        >>> judge = FunctionJudge(short, name="my_rewards:short")
    """

    def __init__(
        self,
        function: RewardFunction,
        *,
        name: str,
        config: JudgeConfig = DEFAULTS,
        caller: Caller | None = None,
    ):
        """Judge by `function`, which errors call `name`, in this process where there is no `caller`.

        Raises ConfigError for one that does not take two arguments.
        """
        check_function(function, name=name)
        self._name, self._config = name, config
        self._caller = InProcess(function) if caller is None else caller

    @property
    def sees_groups(self) -> bool:
        """Whether a reward depends on the other completions of the problem."""
        return self._caller.is_group

    def judge(self, samples: Sequence[Sample]) -> list[Verdict]:
        """Return one verdict a sample, in order. Completions of one problem are one group, wherever they stand.

        Raises:
            RewardError: The function failed at a completion, the first at which it did being named; not where failures
                earn a stated reward. An exception in this process is raised as what it is, with a note on it.
        """
        units = self._units(samples)
        verdicts: list[Verdict | None] = [None] * len(samples)

        def done(index: int, called: Called) -> None:
            unit = units[index]
            for place, verdict in zip(unit, self._verdicts([samples[i] for i in unit], called), strict=True):
                verdicts[place] = verdict
            count.add(len(unit))

        with counting("completions", len(samples)) as count:
            self._caller.call_all([[samples[i] for i in unit] for unit in units], done=done)
        return [verdict for verdict in verdicts if verdict is not None]

    def close(self) -> None:
        """End the workers, where there are any."""
        self._caller.close()

    def _units(self, samples: Sequence[Sample]) -> list[list[int]]:
        """Return the places of the samples that one call judges."""
        if not self._caller.is_group:
            return [[place] for place in range(len(samples))]
        places: dict[str, list[int]] = {}
        for place, sample in enumerate(samples):
            places.setdefault(sample.problem.id, []).append(place)
        return list(places.values())

    def _verdicts(self, unit: Sequence[Sample], called: Called) -> list[Verdict]:
        seconds = called.seconds / len(unit)
        if called.failure:
            return [self._failed(unit, called, seconds)] * len(unit)
        return [
            Verdict(kind=kind_of(reward, sample), reward=reward, reason=reason, seconds=seconds)
            for sample, (reward, reason) in zip(unit, called.rewards, strict=True)
        ]

    def _failed(self, unit: Sequence[Sample], called: Called, seconds: float) -> Verdict:
        """Return what a failed call earns; raises where it ends the run."""
        what, of, where = called.failure, self._name, shown(unit[0])
        if self._caller.is_group:
            where = f"{len(unit)} completions, of which the first is {where}"
        if self._config.on_failure == "end":
            if called.error is not None:
                called.error.add_note(f"raised by the reward function {of} on {where}")
                raise called.error
            first, semicolon, rule = what.partition("; ")
            error = RewardError(
                f"the reward function {of} {first} on {where}{semicolon}{rule}. Mend it and start the same command "
                "again, or give such completions --judge.failed-reward by --judge.on-failure go_on."
            )
            if called.trace:
                error.add_note(called.trace.rstrip())
            raise error
        kind = VerdictKind.TIMEOUT if called.is_limit else VerdictKind.WRONG
        reason = f"{RAISED} an error: {of} {what}"
        return Verdict(kind=kind, reward=self._config.failed_reward, reason=reason, seconds=seconds)
