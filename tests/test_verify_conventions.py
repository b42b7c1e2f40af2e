"""Completions that were once judged wrongly, and their relatives, by convention."""

import pytest

from rlora.types import VerdictKind
from rlora.verify import Verifier

pytestmark = pytest.mark.unit

RIGHT = {
    "an exponent belongs to its letter alone": [
        ("xy^2", r"x\cdot y^2"), ("ba^2", "a^2b"), ("xe^x", r"x\cdot e^{x}"), ("3x^2y", "3yx^2"), ("ab^{-1}", "a/b"),
        ("nx^{n-1}", r"n\cdot x^{n-1}"),
    ],
    "functions written without a space": [
        ("2sinx cosx", r"2\sin x\cos x"), ("lnx", r"\ln x"), ("sin2x", r"\sin(2x)"), ("x lnx", r"x\ln x"),
    ],
    "names": [
        ("P(X=2)=3/8", "3/8"), (r"|\vec{a}|=\sqrt{5}", r"\sqrt5"), ("e", r"\text{(E)}"), ("E", "e"), ("x̄", r"\bar{x}"),
        (r"\overline{x}", r"\bar x"),
    ],
    "excluded values": [
        (r"x \ne -7, 3", r"(-\infty,-7)\cup(-7,3)\cup(3,\infty)"), ("ℝ∖{0}", r"(-\infty,0)\cup(0,\infty)"),
        (r"x\ne 1, x \ne 2", r"(-\infty,1)\cup(1,2)\cup(2,\infty)"),
    ],
    "Unicode": [("³√27", "3"), ("0.3̅", "1/3"), ("12 °C", "12"), ("12℃", "12")],
    "repeating decimals": [(r"0.\dot{3}", "1/3"), (r"0.\dot{1}\dot{6}", "16/99"), (r"0.2\dot{1}4\dot{5}", "2143/9990")],
    "bases": [
        ("52 base 8", "52_8"), ("52 in base 8", "52_8"), (r"52 \text{ (base 8)}", "52_8"), ("52_{(8)}", "52_8"),
        (r"\text{FF}_{16}", "FF_{16}"), ("ff_{16}", "FF_{16}"), ("1A_{16}", "1a_{16}"), ("52 (base eight)", "52_8"),
    ],
    "text": [
        (r"\text{7 apples}", "7"), (r"\text{Option A}", "A"), (r"\text{Choice (A)}", "A"), (r"\textit{yes}", "yes"),
        (r"\emph{yes}", "yes"), ("``yes''", "yes"), (r"\text{``yes''}", "yes"), (r"\text{a circle}", "circle"),
    ],
    "binomials": [(r"{n \choose k}", r"\binom{n}{k}"), (r"{5 \choose 2}", "10")],
    "spaces": [(r"\,7\,", "7"), (r"7\ ", "7")],
    "systems": [(r"\begin{cases}x=7\\y=2\end{cases}", "(7,2)")],
    "congruences": [
        (r"3 \pmod 5", r"3 \pmod{5}"), (r"x\equiv 3\pmod 5", r"3\pmod5"), ("3 (mod 5)", r"3\pmod5"),
    ],
    "integrals": [(r"\int_0^1 x^2dx=\frac13", r"\frac13"), (r"\int_0^1 x^2dx", r"\int_0^1  x^2 dx")],
}  # fmt: skip

WRONG = {
    "an exponent belongs to its letter alone": [("xy^2", "(xy)^2"), ("xe^{2x}", "(xe)^{2x}")],
    "a function is no unit": [("2 sinx", "2"), ("2sinx cosx", "2"), ("2 lnx", "2")],
    "order counts in the rows of a matrix": [
        (r"\begin{pmatrix}1&0\\0&1\end{pmatrix}", r"\begin{pmatrix}0&1\\1&0\end{pmatrix}"),
        (r"\begin{pmatrix}1&2\end{pmatrix}", r"\begin{pmatrix}2&1\end{pmatrix}"),
    ],
    "two quantities are no product": [
        ("2 hours 30 minutes", "60"), ("5 feet 3 inches", "15"), (r"2\text{ hours }30\text{ minutes}", "60"),
        ("3 apples and 5 oranges", "15"),
    ],
    "numerals": [("12 34", "1234")],
    "bases": [("52 in base 9", "52_8"), ("52 base 8", "52"), ("x_{12}", "X_{16}")],
    "integrals": [(r"\int_0^1 x^2dx", r"\frac13"), (r"\sum_{k=1}^{3}k", "6"), (r"\lim_{x\to0}\frac{\sin x}{x}", "1")],
    "congruences": [(r"3 \pmod 5", r"3 \pmod 7"), (r"3 \pmod 5", "3")],
    "values excluded of different names": [(r"x\ne 1, y\ne 2", r"(-\infty,1)\cup(1,2)\cup(2,\infty)")],
}  # fmt: skip

SEVEN = [
    "7, not 5", "7 (since 3+4=7)", "The answer is 7 (not 5).", "7 is the answer.", "7 is correct.", "__7__",
    r"\boxed{\text{The answer is }7}", r"\boxed{the answer is 7}",
    "```python\nprint(3+4)\n```\n```output\n7\n```",
    "[THINK]5[/THINK]7", "<|begin_of_thought|>5<|end_of_thought|><|begin_of_solution|>7<|end_of_solution|>",
    "<|channel|>analysis<|message|>5<|end|><|start|>assistant<|channel|>final<|message|>7<|return|>",
    r"so $\boxed{7}$. We check our answer: $7 \cdot 2 = 14$, which is what we had.",
]  # fmt: skip

NOT_SEVEN = [
    "The answer is 5, or maybe 7.", "The answer is 1 2 3 4 5 6 7", "Either x = 5 or x = 7", "The answer is 5 to 7.",
    "5 ~ 7", "less than 7", "more than 7", "at least 7", "at most 7", "The answer is 7 or higher.",
    "First 3 + 4 = 7, then 7 *", "```python\nanswer = 7\n```", "```python\n# The answer is 7\n```",
    r"<|begin_of_thought|>\boxed{7}<|end_of_thought|>I cannot say.", r"[THINK]\boxed{7}[/THINK]I give up",
    "half of 7", "twice 7", "the square root of 7",
    "The answer is the reciprocal of 7.", "The answer is a multiple of 7.", "x is a multiple of 7", "3 times 7",
    "7 factorial", r"\boxed{7\text{ factorial}}", "7 squared", "7 halves", "7 less than x", "7 more than 15",
    "negative 7", "minus 7",
    "The answer is negative 7.", "2 to the 7", "7 or none", r"[THINK]\boxed{7}",
    "<|channel|>analysis<|message|>7", "The answer is at most 7.",
]  # fmt: skip


@pytest.fixture(scope="module")
def verifier():
    with Verifier() as made:
        yield made


def _pairs(table: dict[str, list[tuple[str, str]]]) -> list[tuple[str, str]]:
    return [pair for pairs in table.values() for pair in pairs]


@pytest.mark.parametrize(("answer", "gold"), _pairs(RIGHT))
def test_forms_that_count(verifier: Verifier, answer: str, gold: str) -> None:
    assert verifier.judge(rf"So it is $\boxed{{{answer}}}$.", gold).kind is VerdictKind.CORRECT
    assert verifier.equal(gold, answer)


@pytest.mark.parametrize(("answer", "gold"), _pairs(WRONG))
def test_forms_that_do_not(verifier: Verifier, answer: str, gold: str) -> None:
    assert not verifier.judge(rf"So it is $\boxed{{{answer}}}$.", gold).is_correct
    assert not verifier.equal(gold, answer)
    assert not verifier.equal(answer, gold)


@pytest.mark.parametrize("text", SEVEN)
def test_completions_that_answer(verifier: Verifier, text: str) -> None:
    assert verifier.judge(text, "7").kind is VerdictKind.CORRECT


@pytest.mark.parametrize("text", NOT_SEVEN)
@pytest.mark.parametrize("last_number", [True, False])
def test_completions_that_do_not(verifier: Verifier, text: str, last_number: bool) -> None:
    assert not verifier.judge(text, "7", last_number=last_number).is_correct


@pytest.mark.parametrize(
    ("text", "gold"),
    [
        ("I choose C", "C"), ("C is correct.", "C"), ("A. 42", "A"), ("Option (B) is the correct answer.", "B"),
        ("The answer is 52 in base 8.", "52_8"),
        (r"\begin{align*} M &= N \\ &= \boxed{\begin{pmatrix} 1 & 2 \\ 3 & 4 \end{pmatrix}}. \end{align*}",
         r"\begin{pmatrix} 1 & 2 \\ 3 & 4 \end{pmatrix}"),
        ("The answer is negative 7.", "-7"), ("minus 7", "-7"),
        ("6 + 3/4 is\n\n6 3/4", "27/4"), ("So we get 6 3/4.", "27/4"),
    ],
)  # fmt: skip
def test_other_completions(verifier: Verifier, text: str, gold: str) -> None:
    assert verifier.judge(text, gold).is_correct


@pytest.mark.parametrize(("text", "gold"), [("12 minus 5 is 7.", "7"), ("the total is $1,234.50.", "1234.5")])
def test_the_last_number_of_prose_counts_where_it_is_asked_for_alone(verifier: Verifier, text: str, gold: str) -> None:
    assert verifier.judge(text, gold, last_number=True).is_correct
    assert verifier.judge(text, gold).kind is VerdictKind.NO_ANSWER


def test_the_options_told_once_more_are_no_choice(verifier: Verifier) -> None:
    assert not verifier.judge("A. 3\nB. 4\nC. 5", "C").is_correct
    assert not verifier.judge("(A) 3\n(B) 4\n(C) 5", "C", last_number=False).is_correct
