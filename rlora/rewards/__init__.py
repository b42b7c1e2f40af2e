"""Judges: what a completion earns, and why. A new one is a file and a line in `JUDGES`, or a user's `module:name`."""

import inspect
from collections.abc import Callable, Mapping
from functools import partial

from rlora.errors import ConfigError
from rlora.registry import check_name, find
from rlora.rewards.function import FunctionJudge
from rlora.rewards.judge import AnswerJudge, Judge, explain, judged, measures_of
from rlora.rewards.mathematics import Mathematics
from rlora.verify import Verifier

__all__ = ["JUDGES", "AnswerJudge", "Judge", "check_judge", "explain", "judged", "measures_of", "open_judge"]

JUDGES: Mapping[str, Callable[[Verifier], Judge]] = {
    "mathematics": Mathematics,  # the answer must be marked, or be the whole last line
    "number": partial(Mathematics, last_number=True, is_number=True),  # the last number of a text will do
}


def open_judge(name: str, verifier: Verifier) -> Judge:
    """Return the judge of this name: one of `JUDGES`, or a user's `module:name`, a function or a `Judge`.

    `verifier` is what judges of mathematics compare with; its workers start when one of them needs them.

    Raises:
        ConfigError: Nothing has this name, or what has it is neither a function of (completion, problem) nor a judge.
    """
    found = find(name, JUDGES, unknown=_unknown(name))
    if name in JUDGES:
        return found(verifier)
    if inspect.isclass(found):
        raise ConfigError(f"the reward {name} is a class; name an object of it, or a function.")
    if callable(getattr(found, "judge", None)):
        return found
    if callable(found):
        return FunctionJudge(found, name=name)
    raise ConfigError(f"the reward {name} is {found!r}; it must be a function of (completion, problem), or a Judge.")


def check_judge(name: str) -> None:
    """Raise ConfigError where `open_judge` would; what rlora brings is known by its name."""
    check_name(name, JUDGES, unknown=_unknown(name))
    if name not in JUDGES:
        with Verifier() as verifier:  # starts nothing
            open_judge(name, verifier)


def _unknown(name: str) -> str:
    return f"the reward {name!r} is unknown"
