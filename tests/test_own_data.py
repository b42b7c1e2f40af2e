"""A person's own problems: the same rows from JSON Lines, JSON, CSV, Parquet and a data set of the library's."""

import dataclasses
import json
from pathlib import Path

import pytest
from support.runs import toy

from rlora.commands.cli import main
from rlora.errors import ConfigError, DataError
from rlora.loop import run
from rlora.rewards import open_judge
from rlora.tasks import DataConfig, task
from rlora.tasks.data import OWN
from rlora.tasks.files import HubName, is_own, own_title
from rlora.tasks.prompts import PromptConfig
from rlora.types import Completion, Problem, Sample, StopReason
from rlora.verify import Verifier

pytestmark = pytest.mark.unit
SHORT = {"prompt": PromptConfig(instruction="")}  # for the toy, whose tokens are characters
ROWS = [
    {"question": 'Say "a, b"\nand 2.50.', "answer": "2.50", "difficulty": "3"},
    {"question": "What is 1 + 1?\u2028", "answer": "2", "difficulty": "1"},
]


def write(folder: Path, suffix: str, rows=ROWS) -> Path:
    """Write the rows as a spreadsheet, a script or the library itself would."""
    path = folder / f"mine{suffix}"
    if suffix == ".jsonl":
        path.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    elif suffix == ".json":
        path.write_text(json.dumps(rows, indent=2), encoding="utf-8")
    elif suffix in (".csv", ".tsv"):
        import csv

        with path.open("w", newline="", encoding="utf-8-sig") as file:
            writer = csv.DictWriter(file, list(rows[0]), delimiter="\t" if suffix == ".tsv" else ",")
            writer.writeheader()
            writer.writerows(rows)
    else:
        from datasets import Dataset

        Dataset.from_list(rows).to_parquet(path)
    return path


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".csv", ".tsv", ".parquet"])
def test_every_format_gives_the_same_problems(suffix, tmp_path) -> None:
    path = write(tmp_path, suffix)
    data = DataConfig(train=str(path), test=str(path))
    data.check()
    problems = task(OWN).read("test", data)
    assert [problem.id for problem in problems] == ["mine/1", "mine/2"]
    assert [problem.question for problem in problems] == [row["question"].strip() for row in ROWS]
    assert [problem.answer for problem in problems] == ["2.50", "2"]
    easy = task(OWN).read("train", dataclasses.replace(data, max_difficulty=2))
    assert [problem.id for problem in easy] == ["mine/2"]


def test_numbers_of_a_json_array_keep_their_spelling(tmp_path) -> None:
    path = tmp_path / "mine.json"
    path.write_text('[{"q": "a?", "a": 2.50}, {"q": "b?", "a": 12345678901234567890123}]')
    data = DataConfig(train=str(path), test=str(path), question_field="q", answer_field="a")
    assert [problem.answer for problem in task(OWN).read("test", data)] == ["2.50", "12345678901234567890123"]


@pytest.mark.parametrize(
    ("suffix", "text", "message"),
    [
        (".json", "[1]", r"mine\.json, element 1, is not a JSON object"),
        (".json", '{"a": 1,\n"b": 2}', "holds one JSON object; it must be an array"),
        (".json", "[{]", r"mine\.json is not JSON"),
        (".csv", "question,answer\n1,2,3\n", "line 2, has 3 cells, and the header has 2"),
        (".csv", "question,question\n1,2\n", "two columns that are called 'question'"),
        (".csv", "frage,answer\n1,2\n", "has no field 'question', only frage, answer"),
        (".csv", "question,answer\n1,\n", "has no field 'answer'"),
        (".csv", 'question,answer\n"1,2\n', r"line \d, is not CSV"),
        (".csv", "", "holds no problem"),
        (".parquet", "PAR1", "cannot be read as Parquet"),
        (".jsonl", '{"question": 1}\nno\n', "line 2, is not JSON"),
    ],
)
def test_a_file_that_cannot_be_read_is_refused_with_the_place(suffix, text, message, tmp_path) -> None:
    path = tmp_path / f"mine{suffix}"
    path.write_text(text)
    with pytest.raises(DataError, match=message):
        task(OWN).read("train", DataConfig(train=str(path), test=str(path)))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("hub:gsm8k", ("gsm8k", None, None)),
        ("hub:org/name[test]", ("org/name", None, "test")),
        ("hub:org/name:main[train[:10%]]", ("org/name", "main", "train[:10%]")),
        ("hub:./folder[train]", ("./folder", None, "train")),
    ],
)
def test_a_hubs_name_has_a_subset_and_a_split(text, expected) -> None:
    assert dataclasses.astuple(HubName.parsed(text)) == expected
    assert is_own(text)
    assert own_title(text) == expected[0].rpartition("/")[2]


@pytest.mark.parametrize("text", ["hub:", "hub:[train]", "hub:a[", "hub:a[]", "hub:a:b:c", "hub:a]b["])
def test_a_hubs_name_of_another_form_is_refused(text) -> None:
    with pytest.raises(ConfigError, match=r"is not of the form hub:NAME\[SPLIT\]"):
        DataConfig(train=text).check()


def test_a_local_folder_is_read_as_the_library_reads_it(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "sums"
    folder.mkdir()
    write(folder, ".parquet").rename(folder / "train-00000-of-00001.parquet")
    write(folder, ".parquet", ROWS[:1]).rename(folder / "test-00000-of-00001.parquet")
    data = DataConfig(train=f"hub:{folder}[train]", test=f"hub:{folder}")
    assert [problem.id for problem in task(OWN).read("train", data)] == ["sums/1", "sums/2"]
    assert [problem.id for problem in task(OWN).read("test", data)] == ["sums/1"]
    with pytest.raises(DataError, match=r"the split 'dev' of the data set .* could not be had"):
        task(OWN).read("train", dataclasses.replace(data, train=f"hub:{folder}[dev]"))


def test_how_answers_count_is_said_by_the_reward() -> None:
    def rewards(name: str, *texts: str, gold: str = "12") -> list[float]:
        with Verifier() as verifier:
            problem = Problem(id="1", question="What?", answer=gold, source="mine")
            judge = open_judge(name, verifier)
            return [
                verdict.reward
                for verdict in judge.judge(
                    [
                        Sample(
                            problem=problem,
                            completion=Completion(
                                token_ids=(1,), logprobs=(0.0,), text=text, stop=StopReason.END, policy=0, version=0
                            ),
                        )
                        for text in texts
                    ]
                )
            ]

    texts = (r"\boxed{12}", "We add them up to get 12 apples in all, I think.")
    assert rewards("mathematics", *texts) == [1, 0]
    assert rewards("last_number", *texts) == [1, 1]
    assert rewards("number", *texts) == [1, 1]


def test_a_filter_that_lets_nothing_through_names_what_was_given(tmp_path) -> None:
    data = DataConfig(train=str(write(tmp_path, ".csv")), max_difficulty=0.5)
    with pytest.raises(DataError, match=r"has a difficulty of at most 0\.5; widen --max-difficulty\."):
        task(OWN).read("train", data)


@pytest.mark.loop
def test_a_csv_trains_and_is_checked(tmp_path, capsys) -> None:
    path = write(tmp_path, ".csv", [{"question": f"{n}?", "answer": str(n), "difficulty": "1"} for n in range(20)])
    run_dir = run(toy(tmp_path / "run", num_steps=1, data=DataConfig(train=str(path)), reward="last_number", **SHORT))
    assert json.loads((run_dir / "summary.json").read_text())["data"] == "mine.csv"
    capsys.readouterr()
    main(["check", str(path), "--preset", "toy"])
    assert capsys.readouterr().out.count("=== mine/") == 3


@pytest.mark.loop
def test_prompts_that_are_too_long_are_said_before_anything_loads(tmp_path, capsys) -> None:
    long = "a" * 60
    rows = [{"question": f"{long if n % 5 == 0 else ''}{n}?", "answer": str(n)} for n in range(20)]
    path = write(tmp_path, ".csv", [{**row, "difficulty": "1"} for row in rows])
    config = toy(tmp_path / "run", num_steps=1, data=DataConfig(train=str(path), test=str(path)), **SHORT)
    config = dataclasses.replace(config, problems_per_step=16)
    with pytest.raises(DataError, match="has 0 training and 20 test problems"):
        run(config)  # each is in the test
    test = write(tmp_path, ".jsonl", [*rows[:1], {"question": "8?", "answer": "8"}])
    half = dataclasses.replace(config, data=DataConfig(train=str(path), test=str(test)))
    run_dir = run(half)
    said = capsys.readouterr().err
    assert "Prompts of more than 64 tokens: 3 of 18 in training, which are left out, and 1 of 2 in the test, " in said
    assert json.loads((run_dir / "summary.json").read_text())["num_prompts_too_long"] == 1
    path = write(tmp_path, ".json", [{"question": f"{long}{n}", "answer": "1"} for n in range(20)])
    with pytest.raises(DataError, match="all 18 training prompts are longer than 64 tokens; raise --sampler"):
        run(dataclasses.replace(config, run_dir=str(tmp_path / "new"), data=DataConfig(train=str(path))))
    assert not (tmp_path / "new").exists()
