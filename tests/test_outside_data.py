"""Files of problems from outside: what is text is taken as it is spelled, all else is refused with its place."""

import dataclasses
import json
from pathlib import Path

import pytest
from support.outside import config_of, jsonl, rollouts, sums
from support.runs import assert_same_run

from rlora.assemble import split_problems
from rlora.errors import CheckpointError, DataError, RunDirError
from rlora.loop import run
from rlora.recipes.gsm8k import PRESETS
from rlora.run_config import RunConfig
from rlora.tasks import DataConfig
from rlora.tasks.sets.own import read_own
from rlora.types import Problem

pytestmark = pytest.mark.unit


def read(path: Path, text: str | bytes) -> list[Problem]:
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return read_own(str(path), DataConfig(), split="train")[0]


def row(**fields: object) -> str:
    return json.dumps({"question": "What is 2 + 3?", "answer": "5"} | fields) + "\n"


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ('"5"', "5"),
        ("5", "5"),
        ("2.50", "2.50"),
        ("1e3", "1e3"),
        ("-0", "-0"),
        ("9007199254740993.10", "9007199254740993.10"),
        ("9" * 5000, "9" * 5000),
        ('["5"]', "5"),
        ("[2.50]", "2.50"),
        ('[{"role": "assistant", "content": "5"}]', "5"),
        ('{"type": "text", "text": " 5 "}', "5"),
    ],
)
def test_an_answer_keeps_its_spelling(tmp_path, written, expected) -> None:
    (problem,) = read(tmp_path / "t.jsonl", f'{{"question": "q", "answer": {written}}}\n')
    assert problem.answer == expected


@pytest.mark.parametrize(
    "question",
    [
        [{"role": "user", "content": "What is 2 + 3?"}],
        {"role": "user", "content": "What is 2 + 3?"},
        [{"role": "user", "content": [{"type": "text", "text": "What is 2 + 3?"}]}],
        ["What is 2 + 3?"],
    ],
)
def test_a_single_turn_is_the_question(tmp_path, question) -> None:
    (problem,) = read(tmp_path / "t.jsonl", row(question=question))
    assert problem.question == "What is 2 + 3?"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"answer": ["5", "five"]},
            r"object 1, has a list of 2 in 'answer', which must be a text: \[",
        ),
        ({"answer": []}, "has a list of 0 in 'answer'"),
        ({"answer": {"value": 5}}, "has an object in 'answer'"),
        ({"answer": True}, "has a truth value in 'answer'"),
        ({"answer": None}, "has no field 'answer'"),
        ({"answer": float("nan")}, "has no field 'answer'"),
        ({"answer": [[]]}, "has a list of 1 in 'answer'"),
        (
            {"question": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]},
            "has messages that end with 'assistant'; a problem ends with what the user asks",
        ),
        ({"question": [{"role": "tool", "content": "s"}]}, "messages of tool"),
        ({"question": [{"role": "user", "content": None}]}, "messages of user"),
        ({"id": ["a"] * 2}, "has a list of 2 in 'id'"),
    ],
)
def test_what_is_no_text_is_refused_by_its_type(tmp_path, fields, message) -> None:
    with pytest.raises(DataError, match=message):
        read(tmp_path / "t.jsonl", row(**fields))


def test_an_id_of_null_is_as_if_it_were_not_there(tmp_path) -> None:
    found = read(tmp_path / "t.jsonl", row(id=None) + row() + row(id="x") + row(id=7))
    assert [problem.id for problem in found] == ["t/1", "t/2", "t/x", "t/7"]
    with pytest.raises(DataError, match="object 2, has the id t/2, which was there before"):
        read(tmp_path / "t.jsonl", row(id=2) + row())


@pytest.mark.parametrize("mark", [b"\xef\xbb\xbf", b""])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_a_byte_order_mark_and_carriage_returns_are_read_over(tmp_path, mark, end) -> None:
    found = read(tmp_path / "t.jsonl", mark + (row() * 2).replace("\n", end).encode())
    assert [(problem.question, problem.answer) for problem in found] == [("What is 2 + 3?", "5")] * 2


@pytest.mark.parametrize(
    "data", [row().encode("utf-16"), b"\x1f\x8b\x08\x00", b'[\n {"question": 1}\n]', b"[" * 100_000]
)
def test_files_of_another_kind_are_refused_with_the_cause(tmp_path, data) -> None:
    with pytest.raises(DataError, match=r"cannot be read as UTF-8 text|line 1, is not JSON|not a JSON object"):
        read(tmp_path / "t.jsonl", data)


@pytest.mark.loop
def test_half_of_an_emoji_becomes_a_replacement_that_is_counted(tmp_path, capfd) -> None:
    path = sums(tmp_path / "t.jsonl")
    half = '{"question": "What is 2 + 3 \\ud83d?", "answer": "5 \\uDE00"}\n'
    path.write_text(path.read_text() + half + '{"question": "What is \\ud83d\\ude00?", "answer": "6"}\n')
    run_dir = run(config_of(tmp_path / "run", train=path))
    assert "t.jsonl: 1 rows hold half of a surrogate pair" in capfd.readouterr().err
    mended = [one for one in rollouts(run_dir) if one["problem"] == "t/25"]
    assert {(one["question"], one["gold"]) for one in mended} <= {("What is 2 + 3 \ufffd?", "5 \ufffd")}
    found = {problem.question for problem in read_own(str(path), DataConfig(), split="train")[0]}
    assert {"What is 2 + 3 \ufffd?", "What is \U0001f600?"} <= found


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"answer": 5}, "the problem 'x' has a int as its answer, which must be a text"),
        ({"question": ["q"]}, "the problem 'x' has a list of 1 as its question"),
        ({"question": "\ud83d"}, "half of a surrogate pair in its question"),
    ],
)
def test_a_script_s_problems_are_checked_as_those_of_a_file_are(change, message) -> None:
    problem = Problem(**({"id": "x", "question": "q", "answer": "5", "source": "s"} | change))
    other = Problem(id="y", question="other", answer="5", source="s")
    with pytest.raises(DataError, match=message):
        split_problems(PRESETS["toy"], [problem], [other])


def test_own_data_may_be_renamed_and_the_run_goes_on_as_it_would_have(tmp_path) -> None:
    rows = [{"question": f"What is {n} + 3?", "answer": str(n + 3)} for n in range(20)]
    names = {"train": tmp_path / "t.jsonl", "test": tmp_path / "u.jsonl"}
    for name, part in (("train", rows[:14]), ("test", rows[14:])):
        jsonl(names[name], part)

    def config(run_dir: str, num_steps: int, **files) -> RunConfig:
        made = config_of(tmp_path / run_dir, model=Path("toy"), train=names["train"], num_steps=num_steps)
        made = dataclasses.replace(made, problems_per_step=3, samples_per_problem=8)
        data = dataclasses.replace(made.data, **{name: str(file) for name, file in (names | files).items()})
        return dataclasses.replace(made, data=data)

    straight = run(config("straight", 3))
    run(config("run", 1))
    (tmp_path / "elsewhere").mkdir()
    moved = {"train": names["train"].rename(tmp_path / "elsewhere" / "a.jsonl")}
    run(config("run", 2, **moved))
    moved["test"] = names["test"].rename(tmp_path / "elsewhere" / "b.jsonl")
    run_dir = run(config("run", 3, **moved))
    assert_same_run(run_dir, straight)
    stored = json.loads((run_dir / "config.json").read_text())["data"]
    assert (stored["train_title"], stored["test_title"]) == ("t", "u")
    jsonl(moved["train"], rows[:13])
    with pytest.raises((RunDirError, CheckpointError), match=r"data.train|training set"):
        run(config("run", 4, **moved))
