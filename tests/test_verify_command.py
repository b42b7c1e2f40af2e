"""`rlora verify`: a file in, verdicts out in order; one verdict explained; errors that name the line."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from rlora.commands import cli, verify
from rlora.errors import ConfigError, DataError

pytestmark = pytest.mark.unit

ROOT = Path(__file__).resolve().parents[1]
ROWS = [
    {"gold": "1/2", "pred": r"so \boxed{0.5}", "id": 3},
    {"gold": 7, "pred": r"\boxed{8}"},
    {"gold": r"\sqrt2\sqrt3", "pred": r"$\sqrt{6}$"},
    {"gold": "7", "pred": "so x = 7, and th", "truncated": True},
    {"gold": "139", "pred": "98 + 41", "question": "What is 98 + 41?"},
    {"gold": "0.500", "pred": r"\frac12"},
    {"gold": "7", "pred": "That makes 7 in all.", "last_number": False},
    {"gold": "6", "pred": "3!", "number": True},
]
KINDS = ["correct", "wrong", "correct", "truncated", "not_worked_out", "correct", "no_answer", "not_worked_out"]


def _file(folder: Path, lines: list[str]) -> str:
    path = folder / "rows.jsonl"
    path.write_text("\n".join(lines), encoding="utf-8")
    return str(path)


def test_a_file_gives_one_line_a_row_in_order_and_a_summary(tmp_path, capsys) -> None:
    verify.main([_file(tmp_path, [*map(json.dumps, ROWS[:4]), "", *map(json.dumps, ROWS[4:])])])
    out, err = capsys.readouterr()
    rows = [json.loads(line) for line in out.splitlines()]
    assert [row["kind"] for row in rows] == KINDS
    assert [row["correct"] for row in rows] == [kind == "correct" for kind in KINDS]
    assert [row["extracted"] for row in rows[:3]] == ["0.5", "8", r"\sqrt{6}"]
    assert all(set(row) == {"kind", "correct", "extracted", "seconds"} and row["seconds"] > 0 for row in rows)
    assert err.startswith("8 rows in ")
    assert err.rstrip().endswith("verdicts/s): correct 3, not_worked_out 2, wrong 1, truncated 1, no_answer 1")


def test_verdicts_go_to_a_file_whole_or_not_at_all(tmp_path, capsys) -> None:
    output = tmp_path / "out" / "verdicts.jsonl"
    verify.main([_file(tmp_path, [json.dumps(ROWS[0])]), "--output", str(output)])
    assert json.loads(output.read_text())["kind"] == "correct"
    with pytest.raises(DataError):
        verify.main([_file(tmp_path, ["{}"]), "--output", str(output)])
    assert json.loads(output.read_text())["kind"] == "correct"
    assert capsys.readouterr().out == ""


def test_options_hold_for_rows_that_say_nothing(tmp_path, capsys) -> None:
    rows = [json.dumps({"gold": "7", "pred": "That makes 7 in all."}), json.dumps({"gold": "6", "pred": "3!"})]
    verify.main([_file(tmp_path, rows), "--no-last-number", "--number", "--workers", "1", "--deadline", "0.5"])
    kinds = [json.loads(line)["kind"] for line in capsys.readouterr().out.splitlines()]
    assert kinds == ["no_answer", "not_worked_out"]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 2: not JSON"), ("[1]", "line 2: a list, must be an object"),
        ('{"gold": "1"}', "no field `pred`; it has gold"),
        ("{}", "no field `pred`; it has none"),
        ('{"gold": null, "pred": "1"}', "`gold` is null, must be text or a number"),
        ('{"gold": "1", "pred": [1]}', r"`pred` is \[\"1\"\], must be text"),
        ('{"gold": "1", "pred": "1", "truncated": "no"}', '`truncated` is "no", must be true or false'),
        ("[" * 100_000, "line 2: not JSON"),
    ],
)  # fmt: skip
def test_a_bad_row_is_named_before_any_is_judged(tmp_path, capsys, line: str, message: str) -> None:
    with pytest.raises(DataError, match=message) as error:
        verify.main([_file(tmp_path, [json.dumps(ROWS[0]), line])])
    assert "rows.jsonl, line 2: " in str(error.value)
    assert capsys.readouterr().out == ""


def test_a_missing_file_and_bytes_that_are_no_text_are_named(tmp_path) -> None:
    with pytest.raises(DataError, match=r"nowhere\.jsonl cannot be read"):
        verify.main([str(tmp_path / "nowhere.jsonl")])
    (tmp_path / "bytes.jsonl").write_bytes(b"\xff\xfe")
    with pytest.raises(DataError, match="give a UTF-8 file"):
        verify.main([str(tmp_path / "bytes.jsonl")])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "give either FILE.jsonl, or --gold and --answer"),
        (["--gold", "1"], "go together"),
        (["--answer", "1"], "go together"),
        (["f.jsonl", "--gold", "1", "--answer", "1"], "give either"),
        (["--gold", "1", "--answer", "1", "--output", "f"], "--output is for"),
        (["f.jsonl", "--question", "What?"], "field `question`"),
        (["--gold", "1", "--answer", "1", "--workers", "0"], "num_workers is 0"),
    ],
)
def test_options_that_do_not_go_together_are_refused(arguments: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        verify.main(arguments)


def test_one_verdict_is_explained(capsys) -> None:
    cli.main(["verify", "--gold", r"\frac{6}{4}+x", "--answer", "The answer is $1.5+x$."])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "verdict     CORRECT"
    assert lines[1] == "rule        rational functions: their values modulo a 96-bit prime at two points"
    assert lines[2].startswith("decided     without a worker, ")
    assert lines[3:8] == [
        "extracted   '1.5+x'",
        r"gold        spelled '\\frac{6}{4}+x'",
        "            read as 6/4 + x",
        "answer      spelled '1.5+x'",
        "            read as 3/2 [1 decimals] + x",
    ]
    assert lines[9] == "  1. [-] extraction: what follows the last \"the answer is\": '1.5+x'"


def test_help_explains_fields_and_options(capsys) -> None:
    with pytest.raises(SystemExit) as end:
        cli.main(["verify", "--help"])
    assert end.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    for word in ("FILE.jsonl", '"truncated"', "--output", "--workers", "--deadline", "--last-number", "--number"):
        assert word in text


def test_a_reader_that_stops_ends_the_command_without_a_trace(tmp_path) -> None:
    path = _file(tmp_path, ['{"gold": "7", "pred": "7"}'] * 4000)
    command = [sys.executable, "-m", "rlora", "verify", path]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=ROOT) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert json.loads(process.stdout.readline())["kind"] == "correct"
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 1
