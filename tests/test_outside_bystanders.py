"""Displays and file systems without locks end no run."""

import errno
import fcntl
import os

import pytest

from rlora.config import with_home
from rlora.evaluation.config import EvalConfig
from rlora.run_config import RunConfig
from rlora.system.lock import FolderLock
from rlora.system.stages import Screen
from rlora.tasks import DataConfig

pytestmark = pytest.mark.unit


def test_a_screen_whose_reader_has_gone_goes_quiet() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    stream = os.fdopen(writer, "w", buffering=1)
    screen = Screen(stream)
    for line in range(3):
        screen.say(f"step {line}")
    with screen.stage("Loading"):
        pass
    assert screen.console.quiet
    with pytest.raises(BrokenPipeError):
        stream.close()


def test_a_file_system_without_locks_is_said_and_used(tmp_path, monkeypatch, capfd) -> None:
    def flock(*_: object) -> None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    monkeypatch.setattr(fcntl, "flock", flock)
    FolderLock(tmp_path).release()
    assert "cannot lock files (Function not implemented)" in capfd.readouterr().err


def test_a_home_folder_that_no_shell_expanded_is_found_in_every_option(monkeypatch) -> None:
    monkeypatch.setenv("HOME", "/home/a")
    config = with_home(RunConfig(run_dir="~/runs/a", init_adapter="~/b", data=DataConfig(train="~/t.jsonl")))
    assert (config.run_dir, config.init_adapter, config.data.train) == (
        "/home/a/runs/a",
        "/home/a/b",
        "/home/a/t.jsonl",
    )
    assert with_home(EvalConfig(benchmark="~/a.jsonl,~/b.jsonl")).benchmark == "/home/a/a.jsonl,/home/a/b.jsonl"
    assert with_home(RunConfig(run_dir="a~b")).run_dir == "a~b"
