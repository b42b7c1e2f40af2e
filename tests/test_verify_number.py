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


@pytest.mark.parametrize(
    ("text", "gold", "is_right"),
    [
        ("98 + 41 equals 139", "139", True),  # what a policy wrote after thirty updates
        ("98 + 41 is 139.", "139", False),  # prose
        ("98+41 is equal to 139", "139", True),
        ("12 * 12 equals 144.", "144", True),
        ("98 + 41 equals 138", "139", False),
        ("139 + 1 equals 140", "139", False),
        ("5 equals 139", "139", False),
        ("98 + 41 equals 139 or 140", "139", False),
    ],
)
def test_a_sum_spelled_in_words_needs_no_last_number(verifier, text, gold, is_right) -> None:
    verdict = verifier.judge(text, gold, question="What is 98 + 41?", is_number=True, last_number=False)
    assert verdict.is_correct is is_right


@pytest.mark.parametrize("text", ["98 + 41", "98+41", "\\boxed{98 + 41}"])
def test_a_copy_of_the_question_is_no_answer_in_any_task(verifier, text) -> None:
    assert verifier.judge(text, "139", question="What is 98 + 41?").kind is VerdictKind.NOT_WORKED_OUT


def test_a_gold_answer_that_stands_in_the_question_is_accepted(verifier) -> None:
    verdict = verifier.judge("\\boxed{\\frac{3}{4}}", "\\frac34", question="Which is larger, $\\frac{3}{4}$ or 0.7?")
    assert verdict.is_correct
    assert verifier.judge("2^{10}", "2^{10}", question="Is 2^{10} or 10^3 larger?").is_correct


@pytest.mark.parametrize(
    ("text", "gold"),
    [
        ("5 = 139", "139"), (r"\boxed{5 = 139}", "139"), ("The answer is 5 = 139.", "139"), ("#### 5 = 139", "139"),
        ("139 = 5", "5"), ("98 + 41 = 139 = 140", "140"), ("98 + 41 = 139 = 140", "139"), ("x = 5 = 7", "7"),
        ("$5 = 7$", "7"), (r"\frac{1}{2} = \frac{1}{3}", "1/3"), ("1/2 = 0.6", "0.6"), ("1,000 = 100", "100"),
        ("140 = 98 + 41 = 139", "139"), ("-5 = 5", "5"), ("5 ＝ 139", "139"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("is_number", [True, False])
def test_an_equation_of_two_different_numbers_is_wrong(verifier, text, gold, is_number) -> None:
    assert verifier.judge(text, gold, is_number=is_number).kind is VerdictKind.WRONG


@pytest.mark.parametrize(
    ("text", "gold"),
    [
        ("98 + 42 = 139", "139"), ("139 = 139", "139"), ("139.0 = 139", "139"), ("2/3 = 0.67", "0.67"),
        ("2/3 = 0.66", "0.66"), ("13/20 = 65%", "65"), ("2 hours = 120 minutes", "120"), ("6/4 = 3/2", "3/2"),
        ("98 + 41 = 139 = 139", "139"), ("x = 5 + 2 = 7", "7"), (r"\frac{6}{4} = \frac{3}{2} = 1.5", "1.5"),
        ("$5 = 500 cents", "500"), ("1,000 = 1000", "1000"), ("5 = 139", "5 = 139"),
    ],
)  # fmt: skip
def test_an_equation_that_ends_in_the_value_is_right(verifier, text, gold) -> None:
    assert verifier.judge(text, gold).is_correct


@pytest.mark.parametrize("text", ["7 1/2", r"\boxed{7\frac12}", r"7\frac{1}{2}", "7.5", "15/2"])
def test_a_mixed_number_is_a_number(verifier, text) -> None:
    assert verifier.judge(text, "7.5", is_number=True).is_correct
