"""No text raises; and if one did, it would be a verdict, counted and said once, and the run would go on."""

import logging
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlora.types import VerdictKind
from rlora.verify import JudgeRequest, Verifier, VerifierConfig, VerifierError, judging, verifier
from rlora.verify.comparison.equal import cheap_verdict
from rlora.verify.extraction.extract import gold_text
from rlora.verify.judging import judge_cheaply
from rlora.verify.reading.answer import parse_answer
from rlora.verify.reading.show import show

pytestmark = pytest.mark.unit

RAISED = [
    "7_{}", "A_{}", "(7)_{}", "52_{ }", r"x = 7_{}", "7_❶", "in base 8❶", r"\max()", r"\gcd()", r"\min\{\}+1",
    r"2\lcm()", "1.5e400", "-1.5e400", "1.5e-400", "9e9999",
]  # fmt: skip
FRAMES = ["{}", r"\boxed{{{}}}", "The answer is {}.", "#### {}", "<answer>{}</answer>", r"\boxed{{{}}}, \boxed{{7}}"]
GOLDS = ["7", r"\sqrt{2}+x", r"\pi", "(1,2)", "yes", "A", "3.14", "1.5e400", "x=5", r"\{1,2\}", "52_8", r"\infty"]

_PIECES = r"""
    \boxed{ \fbox{ { } ( ) [ ] \{ \} _{} _{2} _2 _ ^ ^{} ^{2} 7 12 0 -1 0.5 1.5e400 1e-400 9e9999 1,234 x y A P(
    f( f^{-1}( \frac \frac{1}{2} \frac{}{} \sqrt \sqrt[3] \sqrt[]{} \pi \infty e i \max \min \gcd \max() \gcd{}
    \lfloor \rfloor | ! !! % \% ' \prime ^\circ C \cdot * ** / \over \choose \binom{ + - \pm = < \le \ne \approx
    \in \to \equiv ~ : ; , & \\ \cup \cap \setminus \pmod{ (mod \begin{pmatrix} \end{pmatrix} \begin{cases}
    \end{cases} \begin{align} \end{align} \text{ \text{and} \mathbb{R} \mathbb \operatorname{ \overline{3}
    0.\overline{6} 0.\dot{3} \hat \langle \rangle \left( \right) \sum \int \sin \log \log_{2} \exp \cis sin log
    max gcd base (52)_8 A5_{16} _{ten} four yes or and not is equals answer: #### <answer> </answer> <think>
    </think> $ $$ \( \) \[ \] ** ` ``` " '' . ... ? cm hours 1:03PM (A) A) wait actually, ½ √ ∛ ² ₂ ⁻ ❶ ① ፩ ７ 𝟕
    ∞ ∪ ℝ ∅ ° − × ≤ ± ̅ 答案是 \phantom{ \label{ \angle 2sinx xe^x AB \, \! \ldots \lvert \lbrace f(x)= x\in
    (-\infty,\infty) \{1,2\} ㏑ Ⅳ ⅟ ﷺ
"""
texts = st.builds(
    lambda pieces, space: space.join(pieces),
    st.lists(
        st.sampled_from([*_PIECES.split(), *RAISED, " ", "\n", "no solution", "the answer is "]),
        min_size=1,
        max_size=12,
    ),
    st.sampled_from(["", " "]),
)


def _judge(text: str, gold: str) -> None:
    """Judge as the verifier does in the caller's process, and write out both sides as an explanation does."""
    for last_number in (True, False):
        judge_cheaply(JudgeRequest(text=text, gold=gold, last_number=last_number), [])
    for side in (text, gold_text(gold)):
        show(parse_answer(side))


@pytest.mark.parametrize("text", RAISED)
@pytest.mark.parametrize("frame", FRAMES)
def test_texts_that_raised_are_judged(text: str, frame: str) -> None:
    for gold in GOLDS:
        _judge(frame.format(text), gold)
        _judge(frame.format(gold), text)
        for is_rounding in (True, False):
            cheap_verdict(text, gold, is_rounding=is_rounding, trace=[])
            cheap_verdict(gold, text, is_rounding=is_rounding, trace=[])


@settings(max_examples=400, deadline=None, derandomize=True)
@given(texts, st.sampled_from(FRAMES), st.sampled_from(GOLDS))
def test_no_completion_raises(text: str, frame: str, gold: str) -> None:
    _judge(frame.format(text), gold)


@settings(max_examples=400, deadline=None, derandomize=True)
@given(texts, texts | st.sampled_from(GOLDS))
def test_no_pair_of_a_gold_and_an_answer_raises(gold: str, answer: str) -> None:
    _judge(answer, gold)
    cheap_verdict(gold, answer, is_rounding=True, trace=[])
    cheap_verdict(gold, answer, is_rounding=False, trace=[])


@settings(max_examples=300, deadline=None, derandomize=True)
@given(st.text(max_size=12), st.sampled_from(FRAMES), st.sampled_from(GOLDS))
def test_no_character_raises(text: str, frame: str, gold: str) -> None:
    _judge(frame.format(text), gold)


def test_an_empty_subscript_names_no_base_and_no_arguments_have_no_maximum() -> None:
    assert parse_answer("7_{}") is None
    assert parse_answer(r"\max()") is None
    with Verifier() as made:
        for text in (r"\boxed{7_{}}", "The answer is 7_{}.", r"\boxed{\max()}", "7_❶"):
            assert not made.judge(text, "7").is_correct
        assert made.judge(r"\boxed{A_{}}", "A_{}").is_correct  # the same text
        assert not made.judge("7", "7_{}").is_correct
        assert made.judge("1.5e400", "1.5e400").is_correct
        assert made.judge(r"\boxed{\pi}", "1.5e400").kind is VerdictKind.WRONG
        assert not made.errors


def test_numbers_too_long_to_write_out_are_explained_by_their_length() -> None:
    assert show(parse_answer("9e9999")) == "a number of about 10000 digits"


BAD = JudgeRequest(text=r"So it is \boxed{Q+1}", gold="Q")
GOOD = JudgeRequest(text=r"\boxed{7}", gold="7")
HARD = JudgeRequest(text=r"\boxed{\sqrt{6}}", gold=r"\sqrt2\sqrt3")


@pytest.mark.parametrize("part", ["extract", "gold_text", "parse_answer", "cheap_verdict"])
@pytest.mark.parametrize("error", [AttributeError("no strip"), RecursionError(), MemoryError()])
def test_an_exception_in_any_part_is_a_verdict_that_is_counted_and_said_once(
    part: str, error: Exception, monkeypatch, caplog
) -> None:
    rule = getattr(judging, part)

    def broken(*texts: str, **options: Any) -> object:
        if any("Q" in text for text in texts):
            raise error
        return rule(*texts, **options)

    monkeypatch.setattr(judging, part, broken)
    with Verifier(VerifierConfig(num_workers=1)) as made, caplog.at_level(logging.WARNING):
        verdicts = made.judge_many([GOOD, BAD, HARD, BAD, GOOD])
        alone = made.judge(BAD.text, BAD.gold)
        explained = made.explain(BAD)
        assert made.judge_many([GOOD, HARD])[1].is_correct  # the verifier goes on
    unparsed, correct = VerdictKind.UNPARSED, VerdictKind.CORRECT
    assert [verdict.kind for verdict in verdicts] == [correct, unparsed, correct, unparsed, correct]
    assert alone.kind is explained.verdict.kind is unparsed
    assert [bool(verdict.reason) for verdict in verdicts] == [False, True, False, True, False]
    assert alone.extracted == BAD.text  # the end of the completion, so that a vote does not take two of them for one
    ((name, count),) = made.errors.items()
    assert count == 4
    assert name.startswith(f"{type(error).__name__} in judging.py:")
    assert explained.rule == f"judging raised {name}" == alone.reason
    assert f"rule        judging raised {name}" in list(explained.lines())
    (record,) = caplog.records
    assert name in record.getMessage()
    assert "Q+1" in record.getMessage()


def test_an_exception_in_comparing_two_answers_is_false_and_counted(monkeypatch, caplog) -> None:
    def broken(*_: object, **__: object) -> None:
        raise IndexError

    with Verifier() as made, caplog.at_level(logging.WARNING):
        assert made.equal("1/2", "0.5")
        monkeypatch.setattr(verifier, "cheap_verdict", broken)
        assert not made.equal("1/2", "0.5")
        assert not made.equal("1/2", "2/4")
        assert made.equal("1/2", "1/2")  # the same text, before anything can raise
        assert list(made.errors.values()) == [2]
    assert len(caplog.records) == 1


def test_a_closed_verifier_still_raises() -> None:
    made = Verifier()
    made.close()
    with pytest.raises(VerifierError, match="closed"):
        made.judge(HARD.text, HARD.gold)
    with pytest.raises(VerifierError, match="closed"):
        made.equal(r"\sqrt{6}", HARD.gold)
