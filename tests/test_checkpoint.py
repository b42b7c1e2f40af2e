"""Checkpoints are whole or absent, and damage is seen."""

import dataclasses
import json
import subprocess
import sys
from io import FileIO
from pathlib import Path

import pytest
import torch
from support.checkpoints import rewritten

from rlora.errors import CheckpointError, ConfigError, RunDirError, WriteError
from rlora.lora.flat import lay_out
from rlora.store.checkpoint import Checkpoint, CheckpointConfig, CheckpointFolder
from rlora.system.files import (
    append_line,
    folder_in_memory,
    remove_temporaries,
    write_atomically,
    write_folder_atomically,
)
from rlora.system.lock import FolderLock, holder
from rlora.train.optimizer import OptimizerState

pytestmark = pytest.mark.unit


def checkpoint(step: int) -> Checkpoint:
    random = torch.Generator().manual_seed(step)
    theta, first, second = (torch.randn(5, generator=random) for _ in range(3))
    return Checkpoint(
        step=step,
        slots=lay_out({"a.lora_A": (1, 3), "a.lora_B": (2, 1)}),
        theta_D=theta,
        optimizer=OptimizerState(first_moment_D=first, second_moment_D=second, num_updates=step + 1),
        position=32 * step,
        tokens_per_micro_batch=512,
        best=0.1 + 0.2,  # not a short decimal: JSON must give it back exactly
        seconds=1.5,
        problems="abc",
        config={"seed": 0, "lora": {"rank": 1}},
        environment={"python": "3"},
    )


def assert_equal(a: Checkpoint, b: Checkpoint) -> None:
    assert torch.equal(a.theta_D, b.theta_D)
    assert torch.equal(a.optimizer.first_moment_D, b.optimizer.first_moment_D)
    assert torch.equal(a.optimizer.second_moment_D, b.optimizer.second_moment_D)
    assert a.optimizer.num_updates == b.optimizer.num_updates
    for name in ("step", "slots", "position", "best", "seconds", "tokens_per_micro_batch", "problems", "config"):
        assert getattr(a, name) == getattr(b, name)


def test_what_is_saved_is_loaded(tmp_path) -> None:
    folder = CheckpointFolder(tmp_path)
    assert folder.newest() is None
    folder.save(checkpoint(3))
    assert_equal(folder.load(3), checkpoint(3))
    found = folder.newest()
    assert found is not None
    assert_equal(found, checkpoint(3))
    assert torch.equal(found.tensors()["a.lora_B"], checkpoint(3).theta_D[3:].view(2, 1))


def test_the_last_and_every_nth_are_kept(tmp_path) -> None:
    folder = CheckpointFolder(tmp_path, CheckpointConfig(keep_last=2, keep_every=4))
    for step in range(11):
        folder.save(checkpoint(step))
    assert folder.steps() == [0, 4, 8, 9, 10]
    folder.remove_after(8)
    assert folder.steps() == [0, 4, 8]


def test_a_step_that_is_not_there_is_named_beside_those_that_are(tmp_path) -> None:
    folder = CheckpointFolder(tmp_path)
    folder.save(checkpoint(1))
    folder.save(checkpoint(2))
    with pytest.raises(CheckpointError, match=r"no checkpoint of step 7; there are: 1, 2"):
        folder.load(7)


def truncate(folder: Path) -> None:
    path = folder / "tensors.safetensors"
    path.write_bytes(path.read_bytes()[:-1])


def flip_a_bit(folder: Path) -> None:
    path = folder / "tensors.safetensors"
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(bytes(data))


def change_the_state(folder: Path) -> None:
    path = folder / "state.json"
    path.write_text(path.read_text().replace('"position": 64', '"position": 65'))


def lose_the_manifest(folder: Path) -> None:
    (folder / "manifest.json").unlink()


def lose_the_tensors(folder: Path) -> None:
    (folder / "tensors.safetensors").unlink()


def spoil_the_manifest(folder: Path) -> None:
    (folder / "manifest.json").write_text("{")


def empty_the_manifest(folder: Path) -> None:
    (folder / "manifest.json").write_text('{"format": 1, "files": {}}')


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (truncate, "bytes, its manifest says"),
        (flip_a_bit, "was changed"),
        (change_the_state, "was changed"),
        (lose_the_manifest, "was not finished"),
        (lose_the_tensors, "cannot be read: No such file"),
        (spoil_the_manifest, "is damaged"),
        (empty_the_manifest, "lacks tensors.safetensors"),
    ],
)
def test_damage_is_reported_and_the_newest_whole_one_is_taken(tmp_path, damage, message) -> None:
    folder = CheckpointFolder(tmp_path)
    folder.save(checkpoint(1))
    folder.save(checkpoint(2))
    damage(folder.folder(2))
    with pytest.raises(CheckpointError, match=message):
        folder.load(2)
    said: list[str] = []
    found = folder.newest(said.append)
    assert found is not None
    assert_equal(found, checkpoint(1))
    assert len(said) == 1
    assert message in said[0]


def test_damage_to_all_of_them_is_an_error_and_no_fresh_start(tmp_path) -> None:
    folder = CheckpointFolder(tmp_path)
    folder.save(checkpoint(1))
    truncate(folder.folder(1))
    with pytest.raises(CheckpointError, match="all are damaged"):
        folder.newest()


def test_another_format_is_refused_by_name(tmp_path) -> None:
    folder = CheckpointFolder(tmp_path)
    folder.save(checkpoint(1))
    manifest = folder.folder(1) / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"format": 2', '"format": 3'))
    with pytest.raises(CheckpointError, match="is of format 3; this version of rlora reads format 2"):
        folder.load(1)


def test_a_checkpoint_whose_hashes_fit_but_that_lacks_a_field_is_refused(tmp_path) -> None:
    folder = CheckpointFolder(tmp_path)
    incomplete = dataclasses.replace(checkpoint(1), config={})
    folder.save(incomplete)
    state = folder.folder(1) / "state.json"
    values = json.loads(state.read_text())
    del values["position"]
    state.write_text(json.dumps(values))
    manifest = folder.folder(1) / "manifest.json"
    written = json.loads(manifest.read_text())
    import hashlib

    written["files"]["state.json"] = {
        "bytes": len(state.read_bytes()),
        "sha256": hashlib.sha256(state.read_bytes()).hexdigest(),
    }
    manifest.write_text(json.dumps(written))
    with pytest.raises(CheckpointError, match="'position'"):
        folder.load(1)


@pytest.mark.parametrize("values", [{"every": 0}, {"keep_last": 0}, {"keep_every": -1}])
def test_wrong_numbers_are_refused(values) -> None:
    with pytest.raises(ConfigError, match="checkpoint"):
        CheckpointConfig(**values).check()


def test_a_failed_write_leaves_what_was_there_and_nothing_else(tmp_path) -> None:
    path = tmp_path / "file"
    path.write_text("old")

    def fail() -> None:
        with write_atomically(path) as temporary:
            temporary.write_text("ne")
            raise OSError(28, "No space left on device")

    with pytest.raises(WriteError, match=r"could not be written: No space left on device.*start the same command"):
        fail()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_failed_folder_is_not_there(tmp_path) -> None:
    def fail() -> None:
        with write_folder_atomically(tmp_path / "folder") as temporary:
            (temporary / "a").write_text("a")
            raise OSError(13, "Permission denied")

    with pytest.raises(WriteError, match="Permission denied"):
        fail()
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_explained_for_a_real_device() -> None:
    path = Path("/dev/full")
    if not path.exists():
        pytest.skip("no /dev/full here")
    with FileIO(path, "w") as file, pytest.raises(WriteError, match=r"/dev/full could not .* No space left on device"):
        append_line(file, "x")


def test_what_killed_writers_left_is_removed(tmp_path) -> None:
    (tmp_path / "sub" / ".step-000001.77.tmp").mkdir(parents=True)
    (tmp_path / ".config.json.77.tmp").write_text("{")
    (tmp_path / "config.json").write_text("{}")
    remove_temporaries(tmp_path)
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["config.json", "sub"]


def test_a_folder_has_one_writer_at_a_time(tmp_path) -> None:
    import os
    import socket

    first = FolderLock(tmp_path)
    with pytest.raises(RunDirError, match=f"being written by process {os.getpid()} on {socket.gethostname()}"):
        FolderLock(tmp_path)
    assert holder(tmp_path) == {"pid": os.getpid(), "host": socket.gethostname()}
    first.release()
    assert holder(tmp_path) is None
    FolderLock(tmp_path).release()
    assert holder(tmp_path / "nothing") is None


def test_folders_in_memory_of_a_process_that_was_killed_are_removed(tmp_path) -> None:
    code = "import sys, time; from pathlib import Path; from rlora.system.files import folder_in_memory as make; "
    code += "print(make(Path(sys.argv[1])), flush=True); time.sleep(60)"
    command = [sys.executable, "-c", code, tmp_path]
    killed, alive = (subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2))
    left, kept = (Path(process.stdout.readline().strip()) for process in (killed, alive))
    other = tmp_path / "thesis"
    for folder in (left, kept, other):
        folder.mkdir(exist_ok=True)
        (folder / "adapter_model.safetensors").touch()
    killed.kill()
    killed.communicate()
    own = folder_in_memory(tmp_path)
    assert sorted(tmp_path.iterdir()) == sorted([kept, other, own])
    assert (kept / "adapter_model.safetensors").exists()
    alive.kill()
    alive.communicate()
    new = folder_in_memory(tmp_path)  # keeps this process's own
    assert sorted(tmp_path.iterdir()) == sorted([other, own, new])


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"step": 7}, "it is of step 7, and its folder of step 2"),
        ({"position": -5}, "position is -5"),
        ({"position": None}, "position is None"),
        ({"position": 2**21 + 1}, "position is 2097153, which 2 steps cannot have come to"),
        ({"position": 1.5}, "position is 1.5"),
        ({"num_updates": -1}, "num_updates is -1"),
        ({"num_updates": True}, "num_updates is True"),
        ({"tokens_per_micro_batch": 0}, "tokens_per_micro_batch is 0"),
        ({"seconds": float("nan")}, "seconds is nan"),
        ({"best": "0.5"}, "best is '0.5'"),
        ({"problems": None}, "problems is None"),
        ({"config": []}, r"config is \[\]"),
        ({"engine": {"cache": -1}}, "engine is {'cache': -1}"),
        ({"layout": {"a.lora_A": [1, 3], "a.lora_B": [3, 1]}}, r"theta_D is float32 \(5,\).*must be float32 \(6,\)"),
        ({"layout": {"a.lora_A": [1, -3]}}, "layout is .* must be the shape of each tensor"),
    ],
)
def test_a_checkpoint_that_is_whole_and_wrong_inside_is_refused_by_name(tmp_path, values, message) -> None:
    folder = CheckpointFolder(tmp_path)
    folder.save(checkpoint(1))
    folder.save(checkpoint(2))
    rewritten(folder.folder(2), lambda state: state.update(values))
    with pytest.raises(CheckpointError, match=message):
        folder.load(2)
    found = folder.newest()
    assert found is not None
    assert found.step == 1


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"theta_D": torch.full((5,), float("nan"))}, "theta_D holds numbers that are not finite"),
        ({"first_moment_D": torch.full((5,), float("inf"))}, "first_moment_D holds numbers that are not finite"),
        ({"first_moment_D": torch.zeros(4)}, r"first_moment_D is float32 \(4,\)"),
        ({"second_moment_D": torch.zeros(5, dtype=torch.float64)}, "second_moment_D is float64"),
        ({"solved_P2": torch.zeros(3, dtype=torch.float64)}, "solved_P2"),
    ],
)
def test_tensors_that_no_run_can_have_are_refused_by_name(tmp_path, tensors, message) -> None:
    folder = CheckpointFolder(tmp_path)
    folder.save(checkpoint(2))
    rewritten(folder.folder(2), lambda state: None, tensors)
    with pytest.raises(CheckpointError, match=message):
        folder.load(2)


def test_files_where_folders_should_be_are_errors_of_our_own(tmp_path) -> None:
    folder = CheckpointFolder(tmp_path / "checkpoints")
    folder.save(checkpoint(1))
    (tmp_path / "checkpoints" / "step-000009").write_text("")
    assert folder.steps() == [1]
    folder.remove_after(1)
    with pytest.raises(WriteError, match="step-000009 could not be written"):
        folder.save(checkpoint(9))
    (tmp_path / "other").write_text("")
    with pytest.raises(CheckpointError, match="cannot be read: Not a directory"):
        CheckpointFolder(tmp_path / "other").steps()
