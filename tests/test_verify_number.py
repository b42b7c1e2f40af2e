"""Where a number is asked for, nothing left to compute is paid; a copy of the question is paid nowhere."""

import pytest

from rlora.types import VerdictKind
from rlora.verify import Verifier

pytestmark = pytest.mark.unit


@pytest.fixture(scope="module")
def verifier():
    with Verifier() as made:
        yield made


@pytest.mark.parametrize(
    "text",
    [
        "98 + 41",
        "98+41",
        "41 + 98",
        "98 + 40 + 1",
        "(98 + 41)",
        "\\boxed{98+41}",
        "#### 98+41",
        "139 + 0",
        "139 = 98 + 41",
        "278 / 2 + 0",
        "140 - 1",
        "\\sqrt{19321}",
        "139!/138!",
    ],
)
def test_an_expression_of_the_right_value_is_wrong_where_a_number_is_asked_for(verifier, text) -> None:
    assert not verifier.judge(text, "139", question="What is 98 + 41?", is_number=True).is_correct


@pytest.mark.parametrize(
    "text",
    [
        "139",
        "139.",
        "$139",
        "The answer is 139",
        "98 + 41 = 139",
        "\\boxed{139}",
        "x = 139",
        "#### 139",
        "139 apples",
        "139.0",
        "It is 98 + 41 = 139.",
        "\\frac{278}{2}",
    ],
)
def test_a_number_in_any_dress_is_right(verifier, text) -> None:
    assert verifier.judge(text, "139", question="What is 98 + 41?", is_number=True).is_correct


@pytest.mark.parametrize("text", ["98 + 41", "98+41", "\\boxed{98 + 41}"])
def test_a_copy_of_the_question_is_no_answer_in_any_task(verifier, text) -> None:
    assert verifier.judge(text, "139", question="What is 98 + 41?").kind is VerdictKind.NO_ANSWER


def test_a_gold_answer_that_stands_in_the_question_is_accepted(verifier) -> None:
    verdict = verifier.judge("\\boxed{\\frac{3}{4}}", "\\frac34", question="Which is larger, $\\frac{3}{4}$ or 0.7?")
    assert verdict.is_correct
    assert verifier.judge("2^{10}", "2^{10}", question="Is 2^{10} or 10^3 larger?").is_correct
