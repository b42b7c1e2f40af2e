"""Rows of a data file -> conversations: `messages`, `conversations`, or a prompt and a completion.

What cannot be a conversation is refused by an `Unfit`, whose `reason` is what such rows are counted by. Left out: calls
of tools as objects; what a tool said is a turn of the role tool.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from rlora.errors import DataError
from rlora.types import Message

_SPEAKERS = {"human": "user", "gpt": "assistant", "chatgpt": "assistant", "model": "assistant", "developer": "system"}
_FOLLOWS = {  # who may speak after whom; "" is nobody
    "": ("system", "user"),
    "system": ("user",),
    "user": ("assistant",),
    "assistant": ("user", "tool"),
    "tool": ("tool", "assistant"),
}
_PAIRS = (("prompt", "completion"), ("question", "answer"), ("instruction", "output"))


class Unfit(DataError):
    """A row is no conversation that can be used; `reason` says why, as of several: "without messages"."""

    def __init__(self, reason: str, message: str):
        """Count it as `reason`, and say `message`."""
        super().__init__(message)
        self.reason = reason


def conversation_of(row: Mapping[str, Any], *, where: str, instruction: str = "") -> tuple[Message, ...]:
    """Return the conversation in a row: its `messages` (`role`, `content`) or `conversations` (`from`, `value`), or a
    user's turn and the assistant's from `prompt` and `completion`, `question` and `answer`, or `instruction` and
    `output`, where a prompt or a completion may be messages too. An `instruction` follows a prompt that is a text, as
    it follows the question of a problem.

    Raises:
        Unfit: There is none, or a message is not made of text.

    Example:
        >>> row = {"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello."}]}
        >>> [message.role for message in conversation_of(row, where="row 1")]
        ['user', 'assistant']
    """
    for field in ("messages", "conversations"):
        if isinstance(row.get(field), list) and row[field]:
            return messages_in(row[field], where=where)
    for prompt, completion in _PAIRS:
        if row.get(prompt) is not None and row.get(completion) is not None:
            asked = row[prompt]
            if instruction and isinstance(asked, str):
                asked = f"{asked} {instruction}"
            return (
                *_turns(asked, "user", where=where),
                *_turns(row[completion], "assistant", where=where),
            )
    raise Unfit(
        "without messages",
        f"{where} has no messages, only {', '.join(row) or 'nothing'}; a conversation is a list of messages (role and "
        "content) in `messages`, or of turns (from and value) in `conversations`, or a `prompt` and a `completion`.",
    )


def _turns(value: Any, role: str, *, where: str) -> tuple[Message, ...]:
    if isinstance(value, list):
        return messages_in(value, where=where)
    return (Message(role=role, content=_content(value, where=where)),)


def messages_in(values: Sequence[Any], *, where: str) -> tuple[Message, ...]:
    """Return the messages of a list of objects; Unfit for one that is no message of text."""
    found = []
    for number, value in enumerate(values, start=1):
        at = f"{where} message {number},"
        if not isinstance(value, Mapping) or not ("role" in value or "from" in value):
            raise Unfit(
                "with something else than messages", f"{at} is no message: {json.dumps(value, default=repr)[:80]}"
            )
        if value.get("tool_calls") or value.get("function_call"):
            raise Unfit("that call tools", f"{at} calls a tool, which is not read; write the call as text.")
        role = str(value.get("role", value.get("from")))
        content = value.get("content", value.get("value"))
        found.append(Message(role=_SPEAKERS.get(role, role), content=_content(content, where=at)))
    return tuple(found)


def is_conversation(value: Any) -> bool:
    """Return whether a value of a data file is a list of several messages."""
    return (
        isinstance(value, list)
        and len(value) > 1
        and all(isinstance(each, Mapping) and ("role" in each or "from" in each) for each in value)
    )


def _content(value: Any, *, where: str) -> str:
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    if isinstance(value, list) and all(isinstance(part, Mapping) and part.get("type") == "text" for part in value):
        return "".join(str(part.get("text") or "") for part in value)
    raise Unfit(
        "with something else than text",
        f"{where} holds something else than text: {json.dumps(value, default=repr)[:80]}",
    )


def check_turns(messages: Sequence[Message], *, where: str) -> None:
    """Raise Unfit unless the turns follow one another as in a conversation: the system's first if at all, then the
    user's and the assistant's in turn, with what a tool said behind the assistant's.
    """
    if not messages:
        raise Unfit("without messages", f"{where} has no messages.")
    before = ""
    for number, message in enumerate(messages, start=1):
        if message.role not in _FOLLOWS[before]:
            raise Unfit(
                "with roles in odd order",
                f"{where} message {number}, is of the role {message.role!r}; "
                f"{f'after {before!r}' if before else 'first'} it must be {' or '.join(_FOLLOWS[before])}.",
            )
        before = message.role


def check_answers(messages: Sequence[Message], *, where: str) -> None:
    """Raise Unfit where there is nothing to learn: no assistant's turn, or an empty one."""
    answers = [message for message in messages if message.role == "assistant"]
    if not answers:
        raise Unfit("without an assistant's turn", f"{where} has no assistant's turn, so nothing to train on.")
    if any(not message.content.strip() for message in answers):
        raise Unfit("with an empty assistant's turn", f"{where} has an assistant's turn that is empty.")


def check_asks(messages: Sequence[Message], *, where: str) -> None:
    """Raise Unfit unless a conversation ends with a turn of the user's that says something."""
    check_turns(messages, where=where)
    last = messages[-1]
    if last.role != "user" or not last.content.strip():
        ends = f"{last.role!r}, whose turn is empty" if last.role == "user" else repr(last.role)
        raise Unfit(
            "that ask nothing",
            f"{where} has messages that end with {ends}; a problem ends with what the user asks. Cut off what follows, "
            "or train on the assistant's turns by rlora train sft.",
        )
