"""What is taken for the answer: by kind, completions that answer 42 (or what is named) and others that do not."""

import pytest

from rlora.types import VerdictKind
from rlora.verify import Verifier

pytestmark = pytest.mark.unit

TAKEN = {
    "a base behind the box": [(r"So it is $\boxed{2003}_6$.", "2003"), (r"$\boxed{101}_{2}$", "101")],
    "bold around a phrase": [
        ("We add.\n\n**Answer: 42**", "42"), ("**Final answer: $-2$**", "-2"), ("**The answer is (C)**", "C"),
        ("__Answer: (1, 2)__", "(1,2)"), ("Thus **the answer is 42.**", "42"), ("**Answer**: 42", "42"),
        ("**Final Answer: x²**", "x^2"),
    ],
    "words behind the box": [
        ("\\boxed{C}\n\nOption A: this is wrong, since the sign is.", "C"),
        ("\\boxed{42}\n\nSo the expected wait is 42 minutes.", "42"),
        ("\\boxed{42}.\n\nLet me re-state the main idea: we count pairs.", "42"),
        ("Hence \\boxed{42}. There are no, or hardly any, other cases.", "42"),
        ("\\boxed{42}\n\nHmm, let me check: $40+2=42$. Yes, this is right.", "42"),
        ("\\boxed{42}. I apologize for the length of this.", "42"),
        ("\\boxed{42}\n\nActually, this is a theorem of Euler.", "42"),
        ("\\boxed{42}\n\nNo, there is no other solution with $x > 50$.", "42"),
        ("\\boxed{42}. Wait, let me verify: $6 \\cdot 7 = 42$, so it holds.", "42"),
    ],
    "words that take nothing back": [
        ("\\boxed{42}\n\nThis is incorrect for $n = 0$, but $n$ is positive.", "42"),
        ("\\boxed{42}\n\nHold on to this formula.", "42"), ("\\boxed{42}. It should be noted that 41 fails.", "42"),
        ("\\boxed{42}. It is not 41, as some may think.", "42"), ("so $n = 6 \\cdot 7$, or $\\boxed{42}$", "42"),
        ("the term is $40x + 2x = \\boxed{42}x$", "42"), ("an angle of $\\boxed{42}^\\circ$", "42"),
    ],
    "choices": [
        ("The correct option is B.", "B"), ("The answer is (B), because $x > 3$.", "B"), ("**B**", "B"),
        ("Hence (D) is correct.", "D"), ("**No**, it diverges.", "no"), ("*Answer: 42*", "42"),
        ("\\boxed{\\text{Option B}}", "B"), ("The answer is '42'.", "42"),
    ],
    "layout": [
        (r"\boxed{\large 42}", "42"), (r"\boxed{\color{red}{42}}", "42"), (r"\boxed{\vphantom{1}42}", "42"),
        (r"\boxed{\kern2pt 42}", "42"), (r"\boxed{\boldsymbol{4-2i}}", "4-2i"), (r"\boxed{42\\}", "42"),
        (r"\boxed{42\tag{7}}", "42"),
    ],
    "exclamation marks": [
        ("The answer is $4!$.", "24"), ("**5!**", "120"), ("Hence the answer is $3!$!", "6"),
        ("Answer: $4! - 1$", "23"),
        ("The answer is 42!", "42"),
    ],
    "a formula over several lines": [
        ("Thus\n$$\nx^2\n+ 5\n$$", "x^2+5"), ("So\n\\[\n\\frac{1}{2}\n\\cdot x\n\\]", "x/2"), ("so $z = 7 i$", "7i"),
        ("\\frac{2}{5}i", "2i/5"), ("This is\nx +\n4", "x+4"), ("\\begin{align*}x &= 40 \\\\ &+ 2\\end{align*}", "42"),
        ("$$\n40 + 2\n= 42\n$$", "42"),
    ],
    "other languages": [
        ("Ответ: 42", "42"), ("La respuesta es 42.", "42"), ("Die Antwort ist $42$.", "42"),
        ("La réponse est 42.", "42"),
        ("答案：42", "42"), ("答えは42です。", "42"), ("정답: 42", "42"), ("A resposta é 42", "42"),
    ],
    "alternatives that say the same": [
        (r"\boxed{\frac12} or \boxed{0.5}", "1/2"), (r"\boxed{\frac12}, or 0.5", "1/2"),
        (r"\boxed{0.5}. Alternatively, \boxed{\frac12}", "1/2"), ("The answer is 42, not 41.", "42"),
        (r"The answer is \boxed{42}, not \boxed{41}.", "42"), ("The answer is 42 (not 41).", "42"),
    ],
    "a box in a formula": [
        (r"$x \in \boxed{[1,2]}$", "[1,2]"), (r"$f(2) = \boxed{42}.$", "42"),
        (r"\[ n = 6\cdot7 = \ \boxed{42} \]", "42"),
        (r"$(x, y) = (\boxed{1}, \boxed{2})$", "(1,2)"), (r"$\text{so } \boxed{42}$", "42"),
        (r"$n\ge\boxed{42}$", "42"),
        (r"$\stackrel{(1)}{=} \boxed{42}$", "42"), (r"$\boxed{42}\pi$", "42"),
    ],
    "the last of what is said in other words": [
        ("The answer is 42% of 100, that is 42.", "42"), ("Many say the answer is 41, but the answer is 42.", "42"),
        ("Hence the result is 42.", "42"), ("Hence $n=42$!", "42"),
        (r"\boxed{42} <!-- 41 -->", "42"),
    ],
    "other frames": [
        ("∴ the answer is 42", "42"), ('The answer is "42".', "42"), ("It must be 42.", "42"), ("***42***", "42"),
        ("The total costs \\$5 and \\$6, so the answer is \\$11.", "11"), ("at least $\\boxed{42}$ of them", "42"),
    ],
}  # fmt: skip

NOT_TAKEN = {
    "bold around a phrase": [
        ("**Answer: log₂ 42**", "42"), ("**Final answer: 42π**", "42"), ("**Answer: 42!**", "42"),
        ("**Answer: -42**", "42"),
        ("**Answer: 42 or 43**", "42"),
    ],
    "what is taken back": [
        (r"\boxed{42}. Wait, that's wrong: it must be \boxed{7}.", "42"), (r"\boxed{42}. Actually, 7.", "42"),
        (r"\boxed{42}. Actually no. It is 7.", "42"),
        (r"\boxed{42}. Edit: it is 7.", "42"), (r"\boxed{42}. I don't think this is right.", "42"),
        (r"\boxed{42}. I made an error; the right value is 7.", "42"), (r"\boxed{42}. Not quite: 7.", "42"),
        (r"\boxed{42}. Sorry, I meant 7.", "42"),
        (r"\boxed{42}. No, it should be 7.", "42"), (r"\boxed{42}. That is not right.", "42"),
        ("\\boxed{42}\n\nThis answer is incorrect.", "42"), (r"\boxed{42}. The answer is wrong.", "42"),
        (r"\boxed{42} — no, that can't be right.", "42"), ("The answer is 42. Hold on, I made a mistake.", "42"),
        ("The answer is 42. Wait, it should be 7.", "42"),
    ],
    "what is denied or supposed": [
        (r"\boxed{42} is wrong.", "42"), (r"\boxed{42} (wrong)", "42"), (r"\boxed{42} cannot be right.", "42"),
        (r"\boxed{42} would be right if $x>0$, but it is not.", "42"), (r"\boxed{42} was my first guess.", "42"),
        (r"It is not \boxed{42}.", "42"),
        (r"The answer isn't $\boxed{42}$.", "42"), ("The answer is 42 (wrong).", "42"),
        ("Suppose the answer is 42.", "42"), ("Many say that the answer is 42, but the answer is 41.", "42"),
        ("(C) is wrong.", "C"), ("(C) is clearly not it.", "C"),
        ("If the answer is 42, then we have a contradiction.", "42"), (r"Put your answer in \boxed{42}.", "42"),
        (r"I would box \boxed{42} if it were 42, but I cannot solve this.", "42"), ("The answer is not 42.", "42"),
        ("Let us check whether the answer is 42.", "42"), ("The wrong answer is 42.", "42"),
        (r"Is it \boxed{42}?", "42"), (r"For example, \boxed{42}.", "42"), (r"Format: \boxed{42}", "42"),
        ("It is impossible that the answer is 42.", "42"), (r"\boxed{42} should be 41.", "42"), ("Yes and no.", "yes"),
    ],
    "hedges": [
        ("The answer is $41$ (alternatively $42$).", "42"), ("The answer is $41$ (alternatively $42$).", "41"),
        ("The answer is probably 41, otherwise 42.", "42"), (r"\boxed{42} or 41", "42"),
        (r"\boxed{42}, perhaps 41", "42"),
        (r"\boxed{41} (or maybe 42)", "41"), (r"\boxed{41}. Alternatively, \boxed{42}.", "42"), ("42 or 41", "42"),
        ("42 (not sure, could be 41)", "42"),
        (r"\boxed{41}, otherwise \boxed{42}", "42"), ("The answer is either 41 or 42.", "42"),
        ("The answer is one of 40, 41, 42.", "42"), ("The answer is 42 (or 41).", "42"), ("Either (B) or (C).", "C"),
        ("The answer is 42; or is it 41?", "42"), ("The answer is 42; if that is wrong, 41.", "42"),
        ("The answer is 42, but it may be 41.", "42"), ("The answer is 42, though it could be 41.", "42"),
        (r"\boxed{42}. Or maybe \boxed{41}.", "42"), (r"\boxed{42}. Perhaps 41.", "42"),
    ],
    "exclamation marks": [
        ("The answer is $5!$.", "5"), ("**4!**", "4"), ("Answer: $5! - 3$", "5"), ("The answer is 42!.", "42"),
    ],
    "a part of a formula": [
        ("Thus\n$$\nx^2\n+ 4\n$$", "4"), ("x +\n4", "4"), ("\\frac{1}{2} +\\frac{1}{3}", "1/3"), ("x^2\n+ 4", "4"),
        ("$$\n\\frac{1}{2}\n\\frac{1}{3}\n$$", "1/3"), ("$$x^2$$\n$$+4$$", "4"), ("\\frac{1}\n{2}", "2"),
        ("$-\\boxed{42}$", "42"), ("$2\\boxed{42}$", "42"), ("$\\boxed{42}^2$", "42"), ("$\\boxed{42} + 1$", "42"),
        ("$\\frac{\\boxed{42}}{2}$", "42"), ("$\\boxed{42} \\cdot 2$", "42"), ("$\\boxed{42}\\times4$", "42"),
        ("$5!\\,\\boxed{42}$", "42"), ("\\boxed{42}5", "42"),
        ("$[1,\\boxed{42}]$", "42"), ("$\\{1,\\boxed{42}\\}$", "42"), ("$2^{\\boxed{42}}$", "42"),
        ("$\\log\\boxed{42}$", "42"), ("$|\\boxed{42}-x|$", "42"), ("$3(\\boxed{42})$", "42"),
        ("$(1,\\boxed{42})$", "42"),
        ("$(\\boxed{42}, 1)$", "42"), ("$x\\ne\\boxed{42}$", "42"), ("$x<\\boxed{42}$", "42"), ("$\\boxed{42}!$", "42"),
        ("$\\sin(\\boxed{42})$", "42"), ("so $x = 2\\cdot$ \\boxed{42}", "42"), ("$\\sqrt{x}\\boxed{42}$", "42"),
        ("\\boxed{42} minus 1", "42"), ("\\boxed{42} squared", "42"),
    ],
    "hidden text": [
        (r"\boxed{7\,\text{\small 8}}", "7"), (r"\boxed{7{\color{white}8}}", "7"), (r"\boxed{\phantom{7}}", "7"),
        (r"\boxed{\tag{7}}", "7"), (r"\boxed{7\llap{8}}", "7"), (r"\boxed{8} <!-- \boxed{7} -->", "7"),
        (r"\boxed{\cancel{8}7}", "7"),
    ],
    "another number": [
        ("The answer is 42% of 100, that is 41.", "42"), ("The answer is 42x.", "42"),
        ("The answer is minus 42.", "42"),
        ("Is the answer 42?", "42"), ("The answer is $42^2$.", "42"), ("The answer is 42 of 50.", "42"),
        ("The answer is $42$?", "42"),
    ],
}  # fmt: skip


@pytest.fixture(scope="module")
def verifier():
    with Verifier() as made:
        yield made


def _rows(table: dict[str, list[tuple[str, str]]]) -> list[tuple[str, str]]:
    return [row for rows in table.values() for row in rows]


@pytest.mark.parametrize(("text", "gold"), _rows(TAKEN))
@pytest.mark.parametrize("last_number", [False, True])
def test_what_a_completion_says_is_taken(verifier: Verifier, text: str, gold: str, last_number: bool) -> None:
    assert verifier.judge(text, gold, last_number=last_number).kind is VerdictKind.CORRECT


@pytest.mark.parametrize(("text", "gold"), _rows(NOT_TAKEN))
@pytest.mark.parametrize("last_number", [False, True])
def test_what_a_completion_does_not_say_is_not_taken(
    verifier: Verifier, text: str, gold: str, last_number: bool
) -> None:
    assert not verifier.judge(text, gold, last_number=last_number).is_correct
