"""A person's own problems: a file, or a data set of the hub, with a question and an answer in each row.

A question is a text, or the messages of a conversation that ends with what the user asks.
"""

from dataclasses import replace
from itertools import compress

from rlora.errors import DataError
from rlora.tasks.conversations import check_asks, is_conversation, messages_in
from rlora.tasks.data import OWN, DataConfig
from rlora.tasks.fields import id_of, text_of
from rlora.tasks.files import own_title, read_own_rows
from rlora.tasks.select import Row, hold_out, level_text, selected
from rlora.types import Message, Problem

INSTRUCTION = "Solve it step by step. End with the answer as \\boxed{answer}."
_QUESTION_FIELDS = ("question", "messages", "prompt")  # looked for in this order, unless a field is named
_DIFFICULTY_FIELDS, _TOPIC_FIELDS = ("difficulty", "level"), ("topic", "type", "subject")


def load(split: str, data: DataConfig) -> list[Problem]:
    """Return the problems of `data.train` or `data.test`; without a test file a part of `train` is held out.

    A row may have an `id`, a difficulty (`difficulty` or `level`) and a topic (`topic`, `type` or `subject`). Raises
    DataError for a row without question or answer, and for an id that is there twice.
    """
    if data.train is None:
        raise DataError("no file of your own was named; use --train FILE.jsonl.")
    if split == "test" and data.test is not None:
        return read_own(data.test, data, split="test", title=data.test_title)[0]
    problems, rows = read_own(data.train, data, split="train", title=data.train_title)
    train, test = (problems, []) if data.test is not None else hold_out(problems, name=OWN)
    if split == "test":
        return test
    is_chosen = selected(
        rows,
        data,
        name=data.train,
        difficulty=_first_field(rows, _DIFFICULTY_FIELDS),
        topic=_first_field(rows, _TOPIC_FIELDS),
    )
    chosen = {problem.id for problem in compress(problems, is_chosen)}
    return [problem for problem in train if problem.id in chosen]


def read_own(name: str, data: DataConfig, *, split: str, title: str | None = None) -> tuple[list[Problem], list[Row]]:
    """Return the problems of a file or of a hub's data set with its rows, in order.

    `split` is what is taken of a hub's set whose name has none, `title` how the data is called if not by its name.
    """
    rows, title = read_own_rows(name, split=split), title or own_title(name)
    difficulty = _first_field(rows, _DIFFICULTY_FIELDS)
    is_named = data.question_field != _QUESTION_FIELDS[0]
    asked = data.question_field if is_named else _first_field(rows, _QUESTION_FIELDS) or data.question_field
    problems: dict[str, Problem] = {}
    for index, row in enumerate(rows):
        where = f"{name}, object {index + 1},"
        messages = _messages(row, asked, where=where)
        problem = Problem(
            id=f"{title}/{id_of(row, where=where) or index + 1}",
            question=messages[-1].content if messages else _text(row, asked, where=where, option="--question-field"),
            messages=messages,
            answer=_text(row, data.answer_field, where=where, option="--answer-field"),
            source=title,
            level=level_text(row.get(difficulty)),
        )
        if problem.id in problems:
            raise DataError(f"{where} has the id {problem.id}, which was there before; ids must be unique.")
        problems[problem.id] = problem
    if not problems:
        raise DataError(f"{name} holds no problem.")
    return list(problems.values()), rows


def _messages(row: Row, field: str, *, where: str) -> tuple[Message, ...]:
    """Return the turns of a question that is a conversation, () of one that is a text or a single turn."""
    if not is_conversation(row.get(field)):
        return ()
    messages = messages_in(row[field], where=where)
    check_asks(messages, where=where)
    last = messages[-1]
    return (*messages[:-1], replace(last, content=last.content.strip()))


def _text(row: Row, field: str, *, where: str, option: str) -> str:
    text = text_of(row, field, where=where, hint=f"name the right one with {option}")
    if not text:
        raise DataError(f"{where} has an empty {field!r}.")
    return text


def _first_field(rows: list[Row], names: tuple[str, ...]) -> str:
    """Return the first of the names that any row has, "" for none."""
    return next((name for name in names if any(name in row for row in rows)), "")
