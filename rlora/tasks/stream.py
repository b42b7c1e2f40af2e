"""An endless, seeded walk through a training set; its state is one integer, and with a curriculum the solve rates."""

import hashlib
import json
from collections.abc import Sequence

import torch

from rlora.errors import DataError
from rlora.seeding import derive_seed, generator
from rlora.tasks.curriculum import SolveRates
from rlora.types import Group, Problem


class Walk:
    """The indices below `count`, each once an epoch, in an order of (seed, epoch) alone; `position` counts them.

    Example:
        >>> walk = Walk(3, seed=0)
        >>> sorted(walk.next() for _ in range(3))
        [0, 1, 2]
    """

    def __init__(self, count: int, *, seed: int, position: int = 0):
        """Go on behind the first `position` indices; DataError where there are none at all."""
        if not count:
            raise DataError("the training set is empty.")
        self._count, self._seed, self.position = count, seed, position
        self._epoch, self._order = -1, list[int]()

    def next(self) -> int:
        """Return the next index."""
        epoch, place = divmod(self.position, self._count)
        if epoch != self._epoch:
            random = generator(self._seed, "epoch", epoch)
            self._epoch, self._order = epoch, torch.randperm(self._count, generator=random).tolist()
        self.position += 1
        return self._order[place]


class ProblemStream:
    """Every epoch comes by each problem once, in an order of (seed, epoch) alone; `position` counts what it came by.

    With solve rates, a problem that promises little is passed over with the chance that they give, and every group
    that was sampled is counted in them.
    """

    def __init__(
        self, problems: Sequence[Problem], *, seed: int, position: int = 0, solve_rates: SolveRates | None = None
    ):
        """Walk through `problems`, having come by `position` of them already."""
        self._walk = Walk(len(problems), seed=seed, position=position)
        self._problems, self._seed, self.solve_rates = problems, seed, solve_rates
        self._index = {problem.id: index for index, problem in enumerate(problems)}
        self.fingerprint = fingerprint(problems)

    @property
    def position(self) -> int:
        """How many problems it came by."""
        return self._walk.position

    def take(self, count: int) -> list[Problem]:
        """Return the next `count` problems and advance."""
        taken: list[Problem] = []
        while len(taken) < count:
            index = self._walk.next()
            if self.solve_rates is None or self._is_drawn(self.solve_rates.chance(index)):
                taken.append(self._problems[index])
        return taken

    def observe(self, groups: Sequence[Group]) -> None:
        """Count sampled groups in the solve rates, if there are any."""
        if self.solve_rates is None:
            return
        for group in groups:
            num_right = sum(rollout.verdict.is_correct for rollout in group.rollouts)
            self.solve_rates.observe(
                self._index[group.prompt.problem.id], num_right=num_right, num_wrong=len(group.rollouts) - num_right
            )

    def _is_drawn(self, chance: float) -> bool:
        return derive_seed(self._seed, "curriculum", self.position) < chance * 2**62


def fingerprint(problems: Sequence[Problem]) -> str:
    """Return a digest of a training set in its order: a position means the same problems only in the same set."""
    content = json.dumps([_content(problem) for problem in problems])
    return hashlib.sha256(content.encode()).hexdigest()


def _content(problem: Problem) -> tuple[object, ...]:
    turns = [(message.role, message.content) for message in problem.messages]
    return (problem.id, problem.question, problem.answer, *([turns] if turns else []))
