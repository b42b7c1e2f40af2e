"""Frames between the verifier and its workers: a 4-byte length, then JSON; never pickle, since answers are hostile."""

import json
import struct
from dataclasses import dataclass
from typing import Any, BinaryIO

from rlora.types import VerdictKind
from rlora.verify.comparison.decide import Step

DIED: dict[str, object] = {"died": True}  # what a worker says of a child that neither limit ended
_HEADER = struct.Struct(">I")


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


def task_of(message: dict[str, Any]) -> Task:
    """Return the task of a frame."""
    return Task(**message)


def reply_message(kind: str, steps: list[Step], error: str) -> dict[str, object]:
    """Return a frame's message for what became of a task."""
    rows = [[step.rule, step.verdict, step.gold, step.answer] for step in steps]
    return {"kind": kind, "steps": rows, "error": error}


def reply_of(message: dict[str, Any]) -> Reply:
    """Return the reply of a frame."""
    steps = [Step(rule=rule, verdict=verdict, gold=a, answer=b) for rule, verdict, a, b in message["steps"]]
    return Reply(kind=VerdictKind(message["kind"]), steps=tuple(steps), error=message["error"])


def pack(message: dict[str, object]) -> bytes:
    """Return the bytes of a frame."""
    body = json.dumps(message).encode()
    return _HEADER.pack(len(body)) + body


def read(stream: BinaryIO) -> dict[str, Any] | None:
    """Return the next frame's message, or None where the stream ends."""
    header = _read_exactly(stream, _HEADER.size)
    body = None if header is None else _read_exactly(stream, _HEADER.unpack(header)[0])
    return None if body is None else json.loads(body)


def _read_exactly(stream: BinaryIO, size: int) -> bytes | None:
    data = b""
    while len(data) < size:
        piece = stream.read(size - len(data))
        if not piece:
            return None
        data += piece
    return data
