"""The text in a row's field: what is text, or a number, is taken; all else is refused by its type."""

import json
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from rlora.errors import DataError
from rlora.tasks.conversations import check_asks
from rlora.types import Problem

_TEXTS = ("id", "question", "answer", "source", "level")
_HALF_PAIR = re.compile("[\ud800-\udfff]")  # a surrogate that no text in UTF-8 can hold


def text_of(row: Mapping[str, Any], name: str, *, where: str, hint: str = "it must have one") -> str:
    """Return the text of a field, without spaces around it. A number has the spelling that it has in a JSON file.

    One text in a list is that text, and so is the one message of a conversation, or its one part.

    Raises:
        DataError: There is no such field (null is none), or it holds something else than a text.

    Example:
        >>> text_of({"question": [{"role": "user", "content": "What is 2 + 3?"}]}, "question", where="row 1")
        'What is 2 + 3?'
    """
    value = row.get(name)
    if value is None or (isinstance(value, float) and math.isnan(value)):
        raise DataError(f"{where} has no field {name!r}, only {', '.join(row)}; {hint}.")
    text = _text(value)
    if text is None:
        raise DataError(
            f"{where} has {_kind(value)} in {name!r}, which must be a text: {json.dumps(value, default=repr)[:80]}"
        )
    return text.strip()


def id_of(row: Mapping[str, Any], *, where: str) -> str | None:
    """Return a row's `id`, None where it has none; DataError where it is neither a text nor a number."""
    stated = row.get("id")
    return None if stated is None else text_of(row, "id", where=where)


def whole(value: Any) -> Any:
    """Return a value of JSON with each half of a surrogate pair, in any text in it, replaced by U+FFFD."""
    text = json.dumps(value, ensure_ascii=False)
    return json.loads(_HALF_PAIR.sub("\ufffd", text)) if _HALF_PAIR.search(text) else value


def check_problems(problems: Sequence[Problem]) -> None:
    """Raise DataError for the first problem whose fields are not texts that UTF-8 can hold, or whose messages do not
    end with its question.
    """
    for problem in problems:
        said = [(f"message {number}", each.content) for number, each in enumerate(problem.messages, start=1)]
        for name, text in [*((name, getattr(problem, name)) for name in _TEXTS), *said]:
            if not isinstance(text, str):
                raise DataError(f"the problem {problem.id!r} has {_kind(text)} as its {name}, which must be a text.")
            if _HALF_PAIR.search(text):
                raise DataError(
                    f"the problem {problem.id!a} has half of a surrogate pair in its {name}, which is no text: "
                    "replace it, as by U+FFFD."
                )
        if problem.messages:
            check_asks(problem.messages, where=f"the problem {problem.id!r}")
            if problem.messages[-1].content != problem.question:
                raise DataError(
                    f"the problem {problem.id!r} asks {problem.question[:40]!r}, and its last message is "
                    f"{problem.messages[-1].content[:40]!r}; they must be the same text."
                )


def _text(value: Any) -> str | None:
    if isinstance(value, str):
        return value
    if isinstance(value, int | float) and not isinstance(value, bool):
        return str(value)
    if isinstance(value, list) and len(value) == 1:
        return _text(value[0])
    if isinstance(value, dict):
        if value.get("role") in ("user", "assistant"):
            return _text(value.get("content"))
        if value.get("type") == "text":
            return _text(value.get("text"))
    return None


def _kind(value: Any) -> str:
    if isinstance(value, list) and value and all(isinstance(one, dict) and "role" in one for one in value):
        roles = ", ".join(str(one["role"]) for one in value)
        return f"messages of {roles} (a text is read, or one turn of the user's or the assistant's)"
    if isinstance(value, list):
        return f"a list of {len(value)}"
    names = {dict: "an object", bool: "a truth value", type(None): "nothing"}
    return names.get(type(value), f"a {type(value).__name__}")
