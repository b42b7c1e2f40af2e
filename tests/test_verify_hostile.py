"""Answers made to hang, crash or exhaust the verifier."""

import time

import pytest

from rlora.types import VerdictKind
from rlora.verify import JudgeRequest, Verifier, VerifierConfig
from rlora.verify.equal import cheap_verdict

pytestmark = pytest.mark.unit

REFUSED = [
    "9^{9^{9^{9^9}}}", "9**9**9**9", "(10^{10^{10}})!", "100000000!", "((((10!)!)!)!)!",
    "{" * 1000 + "1" + "}" * 1000, "(" * 1000 + "1" + ")" * 1000,
    "{" * 1000, "}" * 1000, "1" * 1_000_000, "x" * 1_000_000, "a+" * 500_000, r"\boxed{" * 100_000,
    "the answer is " * 50_000, "$" * 100_000, "9" * 100_000,
    "1/" + "9" * 100_000, "0." + "3" * 100_000, "__import__('os').system('false')", "lambda: 0", "nan", "inf",
    "-inf", "1/0", "0/0", r"\frac{1}{0}", "", "  ",
    r"\frac", r"\frac{1}", r"\sqrt", "^", "_", r"\begin{pmatrix}1", "[[[[", "|" * 999, "!" * 1000, "5" + "!" * 1000,
    "-" * 5000 + "1", "1" + "+1" * 5000,
    "x^" * 500 + "x", "e^{" * 50 + "1" + "}" * 50, r"\sin(" * 300 + "1" + ")" * 300, "1e999999999", "10^{-10^{10}}",
    r"\text{" * 1000, "<think>" * 10_000,
    "wait " * 100_000, "1," * 100_000, "1 " * 100_000, r"\binom{10^9}{10^8}", r"\lfloor 10^{10^5}\rfloor",
    "2^{2^{2^{2^{2^{2}}}}}", "(x+1)^{10^9}",
    r"\gcd(10^{1000},6^{500})", r"\sqrt[10^9]{2}", r"\sin(10^{100})", r"\tan(\pi/2)", "aaaaaaaaaaaa!" * 1000,
    "*" * 100_000, "`" * 100_000, "####" * 50_000,
    "\\\\" * 50_000, "answer" * 100_000, "<answer>" * 10_000, "answer: " + " " * 100_000, "(" + "1," * 3000 + "1)",
    "3000!" + "+3000!" * 60,
    r"2\frac{" * 50 + "1" + "}{2}" * 50, "\ud800\udfff", "\x00", "1\x00\x00", "𝟕" * 1000, "½" * 1000, "²" * 1000,
    "√" * 1000, "\u202e7\u202c8",
]  # fmt: skip

SLOW = [
    *(rf"\sum_{{k=1}}^{{10^{{9}}}} \sin(k^{{{n}}})" for n in range(2, 9)),
    *(rf"\int_0^1 e^{{x^{{{n}}}+\sin(x^7)}} \ln(1+x^{{3}}) dx" for n in range(2, 9)),
    *(rf"\prod_{{k=1}}^{{10^{{8}}}} (k^{{{n}}}+1)" for n in range(2, 9)),
]


@pytest.mark.parametrize("gold", ["7", r"\sqrt{2}+x", "(1,2)", "yes"])
@pytest.mark.parametrize("frame", ["{}", r"\boxed{{{}}}", "The answer is {}"])
def test_hostile_answers_are_refused_quickly_without_raising(gold: str, frame: str) -> None:
    with Verifier(VerifierConfig(deadline_seconds=0.5)) as verifier:
        for answer in REFUSED:
            start = time.process_time()
            verdict = verifier.judge(frame.format(answer), gold)
            assert not verdict.is_correct, answer[:50]
            assert time.process_time() - start < 1.0, answer[:50]
            verdict.extracted.encode()  # no surrogates, so that a log can be written


def test_at_least_twenty_hostile_answers_reach_a_worker() -> None:
    assert len(SLOW) >= 20
    assert all(cheap_verdict("1", answer, is_rounding=True) is None for answer in SLOW)


def test_slow_answers_delay_a_batch_by_their_deadlines_alone() -> None:
    slow = [JudgeRequest(text=rf"\boxed{{{answer}}}", gold="1") for answer in SLOW[::4]]
    ordinary = [JudgeRequest(text=rf"\boxed{{\sqrt{{{n}}}}}", gold=rf"\sqrt{{{n + n % 2}}}") for n in range(2, 402)]
    config = VerifierConfig(deadline_seconds=0.3, num_workers=2)
    with Verifier(config) as verifier:
        alone = verifier.judge_many(ordinary)
        start = time.perf_counter()
        mixed = verifier.judge_many([*slow[:3], *ordinary, *slow[3:]])
        seconds = time.perf_counter() - start
    assert [v.kind for v in mixed[3 : 3 + len(ordinary)]] == [v.kind for v in alone]
    assert {v.kind for v in mixed[:3]} <= {VerdictKind.TIMEOUT, VerdictKind.UNPARSED}
    assert seconds < 30  # each deadline costs 0.3 s of CPU and a new worker; far from it even on a busy machine


def test_a_large_integer_equals_itself_alone() -> None:
    digits = "123456789" * 12_000
    with Verifier() as verifier:
        assert verifier.judge(rf"\boxed{{{digits}}}", digits).is_correct
        assert verifier.judge(rf"\boxed{{0{digits}}}", digits).is_correct
        assert not verifier.judge(rf"\boxed{{{digits[:-1]}8}}", digits).is_correct
        assert not verifier.judge(rf"\boxed{{{digits}0}}", digits).is_correct


def test_code_in_an_answer_is_never_run(tmp_path) -> None:
    target = tmp_path / "made"
    with Verifier() as verifier:
        for text in (f"open({str(target)!r},'w')", f"__import__('pathlib').Path({str(target)!r}).touch()"):
            verifier.judge(text, "7")
            verifier.judge(rf"\boxed{{\sum_{{k=1}}^{{2}} {text}}}", r"\sqrt2")
    assert not target.exists()
