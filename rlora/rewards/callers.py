"""How a user's function is called: in worker processes, where it has a name to be found by, or in this one."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, final

from rlora.errors import RewardError
from rlora.rewards.call import job_of, task_of
from rlora.rewards.config import JudgeConfig
from rlora.rewards.returned import Reward, is_group_reward, rewards_in
from rlora.system.screen import spoken_to_the_user
from rlora.types import Sample
from rlora.verify.workers.pool import Ended, Failure, Limits, Pool
from rlora.verify.workers.threads import for_each


@dataclass(frozen=True, slots=True, kw_only=True)
class Called:
    """What a call came to: a reward for each completion, or what went wrong in words, and the seconds that it took.

    `trace` is where in the function it went wrong, `error` what it raised in this process.
    """

    rewards: Sequence[Reward] = ()
    failure: str = ""
    is_limit: bool = False
    trace: str = ""
    error: Exception | None = None
    seconds: float = 0.0


class Caller(Protocol):
    """Calls a function with completions of one problem at a time."""

    is_group: bool

    def call_all(self, units: Sequence[Sequence[Sample]], *, done: Callable[[int, Called], None]) -> None:
        """Call the function for each unit and tell `done` its number and what came of it; what `done` raises ends it.

        Units are begun in order; of several errors that `done` raises the first unit's is raised.
        """
        ...

    def close(self) -> None:
        """End what the calls need."""
        ...


@final
class InProcess:
    """Calls a function in this process, in order; nothing bounds its time."""

    def __init__(self, function: Callable[..., Any]):
        """Call `function`."""
        self._function, self.is_group = function, is_group_reward(function)

    def call_all(self, units: Sequence[Sequence[Sample]], *, done: Callable[[int, Called], None]) -> None:
        """Call the function for each unit, in order."""
        with spoken_to_the_user():  # what a user's function prints is for the user
            for index, unit in enumerate(units):
                done(index, self._call(unit))

    def _call(self, unit: Sequence[Sample]) -> Called:
        start = time.perf_counter()
        texts = [sample.completion.text for sample in unit]
        try:
            value = self._function(texts if self.is_group else texts[0], unit[0].problem)
            rewards = rewards_in(value, len(unit), is_group=self.is_group)
        except RewardError as error:
            return Called(failure=str(error), seconds=time.perf_counter() - start)
        except Exception as error:
            return Called(failure=f"raised {type(error).__name__}: {error}", error=error)
        return Called(rewards=rewards, seconds=time.perf_counter() - start)

    def close(self) -> None:
        """Nothing is to be ended."""


@final
class InWorkers:
    """Calls a function that `module:name` names in worker processes, within the limits of `JudgeConfig`."""

    def __init__(self, name: str, config: JudgeConfig, *, is_group: bool):
        """Start no worker before the first call."""
        self._config, self.is_group = config, is_group
        limits = Limits(cpu_seconds=config.seconds, wall_seconds=config.wall_seconds, memory_mb=config.memory_mb)
        self._pool = Pool(job_of(name), limits, num_workers=config.num_workers)

    def call_all(self, units: Sequence[Sequence[Sample]], *, done: Callable[[int, Called], None]) -> None:
        """Call the function for each unit, by all workers at once."""

        def work(index: int) -> None:
            done(index, self._call(units[index]))

        with spoken_to_the_user():  # a worker writes where this process does when it is started
            for_each(range(len(units)), work, num_threads=self._config.num_workers)

    def _call(self, unit: Sequence[Sample]) -> Called:
        start = time.perf_counter()
        reply = self._pool.ask(task_of([sample.completion.text for sample in unit], unit[0].problem))
        seconds = time.perf_counter() - start
        if isinstance(reply, Failure):
            is_limit = reply.kind in (Ended.CPU, Ended.WALL, Ended.MEMORY)
            return Called(failure=self._said(reply), is_limit=is_limit, seconds=seconds)
        if "failure" in reply:
            return Called(failure=reply["failure"], trace=reply["trace"], seconds=seconds)
        return Called(rewards=[(reward, reason) for reward, reason in reply["rewards"]], seconds=seconds)

    def _said(self, failure: Failure) -> str:
        config = self._config
        return {
            Ended.CPU: f"took more than {config.seconds:g} s of CPU time (--judge.seconds)",
            Ended.WALL: f"was not done after {config.wall_seconds:g} s (--judge.wall-seconds)",
            Ended.MEMORY: f"took more than {config.memory_mb} MiB (--judge.memory-mb)",
            Ended.LEFT: "left a process behind, which was ended; wait for what it starts",
            Ended.DIED: f"did not return: {failure.how}",
        }[failure.kind]

    def close(self) -> None:
        """End the workers."""
        self._pool.close()
