"""Killed, and then with an engine that dies in the middle of a sample, a run with vLLM equals the straight one."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest
from support.policies import ROOT
from support.runs import assert_same_run, rows

from rlora.system.screen import LOG_FILE

pytestmark = pytest.mark.vllm
OPTIONS = {
    "num-steps": 3,
    "problems-per-step": 4,
    "samples-per-problem": 8,
    "sampling.max-tokens": 12,
    "sampler.kv-cache-gb": 0.25,
    "evaluation.every": 2,
    "evaluation.num-problems": 8,
    "evaluation.num-problems-during-training": 4,
}
OURS = (
    "What libraries write goes to ",
    "Loading SmolLM2-135M-Instruct, 4-bit weights dequantised ... ",
    "Compiling kernels, ",
    "Starting vLLM (",
    "SmolLM2-135M-Instruct, 4-bit weights dequantised: rank 1 on all layers",
    "Proving that the sampler serves the policy ... ",
    "step ",
)
DYING_ENGINE = """
import runpy, sys
from pathlib import Path
from rlora.sampler.vllm.engine import VllmSampler

mark, real = Path({mark!r}), VllmSampler.sample

def sample(self, requests, sampling, *, seed):
    if requests[0].key[:2] == ("train", 2) and not mark.exists():
        engine, steps = self._llm.llm_engine, []
        real_step = engine.step
        def step():
            steps.append(1)
            if len(steps) == 5:
                mark.touch()
                raise RuntimeError("the engine core died")
            return real_step()
        engine.step = step
    return real(self, requests, sampling, seed=seed)

VllmSampler.sample = sample
runpy.run_path("recipes/arithmetic.py", run_name="__main__")
"""

OUR_END = (  # of the table, the examples and the commands for what comes next
    "base ", "greedy ", "strict ", "temperature 1 ", "3 steps in ", "trainer against sampler", "What is ", "before ",
    "after ", "Next:", "source ", "rlora eval ", "rlora export ", "rlora check ",
)  # fmt: skip


def start(run_dir: Path, compiled: str, script: str = "recipes/arithmetic.py") -> subprocess.Popen:
    command = [sys.executable, script, "--run-dir", str(run_dir), "--model.compile", compiled]
    for name, value in OPTIONS.items():
        command += [f"--{name}", str(value)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def to_the_end(process: subprocess.Popen) -> str:
    with process:
        assert process.stdout is not None
        said = process.stdout.read()
        assert process.wait(timeout=300) == 0, said
    return said


@pytest.fixture(scope="module", params=["off", pytest.param("auto", marks=pytest.mark.long)])
def compiled(request) -> str:
    """Return whether kernels are compiled, which takes a start half a minute; test_fused.py resumes compiled runs."""
    return request.param


@pytest.fixture(scope="module")
def straight(tmp_path_factory, compiled) -> Path:
    run_dir = tmp_path_factory.mktemp("straight") / "run"
    said = to_the_end(start(run_dir, compiled)).splitlines()
    table = next(index for index, line in enumerate(said) if line.startswith("arithmetic, 8 held-out problems"))
    assert [line for line in said[:table] if not line.startswith(OURS)] == []
    assert [line for line in said[table + 1 :] if line and not line.lstrip().startswith(OUR_END)] == []
    assert said[-1] == f"  rlora check {run_dir}"
    log = (run_dir / LOG_FILE).read_text()
    assert log.count("=== 20") == 1
    assert len(log.splitlines()) > 1  # of the libraries, how many depends on their level of logging
    assert any(row["optimizer/is_empty_batch"] == 0 for row in rows(run_dir))
    return run_dir


def test_killed_and_then_with_an_engine_that_dies_in_the_middle_of_a_sample_it_equals_straight(
    straight, compiled, tmp_path
) -> None:
    run_dir = tmp_path / "run"
    with start(run_dir, compiled) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("step    2/3"):
                process.send_signal(signal.SIGKILL)
                break
        process.stdout.read()
        assert process.wait(timeout=60) == -signal.SIGKILL
    script = tmp_path / "script.py"
    script.write_text(DYING_ENGINE.format(mark=str(tmp_path / "mark")))
    said = to_the_end(start(run_dir, compiled, str(script)))
    assert "going on from step 2" in said or "going on from step 1" in said
    assert "EngineError: vLLM failed while sampling: RuntimeError: the engine core died" in said
    assert f"What the libraries said is in {run_dir / LOG_FILE}; it ends with\n  " in said
    assert "Starting again from step 2 (failure 1 of 3)" in said
    assert (run_dir / LOG_FILE).read_text().count("=== 20") == 3
    assert_same_run(run_dir, straight)
