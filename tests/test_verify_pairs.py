"""The benchmark's generated answers, equal and unequal by construction, judged by the verifier."""

import pytest

from benchmarks.verify_completions import cases
from rlora.verify import JudgeRequest, Verifier

pytestmark = pytest.mark.unit


@pytest.fixture(scope="module")
def judged():
    made = cases(5, seed=1)
    with Verifier() as verifier:
        requests = [
            JudgeRequest(text=case.text, gold=case.gold, is_truncated=case.is_truncated, last_number=True)
            for case in made
        ]
        return list(zip(made, verifier.judge_many(requests), strict=True))


def test_no_unequal_answer_is_accepted(judged) -> None:
    assert [(case.text, case.gold) for case, verdict in judged if verdict.is_correct and not case.is_equal] == []


def test_no_equal_answer_is_refused(judged) -> None:
    assert [(case.text, case.gold) for case, verdict in judged if case.is_equal and not verdict.is_correct] == []


def test_every_kind_of_answer_is_covered(judged) -> None:
    counts = {(case.category, case.is_equal) for case, _ in judged}
    categories = {category for category, _ in counts}
    assert categories == {
        "Unicode", "bases", "code and thinking", "expressions", "marks", "no answer", "numerals and units",
        "order and brackets", "several candidates", "text and choices", "tolerance", "truncated", "value, not form",
    }  # fmt: skip
    assert {category for category in categories if (category, True) not in counts} == {"no answer"}
    assert all((category, False) in counts for category in categories)
