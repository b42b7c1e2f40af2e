"""Every verdict says which rule decided, from the code that judged; a worker's fault does not pass unseen."""

import logging
import os

import pytest

from rlora.types import VerdictKind
from rlora.verify import JudgeRequest, Verifier, VerifierConfig
from rlora.verify.reading.answer import parse_answer
from rlora.verify.reading.show import show

pytestmark = pytest.mark.unit

PRIME = "rational functions: their values modulo a 96-bit prime at two points"
APART = "proven apart by floating-point values with error bounds"
DIGITS = "a worker, at 60 digits or more: the same at every point"


@pytest.fixture(scope="module")
def verifier():
    with Verifier(VerifierConfig(num_workers=1, deadline_seconds=0.5)) as made:
        yield made


@pytest.mark.parametrize(
    ("gold", "text", "kind", "rule"),
    [
        ("7", "7", "correct", "the same text"),
        ("7", r"\boxed{7.}", "correct", "the same tree"),
        ("3/2", r"\boxed{6/4}", "correct", PRIME),
        ("2x+1", r"\boxed{2y+1}", "wrong", PRIME),
        (r"\sqrt2", r"\boxed{\sqrt3}", "wrong", APART),
        (r"\sqrt2\sqrt3", r"\boxed{\sqrt6}", "correct", DIGITS),
        ("3.14", r"\boxed{\pi}", "correct",
         "a worker, at 60 digits or more: a value without an end that rounds to the gold"),
        ("3.14", r"\boxed{\sqrt2}", "wrong",
         "proven not to round to the gold by a floating-point value with an error bound"),
        ("0.333", r"\boxed{1/3}", "correct", "the exact value, which if it has no end may round to the gold"),
        ("1,2", r"\boxed{2,1}", "correct", "several values, order does not count: each has its partner"),
        ("(1,2)", r"\boxed{(2,1)}", "wrong", "tuples, intervals or matrices: brackets, and values in order"),
        (r"\{1,2\}", r"\boxed{(1,2)}", "wrong", "answers of different kinds"),
        ("x=5", r"\boxed{5}", "correct", "the same tree"),
        ("C", r"\boxed{(C) 42}", "correct", "multiple choice: the letter"),
        ("yes", r"\boxed{\text{no}}", "wrong", "words: letter by letter"),
        ("52_8", r"\boxed{52_9}", "wrong", "numerals in a base, or too long to convert: their digits"),
        (r"\infty", r"\boxed{-\infty}", "wrong", "infinities: their signs"),
        ("55", r"\boxed{\sum_{k=1}^{10} k}", "not_worked_out",
         "a sum, a product, an integral or a limit that is left to compute"),
        ("55", r"\boxed{\sum_{k=1}^{10} k = 55}", "correct", "the same tree"),
        ("1", r"\boxed{(10^{1200})^2+(\sqrt2)!}", "timeout",
         "comparing passed the deadline or the memory limit; the worker was ended"),
        ("1", r"\boxed{9^{9^{9^{9^9}}}}", "unparsed", "no rule could compare them, or they are too large to evaluate"),
        ("7", r"\boxed{7", "truncated", "cut off: a box is left open behind the last answer"),
        ("7", "", "no_answer", "nothing is said"),
        ("7", r"\boxed{}", "no_answer", "the last box is empty"),
        ("7", r"\boxed{\text{plenty}}", "unparsed", "words, where the gold is an expression"),
    ],
)  # fmt: skip
def test_the_rule_that_decided_is_named(verifier, gold: str, text: str, kind: str, rule: str) -> None:
    request = JudgeRequest(text=text, gold=gold)
    found = verifier.explain(request)
    assert (found.verdict.kind, found.rule) == (kind, rule)
    judged = verifier.judge(text, gold)
    assert (judged.kind, judged.extracted) == (found.verdict.kind, found.verdict.extracted)
    assert next(found.lines()) == f"verdict     {kind.upper()}"


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        (r"\boxed{5} or \boxed{7}", "extraction: the boxes of the last sentence, as a list"),
        ("#### 7", "extraction: what follows the last ####"),
        ("<answer>7</answer>", "extraction: the last <answer> element"),
        ("Answer: clearly **7**", "extraction: bold, code or mathematics behind the last \"the answer is\""),
        ("She has 7 apples left over.", "extraction: the last number of the last line"),
        ("so\n\n7", "extraction: the last line, which is or ends in an expression or a few words"),
    ],
)  # fmt: skip
def test_the_rule_that_found_the_answer_is_named(verifier, text: str, rule: str) -> None:
    assert verifier.explain(JudgeRequest(text=text, gold="7", last_number=True)).steps[0].rule == rule


def test_rules_of_the_task_are_named(verifier) -> None:
    copied = JudgeRequest(text="98 + 41", gold="139", question="What is 98 + 41?")
    assert verifier.explain(copied).rule == "less worked out than the gold, or the question's"
    asked = JudgeRequest(text="140 - 1", gold="139", is_number=True)
    assert verifier.explain(asked).rule == "a number is asked for, and this is not worked out"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (r"\frac{a+b}{c-d}", "(a + b)/(c - d)"), ("-x^2", "-x^2"), ("(-x)^2", "(-x)^2"), ("2^{3^x}", "2^(3^x)"),
        ("a-(b-c)", "a - (b - c)"), ("3.50", "7/2 [2 decimals]"), ("52_8", "52 [in base 8]"), ("5!", "5!"),
        (r"\sin(x)", "sin(x)"), (r"x \le 3", "x <= 3"), (r"\{1,2\}", "the set {1, 2}"), ("(1,2]", "(1, 2]"),
        (r"(1,2)\cup\{3\}", "(1, 2) union the set {3}"), ("1,2", "the list 1, 2"), (r"\infty", "infinity"),
        (r"\begin{pmatrix}1&2\\3&4\end{pmatrix}", "matrix [1, 2; 3, 4]"), ("yes", "the words 'yes'"),
        ("30°", "30 degrees"), (r"\sum_{k} k", r"a formula that is not computed: \sum _ { k } k"), ("f(x)", "f(x)"),
        (r"\mathbb{R}\setminus\{2\}", r"seq \setminus(\mathbb{R}, the set {2})"),
    ],
)  # fmt: skip
def test_trees_are_written_out(text: str, shown: str) -> None:
    assert show(parse_answer(text)) == shown


def test_long_trees_are_cut() -> None:
    assert show(parse_answer("9" * 3000)).endswith("(3028 characters)")
    assert show(None) == "nothing that can be read as an expression"


_BROKEN = """
from rlora.verify.comparison import precise

def values_at(*_):
    raise ValueError("broken")

precise.values_at = values_at
"""


def test_an_exception_in_a_worker_is_logged_once_and_counted(caplog, tmp_path, monkeypatch) -> None:
    """No answer is known that raises in a worker, so the worker is given arithmetic that does."""
    (tmp_path / "sitecustomize.py").write_text(_BROKEN)
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    broken = JudgeRequest(text=r"\boxed{\sqrt6}", gold=r"\sqrt2\sqrt3")
    with Verifier(VerifierConfig(num_workers=1)) as verifier, caplog.at_level(logging.WARNING):
        assert [verdict.kind for verdict in verifier.judge_many([broken] * 3)] == [VerdictKind.UNPARSED] * 3
        explained = verifier.explain(broken)
    ((error, count),) = verifier.errors.items()
    assert count == 4
    assert " in precise.py:" in error
    assert explained.steps[-1].rule == f"the worker's comparison raised {error}"
    (record,) = caplog.records
    assert error in record.getMessage()
