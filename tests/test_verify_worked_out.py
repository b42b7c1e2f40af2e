"""An answer must be worked out: what the question said, or what is left to compute, is not paid, whatever its value."""

import json
import os
from pathlib import Path

import pytest

from rlora.rewards.mathematics import Mathematics
from rlora.types import Completion, Problem, Sample, StopReason, VerdictKind
from rlora.verify import JudgeRequest, Verifier
from rlora.verify.comparison.canonical import canonical
from rlora.verify.reading.answer import parse_answer

DATA_DIR = Path(os.environ.get("RLORA_DATA", Path(__file__).resolve().parents[1] / ".." / "shared" / "data"))

COPIED = {
    "the question's formula as it stands": [
        ("Find $7\\cdot 8 + 2$.", "58", r"7\cdot 8+2"), ("What is 18 * 3?", "54", "18 * 3"),
        ("Simplify $\\frac{24}{36}$.", r"\frac{2}{3}", r"\frac{24}{36}"),
        ("Simplify \\[\\sqrt{48}.\\]", r"4\sqrt3", r"\sqrt{48}"),
        ("Factor $y^2-9$.", "(y-3)(y+3)", "y^2-9"), ("Evaluate $\\cos 60^\\circ$.", r"\frac12", r"\cos 60^\circ"),
        ("Write $6x-3y=9$ in slope-intercept form.", "y=2x-3", "6x-3y=9"),
    ],
    "in another spelling": [
        ("Find $7\\cdot 8 + 2$.", "58", r"(2+7\times 8)\cdot 1"), ("Find $7\\cdot 8 + 2$.", "58", r"0+7\cdot8+2"),
        ("Simplify $\\sqrt{48}$.", r"4\sqrt3", r"\sqrt{48}\cdot\frac{2}{2}"),
        ("Simplify $\\sqrt{48}$.", r"4\sqrt3", "48^{1/2}"),
        ("Simplify $\\sqrt{48}$.", r"4\sqrt3", r"\frac{48}{\sqrt{48}}"),
        ("Factor $y^2-9$.", "(y-3)(y+3)", "-9+y^2+y-y"),
        ("Factor $y^2-9$.", "(y-3)(y+3)", r"\frac{5(y^2-9)}{5}"), ("Expand $(t+1)^2$.", "t^2+2t+1", "(1+t)(1+t)"),
    ],
    "what the gold has expanded, collected or factored": [
        ("Expand $7(2x-3)$.", "14x-21", "7(2x-3)"), ("Factor $6y+9$.", "3(2y+3)", "6y+9"),
        ("Simplify $r^2\\cdot r^5$.", "r^7", r"r^2\cdot r^5"),
        ("Is $n$ or $m$ less?", "n", r"(n)\cdot1"), ("Is $n$ or $m$ less?", "n", "0+n"),
        ("Is $2\\pi$ or $6$ less?", r"2\pi", r"\frac{2\pi}{1}"),
        ("Simplify $(3a+1)-(a-4)$.", "2a+5", "(3a+1)-(a-4)+0"), ("Simplify $(2-i)-(5+3i)$.", "-3-4i", "(2-i)-(5+3i)"),
        (r"Simplify $\frac{15}{\sqrt{15}}$.", r"\sqrt{15}", r"\frac{15}{\sqrt{15}}"),
        ("Simplify $(2x^3)^2$.", "4x^6", r"(2x^3)^2\cdot1"),
    ],
    "arithmetic and roots of numbers that are left": [
        ("Simplify $a^2\\cdot a^3$.", "a^5", "a^{2+3}"), ("Simplify $\\sqrt{50}$.", r"5\sqrt2", r"\sqrt{25}\sqrt{2}"),
        ("Find the sum.", r"6\sqrt2", r"2\cdot3\sqrt2"), ("What is $7\\cdot12$?", "84", r"e^{\ln(84)}"),
    ],
    "a form that was to be changed": [
        ("Write $\\frac{7}{8}$ as a decimal.", "0.875", r"\frac78"),
        ("Express $1.75$ as a fraction.", r"\frac74", "1.75"),
        ("Express $0.\\overline{6}$ as a fraction.", r"\frac23", r"0.\overline{6}"),
        ("Round $2.\\overline{36}$ to hundredths.", "2.364", r"2.\overline{36}"),
        ("Write 3.25 as a mixed number.", r"3\frac14", "3.25"),
    ],
    "less worked out than the gold, in the question or not": [
        ("How many ways are there to choose 2 of 9?", "36", r"\binom{9}{2}"), ("What is half of 58?", "29", "58-29"),
        ("Which power of 2 has 4 digits and is largest?", "8192", "2^{13}"),
        ("Find the angle.", r"\frac{\pi}{4}", r"\arctan 1"),
        ("Find the height.", r"\frac{\sqrt3}{2}", r"\sin 60^\circ"), ("Find $(a,b)$.", "(6,4)", "(3!,4)"),
        ("Solve $3x=21$ for x.", "x=7", "6x=42"), ("Write 0.375 as a fraction.", "3/8", r"3.75\cdot10^{-1}"),
        ("Solve for x.", "x=12", r"x=\lfloor 12.5\rfloor"),
    ],
}  # fmt: skip
RIGHT = {
    "the gold's own form, though the question has it": [
        ("Which is larger, $\\frac34$ or $\\frac23$?", r"\frac34", r"\frac{3}{4}"),
        ("Is 0.5 or 0.45 larger?", "0.5", "0.5"),
        ("Is $2^{10}$ or $10^3$ larger?", "2^{10}", "2^{10}"),
        ("Which of $\\sqrt2$, $\\sqrt3$ is $x$?", r"\sqrt3", r"\sqrt 3"),
        ("Compare $\\log_2 5$ and $\\log_3 7$.", r"\log_2 5", r"\log_{2}5"),
        ("What is $24/36$ or $2/3$?", "2/3", r"\frac23"),
    ],
    "the gold's own form in another order": [
        ("Expand $7(2x-3)$.", "14x-21", "-21+14x"), ("Factor $6y+9$.", "3(2y+3)", r"(3+2y)\cdot3"),
        ("Find $\\frac{\\pi}{2}x$.", r"\frac12\pi x", r"\frac{x\pi}{2}"),
        ("Let $n$ be the number of $a^{-1}$.", r"\frac1a", "a^{-1}"), ("Is $b-a$ or $a$ less?", "b-a", "-(a-b)"),
    ],
    "worked out as far as the gold, in a form of its own": [
        ("How many subsets?", "2^{n+1}", r"2\cdot2^n"), ("Find the term.", r"3\cdot 2^{n-1}", r"\frac{3}{2}\cdot2^n"),
        ("What is half of 5?", "2.5", r"\frac52"), ("What is half of 5?", r"\frac52", r"2\frac12"),
        ("Expand $(t+1)^2$.", "t^2+2t+1", "1+2t+t^2"),
        ("Find the height.", r"\frac{\sqrt3}{2}", r"\frac{3}{2\sqrt3}"), ("Find x.", "120000", r"1.2\times10^5"),
        ("Solve for x.", r"\ln 8", r"3\ln 2"), ("What is $6\\cdot 7$?", "42", r"6\cdot 7=42"),
        ("What is $6\\cdot 7$?", "42", r"42=6\cdot 7"),
        ("Find $(a,b)$.", "(6,4)", r"(\frac{12}{2},4)"),
        ("Simplify $\\log_2 8$.", r"\log_2 8", "3"), ("Find the angle.", r"90^\circ", "90"),
        ("Find the angle.", "90", r"90^\circ"),
    ],
}  # fmt: skip


def _rows(table: dict[str, list[tuple[str, str, str]]]) -> list[tuple[str, str, str]]:
    return [row for rows in table.values() for row in rows]


@pytest.fixture(scope="module")
def verifier():
    with Verifier() as made:
        yield made


@pytest.mark.unit
@pytest.mark.parametrize(("question", "gold", "answer"), _rows(COPIED))
def test_what_is_left_to_work_out_is_not_paid_unless_a_rule_says_so(verifier, question, gold, answer) -> None:
    text = rf"So it is $\boxed{{{answer}}}$."
    assert verifier.judge(text, gold, question=question).kind is VerdictKind.NOT_WORKED_OUT
    assert verifier.judge(text, gold, question=question, is_worked_out=False).is_correct


@pytest.mark.unit
@pytest.mark.parametrize(("question", "gold", "answer"), _rows(RIGHT))
def test_what_is_worked_out_as_far_as_the_gold_is_paid(verifier, question, gold, answer) -> None:
    assert verifier.judge(rf"So it is $\boxed{{{answer}}}$.", gold, question=question).is_correct


@pytest.mark.unit
def test_a_wrong_formula_is_wrong(verifier) -> None:
    assert verifier.judge(r"\boxed{98+42}", "139", question="What is 98+41?").kind is VerdictKind.WRONG


@pytest.mark.unit
def test_training_asks_for_it_and_an_evaluation_where_it_is_told_to(verifier) -> None:
    problem = Problem(id="p", question="Find $7\\cdot 8$.", answer="56", source="t")
    said = Completion(
        token_ids=(1,), logprobs=(0.0,), text=r"\boxed{7\cdot 8}", stop=StopReason.END, policy=0, version=0
    )
    sample = Sample(problem=problem, completion=said)
    (training,), (evaluation,) = (
        Mathematics(verifier).judge([sample]), Mathematics(verifier, is_worked_out=False).judge([sample])
    )  # fmt: skip
    assert (training.kind, training.reward) == (VerdictKind.NOT_WORKED_OUT, 0.0)
    assert (evaluation.kind, evaluation.reward) == (VerdictKind.CORRECT, 1.0)


@pytest.mark.unit
@pytest.mark.parametrize(
    ("a", "b"),
    [
        ("a+b+c", "c+(b+a)"), ("2(a+b)", "2a+2b"), ("ab/c", "bac^{-1}"), ("-(a-b)", "b-a"),
        (r"\sqrt{8}", "(4+4)^{1/2}"),
        ("a^2a", "a^3"), ("a-a+1", "1"), ("0x+y", "y"), (r"\sqrt{x}\sqrt{x}", "x"), ("2^{10}", "1024"),
        (r"\sqrt[4]{48^2}", r"\sqrt{48}"), (r"\sqrt{1/3}", r"1/\sqrt3"),
        ("(2t+2)^2/4", "(t+1)^2"), ("(2a+2b)(c-d)", "2(a+b)(c-d)"), ("3(x/3+1)^3", "(x+3)^3/9"),
    ],
)  # fmt: skip
def test_trivial_rewriting_has_one_spelling(a: str, b: str) -> None:
    left, right = parse_answer(a), parse_answer(b)
    assert left is not None
    assert right is not None
    assert canonical(left) == canonical(right)


@pytest.mark.unit
@pytest.mark.parametrize(
    ("a", "b"), [("a+b", "ab"), ("a-b", "b-a"), ("a/b", "b/a"), ("2^a", "a^2"), (r"\sin x", r"\cos x")]
)
def test_other_values_have_other_spellings(a: str, b: str) -> None:
    left, right = parse_answer(a), parse_answer(b)
    assert left is not None
    assert right is not None
    assert canonical(left) != canonical(right)


@pytest.mark.unit
@pytest.mark.parametrize("piece", ["x+", "2^", "(", "1+", "9^{9^{9", "\\frac{", "5!", "$", "\\[", "3.\\overline{1}+"])
def test_no_question_or_answer_is_too_much(verifier, piece) -> None:
    question = f"Find ${piece * 300}1$ and {piece * 3000}."
    for answer in ("1", f"{piece * 300}1", "2+2"):
        assert verifier.judge(rf"\boxed{{{answer}}}", "4", question=question).kind is not VerdictKind.CORRECT


@pytest.mark.data
@pytest.mark.parametrize("name", ["math/train.jsonl", "math/test.jsonl"])
def test_no_gold_is_refused_against_itself_with_its_question(verifier, name) -> None:
    path = DATA_DIR / name
    if not path.exists():
        pytest.skip(f"{path} is not there; set RLORA_DATA")
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    for spelled in ("{}", "\\displaystyle {} ."):
        requests = [
            JudgeRequest(
                text=rf"\boxed{{{spelled.format(row['answer'].rstrip(' .'))}}}",
                gold=row["answer"],
                question=row["problem"],
            )
            for row in rows
        ]
        verdicts = verifier.judge_many(requests)
        assert [row["id"] for row, verdict in zip(rows, verdicts, strict=True) if not verdict.is_correct] == []
