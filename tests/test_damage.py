"""Lines, adapters and folders that were changed since they were written are named, and what is whole goes on."""

import io
import json
import os
import zlib

import pytest

from rlora.errors import DataError, RunDirError, message_of
from rlora.evaluation.samples import SampleFile
from rlora.store.run_dir import metrics_rows
from rlora.system.files import folder_in_memory
from rlora.system.records import line_of, object_in, rows_in, values_of
from rlora.system.stages import Screen
from rlora.text import printable
from rlora.types import Problem

pytestmark = pytest.mark.unit


def test_a_line_carries_the_checksum_of_what_comes_before_it() -> None:
    values = {"step": 3, "text": 'é, "crc": "00000000"}', "half": "\ud800"}
    line = line_of(values)
    assert int(json.loads(line)["crc"], 16) == zlib.crc32(line.rpartition(', "crc": ')[0].encode())
    assert values_of(line.encode()) == (values, True)
    assert values_of(b'{"step": 3}') == ({"step": 3}, False)


def test_every_changed_byte_of_a_line_is_seen(tmp_path) -> None:
    path, lines = tmp_path / "metrics.jsonl", [line_of({"step": step, "reward/mean": 0.5}) for step in range(2)]
    whole = "".join(f"{line}\n" for line in lines).encode()
    for place in range(len(whole) - 1):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        with pytest.raises(RunDirError, match=r"metrics\.jsonl cannot be read: line [12]"):
            metrics_rows(tmp_path)
    path.write_bytes(whole)
    assert [row["step"] for row in metrics_rows(tmp_path)] == [0, 1]


@pytest.mark.parametrize("row", ["null", "5", "[]", "{}", '{"step": "0"}', '{"step": true}', '{"step": 0, "a": NaN}'])
def test_a_line_that_is_no_row_is_named(tmp_path, row) -> None:
    (tmp_path / "metrics.jsonl").write_text(row + "\n")
    with pytest.raises(RunDirError, match="line 1"):
        metrics_rows(tmp_path)


@pytest.mark.parametrize("steps", [(0, 1, 1), (0, 2), (1, 0)])
def test_rows_follow_one_another(tmp_path, steps) -> None:
    (tmp_path / "metrics.jsonl").write_text("".join(line_of({"step": step}) + "\n" for step in steps))
    with pytest.raises(RunDirError, match=r"line .* is of step .*move it away"):
        metrics_rows(tmp_path)


def test_lines_of_before_there_were_checksums_are_read_and_a_cut_end_is_left_out(tmp_path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 0}\n{"step": 1}\n{"step": 2, "rew')
    assert rows_in(path) == ([{"step": 0}, {"step": 1}], False)
    with pytest.raises(RunDirError, match="line 3 was cut short"):
        rows_in(path, may_be_cut=False)
    assert rows_in(tmp_path / "none.jsonl") == ([], True)


@pytest.mark.parametrize("text", ["[" * 200_000, "{" * 200_000, '{"a":' * 200_000, "[]", "1", "", "\udcff"])
def test_what_is_no_object_is_a_value_error(text) -> None:
    with pytest.raises(ValueError, match=r"."):
        object_in(text)


def test_samples_that_were_changed_are_refused_and_those_of_before_are_read(tmp_path) -> None:
    path, problem = tmp_path / "samples.jsonl", Problem(id="a", question="", answer="1", source="t")
    SampleFile(path, num_samples=2).append([], [problem])
    whole = path.read_bytes()
    for old, new in ((b'"sample": 1', b'"sample": 0'), (b'"extracted": ""', b'"extracted": "7"'), (b"crc", b"src")):
        path.write_bytes(whole.replace(old, new, 1))
        with pytest.raises(RunDirError, match="cannot be read: line"):
            SampleFile(path, num_samples=2)
    path.write_text("".join(json.dumps(values_of(line)[0]) + "\n" for line in whole.splitlines()))
    assert problem in SampleFile(path, num_samples=2)
    assert path.read_bytes() == whole  # and have checksums from now on
    for row in ({"problem": "a"}, {**values_of(whole.splitlines()[0])[0], "verdict": ["correct"]}):
        path.write_text(line_of(row) + "\n")
        with pytest.raises(RunDirError, match="line 1, is not a sample"):
            SampleFile(path, num_samples=2)


def test_control_characters_of_others_never_reach_the_terminal(capsys) -> None:
    hostile = "a\x1b]0;owned\x07\x9b31m\r\u202e\ud800é\tb\n"
    shown = "a\\x1b]0;owned\\x07\\x9b31m\\r\\u202e\\ud800é\tb\n"
    assert printable(hostile) == shown
    assert message_of(DataError(hostile)) == f"DataError: {shown}"
    stream = io.StringIO()
    screen = Screen(stream)
    screen.say(hostile)
    with screen.stage(hostile):
        pass
    assert "\x1b" not in stream.getvalue()
    assert stream.getvalue().startswith(shown.partition("\t")[0])


def test_a_pipe_or_a_link_in_shared_memory_hangs_nobody(tmp_path) -> None:
    target = tmp_path / "thesis"
    target.mkdir()
    os.mkfifo(tmp_path / "rlora-adapters-pipe")
    (tmp_path / "rlora-adapters-link").symlink_to(target)
    (tmp_path / "rlora-adapters-file").touch()
    own = folder_in_memory(tmp_path)
    assert own.is_dir()
    assert {path.name for path in tmp_path.iterdir()} == {
        "thesis", "rlora-adapters-pipe", "rlora-adapters-link", "rlora-adapters-file", own.name
    }  # fmt: skip
