"""The worker processes: deadlines, memory, order, threads, and their end."""

import asyncio
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest

from rlora.errors import ConfigError
from rlora.types import VerdictKind
from rlora.verify import JudgeRequest, Verifier, VerifierConfig, VerifierError

pytestmark = pytest.mark.unit

SLOW = JudgeRequest(text=r"\boxed{(10^{1200})^2+(\sqrt2)!}", gold="1")  # the gamma function to 5,000 digits
HARD = JudgeRequest(text=r"\boxed{\sqrt{6}}", gold=r"\sqrt2\sqrt3")
EASY = JudgeRequest(text="7", gold="7")


def _children() -> set[int]:
    return {child.pid for child in psutil.Process().children()}


def test_a_deadline_ends_one_answer_and_not_its_neighbours() -> None:
    items = [HARD, SLOW, EASY, HARD, SLOW, HARD, EASY]
    with Verifier(VerifierConfig(num_workers=2, deadline_seconds=0.3)) as verifier:
        start = time.perf_counter()
        kinds = [verdict.kind for verdict in verifier.judge_many(items)]
        seconds = time.perf_counter() - start
        assert verifier.judge_many([HARD])[0].is_correct
    correct, timeout = VerdictKind.CORRECT, VerdictKind.TIMEOUT
    assert kinds == [correct, timeout, correct, correct, timeout, correct, correct]
    assert seconds < 20


def test_a_workers_memory_is_limited() -> None:
    """No answer is known that reaches the limit, since numbers are bounded; so the limit alone is tried."""
    code = "from rlora.verify.workers.worker import limit_memory; limit_memory(256); bytearray(2**29)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert found.returncode == 1
    assert found.stderr.rstrip().endswith("MemoryError")


def test_easy_answers_need_no_worker() -> None:
    before = _children()
    with Verifier() as verifier:
        assert verifier.judge("7", "7").is_correct
        assert verifier.judge(r"\boxed{(x+1)^2}", "x^2+2x+1").is_correct
        assert verifier.judge(r"\boxed{\sqrt{2}}", r"\sqrt{3}").kind is VerdictKind.WRONG
        assert _children() == before


def test_closing_ends_the_workers() -> None:
    before = _children()
    verifier = Verifier()
    assert verifier.judge_many([HARD])[0].is_correct
    assert _children() != before
    verifier.close()
    assert _children() == before
    verifier.close()
    with pytest.raises(VerifierError, match="closed"):
        verifier.judge_many([HARD])


def test_a_forgotten_verifier_leaves_no_worker() -> None:
    before = _children()
    verifier = Verifier()
    assert verifier.judge_many([HARD])[0].is_correct
    del verifier
    assert _children() == before


def test_many_threads_share_the_workers() -> None:
    with Verifier(VerifierConfig(num_workers=2)) as verifier:
        kinds: list[VerdictKind] = []

        def work() -> None:
            kinds.extend(verdict.kind for verdict in verifier.judge_many([HARD, EASY] * 5))

        threads = [threading.Thread(target=work) for _ in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert kinds == [VerdictKind.CORRECT] * 60


def test_async_code_can_call_it() -> None:
    async def main() -> list[bool]:
        with Verifier() as verifier:
            direct = verifier.judge(HARD.text, HARD.gold)
            others = await asyncio.gather(*(asyncio.to_thread(verifier.judge, HARD.text, HARD.gold) for _ in range(4)))
            return [verdict.is_correct for verdict in (direct, *others)]

    assert asyncio.run(main()) == [True] * 5


def test_a_worker_that_died_while_idle_is_replaced() -> None:
    with Verifier(VerifierConfig(num_workers=1)) as verifier:
        before = _children()
        assert verifier.judge_many([HARD])[0].is_correct
        (worker,) = _children() - before
        os.kill(worker, 9)
        time.sleep(0.1)
        assert verifier.judge_many([HARD])[0].is_correct


def test_workers_end_when_their_parent_is_killed(tmp_path: Path) -> None:
    script = tmp_path / "user_script.py"
    script.write_text(
        "import os, time\n"
        "open('runs.txt', 'a').write('run\\n')\n"
        "from rlora.verify import Verifier\n"
        "verifier = Verifier()\n"
        r"assert verifier.judge(r'\boxed{\sqrt6}', r'\sqrt2\sqrt3').is_correct" + "\n"
        "import psutil\n"
        "print(psutil.Process().children()[0].pid, flush=True)\n"
        "time.sleep(60)\n"
    )
    root = str(Path(__file__).resolve().parents[1])
    environment = {**os.environ, "PYTHONPATH": root}
    with subprocess.Popen(
        [sys.executable, str(script)], stdout=subprocess.PIPE, cwd=tmp_path, env=environment, text=True
    ) as parent:
        assert parent.stdout is not None
        worker = int(parent.stdout.readline())
        assert psutil.pid_exists(worker)
        parent.kill()
    end = time.monotonic() + 10
    while psutil.pid_exists(worker) and psutil.Process(worker).status() != "zombie" and time.monotonic() < end:
        time.sleep(0.05)
    assert not psutil.pid_exists(worker) or psutil.Process(worker).status() == "zombie"
    assert (tmp_path / "runs.txt").read_text() == "run\n"  # a worker does not import the user's script


def test_equal_within_the_deadline() -> None:
    with Verifier(VerifierConfig(deadline_seconds=0.3)) as verifier:
        assert verifier.equal(r"\sqrt6", r"\sqrt2\sqrt3")
        assert not verifier.equal("0.33", "1/3")
        assert not verifier.equal(r"(10^{1200})^2+(\sqrt2)!", "1")


@pytest.mark.parametrize("field", [{"num_workers": 0}, {"deadline_seconds": 0.0}, {"memory_mb": 10}])
def test_a_wrong_config_is_refused(field: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match="must be at least"):
        VerifierConfig(**field)  # pyright: ignore[reportArgumentType] - the point of the test


def test_a_stopped_worker_costs_five_deadlines_of_wall_time_and_is_replaced() -> None:
    with Verifier(VerifierConfig(num_workers=1, deadline_seconds=0.4)) as verifier:
        before = _children()
        assert verifier.judge(HARD.text, HARD.gold).is_correct
        (worker,) = _children() - before
        (child,) = psutil.Process(worker).children()
        assert not verifier.judge(SLOW.text, SLOW.gold).is_correct
        assert verifier.judge(HARD.text, HARD.gold).is_correct  # by another child
        (other,) = psutil.Process(worker).children()
        assert other.pid != child.pid
        stopper = threading.Timer(0.1, other.suspend)
        stopper.start()
        start = time.perf_counter()
        assert verifier.judge(SLOW.text, SLOW.gold).kind is VerdictKind.TIMEOUT
        assert 1.9 < time.perf_counter() - start < 8
        stopper.join()
        assert verifier.judge(HARD.text, HARD.gold).is_correct
        assert not psutil.pid_exists(other.pid) or other.status() == psutil.STATUS_ZOMBIE


def test_a_killed_child_is_replaced_by_its_worker() -> None:
    with Verifier(VerifierConfig(num_workers=1)) as verifier:
        before = _children()
        assert verifier.judge(HARD.text, HARD.gold).is_correct
        (worker,) = _children() - before
        psutil.Process(worker).children()[0].kill()
        time.sleep(0.1)
        assert verifier.judge(HARD.text, HARD.gold).is_correct
        assert _children() - before == {worker}


@pytest.mark.parametrize("victim", ["child", "worker"])
def test_a_worker_killed_from_outside_while_it_compares_is_replaced_and_the_answer_judged_again(victim) -> None:
    with Verifier(VerifierConfig(num_workers=1, deadline_seconds=0.5)) as verifier:
        before = _children()
        assert not verifier.judge(SLOW.text, SLOW.gold).is_correct
        assert verifier.judge(HARD.text, HARD.gold).is_correct  # by another child
        (worker,) = _children() - before

        def kill() -> None:
            process = psutil.Process(worker)
            (process.children()[0] if victim == "child" else process).kill()

        killer = threading.Timer(0.2, kill)
        killer.start()
        start = time.perf_counter()
        verdict = verifier.judge(SLOW.text, SLOW.gold)
        killer.join()
        assert verdict.kind is VerdictKind.TIMEOUT
        assert time.perf_counter() - start >= 0.2 + 0.5  # a whole deadline after the kill
        assert verifier.judge(HARD.text, HARD.gold).is_correct
        assert worker not in _children()
