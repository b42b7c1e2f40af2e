"""Rollouts are written beside the loop, whole and in order, kept by a rule, and what fails is told."""

import json
import shutil
import time

import psutil
import pytest
from support.rollouts import completion, group
from support.runs import SIZE, toy

from rlora.errors import ConfigError, WriteError
from rlora.loop import run
from rlora.store.rollouts import RolloutFolder, RolloutsConfig
from rlora.store.run_dir import rollout_rows

pytestmark = pytest.mark.unit


def groups(step: int, *, num_tokens: int = 3):
    return [group([1, 2], [completion(range(step, step + num_tokens), version=step)] * 2, [1.0, 0.25], name=f"p{step}")]


def test_what_is_handed_over_is_on_disk_after_a_flush(tmp_path) -> None:
    folder = RolloutFolder(tmp_path / "rollouts")
    for step in range(5):
        folder.save(step, groups(step))
    folder.flush()
    assert list(folder.steps()) == [0, 1, 2, 3, 4]
    first, second = rollout_rows(folder.steps()[3])
    assert first == {
        "problem": "p3", "question": "", "gold": "", "text": "", "verdict": "correct", "extracted": "", "reward": 1.0,
        "stop": "end", "version": 3, "token_ids": [3, 4, 5], "logprobs": [-1.0, -1.1, -1.2],
    }  # fmt: skip
    assert second["reward"] == 0.25
    folder.remove_from(2)
    assert list(folder.steps()) == [0, 1]
    folder.close()
    folder.close()
    assert [path.name for path in folder.path.iterdir() if path.name.startswith(".")] == []


def test_the_last_and_every_nth_stay(tmp_path) -> None:
    config = RolloutsConfig(keep_last=2, keep_every=4)
    folder = RolloutFolder(tmp_path, config)
    for step in range(11):
        folder.save(step, groups(step))
        folder.flush()
    folder.close()
    assert list(folder.steps()) == [0, 4, 8, 9, 10]
    assert len(folder.steps()) == config.num_kept(11)
    assert RolloutsConfig().num_kept(1000) == 100 + 90
    for wrong in (RolloutsConfig(keep_last=0), RolloutsConfig(keep_every=-1)):
        with pytest.raises(ConfigError, match=r"rollouts\.keep_last"):
            wrong.check()


def test_a_write_that_fails_is_told_at_the_next_flush(tmp_path) -> None:
    (tmp_path / "rollouts").write_text("")
    folder = RolloutFolder(tmp_path / "rollouts")
    folder.save(0, groups(0))
    with pytest.raises(WriteError, match=r"step-000000\.jsonl could not be written"):
        folder.flush()
    folder.close()


def test_a_writer_that_is_killed_is_told(tmp_path) -> None:
    folder = RolloutFolder(tmp_path)
    folder.save(0, groups(0))
    folder.flush()
    (writer,) = [each for each in psutil.Process().children() if "rlora.store.rollouts" in each.cmdline()]
    writer.kill()

    def hand_over() -> None:
        for step in range(1, 9):
            folder.save(step, groups(step, num_tokens=100_000))

    with pytest.raises(WriteError, match="ended by itself"):
        hand_over()
    folder.close()


def test_the_loop_does_not_wait_for_a_large_step(tmp_path) -> None:
    folder = RolloutFolder(tmp_path)
    folder.save(0, groups(0))
    folder.flush()
    large = [each for _ in range(100) for each in groups(1, num_tokens=1000)]
    start = time.process_time()
    folder.save(1, large)
    handed_over = time.process_time() - start
    folder.flush()
    start = time.process_time()
    rows = rollout_rows(folder.steps()[1])
    assert len(rows) == 200
    assert handed_over < (time.process_time() - start) / 2  # reading the lines costs less than making them
    folder.close()


@pytest.mark.loop
def test_rollouts_of_a_step_are_there_before_the_checkpoint_behind_it(tmp_path) -> None:
    seen: list[list[int]] = []
    real = RolloutFolder.flush

    def flush(self):
        real(self)
        seen.append(list(self.steps()))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RolloutFolder, "flush", flush)
        run_dir = run(toy(tmp_path / "run", **{**SIZE, "num_steps": 3}, rollouts=RolloutsConfig(keep_last=1)))
    assert seen == [[], [0], [0, 1], [0, 2]]
    assert json.loads((run_dir / "config.json").read_text())["rollouts"] == {"keep_last": 1, "keep_every": 10}


@pytest.mark.loop
def test_too_little_room_is_said_at_the_start(tmp_path, capsys, monkeypatch) -> None:
    few = {"num_steps": 1, "samples_per_problem": 4, "problems_per_step": 2}
    run(toy(tmp_path / "roomy", **few))
    assert "rollouts may take" not in capsys.readouterr().err
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr("rlora.summary.shutil.disk_usage", lambda _: usage)
    run(toy(tmp_path / "full", **few))
    assert "rollouts may take 2.18e-06 GB, and 1e-06 GB are free" in capsys.readouterr().err
