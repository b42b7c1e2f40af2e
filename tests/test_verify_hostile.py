"""Answers made to hang, crash or exhaust the verifier."""

import gc
import time
from collections.abc import Iterator

import pytest

from benchmarks.verify_hostile import TO_A_WORKER, hostile, mixed, ordinary
from rlora.types import VerdictKind
from rlora.verify import JudgeRequest, Verifier, VerifierConfig
from rlora.verify.comparison.equal import cheap_verdict

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
    "√" * 1000, "\u202e7\u202c8", "5" + " " * 100_000 + "8", "5" + "\t" * 100_000 + "x", r"\begin{align}" * 20_000,
    r"\begin{align}" + r"\begin{gather}" * 10_000 + r"\end{align}", "```c\n" * 20_000,
    "5 " + "answer" * 10_000 + ".", "5 " + "E" * 50_000, r"mod \[x = " * 20_000, ")[asy]" * 20_000,
    "<|channel|>" * 20_000,
    r"\boxed{0}" + "".join(rf", \boxed{{{i}}}" for i in range(1, 30_000)), "P(" * 19 + "1" + ")" * 19,
    *(", ".join(rf"\boxed{{{', '.join(f'x={i + j}' for i in range(300))}}}" for j in range(n)) for n in (2, 8, 20)),
    r"\begin{align}" + r"\\[" * 100_000 + r"\end{align}", "8" + "$" * 19_000 + "x base",
    "8" + r"\text{ }" * 2_000 + "x base", "8_{" + "\n" * 19_000 + "(x(}", "^" + "\n" * 19_000 + "x",
    r"\text{" + "a" * 19_000 + "}x", "\ufdfa" * 100_000, "\\sin " * 40 + "\ufdfa" * 1_900, "1=" * 990 + "1",
    r"\(" * 100_000, "answer of x" + "*" * 300_000, "1,234," * 60_000 + "x",
    "[think]" * 20_000, "x is " * 20_000, "5 or " * 20_000 + "8", "1\u0304" * 20_000, "sinx" * 4000, "(mod " * 20_000,
]  # fmt: skip

SLOW_TEXTS = frozenset(rf"\boxed{{{answer}}}" for answer in TO_A_WORKER)


@pytest.fixture
def no_collection() -> Iterator[None]:
    """Keep the garbage of other tests out of a timing: to walk all objects that they left takes most of a second."""
    gc.disable()
    yield
    gc.enable()


@pytest.mark.usefixtures("no_collection")
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


def test_at_least_twenty_of_the_hundred_hostile_answers_reach_a_worker() -> None:
    assert len(hostile()) == 100
    assert all(cheap_verdict("1", answer, is_rounding=True) is None for answer in TO_A_WORKER)
    assert len(TO_A_WORKER) == 30


def _check_batch(num_ordinary: int, bad: list[JudgeRequest], config: VerifierConfig) -> None:
    """Judge ordinary answers alone and with hostile ones among them: the same verdicts, later by deadlines alone."""
    plain = ordinary(num_ordinary)
    items, places = mixed(plain, bad)
    with Verifier(config) as verifier:
        verifier.judge_many(plain[:100])
        start = time.perf_counter()
        alone = verifier.judge_many(plain)
        middle = time.perf_counter()
        together = verifier.judge_many(items)
        extra = (time.perf_counter() - middle) - (middle - start)
    assert len(together) == len(plain) + len(bad)
    assert [together[i].kind for i in places] == [verdict.kind for verdict in alone]
    assert [together[i].extracted for i in places] == [verdict.extracted for verdict in alone]
    assert sum(verdict.is_correct for verdict in alone) > 0.45 * num_ordinary
    ordinary_places = set(places)
    rest = [verdict for i, verdict in enumerate(together) if i not in ordinary_places]
    timeouts = [verdict for verdict in rest if verdict.kind is VerdictKind.TIMEOUT]
    assert len(timeouts) >= sum(item.text in SLOW_TEXTS for item in bad)
    # Deadlines are CPU time: on a busy machine the wall time is longer, at most the backstop's five times.
    assert extra <= 5 + 5 * len(timeouts) * config.deadline_seconds / config.num_workers


def test_hostile_answers_delay_a_batch_by_their_deadlines_alone() -> None:
    bad = hostile()
    _check_batch(600, [*bad[:30:5], *bad[30:]], VerifierConfig(deadline_seconds=0.2))


@pytest.mark.long
def test_a_hundred_hostile_among_ten_thousand_ordinary_answers() -> None:
    _check_batch(10_000, hostile(), VerifierConfig())


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
