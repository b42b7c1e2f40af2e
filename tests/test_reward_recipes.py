"""Recipes with rewards of one's own: JSON by a schema, programs by their tests, tasks of reasoning-gym."""

import socket
import sys
from dataclasses import replace

import pytest
from support.policies import ROOT
from support.rollouts import completion

from rlora.errors import ConfigError, DataError, MissingDependencyError
from rlora.recipes import find_recipe
from rlora.rewards import JudgeConfig, judged, open_judge, opened
from rlora.rewards.python_code import code_in
from rlora.rewards.sandbox import run_programs
from rlora.tasks import task
from rlora.types import Problem, Sample
from rlora.verify import Verifier

pytestmark = pytest.mark.unit
ONE = JudgeConfig(num_workers=1)


@pytest.fixture(autouse=True)
def path(monkeypatch) -> None:
    monkeypatch.setattr(sys, "path", [*sys.path])  # a recipe's folder is added to it


def verdicts(reward: str, problem: Problem, *texts: str, config: JudgeConfig = ONE):
    samples = [Sample(problem=problem, completion=replace(completion([1]), text=text)) for text in texts]
    with Verifier() as verifier, opened(open_judge(reward, verifier, config=config)) as judge:
        return judged(judge, samples)


def test_json_earns_by_its_schema() -> None:
    find_recipe(str(ROOT / "recipes" / "json_schema.py"))
    problem = task("json_schema:people").load("train")[0]
    facts = '{"name": "Ada", "city": "Oslo", "age": 27}'
    found = verdicts("json_schema:score", problem, facts, f"```json\n{facts}\n```", facts.replace("27", '"27"'), "Ada")
    assert [verdict.reward for verdict in found] == [1.0, 1.0, 0.2, 0.0]
    assert found[2].reason == "27 was expected"
    assert {each.id for each in task("json_schema:people").load("test")}.isdisjoint({problem.id})


def test_programs_earn_by_their_tests() -> None:
    find_recipe(str(ROOT / "recipes" / "python_code.py"))
    problem = task("python_code:functions").load("train")[0]
    assert problem.question == "Write a Python function f(x) that returns x plus 2."
    right = "def f(x):\n    return x + 2"
    found = verdicts(
        "rlora.rewards.python_code:score",
        problem,
        f"Here:\n```python\n{right}\n```\nIt adds.", right, right.replace("2", "3"), "return x + 2",
        "import os\nos._exit(0)", "raise SystemExit", "def f(x):\n    while True: pass",
    )  # fmt: skip
    assert [verdict.reward for verdict in found] == [1.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0]
    assert found[2].reason == "AssertionError"
    assert found[3].reason.startswith("SyntaxError")
    assert "took more than 2 s" in found[6].reason
    assert code_in("<think>```\nx = 1\n```</think>```py\nx = 2\n```") == "x = 2"


def test_a_program_has_no_network() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        ran = run_programs({"answer": f"import socket\nsocket.create_connection(('127.0.0.1', {port}), 1)"})
        assert (ran.is_done, ran.error) == (False, "PermissionError: [Errno 1] Operation not permitted")
        around = "import ctypes\nlibc = ctypes.CDLL(None)\nassert libc.socket({family}, 1, 0) == -1"
        assert all(run_programs({"answer": around.format(family=family)}).is_done for family in (1, 2, 10, 16))


@pytest.mark.parametrize(
    "bomb",
    [
        "import os\nwhile True:\n    os.fork()",
        "import subprocess\nsubprocess.run(['true'])",
        "import threading\nthreading.Thread(target=print).start()",
        "import os\nos.execv('/bin/true', ['true'])",
        "import os\nos.kill(os.getppid(), 9)",
    ],
)
def test_a_program_starts_and_ends_no_process(bomb) -> None:
    ran = run_programs({"answer": bomb})
    assert not ran.is_done
    assert "not permitted" in ran.error or "can't start new thread" in ran.error


@pytest.mark.parametrize(
    "act",
    [
        "open({file!r}, 'w')", "open({file!r}, 'a')", "open({file!r}, 'r+')", "open('here.txt', 'w')",
        "import os; os.unlink({file!r})", "import os; os.rename({file!r}, {file!r} + '2')",
        "import os; os.chmod({file!r}, 0)", "import os; os.truncate({file!r}, 0)",
        "import os; os.mkdir({file!r} + '2')",
        "import os; os.symlink({file!r}, {file!r} + '2')", "import os; os.utime({file!r})",
    ],
)  # fmt: skip
def test_a_program_changes_no_file(act, tmp_path) -> None:
    file = tmp_path / "kept.txt"
    file.write_text("as it was")
    before = file.stat()
    ran = run_programs({"answer": act.format(file=str(file))})
    assert not ran.is_done
    assert "PermissionError" in ran.error
    assert (file.read_text(), file.stat().st_mode, file.stat().st_mtime) == (
        "as it was", before.st_mode, before.st_mtime,
    )  # fmt: skip
    assert [path.name for path in tmp_path.iterdir()] == ["kept.txt"]


def test_a_program_has_limits_of_memory_and_time_and_an_empty_environment() -> None:
    assert run_programs({"answer": "x = bytearray(2 ** 30)"}).error == "MemoryError"
    assert "took more than 1 s" in run_programs({"answer": "import time; time.sleep(30)"}, seconds=1).error
    assert run_programs({"answer": "import os; assert 'HOME' not in os.environ and 'PATH' not in os.environ"}).is_done
    assert run_programs({"answer": "import math, re, json, collections, itertools, heapq, decimal"}).is_done
    assert "No module named 'numpy'" in run_programs({"answer": "import numpy"}).error


def test_a_gym_task_has_its_own_scorer_and_other_problems_in_its_test() -> None:
    chosen = task("reasoning_gym:chain_sum")
    train, test = chosen.load("train"), chosen.load("test")
    assert (len(train), len(test)) == (1000, 200)
    assert train[7].id == "reasoning_gym/chain_sum/train/seed1-of1000/7"
    shared = {problem.question for problem in train} & {problem.question for problem in test}
    assert len(shared) < 10  # by chance: short sums are few
    problem = train[7]
    right, wrong, none = verdicts(
        chosen.judge, problem, f"So <answer>{problem.answer}</answer>.", "<answer>x</answer>", problem.answer
    )
    assert (right.reward, right.is_correct) == (1.0, True)
    assert wrong.reward < 1
    assert (none.reward, none.reason) == (0.0, "no <answer>")


@pytest.mark.parametrize("name", ["isomorphic_strings", "ransom_note", "basic_arithmetic", "shortest_path"])
def test_the_item_that_is_scored_is_the_one_that_was_asked(name) -> None:
    """Two of these draw by hashes of texts, which differ from process to process."""
    chosen = task(f"reasoning_gym:{name}")
    problem = chosen.load("test")[3]
    (verdict,) = verdicts(chosen.judge, problem, f"<answer>{problem.answer}</answer>")
    assert verdict.reward == 1.0


def test_problems_that_the_gym_does_not_know_are_refused() -> None:
    problem = Problem(id="p/1", question="q", answer="7", source="t")
    config = JudgeConfig(num_workers=1, on_failure="go_on")
    other = replace(problem, id="reasoning_gym/chain_sum/test/seed2-of200/0")
    for each, message in ((problem, "which is none of --data reasoning_gym:NAME"), (other, "finds another question")):
        (verdict,) = verdicts("rlora.rewards.gym:score", each, "<answer>7</answer>", config=config)
        assert message in verdict.reason
    with pytest.raises(
        ConfigError, match="'reasoning_gym:chain_sun' is unknown: reasoning-gym has 106 tasks, as chain"
    ):
        task("reasoning_gym:chain_sun")
    with pytest.raises(DataError, match="cannot make problems of 'composite' from its defaults: AssertionError"):
        task("reasoning_gym:composite").load("test")


def test_a_package_that_is_not_installed_is_named(monkeypatch) -> None:
    class Missing:
        def find_spec(self, name, path=None, target=None):
            if name == "reasoning_gym":
                raise ModuleNotFoundError(f"No module named {name!r}", name=name)

    monkeypatch.delitem(sys.modules, "reasoning_gym", raising=False)
    monkeypatch.setattr(sys, "meta_path", [Missing(), *sys.meta_path])
    with pytest.raises(MissingDependencyError, match=r"not installed: pip install 'rlora\[gym\]'"):
        task("reasoning_gym:chain_sum")
