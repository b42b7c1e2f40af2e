"""The check of a GPU: rehearsed stages and what they find, and what is said of stages that fail, hang or do not fit."""

import ast
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
import torch
from gpu_check import STAGES
from gpu_stages.card import ballast_bytes, of_card, smaller_card
from gpu_stages.engines import engine_tests
from gpu_stages.exactness import INVARIANT
from gpu_stages.pytest_runs import ENGINE_TESTS, outcomes, run_pytest
from gpu_stages.runs import _differences
from gpu_stages.setting import planned_gib
from gpu_stages.stage import GIB, CheckError, Clock, Context
from support import liars
from support.policies import ROOT

from rlora.system.exactness import VARIABLES
from rlora.train.memory_plan import MemoryPlan

TOOL = ROOT / "tools" / "gpu_check.py"
MADE_UP = f"""
import os, signal, subprocess, sys, time
sys.path.insert(0, {str(ROOT / "tools")!r})
from gpu_stages.runner import main
from gpu_stages.stage import Stage

ORPHAN = "sleep 600 >/dev/null 2>&1 & echo $!"

def passes(context):
    orphan = subprocess.run(["sh", "-c", ORPHAN], capture_output=True, text=True, start_new_session=True)
    context.say(pid=int(orphan.stdout), variable=os.environ["VARIABLE"], headline="a figure")

def raises(context):
    raise ValueError("what went wrong")

def dies(context):
    os.kill(os.getpid(), signal.SIGKILL)

def hangs(context):
    context.say(pid=subprocess.Popen(["sleep", "600"], start_new_session=True).pid)
    time.sleep(600)

def stage(run, *, limit_s=30, least_s=1):
    return Stage(run=run, limit_s=limit_s, least_s=least_s, why="made up", environment={{"VARIABLE": "set"}})

if __name__ == "__main__":
    main({{
        "raises": stage(raises), "hangs": stage(hangs, limit_s=2), "dies": stage(dies),
        "too-long": stage(passes, least_s=10_000), "passes": stage(passes), "hangs-long": stage(hangs, limit_s=500),
    }}, "Made up.")
"""


@pytest.fixture
def script(tmp_path) -> Path:
    path = tmp_path / "made_up.py"
    path.write_text(MADE_UP)
    return path


def command(script: Path, out: Path, *options: str) -> list[str]:
    return [sys.executable, str(script), "--tiny", "--out", str(out), *options]


def records(out: Path, stage: str | None = None) -> list[dict]:
    lines = [json.loads(line) for line in (out / "gpu.jsonl").read_text().splitlines()]
    return [line for line in lines if stage in (None, line["stage"])]


def values(out: Path, stage: str, key: str) -> list:
    return [record[key] for record in records(out, stage) if key in record]


def is_running(pid: int) -> bool:
    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE


@pytest.mark.unit
def test_stages_that_fail_hang_die_or_do_not_fit_are_reported_and_leave_nothing_behind(script, tmp_path) -> None:
    stages = "raises,hangs,dies,too-long,passes"
    done = subprocess.run(command(script, tmp_path, "--only", stages), capture_output=True, text=True, timeout=100)
    assert done.returncode == 1, done.stderr
    table = {line.split()[0]: line for line in done.stdout.partition("seconds  result")[2].splitlines() if line.strip()}
    assert "failed (1)" in table["raises"]
    assert "ValueError: what went wrong" in done.stdout
    assert "over 2 s, killed" in table["hangs"]
    assert "failed (-9)" in table["dies"]
    assert "it needs 10000" in table["too-long"]
    assert table["passes"].split()[2:] == ["ok", "a", "figure"]
    assert values(tmp_path, "raises", "error") == ["ValueError: what went wrong"]
    ended = {record["stage"]: record["ended"] for record in records(tmp_path) if "ended" in record}
    assert list(ended) == stages.split(",")
    assert ended["too-long"].startswith("skipped: 3")
    assert values(tmp_path, "passes", "variable") == ["set"]
    assert 2 <= values(tmp_path, "hangs", "wall_s")[0] < 10
    for stage in ("hangs", "passes"):  # one in a session of its own, and one whose parent has gone
        (pid,) = values(tmp_path, stage, "pid")
        assert not is_running(pid)


@pytest.mark.unit
def test_what_is_skipped_does_not_fail_the_check_and_what_is_unknown_is_refused(script, tmp_path) -> None:
    assert subprocess.run(command(script, tmp_path, "--only", "too-long,passes"), timeout=60).returncode == 0
    done = subprocess.run(
        command(script, tmp_path, "--only", "passes,what"), capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 2
    assert "--only names what; the stages are raises, hangs," in done.stderr


@pytest.mark.unit
def test_a_check_that_is_ended_takes_its_stage_with_it(script, tmp_path) -> None:
    with subprocess.Popen(command(script, tmp_path, "--only", "hangs-long"), stdout=subprocess.DEVNULL) as process:
        while not (tmp_path / "gpu.jsonl").is_file():
            time.sleep(0.02)
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=30) == 128 + signal.SIGTERM
    (pid,) = values(tmp_path, "hangs-long", "pid")
    assert not is_running(pid)


@pytest.mark.unit
def test_a_smaller_card_has_what_the_ballast_leaves_and_says_so() -> None:
    total = int(79.2 * GIB)
    assert ballast_bytes(total, 23.5) == total - int(23.5 * GIB)
    assert ballast_bytes(total, 100) == 0
    told = of_card(lambda device=None: (5 * GIB, total), 23.5)
    assert told(device=0) == (5 * GIB, int(23.5 * GIB))
    assert of_card(lambda: (GIB, 2 * GIB), 23.5)() == (GIB, 2 * GIB)


@pytest.mark.unit
def test_the_ballast_is_held_and_the_total_told_for_as_long_as_the_block(monkeypatch) -> None:
    held, total = [], 80 * GIB

    def empty(size: int, *, dtype: torch.dtype, device: str) -> SimpleNamespace:
        held.append((size, dtype, device))
        return SimpleNamespace(numel=lambda: size)

    def told() -> list[tuple[int, int]]:
        return [torch.cuda.mem_get_info(), torch.accelerator.get_memory_info()]

    monkeypatch.setattr(torch, "empty", empty)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for module, name in ((torch.cuda, "mem_get_info"), (torch.accelerator, "get_memory_info")):
        monkeypatch.setattr(module, name, lambda: (total - sum(size for size, *_ in held) - GIB, total))
    with smaller_card(24) as ballast:
        assert held == [(56 * GIB, torch.uint8, "cuda")]
        assert ballast == 56 * GIB
        assert told() == [(23 * GIB, 24 * GIB)] * 2
    assert told() == [(23 * GIB, 80 * GIB)] * 2
    with smaller_card(None) as ballast:
        assert (ballast, len(held)) == (0, 1)


@pytest.mark.unit
def test_a_line_that_a_kill_cut_short_is_left_out_and_old_runs_do_not_count(tmp_path) -> None:
    context(tmp_path).say(value=1)
    with (tmp_path / "gpu.jsonl").open("a") as file:
        file.write('{"stage": "made-up", "val\n')
    context(tmp_path).say(value=2)
    assert [record["value"] for record in context(tmp_path).records("made-up")] == [1, 2]
    (tmp_path / "run-straight").mkdir()
    assert not context(tmp_path).run_dir("straight").exists()


@pytest.mark.unit
def test_peaks_are_of_their_phase_the_greatest_and_without_the_ballast(monkeypatch) -> None:
    peaks = iter([5, 9, 4, 7])
    for name, value in (("is_available", lambda: True), ("synchronize", lambda: None)):
        monkeypatch.setattr(torch.cuda, name, value)
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda: None)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda: next(peaks) * GIB)
    clock = Clock(ballast=3 * GIB)
    for phase in ("swap", "train", "swap", ""):
        clock.begin(phase)
    with clock.timed("start"):
        pass
    assert clock.peak_gib == {"swap": 2.0, "train": 6.0, "start": 4.0}
    assert list(clock.seconds) == ["start"]


@pytest.mark.unit
def test_every_test_of_a_gpu_is_in_one_stage() -> None:
    """`unit` leaves out what `engine-tests` chooses by words in names: those must be the tests that need vLLM."""
    tree = ast.parse((ROOT / "tests" / "test_gpu.py").read_text())
    tests = [node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")]
    of_engine = {node.name for node in tests if any(ast.unparse(mark) == "needs_vllm" for mark in node.decorator_list)}
    assert len(of_engine) == 4
    assert {node.name for node in tests if any(word in node.name for word in ENGINE_TESTS)} == of_engine


@pytest.mark.unit
def test_the_page_has_every_stage_with_its_limits_in_order() -> None:
    rows = re.findall(r"^\| ([\w.-]+) \| (\d+) \| (\d+) \|", (ROOT / "docs" / "gpu-check.md").read_text(), re.MULTILINE)
    stages = [(name, stage.limit_s, stage.least_s) for name, stage in STAGES.items()]
    assert [(name, int(limit), int(least)) for name, limit, least in rows] == stages


@pytest.mark.unit
def test_counts_are_read_from_pytests_last_line() -> None:
    printed = "..s\n1.2s call tests/x.py::test_3 passed\n==== 1 failed, 21 passed, 2 skipped in 4.81s ====\n"
    assert outcomes(printed) == {"failed": 1, "passed": 21, "skipped": 2}
    assert outcomes("3 deselected in 0.50s") == {"deselected": 3}
    assert outcomes("2 passed, but in no summary\n") == {}


@pytest.mark.unit
def test_a_plan_of_memory_is_told_where_there_is_one() -> None:
    assert planned_gib(SimpleNamespace(plan=None)) is None
    plan = MemoryPlan(
        total=24 * GIB,
        taken=4 * GIB,
        engine_weights=3 * GIB,
        reserved=GIB,
        batches=5 * GIB,
        cache=6 * GIB,
        is_shared=False,
        tokens=1000,
        row_tokens=2000,
        recompute_above=None,
        cache_tokens=50_000,
        num_sequences=64,
    )
    told = planned_gib(SimpleNamespace(plan=plan))
    assert told == {
        "total": 24, "taken": 4, "engine_weights": 3, "reserved": 1, "batches": 5, "cache": 6, "peak": 18
    }  # fmt: skip


@pytest.mark.unit
def test_exact_stages_set_what_an_exact_run_sets() -> None:
    assert INVARIANT == VARIABLES


@pytest.mark.unit
def test_runs_that_differ_are_told_apart(tmp_path) -> None:
    runs = [tmp_path / "a", tmp_path / "b"]
    for run in runs:
        for name in ("rollouts/step-000000.jsonl", "adapter/x", "checkpoints/step-1/tensors.safetensors"):
            (run / name).parent.mkdir(parents=True)
            (run / name).write_text("same")
        (run / "metrics.jsonl").write_text('{"step": 0, "loss/value": 1.0, "seconds/step": 1.0}\n')
    assert list(_differences(*runs)) == []
    (runs[1] / "metrics.jsonl").write_text('{"step": 0, "loss/value": 1.5, "seconds/step": 2.0}\n')
    (runs[1] / "adapter" / "x").write_text("other")
    assert list(_differences(*runs)) == ["step 0: loss/value", "adapter/x"]
    (runs[1] / "metrics.jsonl").write_text("")
    assert next(_differences(*runs)) == "number of steps"


def context(tmp_path: Path) -> Context:
    return Context(stage="made-up", limit_s=60, out=tmp_path, models=tmp_path / "models", is_tiny=True)


@pytest.mark.loop
def test_a_lie_that_is_not_caught_fails_the_stage(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(liars, "ServesBase", lambda sampler: sampler)
    with pytest.raises(CheckError, match="not caught: a sampler that ignores adapters"):
        engine_tests(context(tmp_path))
    (refusals,) = values(tmp_path, "made-up", "lies_refused")
    assert refusals["ignores adapters"] is None
    assert "does not serve what it is given" in refusals["serves the previous"]


@pytest.mark.unit
def test_tests_that_fail_or_are_none_fail_the_stage(tmp_path) -> None:
    test = tmp_path / "test_made_up.py"
    test.write_text("def test_a(): pass\ndef test_b(): assert False\n")
    with pytest.raises(CheckError, match="pytest ended with 1, and 1 tests passed"):
        run_pytest(context(tmp_path), [str(test)])
    with pytest.raises(CheckError, match="pytest ended with 5, and 0 tests passed"):
        run_pytest(context(tmp_path), [str(test), "-k", "nothing"])
    run_pytest(context(tmp_path), [str(test), "-k", "test_a"])
    assert values(tmp_path, "made-up", "pytest")[-1] == {"passed": 1, "deselected": 1}


def rehearse(out: Path, *options: str) -> None:
    done = subprocess.run(
        command(TOOL, out, *options), cwd=out, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": ""}
    )
    assert done.returncode == 0, done.stdout + done.stderr


def assert_iterated(out: Path, stage: str, *, steps: int, card_gib: float | None = None) -> None:
    """Iterations trained, on what was sampled, and the proof told the new version from the others."""
    made = [record for record in records(out, stage) if "step" in record]
    assert [record["step"] for record in made] == list(range(steps))
    for record in made:
        assert record["completions"] == 16
        assert record["positions"] > 16 * 8
        assert 0 < record["swap_share"] < 1
        assert sum(record["seconds"].values()) == pytest.approx(record["iteration_s"], rel=0.1)
        assert 0 <= record["k3"] < 1e-9
        assert record["proof"]["canary_is_decided_previous"] == 1
        assert record["proof"]["canary_served_fraction_previous"] == pytest.approx(1, abs=1e-3)
        assert (record["simulated_card_gib"], record["ballast_bytes"]) == (card_gib, 0)
    assert len({record["fingerprint"]["policy"] for record in made}) == steps


def assert_same_bits(out: Path, stage: str) -> None:
    (bits,) = values(out, stage, "bits")
    shares = [bits[name] for name in ("cold_and_warm", "warm_and_warm", "beside_others")]
    assert shares == [{"tokens": 1.0, "logprobs": 1.0}] * 3
    assert bits["gradients_the_same"] is True


@pytest.mark.loop
def test_three_stages_rehearsed(tmp_path) -> None:
    rehearse(tmp_path, "--only", "environment,iterate-1.7b,exact")
    assert [values(tmp_path, stage, "ended") for stage in ("environment", "iterate-1.7b", "exact")] == [["ok"]] * 3
    assert values(tmp_path, "environment", "rlora") == [str(ROOT / "rlora")]
    assert_iterated(tmp_path, "iterate-1.7b", steps=2)
    assert_same_bits(tmp_path, "iterate-1.7b")
    assert_same_bits(tmp_path, "exact")
    assert values(tmp_path, "exact", "batch_invariant") == ["1"]
    assert values(tmp_path, "iterate-1.7b", "profile") == ["device", "host"]
    assert not list(tmp_path.glob("rlora-models-*"))


@pytest.mark.long
def test_every_stage_rehearsed(tmp_path) -> None:
    rehearse(tmp_path)
    ended = {record["stage"]: record["ended"] for record in records(tmp_path) if "ended" in record}
    assert list(ended) == list(STAGES)
    assert set(ended.values()) == {"ok"}
    for stage, steps in {"iterate-1.7b": 2, "iterate-1.7b-compiled": 2, "iterate-8b-8k": 1, "full": 2}.items():
        assert_iterated(tmp_path, stage, steps=steps)
    for stage, card_gib in {"small-card-24gb": 23.5, "small-card-48gb": 44.4}.items():
        assert_iterated(tmp_path, stage, steps=1, card_gib=card_gib)
    assert_iterated(tmp_path, "shared-8b-24gb", steps=2, card_gib=23.5)
    assert values(tmp_path, "iterate-1.7b-compiled", "same_as_iterate")[0]["tokens"] is True
    assert max(values(tmp_path, "long", "max_difference")) < 1e-5
    assert [record["positions"] for record in records(tmp_path, "long") if "pass_s" in record] == [64, 128] * 2
    (resumed,) = [record for record in records(tmp_path, "resume") if "updates" in record]
    assert (resumed["steps"], resumed["updates"], resumed["different"]) == (4, 4, [])
    assert 2 <= resumed["killed_after_steps"] < 4
    assert values(tmp_path, "unit", "pytest")[0]["passed"] > 15
    assert values(tmp_path, "engine-tests", "pytest")[0]["passed"] == 5
    assert values(tmp_path, "engine-tests", "honest_refused") == [None]
    assert all("does not serve" in refusal for refusal in values(tmp_path, "engine-tests", "lies_refused")[0].values())
    assert values(tmp_path, "gsm8k", "steps") == [2]
    assert values(tmp_path, "cohort", "equal_alone") == [[{"tokens": 1.0, "logprobs": 1.0}] * 3]
