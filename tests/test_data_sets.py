"""Data sets by name, a person's own files, filters, held-out parts and overlap."""

import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import datasets
import pytest
import tyro

from rlora.config import cli, from_json, to_json
from rlora.errors import ConfigError, DataError
from rlora.tasks import TASKS, DataConfig, task
from rlora.tasks.overlap import drop_overlap, normalized, overlap_report
from rlora.tasks.select import as_number, hold_out, level_text
from rlora.types import Problem

pytestmark = pytest.mark.unit


def write(path: Path, rows: list[dict]) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def problem(question: str, name: str = "p") -> Problem:
    return Problem(id=name, question=question, answer="1", source="t")


def test_overlap_is_found_whatever_the_spacing_case_and_latex() -> None:
    test = [problem("Find $x+1$ if  $x = 1{,}000$.")]
    train = [problem("find \\(X + 1\\), if \\[x=1000\\]", "a"), problem("Find $x+1$ if $x = 1001$.", "b")]
    kept, dropped = drop_overlap(train, test)
    assert [one.id for one in kept] == ["b"]
    assert [one.id for one in dropped] == ["a"]
    assert overlap_report(dropped) == "1 training problems are also in the test and were dropped: a"
    assert overlap_report([]) == ""
    assert overlap_report([problem("", str(index)) for index in range(4)]).endswith("dropped: 0, 1, 2, ...")


def test_normalizing_keeps_numbers_apart() -> None:
    assert normalized("What is 2 + 23?") == "whatis2 23" != normalized("What is 22 + 3?")
    assert normalized("A $3$-kilometre WALK") == normalized("a 3 kilometre walk") == "a3kilometrewalk"
    assert normalized("12,345 or 12{,}345") == "12345or12345"
    assert normalized("(1,2)") == "1 2"


def test_held_out_part_depends_on_ids_alone() -> None:
    problems = [problem("", str(index)) for index in range(60)]
    train, test = hold_out(problems, name="t")
    assert (len(train), len(test)) == (54, 6)
    again = hold_out(problems[::-1], name="t")[1]
    assert {one.id for one in again} == {one.id for one in test}
    assert {one.id for one in train}.isdisjoint(one.id for one in test)
    assert len(hold_out([problem("", str(index)) for index in range(6000)], name="t")[1]) == 500


@pytest.mark.parametrize(("value", "number", "text"), [("Level 3", 3, "3"), (6.5, 6.5, "6.5"), (2, 2, "2")])
def test_levels(value, number, text) -> None:
    assert as_number(value) == number
    assert level_text(value) == text
    assert math.isnan(as_number("Level ?"))
    assert level_text("Level ?") == level_text(None) == ""


@pytest.fixture
def math_dir(tmp_path) -> str:
    rows = [
        {"id": "train/algebra/0", "problem": "One?", "level": "Level 1", "type": "Algebra", "solution": "\\boxed{1}"},
        {"id": "train/geometry/1", "problem": "Two?", "level": "Level ?", "type": "Geometry", "solution": "\\boxed{2}"},
        {"id": "train/algebra/2", "problem": "None?", "level": "Level 2", "type": "Algebra", "solution": "\\boxed{}"},
    ]
    more = [
        {
            "problem": "Three?",
            "level": "Level 5",
            "type": "Algebra",
            "solution": "a \\boxed{x} or \\boxed{\\frac{1}{3}}",
        },
        {"problem": "Four?", "level": "Level 4", "type": "Algebra", "solution": "", "answer": "4"},
    ]
    write(tmp_path / "math" / "train.jsonl", rows)
    write(tmp_path / "math" / "test.jsonl", more)
    five = {"problem": "Four?", "answer": "4", "level": 4, "unique_id": "test/algebra/4.json"}
    write(tmp_path / "math" / "math500.jsonl", [five])
    return str(tmp_path)


def test_math_takes_the_last_box_and_leaves_out_math_500_and_empty_boxes(math_dir) -> None:
    train, test = (task("math").load(split, math_dir) for split in ("train", "test"))
    assert [(one.id, one.answer, one.level) for one in train] == [
        ("math/train/algebra/0", "1", "1"),
        ("math/train/geometry/1", "2", ""),
        ("math/test/0", "\\frac{1}{3}", "5"),
    ]
    assert [(one.id, one.answer, one.level) for one in test] == [("math500/test/algebra/4", "4", "4")]


def test_filters_choose_what_is_trained_on_and_leave_the_test_whole(math_dir) -> None:
    def ids(**options) -> list[str]:
        return [one.id for one in task("math").read("train", DataConfig(name="math", data_dir=math_dir, **options))]

    assert ids(min_difficulty=2) == ["math/test/0"]
    assert ids(max_difficulty=4) == ["math/train/algebra/0"]
    assert ids(topic="geom") == ["math/train/geometry/1"]
    with pytest.raises(DataError, match=r"no row of math has a difficulty of at least 6; widen --min-difficulty"):
        ids(min_difficulty=6)
    assert len(task("math").read("test", DataConfig(data_dir=math_dir, min_difficulty=5))) == 1


@pytest.mark.parametrize("name", ["arithmetic", "digits", "gsm8k", "deepmath"])
def test_a_filter_on_a_field_that_is_not_there_is_refused(name, tmp_path) -> None:
    write(tmp_path / "gsm8k" / "train.jsonl", [{"question": "q", "answer": "#### 1"}])
    write(tmp_path / "deepmath" / "sample.jsonl", [{"question": "q", "final_answer": "1"}])
    data = DataConfig(name=name, data_dir=str(tmp_path), min_difficulty=3)
    with pytest.raises(DataError, match=f"{name} was asked for by difficulty, but its rows here have none"):
        task(name).read("train", data)
    with pytest.raises(DataError, match=f"{name} was asked for by topic, but its rows here have none"):
        task(name).read("train", DataConfig(name=name, data_dir=str(tmp_path), topic="algebra"))


def test_deepmath_filters_by_difficulty_and_topic_and_holds_out_the_same_part(tmp_path) -> None:
    rows = [
        {"question": f"q{i}", "final_answer": str(i), "difficulty": i / 4, "topic": "Algebra" if i % 2 else "Calculus"}
        for i in range(40)
    ]
    write(tmp_path / "deepmath" / "sample.jsonl", rows)
    data = DataConfig(name="deepmath", data_dir=str(tmp_path), min_difficulty=5, topic="ALGEBRA")
    train, test = (task("deepmath").read(split, data) for split in ("train", "test"))
    whole, test_of_whole = (task("deepmath").load(split, str(tmp_path)) for split in ("train", "test"))
    assert test == test_of_whole
    assert (len(whole), len(test)) == (36, 4)
    odd = {f"deepmath/{i}" for i in range(21, 40, 2)}
    assert {one.id for one in train} == odd - {one.id for one in test}
    assert {one.level for one in train} <= {f"{i / 4:g}" for i in range(20, 40)}


@pytest.mark.parametrize("name", ["math500", "aime2024", "aime2025", "aime2026"])
def test_benchmarks_have_no_training_split(name) -> None:
    with pytest.raises(DataError, match=f"{name} is for tests alone"):
        task(name).load("train")


@pytest.mark.parametrize("stated", ["1000", "-1", "3.5", "x"])
def test_an_aime_answer_is_an_integer_from_0_to_999(stated, tmp_path) -> None:
    write(tmp_path / "aime" / "aime2025.jsonl", [{"problem": "q", "answer": stated}])
    with pytest.raises(DataError, match=r"row 0 of aime2025 has the answer .* an integer from 0 to 999"):
        task("aime2025").load("test", str(tmp_path))


def test_aime_answers_lose_zeros_and_degrees_and_ids_fall_back_to_the_place(tmp_path) -> None:
    rows = [{"problem": "q", "answer": "025"}, {"problem": "r", "answer": "336^\\circ"}, {"problem": "s", "answer": 7}]
    write(tmp_path / "aime" / "aime2025.jsonl", rows)
    found = task("aime2025").load("test", str(tmp_path))
    assert [(one.id, one.answer) for one in found] == [
        ("aime2025/1", "25"),
        ("aime2025/2", "336"),
        ("aime2025/3", "7"),
    ]


def test_own_files_with_other_field_names(tmp_path) -> None:
    rows = [{"q": f"Question {i}", "a": i, "level": i % 3, "type": "odd" if i % 2 else "even"} for i in range(20)]
    path = write(tmp_path / "mine.jsonl", rows)
    data = DataConfig(train=path, question_field="q", answer_field="a")
    data.check()
    assert data.task_name == "jsonl"
    train, test = (task(data.task_name).read(split, data) for split in ("train", "test"))
    assert (len(train), len(test)) == (18, 2)
    assert {one.question for one in train + test} == {row["q"] for row in rows}
    first = next(one for one in train + test if one.id == "mine/4")
    assert (first.question, first.answer, first.level, first.source) == ("Question 3", "3", "0", "mine")
    hard = DataConfig(train=path, question_field="q", answer_field="a", min_difficulty=2, topic="odd")
    assert {one.id for one in task("jsonl").read("train", hard)} <= {f"mine/{i + 1}" for i in (5, 11, 17)}
    other = write(tmp_path / "test.jsonl", [{"q": "Other", "a": "x", "id": "7"}])
    both = DataConfig(train=path, test=other, question_field="q", answer_field="a")
    assert len(task("jsonl").read("train", both)) == 20
    assert [one.id for one in task("jsonl").read("test", both)] == ["test/7"]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"question": "q", "gold": "1"}], r"object 1, has no field 'answer', only question, gold; .* --answer-field"),
        ([{"question": " ", "answer": "1"}], "object 1, has an empty 'question'"),
        ([{"id": 1, "question": "q", "answer": "1"}] * 2, "object 2, has the id mine/1, which was there before"),
        ([], "holds no problem"),
        ([[1]], "line 1, is not a JSON object"),
    ],
)
def test_damaged_own_files_are_refused_with_the_place(rows, message, tmp_path) -> None:
    path = write(tmp_path / "mine.jsonl", rows)
    with pytest.raises(DataError, match=message):
        task("jsonl").read("train", DataConfig(train=path))


def test_a_binary_file_and_a_missing_own_file_are_refused(tmp_path) -> None:
    (tmp_path / "x.jsonl").write_bytes(b"\xff\xfe")
    with pytest.raises(DataError, match="cannot be read as UTF-8 text"):
        task("jsonl").read("train", DataConfig(train=str(tmp_path / "x.jsonl")))
    with pytest.raises(DataError, match=r"no file of your own was named; use --train FILE.jsonl"):
        task("jsonl").read("train", DataConfig())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"test": "x.jsonl"}, "test is given without train"),
        ({"name": "jsonl"}, "name them with --train FILE.jsonl"),
        ({"train": "/nowhere.jsonl"}, "train is '/nowhere.jsonl', which is not a file"),
        ({"question_field": ""}, "must not be empty"),
        ({"min_difficulty": 5, "max_difficulty": 4}, "min_difficulty is 5, above max_difficulty, which is 4"),
    ],
)
def test_wrong_data_options_are_refused(options, message) -> None:
    with pytest.raises(ConfigError, match=message):
        DataConfig(**options).check()


def test_data_options_can_stand_on_the_command_line_without_a_prefix() -> None:
    @dataclass(frozen=True, slots=True, kw_only=True)
    class Run:
        data: Annotated[DataConfig, tyro.conf.arg(name="")] = field(default_factory=DataConfig)

    presets = {"x": Run(data=DataConfig(name="math"))}
    arguments = ["--train", "my.jsonl", "--question-field", "q", "--answer-field", "a", "--min-difficulty", "3"]
    parsed = cli(presets, description="", arguments=["--data", "deepmath", *arguments])
    assert parsed.data == DataConfig(
        name="deepmath", train="my.jsonl", question_field="q", answer_field="a", min_difficulty=3.0
    )
    assert from_json(DataConfig, json.loads(json.dumps(to_json(parsed.data)))) == parsed.data


def test_hub_rows_are_joined_over_subsets_with_the_wanted_columns_alone(tmp_path, monkeypatch) -> None:
    asked = []

    def load_dataset(name: str, subset: str | None, *, split: str) -> datasets.Dataset:
        asked.append((name, subset, split))
        return datasets.Dataset.from_list(
            [{"question": f"{subset}", "final_answer": "1", "difficulty": 5.0, "topic": "t", "r1_solution_1": "long"}]
        )

    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("RLORA_DATA", raising=False)
    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    from rlora.tasks.source import read_rows

    rows = read_rows("x.jsonl", hub="a/b", subset=("s", "t"), split="train", columns=("question", "difficulty"))
    assert rows == [{"question": "s", "difficulty": 5.0}, {"question": "t", "difficulty": 5.0}]
    assert asked == [("a/b", "s", "train"), ("a/b", "t", "train")]
    assert task("deepmath").load("train")[0].level == "5"
    assert asked[-1] == ("zwhe99/DeepMath-103K", None, "train")


@pytest.mark.data
@pytest.mark.parametrize(
    ("name", "split", "count"),
    [
        ("math", "train", 12_000),
        ("math", "test", 500),
        ("math500", "test", 500),
        ("deepmath", "train", 99),
        ("deepmath", "test", 11),
        ("aime2024", "test", 30),
        ("aime2025", "test", 30),
        ("aime2026", "test", 30),
    ],
)
def test_real_data_is_complete_with_unique_ids(data_dir, name, split, count) -> None:
    problems = task(name).load(split, str(data_dir))
    assert len(problems) == len({one.id for one in problems}) == count
    assert all(one.question and one.answer for one in problems)


@pytest.mark.data
def test_real_training_and_test_sets_hardly_overlap(data_dir) -> None:
    dropped = {}
    for name in ("gsm8k", "math", "deepmath"):
        train, test = (TASKS[name].load(split, str(data_dir)) for split in ("train", "test"))
        dropped[name] = [one.id for one in drop_overlap(train, test)[1]]
    assert dropped == {"gsm8k": [], "math": ["math/train/precalculus/474"], "deepmath": []}
    train = TASKS["math"].load("train", str(data_dir))
    for name in ("aime2024", "aime2025", "aime2026"):
        assert drop_overlap(train, TASKS[name].load("test", str(data_dir)))[1] == []


def test_hub_names_splits_and_fields(tmp_path, monkeypatch) -> None:
    """The public copies have other fields than the local ones: MATH has no ids or answers, AIME 2026 whole numbers."""
    asked = []

    def load_dataset(name: str, subset: str | None, *, split: str) -> datasets.Dataset:
        asked.append((name, subset, split))
        rows = {
            "EleutherAI/hendrycks_math": {
                "problem": f"{subset} {split}",
                "level": "Level 2",
                "type": "Algebra",
                "solution": "so \\boxed{5}",
            },
            "HuggingFaceH4/MATH-500": {
                "problem": "algebra test",
                "solution": "",
                "answer": "5",
                "subject": "Algebra",
                "level": 2,
                "unique_id": "test/algebra/1.json",
            },
            "HuggingFaceH4/aime_2024": {
                "id": 60,
                "problem": "q",
                "solution": "",
                "answer": "025",
                "url": "",
                "year": "",
            },
            "math-ai/aime25": {"problem": "q", "answer": "70", "id": "0"},
            "MathArena/aime_2026": {"problem_idx": 1, "answer": 277, "problem": "q"},
        }
        return datasets.Dataset.from_list([rows[name]])

    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("RLORA_DATA", raising=False)
    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    train = task("math").load("train")
    assert len(train) == 13  # seven subjects in two splits, without the one that is in MATH-500
    assert {one.answer for one in train} == {"5"}
    assert len({one.id for one in train}) == 13
    assert [one.id for one in task("math").load("test")] == ["math500/test/algebra/1"]
    aime = [task(f"aime{year}").load("test")[0] for year in (2024, 2025, 2026)]
    assert [(one.id, one.answer) for one in aime] == [
        ("aime2024/1", "25"),
        ("aime2025/1", "70"),
        ("aime2026/1", "277"),
    ]
    assert {(name, split) for name, _, split in asked} == {
        ("EleutherAI/hendrycks_math", "train"),
        ("EleutherAI/hendrycks_math", "test"),
        ("HuggingFaceH4/MATH-500", "test"),
        ("HuggingFaceH4/aime_2024", "train"),
        ("math-ai/aime25", "test"),
        ("MathArena/aime_2026", "train"),
    }
