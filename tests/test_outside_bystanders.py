"""Displays and file systems without locks end no run."""

import errno
import fcntl
import os
import shutil
import socket
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import datasets
import huggingface_hub
import pytest
from support.policies import ROOT

from rlora.commands.cli import main
from rlora.commands.eval import parse
from rlora.commands.export import ExportOptions
from rlora.config import with_home
from rlora.errors import ConfigError, DataError
from rlora.evaluation.config import EvalConfig
from rlora.model.sources import ModelConfig, cache_dir, model_dir
from rlora.run_config import RunConfig
from rlora.system.files import folder_in_memory
from rlora.system.hub import is_hub_reachable
from rlora.system.lock import FolderLock
from rlora.system.stages import Screen
from rlora.tasks import DataConfig
from rlora.tasks.sets.own import read_own
from rlora.tasks.source import data_folder, read_rows

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
    assert with_home(ExportOptions(run=Path("~/a"), to=Path("~")), only_paths=True).to == Path("/home/a")


def test_a_home_folder_is_found_by_every_command(monkeypatch, tmp_path, capsys) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    shutil.copytree(ROOT / "tests/golden/run_before", tmp_path / "run")
    for command in (["runs", "~/none"], ["export", "~/none", "--to=~/out"], ["eval", "--run=~/none"]):
        with pytest.raises(SystemExit):
            main(command)
        assert f"{tmp_path}/none" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["train", "~/none.py"])
    assert f"{tmp_path}/none.py is not a file" in capsys.readouterr().err
    main(["runs", "~/run"])
    assert f"{tmp_path}/run" in capsys.readouterr().out
    assert parse(["--run=~/run"]).preset == "run"
    (tmp_path / "rows.jsonl").write_text('{"gold": "~/5", "pred": "5"}\n')
    main(["verify", "~/rows.jsonl", "--output=~/verdicts.jsonl"])
    assert (tmp_path / "verdicts.jsonl").is_file()
    main(["verify", "--gold", "~/5", "--answer", "5"])
    assert str(tmp_path) not in capsys.readouterr().out
    assert not (tmp_path / "~").exists()


def test_a_home_folder_in_a_variable_is_found(monkeypatch, tmp_path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("RLORA_CACHE", "~/cache")
    monkeypatch.setenv("RLORA_DATA", "~/")
    assert (cache_dir(), data_folder()) == (tmp_path / "cache", tmp_path)


@pytest.mark.parametrize(("free_MiB", "chosen"), [(64, "disk"), (0, "disk"), (4096, "memory"), (500, "disk")])
def test_a_small_memory_folder_is_said_and_left(monkeypatch, tmp_path, capsys, free_MiB, chosen) -> None:
    (tmp_path / "disk").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "disk"))
    room = {"/dev/shm": free_MiB << 20, str(tmp_path / "disk"): 72 << 30}
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=room[str(path)]))
    folder = folder_in_memory()
    shutil.rmtree(folder)
    assert folder.parent == (tmp_path / "disk" if chosen == "disk" else Path("/dev/shm"))
    said = f"/dev/shm has only {free_MiB} MiB free, so what the sampler is handed over lies in {tmp_path}/disk."
    assert (said in capsys.readouterr().err) == (chosen == "disk")


@pytest.fixture
def no_hub(monkeypatch, tmp_path) -> Iterator[None]:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.ENETUNREACH, os.strerror(errno.ENETUNREACH))

    for name in ("HF_HUB_OFFLINE", "HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_ENDPOINT", "https://hub.invalid:444")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(socket, "create_connection", refuse)
    monkeypatch.chdir(tmp_path)
    is_hub_reachable.cache_clear()
    yield
    is_hub_reachable.cache_clear()


def test_without_the_hub_data_and_models_are_refused_at_once(no_hub, capsys) -> None:
    start = time.monotonic()
    with pytest.raises(ConfigError, match="no such folder, and the hub did not give it"):
        model_dir(ModelConfig(name="nobody/nothing"))
    with pytest.raises(DataError, match="could not be had from the hub"):
        read_rows("none.jsonl", hub="nobody/nothing", split="test")
    with pytest.raises(DataError, match="the split 'test' of the data set nobody/nothing could not be had"):
        read_own("hub:nobody/nothing", DataConfig(), split="test")
    assert time.monotonic() - start < 10
    said = capsys.readouterr().err
    assert said.count("hub.invalid cannot be reached (Network is unreachable): only what is in the cache") == 1


def test_without_the_hub_a_model_of_the_cache_is_taken(no_hub, monkeypatch) -> None:
    asked = []

    def snapshot_download(name: str, **options: object) -> str:
        asked.append(options["local_files_only"])
        raise OSError

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    with pytest.raises(ConfigError):
        model_dir(ModelConfig(name="some/model"))
    monkeypatch.setenv("HTTPS_PROXY", "http://proxy:1")
    is_hub_reachable.cache_clear()
    with pytest.raises(ConfigError):
        model_dir(ModelConfig(name="some/model"))
    assert asked == [True, False]
