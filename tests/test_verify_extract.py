"""Which text of a completion is its answer, and what has none."""

import pytest

from rlora.types import VerdictKind
from rlora.verify import Verifier, extract

pytestmark = pytest.mark.unit

SEVEN = [
    "7", "7.", "+7", "007", "**7**", "`7`", "```\n7\n```", "```text\n7\n```", r"$7$", r"\(7\)", "\\[\n7\n\\]",
    "$$\n7\n$$", r"\boxed{7}", "#### 7",
    "The answer is 7", "The answer is 7.", "The answer is **7**.", "The answer is: 7", "Answer: 7", "**Answer:** 7",
    "ANSWER: 7", "Final Answer:\n7",
    "The final answer is $\\boxed{7}$. I hope it is correct.", "the answer is $7$", "<answer>7</answer>",
    "<think>it is 5</think>7", "5</think>\n\n7",
    "<think>maybe \\boxed{5}</think>\nThe answer is \\boxed{7}", r"\boxed{5} wait, that's wrong. \boxed{7}",
    r"\boxed{5}. No, the answer is 7.",
    "First 3, then 4.\n\n7", "x = 7", "3 + 4 = 7", "So x = 7.", "Thus, $x = 7$.", "We get **7**.",
    r"\boxed{\boxed{7}}", r"\boxed{x = 7}", r"\boxed{\text{7}}",
    r"\boxed 7", r"\fbox{7}", "The answer is 7 because 3+4=7.", "The answer is 7 apples.",
    "The answer to the question is 7.", "#### 7 apples",
    "- 7", "> 7", "### 7", "\\begin{align*} x &= 3+4 \\\\ &= 7 \\end{align*}", "7<|im_end|>",
    "7<|im_start|>user What is 5 + 5? 10", "答案是7", "Answer:\n\n7",
    r"Since $3+4=7$, the answer is $\boxed{7}$ apples. Check: $7-4=3$.", r"$\boxed{5+2}$",
    "The answer is therefore 7.", "the answer is \\[7\\]",
    "The answer is \\boxed{7}, which is prime, unlike 9.", r"so \boxed{5}... hold on. Actually, \boxed{7}",
    "The answer should be 7.",
    r"\boxed{7} Let me double check: 3 + 4 = 7, correct.", "12 - 5 = 7", "**7**\n\nHope this helps!", "7 (seven)",
    "Ans: 7",
    "7\n\n(since 3 + 4 = 7)", "Solution: 7", "The answer is 7 and not 9.",
]  # fmt: skip

LAST_NUMBER_ONLY = [
    "The sum is 7", "3 + 4 is 7.", "You get 7 apples.", "That makes 7 in total!", "It costs $7.",
    "So there are 7 of them.", "7 is what I get.",
    "Robert went down the slide 7 times", "The bread costs 9 - 2 = 7 more than the bagels.",
    "She has 3 + 4 = 7 apples left.", "This gives us x = 7 as the only solution.",
]  # fmt: skip

NOT_SEVEN = [
    "5 or 7", "5, 7", "7, 8, 9", r"\boxed{5} or \boxed{7}", r"The roots are $\boxed{5}$ and $\boxed{7}$.",
    "The answer is 5 or 7", "The answer is either 5 or 7.",
    "1, 2, 3, 4, 5, 6, 7", "<think>7", "<think>\\boxed{7}</think>", "<think>\\boxed{7}", "7 wait, no, it's 8",
    r"\boxed{7} wait, that's wrong. \boxed{8}", r"\boxed{}",
    r"\boxed{ }", r"\boxed{7", "7 + 3 =", "so we have $x = 7", "17", "7/2", "2^7", r"2\sqrt{7}",
    "The answer is not 7", "-7", "7.5", "0.7", "70", "7%2", "f(7)",
    r"The range is $[7,\infty)$.", "The point is (2, 7).", "x_7", r"\frac{2}{7}", "Is it 7?", "", "   ", "\n\n",
    "The answer is", "The answer is \\boxed{",
    "The answer is 7 or 8, depending.", "#### ", "```python\nprint(7)\n```", "I do not know.", "x > 7", "7x",
    "about 7,000", "The answer is 7. Wait, it should be 8.",
    r"\boxed{7} is what I thought at first, but the answer is \boxed{8}", "So 2x = 14, then x =",
    "step 7: we compute 3 + 4 and", "Then 3 + 4 = 7, which gives",
]  # fmt: skip


@pytest.fixture(scope="module")
def verifier():
    with Verifier() as verifier:
        yield verifier


@pytest.mark.parametrize("text", SEVEN)
@pytest.mark.parametrize("last_number", [True, False])
def test_marked_and_plain_answers_count_in_both_modes(verifier: Verifier, text: str, last_number: bool) -> None:
    assert verifier.judge(text, "7", last_number=last_number).kind is VerdictKind.CORRECT


@pytest.mark.parametrize("text", LAST_NUMBER_ONLY)
def test_a_number_in_prose_counts_only_where_the_task_says_so(verifier: Verifier, text: str) -> None:
    assert verifier.judge(text, "7", last_number=True).is_correct
    assert not verifier.judge(text, "7", last_number=False).is_correct


@pytest.mark.parametrize("text", NOT_SEVEN)
@pytest.mark.parametrize("last_number", [True, False])
def test_what_is_no_answer_earns_nothing(verifier: Verifier, text: str, last_number: bool) -> None:
    assert not verifier.judge(text, "7", last_number=last_number).is_correct


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("", VerdictKind.NO_ANSWER), (r"\boxed{}", VerdictKind.NO_ANSWER), ("5", VerdictKind.WRONG),
        ("<think>7", VerdictKind.TRUNCATED),
        (r"\boxed{7", VerdictKind.TRUNCATED), (r"\boxed{\text{plenty}}", VerdictKind.UNPARSED),
        ("I do not know.", VerdictKind.NO_ANSWER),
    ],
)  # fmt: skip
def test_the_kind_says_why(verifier: Verifier, text: str, kind: VerdictKind) -> None:
    assert verifier.judge(text, "7").kind is kind


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("7", VerdictKind.TRUNCATED), ("3 + 4 = 7", VerdictKind.TRUNCATED),
        ("The answer is 7", VerdictKind.TRUNCATED), ("#### 7", VerdictKind.TRUNCATED),
        ("so we have x = 7. Next we", VerdictKind.TRUNCATED), ("", VerdictKind.TRUNCATED),
        (r"\boxed{7} and to check this", VerdictKind.CORRECT),
        ("The answer is 7. To check", VerdictKind.CORRECT), ("#### 7\n\nQuestion: what", VerdictKind.CORRECT),
        (r"\boxed{5} wait, no: \boxed{7", VerdictKind.TRUNCATED),
    ],
)  # fmt: skip
def test_a_cut_completion_is_credited_only_for_an_answer_it_finished(
    verifier: Verifier, text: str, kind: VerdictKind
) -> None:
    assert verifier.judge(text, "7", is_truncated=True).kind is kind


def test_a_repeated_question_is_no_answer(verifier: Verifier) -> None:
    question = "What is 3 + 4, given that 3 + 4 = 7?"
    assert verifier.judge(question, "7", question=question).kind is VerdictKind.NO_ANSWER
    assert verifier.judge("given that 3 + 4 = 7", "7", question=question).kind is VerdictKind.NO_ANSWER
    assert verifier.judge("7", "7", question=question).is_correct


@pytest.mark.parametrize(
    ("text", "gold"),
    [
        (r"The roots are $\boxed{5}$ and $\boxed{7}$.", "5,7"), ("5 or 7", r"\{7,5\}"),
        (r"Therefore $x=\boxed{3}$ and $y=\boxed{4}$.", "(3,4)"), ("(C)", "C"),
        ("The answer is (C).", r"\text{(C)}"), ("**C**", "C"), ("Yes", "yes"), ("No, it is not.", "no"),
        ("Answer: C) 42", "C"), ("The answer is no.", "No"),
        (r"The graph is an $\boxed{\text{ellipse}}$.", "ellipse"),
        (r"so $\log_2 4 = \boxed{2}$, hence the value is \boxed{4}", "4"), ("The answer is $\\frac{1}{2}$.", "0.5"),
        ("So the probability is $\\frac{3}{4}$.", "3/4"),
        (r"\boxed{\frac{25}{13}} or \boxed{1\frac{12}{13}}", "25/13"),
        ("The answer is: $x^2+1$", "1+x^2"),
    ],
)  # fmt: skip
def test_other_answers(verifier: Verifier, text: str, gold: str) -> None:
    assert verifier.judge(text, gold).is_correct


def test_an_unsolved_equation_is_no_value(verifier: Verifier) -> None:
    assert not verifier.judge("2x + 3 = 7", "7", last_number=False).is_correct
    assert not verifier.judge(r"\boxed{2x + 3 = 7}", "7").is_correct
    assert verifier.judge("Thus $b - a = 7$.", "7", last_number=False).is_correct


def test_extraction_alone_returns_the_text() -> None:
    assert extract(r"first \boxed{1}, so \boxed{\frac{1}{2}}").text == r"\frac{1}{2}"
    assert extract("7 apples").text == "7 apples"
    assert extract("").kind is VerdictKind.NO_ANSWER
