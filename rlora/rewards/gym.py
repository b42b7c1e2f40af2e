"""The scorer of the package reasoning-gym as a reward: each of its tasks knows best which answers are right.

It needs the whole item that a question came from, of which a problem keeps the text alone; so the item is made again
from the seed and the number in the problem's id.
"""

import re
from functools import lru_cache
from typing import Any

from rlora.errors import RewardError
from rlora.types import Problem

_ID = re.compile(r"reasoning_gym/(\w+)/\w+/seed(\d+)-of(\d+)/(\d+)")
_ANSWER = re.compile(r"<answer>\s*(.*?)\s*</answer>", re.DOTALL)


def score(completion: str, problem: Problem) -> tuple[float, str]:
    """Return what the task's own scorer gives the last <answer> in the completion, from 0 to 1; 0 where there is none.

    Raises:
        RewardError: The problem is none of reasoning-gym's, or of another version of it.
    """
    found = _ANSWER.findall(completion.rpartition("</think>")[2])
    if not found:
        return 0.0, "no <answer>"
    place = _ID.fullmatch(problem.id)
    if place is None:
        raise RewardError(f"was given the problem {problem.id}, which is none of --data reasoning_gym:NAME")
    name, seed, size, index = place[1], *map(int, place.groups()[1:])
    if _item(name, seed, size, index)["question"] != problem.question:
        raise RewardError(
            f"finds another question under {problem.id} than was asked; install the version of reasoning-gym that the "
            "run began with"
        )
    return float(_tasks(name, seed, size).score_answer(answer=found[-1], entry=_item(name, seed, size, index))), ""


@lru_cache(maxsize=8)
def _tasks(name: str, seed: int, size: int) -> Any:
    import reasoning_gym

    return reasoning_gym.create_dataset(name, seed=seed, size=size)


@lru_cache(maxsize=1024)
def _item(name: str, seed: int, size: int, index: int) -> dict[str, Any]:
    return _tasks(name, seed, size)[index]
