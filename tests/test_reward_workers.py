"""A user's function in worker processes: what it may do, and what is said and left where it does something else."""

import json
import os
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
from support.rollouts import completion

from rlora.errors import ConfigError, RewardError
from rlora.rewards import JudgeConfig, group_reward, judged, open_judge, opened, sees_groups
from rlora.types import Problem, Sample, StopReason, VerdictKind
from rlora.verify import Verifier
from rlora.verify.workers.pool import VerifierError

pytestmark = pytest.mark.unit
WORKER = "rlora.verify.workers.worker"
LIMITS = JudgeConfig(num_workers=2, seconds=0.5, wall_seconds=1.5, memory_mb=1024)
GOING_ON = replace(LIMITS, on_failure="go_on", failed_reward=-0.5)

OWN = """
import ctypes, os, random, signal, subprocess, sys, time
import rlora

calls = []

def score(text, problem):
    calls.append(text)
    return len(text) / 10, f"{problem.id}: {len(text)}"

def lottery(text, problem):
    return random.random() + hash(text) % 1000

def hang(text, problem):
    while text == "bad":
        pass
    return 1.0

def sleep(text, problem):
    if text == "bad":
        time.sleep(60)
    return 1.0

def sleep_away(text, problem):
    if text == "bad":
        if os.fork() == 0:
            os.setsid()
            time.sleep(600)
        time.sleep(60)
    return 1.0

def refuse(text, problem):
    raise ValueError("odd " + text) if text == "bad" else KeyError

def leave(text, problem):
    if text == "bad":
        os._exit(3)
    return 1.0

def leave_well(text, problem):
    if text == "bad":
        sys.exit(0)
    return 1.0

def crash(text, problem):
    if text == "bad":
        os.kill(os.getpid(), signal.SIGSEGV)
    return 1.0

def eat(text, problem):
    if text == "bad":
        return float(len(bytearray(2**31)))
    return 1.0

def not_a_number(text, problem):
    return float("nan") if text == "bad" else 1.0

def words(text, problem):
    return "1.0" if text == "bad" else 1.0

def nothing(text, problem):
    return None if text == "bad" else 1.0

def daemon(text, problem):
    if text == "bad":
        if os.fork() == 0:
            os.setsid()
            if os.fork() == 0:
                time.sleep(600)
            os._exit(0)
        os.wait()
    return 1.0

def twins(text, problem):
    if text == "bad":
        os.fork()
    return 1.0

def careful(text, problem):
    return float(subprocess.run([sys.executable, "-c", "print(2)"], capture_output=True, check=True).stdout)

def chatty(text, problem):
    print("seen", text)
    return 1.0

def asks(text, problem):
    return float(len(sys.stdin.read()))

@rlora.group_reward
def longest(completions, problem):
    best = max(map(len, completions))
    return [(float(len(each) == best), f"{len(completions)} of {problem.id}") for each in completions]

@rlora.group_reward
def too_few(completions, problem):
    return [1.0]

def broken_here(text):
    return 1.0

fixed = 3
"""


def sample(text: str, *, name: str = "p/1", stop: StopReason = StopReason.END) -> Sample:
    problem = Problem(id=name, question="q", answer="7", source="t")
    return Sample(problem=problem, completion=replace(completion([1], stop=stop), text=text))


@pytest.fixture(autouse=True)
def own(tmp_path, monkeypatch) -> Iterator[Path]:
    (tmp_path / "own_workers.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path / "own_workers.py"
    sys.modules.pop("own_workers", None)


def verdicts(name: str, *texts: str, config: JudgeConfig = LIMITS):
    with Verifier() as verifier, opened(open_judge(f"own_workers:{name}", verifier, config=config)) as judge:
        return judged(judge, [sample(text) for text in texts])


def below(pid: int) -> set[int]:
    return {process.pid for process in psutil.Process(pid).children(recursive=True)}


def test_rewards_come_in_order_and_not_from_this_process() -> None:
    texts = ["x" * (number % 13) for number in range(100)]
    found = verdicts("score", *texts)
    assert [verdict.reward for verdict in found] == [len(text) / 10 for text in texts]
    assert [verdict.reason for verdict in found[:3]] == ["p/1: 0", "p/1: 1", "p/1: 2"]
    assert found[12].kind is VerdictKind.CORRECT
    assert sys.modules["own_workers"].calls == []  # pyright: ignore[reportAttributeAccessIssue]


def test_what_a_function_draws_and_hashes_is_the_same_each_time() -> None:
    texts = ["a", "b", "c", "d"] * 3
    first = [verdict.reward for verdict in verdicts("lottery", *texts)]
    again = [verdict.reward for verdict in verdicts("lottery", *reversed(texts), config=replace(LIMITS, num_workers=1))]
    assert first == again[::-1]
    assert len(set(first)) == 4


FAILURES = [
    ("hang", r"took more than 0\.5 s of CPU time \(--judge\.seconds\)", VerdictKind.TIMEOUT),
    ("sleep", r"was not done after 1\.5 s \(--judge\.wall-seconds\)", VerdictKind.TIMEOUT),
    ("eat", r"took more than 1024 MiB \(--judge\.memory-mb\)", VerdictKind.TIMEOUT),
    ("refuse", "raised ValueError: odd bad", VerdictKind.WRONG),
    ("leave", "did not return: it ended its process with code 3", VerdictKind.WRONG),
    ("leave_well", "raised SystemExit: 0", VerdictKind.WRONG),
    ("crash", "did not return: its process was ended by SIGSEGV", VerdictKind.WRONG),
    ("not_a_number", "returned nan", VerdictKind.WRONG),
    ("words", "returned '1.0'", VerdictKind.WRONG),
    ("nothing", "returned None", VerdictKind.WRONG),
    ("daemon", "left a process behind, which was ended", VerdictKind.WRONG),
    ("twins", "left a process behind, which was ended", VerdictKind.WRONG),
]


@pytest.mark.parametrize(("name", "what", "kind"), FAILURES, ids=[name for name, *_ in FAILURES])
def test_a_failure_is_named_with_the_completion_or_earns_what_is_stated(name, what, kind) -> None:
    before = below(os.getpid())
    with pytest.raises(RewardError, match=f"own_workers:{name} {what}.* the completion 'bad' of p/1|of p/1.*{what}"):
        verdicts(name, "bad")
    good = "good" if name != "refuse" else "bad"
    found = verdicts(name, good, "bad", good, config=GOING_ON)
    assert [verdict.reward for verdict in found] == [
        1.0 if good == "good" else -0.5,
        -0.5,
        1.0 if good == "good" else -0.5,
    ]
    assert found[1].kind is kind
    assert found[1].reason.startswith(f"judging raised an error: own_workers:{name} ")
    assert below(os.getpid()) == before


def test_of_several_failures_the_first_completion_is_named() -> None:
    texts = [f"good {number}" for number in range(20)]
    for place in (3, 4, 11):
        texts[place] = "bad"
    samples = [sample(text, name=f"p/{number}") for number, text in enumerate(texts)]
    with Verifier() as verifier, opened(open_judge("own_workers:not_a_number", verifier, config=LIMITS)) as judge:
        for _ in range(3):
            with pytest.raises(RewardError, match="on the completion 'bad' of p/3"):
                judge.judge(samples)


def test_an_exception_shows_where_it_was_raised() -> None:
    with pytest.raises(RewardError) as raised:
        verdicts("refuse", "bad")
    (note,) = raised.value.__notes__
    assert 'own_workers.py", line' in note
    assert "call.py" not in note


def test_a_process_that_left_its_session_is_ended_with_the_deadline() -> None:
    (verdict,) = verdicts("sleep_away", "bad", config=GOING_ON)
    assert verdict.kind is VerdictKind.TIMEOUT
    found = psutil.process_iter(["status", "cmdline"])
    workers = [each for each in found if {str(os.getpid()), WORKER} <= {*(each.info["cmdline"] or [])}]
    assert [each for each in workers if each.info["status"] != psutil.STATUS_ZOMBIE] == []


def test_a_function_may_start_a_process_that_it_waits_for() -> None:
    assert [verdict.reward for verdict in verdicts("careful", "a", config=replace(LIMITS, wall_seconds=20))] == [2.0]


def test_what_a_function_prints_is_shown_and_its_input_is_empty(capfd) -> None:
    assert [verdict.reward for verdict in verdicts("chatty", "one", "two")] == [1.0, 1.0]
    assert {"seen one", "seen two"} <= set(capfd.readouterr().err.splitlines())
    assert verdicts("asks", "one")[0].reward == 0.0


def test_a_reward_of_the_group_sees_all_completions_of_a_problem() -> None:
    samples = [sample(text, name=name) for text, name in (("a", "p"), ("bb", "p"), ("c", "q"), ("d", "p"))]
    with Verifier() as verifier, opened(open_judge("own_workers:longest", verifier, config=LIMITS)) as judge:
        assert sees_groups(judge)
        found = judged(judge, samples)
        assert [(verdict.reward, verdict.reason) for verdict in found] == [
            (0.0, "3 of p"), (1.0, "3 of p"), (1.0, "1 of q"), (0.0, "3 of p"),
        ]  # fmt: skip
        assert judged(judge, samples[:1])[0].reward == 1.0
    with pytest.raises(RewardError, match=r"returned 1 rewards for 2 completions on 2 completions, of which the first"):
        verdicts("too_few", "a", "b")
    assert [verdict.reward for verdict in verdicts("too_few", "a", "b", config=GOING_ON)] == [-0.5, -0.5]


def test_a_marked_function_is_itself() -> None:
    def mine(completions, problem):
        return [0.0] * len(completions)

    assert group_reward(mine) is mine


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("own_workers:broken_here", r"broken_here\(text\) cannot be called with \(completion, problem\)"),
        ("own_workers:fixed", "is 3; it must be a function"),
        ("own_workers:none", "has no 'none'"),
        ("own_nowhere:score", "there is no module 'own_nowhere'"),
    ],
)
def test_what_cannot_be_called_is_refused_before_a_worker_starts(name, message) -> None:
    before = below(os.getpid())
    with Verifier() as verifier, pytest.raises(ConfigError, match=message):
        open_judge(name, verifier)
    assert below(os.getpid()) == before


def test_a_module_that_a_worker_cannot_import_is_said_with_its_error(own) -> None:
    own.write_text(
        f"import os\nif os.getpid() != {os.getpid()}:\n    raise OSError('not here')\ndef score(t, p): ...\n"
    )
    with pytest.raises(VerifierError, match=r"own_workers:score's worker did not start(.|\n)*OSError: not here"):
        verdicts("score", "a")


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (JudgeConfig(num_workers=0), "judge.num_workers is 0; it must be at least 1"),
        (JudgeConfig(seconds=float("inf")), "judge.seconds is inf; it must be at least 0.01, and finite"),
        (JudgeConfig(failed_reward=float("nan")), "judge.failed_reward is nan; it must be from -1e"),
        (JudgeConfig(min_reward=1.0, max_reward=1.0), "judge.min_reward is 1.0; it must be below max_reward"),
    ],
)
def test_a_limit_that_is_none_is_refused(config, message) -> None:
    with pytest.raises(ConfigError, match=message.replace("+", r"\+")):
        config.check()


def test_the_reply_is_plain_json() -> None:
    assert json.dumps(verdicts("score", "a")[0].reward) == "0.1"
