"""Judges: mathematics with its strict measure, a user's function, and what is refused."""

import json
import os
import re
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from support.rollouts import completion, group, sample

from rlora.errors import ConfigError, RewardError
from rlora.rewards import (
    JUDGES,
    AnswerJudge,
    as_judge,
    check_judge,
    doubts_of,
    explain,
    judged,
    measures_of,
    open_judge,
)
from rlora.rewards.function import FunctionJudge
from rlora.rewards.mathematics import Mathematics
from rlora.rollout import rollout_metrics
from rlora.types import Problem, Verdict, VerdictKind
from rlora.verify import JudgeRequest, Verifier

pytestmark = pytest.mark.unit
DATA_DIR = Path(os.environ.get("RLORA_DATA", Path(__file__).resolve().parents[1] / ".." / "shared" / "data"))

TEXTS = (
    "7", "The answer is 7.", "So it is \\boxed{7}.", "#### 7", "There are 7 of them, which is all.", "x = 7",
    "3 + 4 = 7", "Hence 2x + 3 = 7", "Thus $b - a = 7$.", "We get 3 + 4 = 7 apples.",
    "The answer is clearly a lot: 7 apples or so",
    "The answer is 3 + 4 = 7", "The answer is that 3 + 4 makes 7", "The answer is between 3 and 7", "7 or 8", "7, 8",
    "\\boxed{3 + 4 = 7}", "<answer>3 + 4 = 7</answer>", "$3 + 4 = 7$", "$7$", "3 + 4", "seven", "", "7?", "not 7",
    "That makes\n\n7 in all.", "Total: 3 + 4 = 7 \\Rightarrow x = 7", "**7**", "The answer is \\frac{14}{2}",
    "a + 3 = 7", "so y = 3x + 7", "The answer is y = 3x + 7 = 7", "2 cos(x) = 7", "The answer is x^2 + 4 = 7",
    "First 3, then 4, and together 7", "The sum of 3 and 4 is 7, so the answer is that there are 7 apples",
)  # fmt: skip


@pytest.fixture(scope="module")
def verifier() -> Iterator[Verifier]:
    with Verifier() as made:
        yield made


def assert_strict_as_judged_alone(verifier: Verifier, requests: list[JudgeRequest]) -> tuple[int, int]:
    """Return how many verdicts the two rules part on; each strict one is what the strict rule alone says."""
    verdicts = verifier.judge_many(requests, with_strict=True)
    plain = verifier.judge_many(requests)
    alone = verifier.judge_many([replace(request, last_number=False) for request in requests])
    for request, verdict, same, strict in zip(requests, verdicts, plain, alone, strict=True):
        found = verdict.measures["strict"]
        assert (found.kind, found.extracted, found.reward) == (strict.kind, strict.extracted, strict.reward), request
        assert (verdict.kind, verdict.extracted, verdict.reward) == (same.kind, same.extracted, same.reward), request
    num_apart = sum(verdict.kind is not verdict.measures["strict"].kind for verdict in verdicts)
    return num_apart, sum(verdict.is_correct and not verdict.measures["strict"].is_correct for verdict in verdicts)


def test_the_strict_measure_is_what_the_strict_rule_alone_says(verifier) -> None:
    requests = [
        JudgeRequest(
            text=text, gold=gold, question=question, is_truncated=is_cut, last_number=lenient, is_number=worked
        )
        for text in TEXTS
        for gold in ("7", "3x + 7", "x = 7", "3 + 4 = 7")
        for question in ("", "What is 3 + 4?")
        for is_cut in (False, True)
        for lenient in (False, True)
        for worked in (False, True)
    ]
    num_apart, num_lenient = assert_strict_as_judged_alone(verifier, requests)
    assert num_apart > num_lenient > 50  # the texts are of use: strict is worse on many, and another kind of wrong


@pytest.mark.data
@pytest.mark.parametrize(
    ("name", "field", "mark"), [("gsm8k/test.jsonl", "answer", r"#### "), ("math/test.jsonl", "solution", r"\\boxed")]
)
def test_the_strict_measure_is_what_the_strict_rule_alone_says_on_real_solutions(verifier, name, field, mark) -> None:
    """Solutions as they are and without their marks, whole and cut short: there the last number decides."""
    path = DATA_DIR / name
    if not path.exists():
        pytest.skip(f"{path} is not there; set RLORA_DATA")
    with path.open(encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines][:400]
    requests = []
    for row in rows:
        solution, gold = row[field], row["answer"]
        bare = re.sub(mark, "", solution).strip()
        last = bare.rpartition("\n")[0] or bare
        for text in (solution, bare, last, f"The answer is that {last}", f"{last} = {gold.rpartition('#### ')[2]}"):
            question = row.get("question", row.get("problem", ""))
            requests.append(JudgeRequest(text=text, gold=gold, question=question, last_number=True))
    num_apart, num_lenient = assert_strict_as_judged_alone(verifier, requests)
    assert num_apart > 100
    assert num_lenient > 20


def test_mathematics_is_a_judge_whose_rules_a_task_names(verifier) -> None:
    number, marked = open_judge("number", verifier), open_judge("mathematics", verifier)
    assert isinstance(number, AnswerJudge)
    assert (measures_of(number), measures_of(marked)) == ({"strict": True}, {"strict": False})
    said = sample("There are 7 of them, which is all.")
    (lenient,), (strict,) = judged(number, [said]), judged(marked, [said])
    assert (lenient.kind, lenient.reward, lenient.measures["strict"].reward) == (VerdictKind.CORRECT, 1.0, 0.0)
    assert (strict.kind, strict.reward) == (VerdictKind.NO_ANSWER, 0.0)
    (copied,), (worked,) = judged(number, [sample("3 + 4")]), judged(Mathematics(verifier), [sample("\\boxed{3 + 4}")])
    assert (copied.kind, worked.kind) == (VerdictKind.NOT_WORKED_OUT, VerdictKind.NOT_WORKED_OUT)
    assert judged(number, [sample("7", is_cut=True)])[0].kind is VerdictKind.TRUNCATED
    assert "verdict     CORRECT" in "\n".join(explain(number, sample("7")))


def test_a_functions_reward_reason_and_kind() -> None:
    def score(text: str, problem: Problem) -> object:
        return {"7": 1, "near": (0.5, "nearly"), "true": True, "minus": -2.5}[text] if problem.answer == "7" else None

    judge = FunctionJudge(score, name="my:score")
    texts = ["7", "near", "true", "minus"]
    verdicts = judged(judge, [sample(text) for text in texts])
    assert [verdict.reward for verdict in verdicts] == [1.0, 0.5, 1.0, -2.5]
    assert [verdict.reason for verdict in verdicts] == ["", "nearly", "", ""]
    assert [verdict.kind.value for verdict in verdicts] == ["correct", "wrong", "correct", "wrong"]
    assert judged(judge, [sample("near", is_cut=True)])[0].kind is VerdictKind.TRUNCATED
    assert measures_of(judge) == {}
    assert list(explain(judge, sample("near"))) == [
        "verdict     WRONG", "reward      0.5", "reason      nearly"
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("1.0", "returned '1.0' on the completion 'so: 7' of p/1; it must return a number"),
        (None, "returned None on the completion 'so: 7' of p/1; it must return a number"),
        ((1.0, 2.0), r"returned \(1\.0, 2\.0\) .* a number and a text as its reason"),
        ((1.0, "a", "b"), "it must return a number"),
        (float("nan"), "my:score returned nan on the completion 'so: 7' of p/1; a reward must be finite"),
        ((float("-inf"), "far"), "a reward must be finite"),
    ],
)
def test_what_is_no_reward_is_refused_with_function_and_completion(value, message) -> None:
    with pytest.raises(RewardError, match=message):
        FunctionJudge(lambda _text, _problem: value, name="my:score").judge([sample("so: 7")])


def test_an_exception_of_a_function_is_raised_as_what_it_is() -> None:
    with pytest.raises(ZeroDivisionError) as raised:
        FunctionJudge(lambda text, _: 1 / len(text), name="my:score").judge([sample("")])
    assert raised.value.__notes__ == ["raised by the reward function my:score on the completion '' of p/1"]


def test_a_function_with_other_arguments_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"my:score\(text\) cannot be called with \(completion, problem\)"):
        FunctionJudge(lambda text: 1.0, name="my:score")  # type: ignore[misc]
    FunctionJudge(max, name="builtins:max")


OWN = """
from rlora.types import Verdict, VerdictKind

def score(text, problem):
    return float(text == problem.answer)

class Fixed:
    def __init__(self, verdicts):
        self.verdicts = verdicts

    def judge(self, samples):
        return self.verdicts

few, odd = Fixed([]), Fixed([1.0])
endless = Fixed([Verdict(kind=VerdictKind.WRONG, reward=float("inf"))])
number = 3
"""


@pytest.fixture
def own_module(tmp_path, monkeypatch) -> Iterator[str]:
    (tmp_path / "own_rewards.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    yield "own_rewards"
    sys.modules.pop("own_rewards", None)


def test_a_users_function_and_judge_are_opened_by_name(own_module, verifier) -> None:
    assert judged(open_judge(f"{own_module}:score", verifier), [sample("7"), sample("8")])[0].reward == 1.0
    check_judge(f"{own_module}:few")
    for name, message in (
        ("few", "Fixed gave 0 verdicts on 1 samples"),
        ("odd", r"Fixed gave 1\.0 on the completion '7' of p/1, which is no rlora\.types\.Verdict"),
        ("endless", "Fixed gave the reward inf on the completion '7' of p/1; it must be finite"),
    ):
        with pytest.raises(RewardError, match=message):
            judged(open_judge(f"{own_module}:{name}", verifier), [sample("7")])


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("best", f"the reward 'best' is unknown; it must be one of correct, {', '.join(JUDGES)}, or your own"),
        ("own_rewards:Fixed", "is a class; name an object of it"),
        ("own_rewards:number", "is 3; it must be a function"),
        ("own_rewards:best", "has no 'best'"),
    ],
)
def test_what_is_no_judge_is_refused(own_module, name, message) -> None:
    with pytest.raises(ConfigError, match=message):
        check_judge(name)


def test_a_verdict_has_no_measures_by_default() -> None:
    assert Verdict(kind=VerdictKind.WRONG, reward=0.0).measures == {}


def test_groups_whose_right_rollouts_earn_different_rewards_are_mixed_and_not_all_right() -> None:
    right = [Verdict(kind=VerdictKind.CORRECT, reward=reward) for reward in (1.0, 1.5)]
    wrong = Verdict(kind=VerdictKind.WRONG, reward=-1.0)
    groups = [
        replace(
            made,
            rollouts=tuple(
                replace(each, verdict=verdict) for each, verdict in zip(made.rollouts, verdicts, strict=True)
            ),
        )
        for made, verdicts in zip(
            [group([1], [completion([2])] * 2, [0, 0]) for _ in range(3)],
            (right, right[:1] * 2, [wrong] * 2),
            strict=True,
        )
    ]
    metrics = rollout_metrics(groups, num_problems=3)
    for kind in ("mixed", "all_right", "all_wrong"):
        assert metrics[f"groups/{kind}_share"] == pytest.approx(1 / 3)
    assert metrics["reward/mean"] == pytest.approx((1.0 + 1.5 + 1.0 + 1.0 - 1.0 - 1.0) / 6)


@pytest.mark.parametrize(
    ("answers", "reward", "said"),
    [
        (["21", "New York", "x^2 + 1", "5 cm", "B", "[1, 2]", r"\frac{1}{2}", "yes"], "mathematics", []),
        (
            ["The answer is 21.", "21"],
            "mathematics",
            ["1 of 2 answers, as 'The answer is 21.' of t/0, earn nothing"],
        ),
        (["def f(x): return x + 1"] * 3, "last_number", ["3 of 3 answers, as 'def f(x): return x + 1' of t/0"]),
        (["{'a': 1}", "7"], "mathematics", ["1 of 2 answers, as \"{'a': 1}\" of t/0, are read as words"]),
        (["21", "see the solution below"], "mathematics", ["1 of 2 answers, as 'see the solution below' of t/1, are"]),
        (["}", "21"], "mathematics", ["1 of 2 answers, as '}' of t/0, earn nothing"]),
        (["see above\nand below " * 300, "1"], "mathematics", ["1 of 2 answers, as 'see above and below"]),
        (["7"] * 1999 + ["it is seven, of course"], "mathematics", []),  # 500 are looked at
    ],
)
def test_answers_that_nothing_or_no_other_wording_equals_are_said_beforehand(answers, reward, said) -> None:
    problems = [Problem(id=f"t/{i}", question="", answer=each, source="t") for i, each in enumerate(answers)]
    with Verifier() as verifier:
        lines = list(doubts_of(open_judge(reward, verifier), problems))
    assert len(lines) == len(said)
    for line, start in zip(lines, said, strict=True):
        assert line.startswith(f"Warning: {start}")


def test_a_judge_of_a_users_own_doubts_nothing() -> None:
    problems = [Problem(id="a", question="", answer="it is seven, of course", source="t")]
    assert list(doubts_of(as_judge(lambda text, problem: 1.0, name="mine"), problems)) == []
