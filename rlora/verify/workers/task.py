"""What a worker of the verifier is asked, and what it answers."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from rlora.types import VerdictKind
from rlora.verify.comparison.decide import Step


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """A comparison for a worker; `is_traced` asks for the rules that decided."""

    gold: str
    answer: str
    is_rounding: bool
    is_traced: bool = False

    def message(self) -> dict[str, object]:
        """Return the task as a frame's message."""
        return {name: getattr(self, name) for name in self.__slots__}


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """What became of a task: the verdict's kind, the rules that decided, and the exception that ended it ("": none)."""

    kind: VerdictKind
    steps: tuple[Step, ...] = ()
    error: str = ""


def reply_of(message: Mapping[str, Any]) -> Reply:
    """Return the reply of a frame."""
    steps = [Step(rule=rule, verdict=verdict, gold=a, answer=b) for rule, verdict, a, b in message["steps"]]
    return Reply(kind=VerdictKind(message["kind"]), steps=tuple(steps), error=message["error"])
