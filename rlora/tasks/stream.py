"""An endless, seeded walk through a training set whose whole state is one integer."""

import hashlib
import json
from collections.abc import Sequence

import torch

from rlora.errors import DataError
from rlora.seeding import generator
from rlora.types import Problem


class ProblemStream:
    """Every epoch visits each problem once, in an order of (seed, epoch) alone; `position` is the state."""

    def __init__(self, problems: Sequence[Problem], *, seed: int, position: int = 0):
        """Walk through `problems`, having taken `position` already."""
        if not problems:
            raise DataError("the training set is empty.")
        self._problems, self._seed, self.position = problems, seed, position
        self.fingerprint = fingerprint(problems)

    def take(self, count: int) -> list[Problem]:
        """Return the next `count` problems and advance."""
        taken = []
        size = len(self._problems)
        while len(taken) < count:
            epoch, index = divmod(self.position, size)
            order = torch.randperm(size, generator=generator(self._seed, "epoch", epoch)).tolist()
            part = order[index : index + count - len(taken)]
            taken += [self._problems[i] for i in part]
            self.position += len(part)
        return taken


def fingerprint(problems: Sequence[Problem]) -> str:
    """Return a digest of a training set in its order: a position means the same problems only in the same set."""
    content = json.dumps([(problem.id, problem.question, problem.answer) for problem in problems])
    return hashlib.sha256(content.encode()).hexdigest()
