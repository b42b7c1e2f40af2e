"""The path of a policy: which versions are kept, that a run that was stopped keeps the same, and what refuses."""

import dataclasses

import pytest
import torch
from safetensors.torch import load_file
from support.runs import SIZE, assert_same_run, stopped, toy

from rlora.errors import ConfigError, WriteError
from rlora.loop import run
from rlora.store.checkpoint import CheckpointConfig, CheckpointFolder
from rlora.store.trajectory import Trajectory

SMALL = {"problems_per_step": 2, "samples_per_problem": 4, "num_steps": 5}


def kept(folder, *, most: int, every: int = 1, steps) -> list[int]:
    path = Trajectory(folder, most=most, every=every)
    for step in steps:
        path.save(step, torch.full((3,), float(step)))
    return path.steps()


@pytest.mark.unit
def test_versions_are_thinned_evenly_however_long_the_run_is(tmp_path) -> None:
    assert kept(tmp_path / "a", most=8, steps=range(7)) == [0, 1, 2, 3, 4, 5, 6]
    assert kept(tmp_path / "b", most=8, steps=range(8)) == [0, 2, 4, 6]
    assert kept(tmp_path / "c", most=8, steps=range(15)) == [0, 4, 8, 12]
    assert kept(tmp_path / "d", most=8, steps=range(101)) == [0, 16, 32, 48, 64, 80, 96]
    for num_steps in (1, 31, 32, 33, 100, 1000):
        steps = kept(tmp_path / f"e{num_steps}", most=32, steps=range(num_steps + 1))
        assert len(steps) <= 32
        assert len(steps) >= min(num_steps, 16)
        assert len([step for step in steps if step <= 0.15 * num_steps]) >= (3 if num_steps > 13 else 1)


@pytest.mark.unit
def test_each_version_is_the_vector_of_its_step(tmp_path) -> None:
    assert kept(tmp_path, most=8, every=5, steps=range(0, 13)) == [0, 5, 10]
    assert load_file(tmp_path / "step-000010.safetensors")["theta_D"].tolist() == [10.0, 10.0, 10.0]


@pytest.mark.unit
def test_a_branch_keeps_its_own_first_version(tmp_path) -> None:
    assert kept(tmp_path / "a", most=8, steps=range(13, 19)) == [13, 14, 15, 16, 17, 18]
    assert kept(tmp_path / "b", most=8, steps=range(13, 60)) == [13, 16, 24, 32, 40, 48, 56]


@pytest.mark.unit
@pytest.mark.parametrize("num_steps", [5, 20, 63, 64, 65, 200])
def test_going_on_from_any_step_ends_with_the_same_versions(tmp_path, num_steps) -> None:
    straight = kept(tmp_path / "straight", most=8, steps=range(num_steps + 1))
    for stop in range(0, num_steps, max(1, num_steps // 6)):
        for back in (0, 1, 5):
            path = Trajectory(tmp_path / f"{stop}-{back}", most=8)
            kept(path.path, most=8, steps=range(stop + 1))
            start = max(0, stop - back)
            path.remove_after(start)
            assert all(step <= start for step in path.steps())
            assert kept(path.path, most=8, steps=range(start, num_steps + 1)) == straight


@pytest.mark.unit
def test_none_are_kept_where_none_are_wanted(tmp_path) -> None:
    assert kept(tmp_path / "none", most=0, steps=range(5)) == []
    assert not (tmp_path / "none").exists()
    (tmp_path / "file").write_text("")
    assert Trajectory(tmp_path / "file" / "under").steps() == []
    with pytest.raises(WriteError, match="could not be written"):
        kept(tmp_path / "file" / "under", most=8, steps=[0])


@pytest.mark.unit
def test_a_path_of_all_weights_is_refused_and_off() -> None:
    assert CheckpointConfig().resolved(is_full=True).trajectory == 0
    assert CheckpointConfig().resolved(is_full=False).trajectory == 32
    assert CheckpointConfig(trajectory=0).resolved(is_full=True).trajectory == 0
    with pytest.raises(ConfigError, match=r"checkpoint\.trajectory is 16: only versions of adapters are kept"):
        CheckpointConfig(trajectory=16).resolved(is_full=True)
    for wrong in (-1, 1, 3):
        with pytest.raises(ConfigError, match=f"checkpoint.trajectory is {wrong}; it must be at least 4"):
            CheckpointConfig(trajectory=wrong).check()
    CheckpointConfig(trajectory=0).check()
    CheckpointConfig(trajectory=4).check()


@pytest.mark.loop
def test_a_run_keeps_the_versions_that_its_checkpoints_had(straight) -> None:
    path, checkpoints = Trajectory(straight / "trajectory"), CheckpointFolder(straight / "checkpoints")
    assert path.steps() == [0, 1, 2, 3, 4, 5]
    assert checkpoints.steps() == [0, 3, 4, 5]
    for step in checkpoints.steps():
        assert torch.equal(load_file(path.file(step))["theta_D"], checkpoints.load(step).theta_D)


@pytest.mark.loop
def test_what_a_killed_run_left_of_later_steps_is_removed(tmp_path) -> None:
    config, folder = toy(tmp_path / "run", **SMALL), tmp_path / "run" / "trajectory"
    stopped(config, after=2)
    (folder / "step-000002.safetensors").rename(folder / "step-000009.safetensors")
    (folder / ".step-000002.safetensors.7.tmp").write_bytes(b"half")
    stopped(config, after=0)
    assert sorted(file.name for file in folder.iterdir()) == [f"step-00000{step}.safetensors" for step in (0, 1, 2)]


@pytest.mark.loop
def test_a_path_may_be_wanted_later_or_no_more(tmp_path) -> None:
    config = toy(tmp_path / "run", **SMALL, checkpoint=CheckpointConfig(trajectory=0))
    stopped(config, after=2)
    assert not (tmp_path / "run" / "trajectory").exists()
    run(dataclasses.replace(config, checkpoint=CheckpointConfig(trajectory=4)))
    assert Trajectory(tmp_path / "run" / "trajectory").steps() == [2, 4]


@pytest.mark.loop
def test_stopped_at_each_step_the_path_is_that_of_the_straight_run(tmp_path, straight) -> None:
    for after in (1, 4):
        config = toy(tmp_path / f"run{after}", **SIZE)
        stopped(config, after=after)
        assert_same_run(run(config), straight)
        assert Trajectory(tmp_path / f"run{after}" / "trajectory").steps() == [0, 1, 2, 3, 4, 5]
