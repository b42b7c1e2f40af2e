"""`make bench`: what a part lacks is said before anything runs, and each figure is written when it is known."""

import json
from collections.abc import Iterator

import pytest

from benchmarks import run, verify
from benchmarks.figures import Figure, PartError

pytestmark = pytest.mark.unit


def figure(name: str, value: float = 1.0) -> Figure:
    return Figure(name=name, value=value, unit="s", target=2, against="", note="")


def test_a_part_that_lacks_something_is_named_first_and_a_failure_loses_no_figure(tmp_path, monkeypatch, capsys):
    path = tmp_path / "bench.json"
    path.write_text(json.dumps([{"name": "older", "value": 7.0}, {"name": "a", "value": 9.0}]))

    def fails() -> Iterator[Figure]:
        assert "late is left out: it needs data." in capsys.readouterr().err
        yield figure("a")
        assert [row["name"] for row in json.loads(path.read_text())] == ["older", "a"]
        raise PartError("no memory")

    monkeypatch.setattr(run, "PARTS", {"first": fails, "second": lambda: iter([figure("b")]), "late": fails})
    monkeypatch.setattr(run, "NEEDS", {"first": list, "second": list, "late": lambda: ["data"]})
    rows, failures = run.measured(["first", "second", "late"], path)
    assert [row["name"] for row in rows] == ["a", "b"]
    assert failures == ["late is left out: it needs data.", "first ended early: no memory"]
    written = {row["name"]: row["value"] for row in json.loads(path.read_text())}
    assert written == {"older": 7.0, "a": 1.0, "b": 1.0}


def test_every_part_says_what_it_needs_and_golds_name_their_files(tmp_path, monkeypatch):
    assert run.PARTS.keys() == run.NEEDS.keys()
    monkeypatch.setattr(verify, "DATA_DIR", tmp_path)
    (needed,) = verify.missing_data()
    assert needed.startswith("math/math500.jsonl and gsm8k/test.jsonl in the folder that RLORA_DATA names")
