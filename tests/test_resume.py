"""Stopped anywhere and started again, a run is the run that was never stopped. Toy model, torch sampler."""

import dataclasses
import errno
import json
import os
import signal
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file
from support.checkpoints import rewritten
from support.policies import ROOT
from support.runs import SIZE, Stop, assert_same_run, rows, stopped, toy, without_clock

from rlora.assemble import load_problems
from rlora.errors import CheckpointError, ConfigError, ProofError, RunDirError, WriteError
from rlora.evaluation.held_out import EvaluationConfig
from rlora.loop import run
from rlora.lora.config import LoraConfig
from rlora.sampler.build import build_sampler
from rlora.store.checkpoint import CheckpointConfig, CheckpointFolder
from rlora.system import files
from rlora.system.screen import LOG_FILE
from rlora.tracking import TrackingConfig
from rlora.train.optimizer import OptimizerConfig
from rlora.types import SamplingParams
from rlora.verify import VerifierConfig

pytestmark = pytest.mark.loop


@pytest.mark.parametrize("after", [0, 1, 3, 4])
def test_a_resumed_run_equals_the_straight_one(straight, tmp_path, after) -> None:
    config = toy(tmp_path / "run", **SIZE)
    stopped(config, after=after)
    assert len(rows(tmp_path / "run")) == after
    run(config)
    assert_same_run(tmp_path / "run", straight)


def test_stopped_at_every_step_it_still_equals_the_straight_one(straight, tmp_path) -> None:
    config = toy(tmp_path / "run", **SIZE)
    for _ in range(4):
        stopped(config, after=1)
    run(config)
    assert_same_run(tmp_path / "run", straight)


def test_rarer_checkpoints_redo_the_steps_since_the_last(straight, tmp_path) -> None:
    rare = CheckpointConfig(every=3)
    stopped(toy(tmp_path / "run", **SIZE, checkpoint=rare), after=2)
    assert CheckpointFolder(tmp_path / "run" / "checkpoints").steps() == [0]
    run_dir = run(toy(tmp_path / "run", **SIZE, checkpoint=rare))
    assert [without_clock(row) for row in rows(run_dir)] == [without_clock(row) for row in rows(straight)]
    name = "adapter/adapter_model.safetensors"
    assert (run_dir / name).read_bytes() == (straight / name).read_bytes()


def test_a_finished_run_is_not_run_again_and_can_be_prolonged(straight, tmp_path, capsys) -> None:
    short = toy(tmp_path / "run", **{**SIZE, "num_steps": 3})
    run(short)
    before = (tmp_path / "run" / "metrics.jsonl").stat().st_mtime_ns
    run(short)
    assert "is finished" in capsys.readouterr().err
    stored = (tmp_path / "run" / "config.json").read_bytes()
    run(toy(tmp_path / "run", **{**SIZE, "num_steps": 3}, memory_budget=3.0))  # gives it no more to do
    assert "is finished" in capsys.readouterr().err
    assert (tmp_path / "run" / "config.json").read_bytes() == stored
    assert (tmp_path / "run" / "metrics.jsonl").stat().st_mtime_ns == before
    run(toy(tmp_path / "run", **SIZE))
    assert "going on from step 3" in capsys.readouterr().err
    assert [without_clock(row) for row in rows(tmp_path / "run")] == [without_clock(row) for row in rows(straight)]


def test_what_does_not_alter_the_run_may_change(straight, tmp_path) -> None:
    stopped(toy(tmp_path / "run", **SIZE), after=2)
    changed = toy(
        tmp_path / "run",
        **SIZE,
        stop_after_hours=100.0,
        evaluation=EvaluationConfig(every=4, num_problems=4),
        tracking=TrackingConfig(wandb_project="other"),
        checkpoint=CheckpointConfig(keep_last=1),
        verifier=VerifierConfig(num_workers=1),
    )
    run(changed)
    adapter = "adapter/adapter_model.safetensors"
    assert (tmp_path / "run" / adapter).read_bytes() == (straight / adapter).read_bytes()
    rewards = [[row["reward/mean"] for row in rows(folder)] for folder in (tmp_path / "run", straight)]
    assert rewards[0] == rewards[1]
    assert json.loads((tmp_path / "run" / "config.json").read_text())["evaluation"]["every"] == 4


def test_what_would_alter_the_run_is_refused_and_nothing_is_touched(tmp_path) -> None:
    stopped(toy(tmp_path / "run", **SIZE), after=1)
    before = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    other = toy(tmp_path / "run", **SIZE, seed=3, optimizer=OptimizerConfig(learning_rate=5e-3))
    with pytest.raises(RunDirError) as refused:
        run(other)
    for line in ("seed: 0 -> 3", "optimizer.learning_rate: 0.01 -> 0.005", "--branch NEW_DIR"):
        assert line in str(refused.value)
    after = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    assert {k: v for k, v in after.items() if k.name != "lock"} == {k: v for k, v in before.items() if k.name != "lock"}


def test_another_training_set_is_refused(tmp_path, monkeypatch) -> None:
    config = toy(tmp_path / "run", **SIZE)
    stopped(config, after=1)
    problems = load_problems(config)
    fewer = dataclasses.replace(problems, train=problems.train[:-1])
    monkeypatch.setattr("rlora.site.load_problems", lambda _: fewer)
    with pytest.raises(CheckpointError, match="the training set is not the one"):
        run(config)


def test_a_branch_starts_from_a_step_with_another_rate(straight, tmp_path, capsys) -> None:
    slower = OptimizerConfig(learning_rate=1e-3)
    config = toy(straight, **SIZE, optimizer=slower, branch=f"{tmp_path / 'new'}@3")
    run_dir = run(config)
    assert run_dir == tmp_path / "new"
    said = capsys.readouterr().err
    assert f"a new run from step 3 of {straight}" in said
    assert "damaged" not in said
    assert [row["step"] for row in rows(run_dir)] == [3, 4]
    assert rows(run_dir)[0]["optimizer/learning_rate"] == 1e-3
    shared = "rollouts/step-000003.jsonl"
    assert (run_dir / shared).read_bytes() == (straight / shared).read_bytes()
    assert json.loads((run_dir / "run.json").read_text())["parent"] == f"{straight}@3"
    assert json.loads((run_dir / "config.json").read_text())["branch"] is None
    run(config)
    assert "is finished" in capsys.readouterr().err


def test_a_branch_without_changes_is_the_same_run(straight, tmp_path) -> None:
    run_dir = run(toy(straight, **SIZE, branch=f"{tmp_path / 'new'}@3"))
    assert [without_clock(row) for row in rows(run_dir)] == [without_clock(row) for row in rows(straight)[3:]]


@pytest.mark.parametrize(
    ("branch", "error", "message"),
    [
        ("{new}@x", ConfigError, "must be NEW_DIR, NEW_DIR@STEP or STEP"),
        ("{old}", ConfigError, "the run itself"),
        ("{new}@77", CheckpointError, "no checkpoint of step 77; there are: 0, 3, 4, 5"),
    ],
)
def test_a_branch_that_cannot_be_is_refused(straight, tmp_path, branch, error, message) -> None:
    config = toy(straight, **SIZE, branch=branch.format(new=tmp_path / "new", old=straight))
    with pytest.raises(error, match=message):
        run(config)
    assert not (tmp_path / "new").exists()


def test_a_branch_of_another_adapter_or_of_nothing_is_refused(straight, tmp_path) -> None:
    with pytest.raises(CheckpointError, match=r"lora\.rank: 1 -> 2"):
        run(toy(straight, **SIZE, branch=str(tmp_path / "new"), lora=LoraConfig(rank=2)))
    with pytest.raises(CheckpointError, match="has no checkpoints to branch from"):
        run(toy(tmp_path / "nothing", **SIZE, branch=str(tmp_path / "new2")))


@pytest.mark.parametrize("name", ["tensors.safetensors", "state.json", "manifest.json"])
def test_a_damaged_checkpoint_is_reported_and_the_one_before_it_taken(straight, tmp_path, name, capsys) -> None:
    config = toy(tmp_path / "run", **SIZE)
    stopped(config, after=3)
    path = tmp_path / "run" / "checkpoints" / "step-000003" / name
    path.write_bytes(path.read_bytes()[:-2])
    run(config)
    said = capsys.readouterr().err
    assert "The checkpoint of step 3 cannot be used" in said
    assert "going on from step 2" in said
    assert_same_run(tmp_path / "run", straight)


def test_a_metrics_line_cut_short_is_written_again(straight, tmp_path) -> None:
    config = toy(tmp_path / "run", **SIZE)
    stopped(config, after=3)
    with (tmp_path / "run" / "metrics.jsonl").open("a") as file:
        file.write('{"step": 3, "reward/me')
    run(config)
    assert_same_run(tmp_path / "run", straight)


def test_metrics_damaged_within_end_the_run_clearly(tmp_path) -> None:
    config = toy(tmp_path / "run", **SIZE)
    stopped(config, after=2)
    metrics = tmp_path / "run" / "metrics.jsonl"
    metrics.write_text("{" + metrics.read_text())
    with pytest.raises(RunDirError, match=r"metrics\.jsonl cannot be read"):
        run(config)


def test_a_branch_stopped_before_its_first_checkpoint_does_not_start_afresh(straight, tmp_path) -> None:
    def fails(_):
        raise Stop

    branching = toy(straight, **SIZE, branch=f"{tmp_path / 'new'}@3")
    with pytest.raises(Stop):
        run(branching, make_sampler=fails)
    with pytest.raises(CheckpointError, match="before its first checkpoint; start it with the same --branch"):
        run(toy(tmp_path / "new", **SIZE))
    assert [row["step"] for row in rows(run(branching))] == [3, 4]


def test_a_branch_stopped_in_its_first_step_is_not_called_damaged(straight, tmp_path, capsys) -> None:
    branching = toy(straight, **SIZE, branch=f"{tmp_path / 'new'}@3")
    stopped(branching, after=0)
    assert [row["step"] for row in rows(run(branching))] == [3, 4]
    said = capsys.readouterr().err
    assert "going on from step 3" in said
    assert "damaged" not in said


@pytest.mark.parametrize("fails_in", ["start", "first step"])
def test_a_run_without_a_finished_step_leaves_its_folder_to_another(tmp_path, fails_in, capsys) -> None:
    def fails(_):
        raise Stop

    config = toy(tmp_path / "run", **SIZE)
    if fails_in == "start":
        with pytest.raises(Stop):
            run(config, make_sampler=fails)
    else:
        stopped(config, after=0)
    other = toy(tmp_path / "run", seed=3, lora=LoraConfig(rank=2), num_steps=1)
    run(other)
    assert "held a run that finished no step; this one takes its place" in capsys.readouterr().err
    assert json.loads((tmp_path / "run" / "config.json").read_text())["seed"] == 3
    assert_same_run(tmp_path / "run", run(dataclasses.replace(other, run_dir=str(tmp_path / "fresh"))))


def test_two_processes_cannot_write_one_run(tmp_path) -> None:
    config = toy(tmp_path / "run", **SIZE)

    def second(spec):
        with pytest.raises(RunDirError, match=f"is being written by process {os.getpid()} on"):
            run(config)
        raise Stop

    with pytest.raises(Stop):
        run(config, make_sampler=second)
    run(config)  # the lock of the one that ended is free


def test_a_lying_sampler_is_caught_when_a_run_goes_on(tmp_path) -> None:
    from support.liars import ServesBase

    config = toy(tmp_path / "run", **SIZE)
    stopped(config, after=4)
    with pytest.raises(ProofError, match="It looks like the base model"):
        run(config, make_sampler=lambda spec: ServesBase(build_sampler(spec)))


class _Failing:
    """Fails the n-th sync of a run, as a disk would, after cutting the end of the file off if asked to."""

    def __init__(self, at: int, number: int, *, is_short: bool):
        self.calls, self._at, self._number, self._is_short = 0, at, number, is_short
        self._real = os.fsync

    def __call__(self, descriptor: int) -> None:
        self.calls += 1
        if self.calls == self._at:
            if self._is_short:
                path = os.readlink(f"/proc/self/fd/{descriptor}")
                if os.path.isfile(path) and os.path.getsize(path):
                    os.truncate(path, max(0, os.path.getsize(path) - 10))
            raise OSError(self._number, os.strerror(self._number))
        self._real(descriptor)


def count_syncs(config, monkeypatch) -> int:
    counter = _Failing(-1, 0, is_short=False)
    with monkeypatch.context() as patch:
        patch.setattr(files.os, "fsync", counter)
        run(config)
    return counter.calls


@pytest.mark.parametrize(
    ("number", "is_short", "first"),
    [
        pytest.param(errno.ENOSPC, True, 1, id="full"),
        pytest.param(errno.EACCES, False, 3, id="denied"),
        pytest.param(errno.ENOSPC, True, 2, id="full, too", marks=pytest.mark.long),
        pytest.param(errno.EACCES, False, 4, id="denied, too", marks=pytest.mark.long),
    ],
)
def test_each_fourth_write_failing_in_turn_loses_nothing(tmp_path, monkeypatch, number, is_short, first) -> None:
    """Each write of a run fails once in the four, for a full disk or for a refusal."""
    few = {"problems_per_step": 1, "samples_per_problem": 4, "num_steps": 2}  # what matters here are the writes
    short = {"evaluation": EvaluationConfig(num_problems=1, every=1), "sampling": SamplingParams(max_tokens=2)}
    size = {**few, **short}
    expected = tmp_path / "expected"
    total = count_syncs(toy(expected, **size), monkeypatch)
    assert total > 20
    for at in range(first, total + 1, 4):
        run_dir = tmp_path / f"{number}-{at}"
        with monkeypatch.context() as patch:
            patch.setattr(files.os, "fsync", _Failing(at, number, is_short=is_short))
            with pytest.raises(WriteError, match=os.strerror(number)):
                run(toy(run_dir, **size))
        folder = CheckpointFolder(run_dir / "checkpoints")
        for step in folder.steps():
            folder.load(step)  # whole, or not there
        run(toy(run_dir, **size))
        assert_same_run(run_dir, expected)


def test_a_kernel_that_refuses_a_write_ends_the_run_clearly(tmp_path) -> None:
    """A real limit on the size of files: the checkpoint's tensors of 24 kB do not fit."""
    script = (
        "import resource, signal, sys\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (12_000, 12_000))\n"
        "sys.argv = ['recipes/arithmetic.py', *sys.argv[1:]]\n"
        "import runpy; runpy.run_path('recipes/arithmetic.py', run_name='__main__')\n"
    )
    command = [sys.executable, "-c", script, "--preset", "toy", "--run-dir", str(tmp_path / "run")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1, done.stderr
    assert "step-000000 could not be written: File too large" in done.stderr
    assert "Traceback" not in done.stderr
    again = run(toy(tmp_path / "run"))
    assert len(rows(again)) == 4


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_with_its_code_and_the_same_command_goes_on(tmp_path, number, code) -> None:
    run_dir = tmp_path / "run"
    command = [sys.executable, "recipes/arithmetic.py", "--preset", "toy", "--run-dir", str(run_dir)]
    with subprocess.Popen([*command, "--num-steps", "100000"], cwd=ROOT, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if line.startswith("step    3/"):
                process.send_signal(number)
                break
        rest = process.stderr.read()
        assert process.wait(timeout=60) == code
    newest = CheckpointFolder(run_dir / "checkpoints").steps()[-1]
    assert f"Interrupted ({number.name}). {run_dir} is whole: the last checkpoint is of step {newest}" in rest
    assert rest.rstrip().endswith(f"{' '.join(command)} --num-steps 100000")
    assert "Traceback" not in rest
    done = subprocess.run(
        [*command, "--num-steps", str(newest + 2)], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert f"going on from step {newest}" in done.stderr
    assert [row["step"] for row in rows(run_dir)] == list(range(newest + 2))


def test_a_second_signal_ends_at_once() -> None:
    script = (
        "import os, signal, time\n"
        "from rlora.system.interrupts import Interrupted, Interrupts\n"
        "with Interrupts() as interrupts:\n"
        "    with interrupts.held_back():\n"
        "        os.kill(os.getpid(), signal.SIGINT)\n"
        "        print('still writing', flush=True)\n"
        "        os.kill(os.getpid(), signal.SIGINT)\n"
        "        time.sleep(60)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=30)
    assert done.stdout == "still writing\n"
    assert done.returncode == -signal.SIGINT


FAILING_ENGINE = """
import os, sys
sys.path.insert(0, "tests")
from pathlib import Path
from rlora import loop, recipe
from rlora.errors import EngineError
from rlora.sampler.build import build_sampler
from support.engines import Around

class Fails(Around):
    def __init__(self, sampler): self._sampler = sampler
    def load(self, adapters): self._sampler.load(adapters)
    def sample(self, requests, sampling, *, seed):
        marks = Path(sys.argv[-1])
        if requests[0].key[:2] == ("train", 2) and len(list(marks.iterdir())) < {times}:
            (marks / str(os.times().elapsed)).write_text("")
            raise EngineError("the engine died")
        return self._sampler.sample(requests, sampling, seed=seed)

def train(config): loop.run(config, make_sampler=lambda spec: Fails(build_sampler(spec)))
from support.runs import toy
from support.runs import SIZE
recipe.cli = lambda presets, **options: toy(Path(sys.argv[-2]), **SIZE)
recipe.main({{}}, description="", train=train)
"""


@pytest.mark.parametrize("times", [1, 2, 3])
def test_an_engine_that_fails_is_replaced_three_times_at_most(straight, tmp_path, times) -> None:
    marks = tmp_path / "marks"
    marks.mkdir()
    script = tmp_path / "script.py"
    script.write_text(FAILING_ENGINE.format(times=times))
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, str(script), str(tmp_path / "run"), str(marks)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=240)
    assert done.stderr.count("EngineError: the engine died") == times, done.stderr
    if times < 3:
        assert done.returncode == 0, done.stderr
        assert "Starting again from step 2 (failure 1 of 3)" in done.stderr
        assert_same_run(tmp_path / "run", straight)
    else:
        assert done.returncode == 1
        assert "The engine failed 3 times in a row at step 2" in done.stderr
        assert "--branch NEW_DIR@1" in done.stderr


def test_a_run_directory_from_elsewhere_is_data_not_code(straight) -> None:
    """Everything that a resumed run reads is JSON or safetensors: there is nothing in it that could be unpickled."""
    suffixes = {path.suffix for path in straight.rglob("*") if path.is_file() and path.name != LOG_FILE}
    assert suffixes <= {".json", ".jsonl", ".safetensors", ".tokens", ""}
    for path in [*straight.rglob("*.safetensors"), *straight.rglob("*.tokens")]:
        assert load_file(path)
    config = dataclasses.replace(toy(straight, **SIZE))
    assert json.loads((straight / "config.json").read_text())["seed"] == config.seed


def test_oversampling_replaces_groups_without_signal_and_resumes_with_the_curriculum(tmp_path) -> None:
    changes = {
        **SIZE,
        "problems_per_step": 12,
        "samples_per_problem": 16,
        "oversample": 3.0,
        "curriculum": True,
        "num_steps": 4,
    }
    straight = run(toy(tmp_path / "straight", **changes))
    for row in rows(straight):
        num_groups = row["rollout/num_completions"] / 16
        num_mixed = num_groups - row["groups/num_without_signal"]
        assert num_groups == 36 or num_mixed >= 12  # it stops at the limit, or once enough groups have signal
        assert num_mixed < 12 or row["rollout/num_rounds"] > 1 or num_groups == 12
    assert max(row["rollout/num_rounds"] for row in rows(straight)) > 1
    assert sum(row["rollout/num_passed_over"] for row in rows(straight)) > 0  # 36 digits are soon come by again
    stopped(toy(tmp_path / "run", **changes), after=6)
    run(toy(tmp_path / "run", **changes))
    assert_same_run(tmp_path / "run", straight)

    newest = CheckpointFolder(tmp_path / "run" / "checkpoints").folder(4)
    rewritten(newest, lambda state: None, {"solved_P2": torch.zeros(3, 2, dtype=torch.float64)})
    with pytest.raises(CheckpointError, match=r"step 4 .* counts what was solved of 3 problems, and there are \d+\."):
        run(toy(tmp_path / "run", **{**changes, "num_steps": 5}))
