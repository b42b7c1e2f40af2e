"""A hundred answers made to hang, crash or exhaust a verifier, and ten thousand ordinary ones to judge beside them."""

import random

from benchmarks.verify_pairs import SQUARE_FREE
from rlora.verify import JudgeRequest

NUM_ORDINARY = 10_000

TO_A_WORKER = [
    *(rf"(10^{{1200}})^2+(\sqrt{{{n}}})!" for n in (2, 3, 5, 6, 7, 8, 10, 11, 12, 13)),
    *(rf"(10^{{1200}})^2+\binom{{\sqrt{{{n}}}}}{{\pi}}" for n in (2, 3, 5, 6, 7, 8, 10, 11, 12, 13)),
    *(rf"(10^{{1200}})^2x+(x+\sqrt{{{n}}})!" for n in (2, 3, 5, 6, 7, 8, 10, 11, 12, 13)),
]
"""Past every cheap guard: only a worker's deadline ends them."""

TO_THE_GUARD = [
    "9^{9^{9^{9^9}}}", "9**9**9**9", "(10^{10^{10}})!", "100000000!", "((((10!)!)!)!)!", "2^{2^{2^{2^{2^{2}}}}}",
    r"\binom{10^9}{10^8}", r"\lfloor 10^{10^5}\rfloor", "(x+1)^{10^9}", r"\sqrt[10^9]{2}", r"\sin(10^{100})",
    r"\tan(\pi/2)",
    "10^{-10^{10}}", "1e999999999", r"\gcd(10^{1000},6^{500})", "3000!" + "+3000!" * 60, "x^" * 500 + "x",
    "e^{" * 50 + "1" + "}" * 50, r"\sin(" * 300 + "1" + ")" * 300, r"2\frac{" * 50 + "1" + "}{2}" * 50,
    "{" * 1000 + "1" + "}" * 1000, "(" * 1000 + "1" + ")" * 1000, "{" * 1000, "}" * 1000, "[[[[", "|" * 999, "!" * 1000,
    "5" + "!" * 1000, "-" * 5000 + "1", "1" + "+1" * 5000, "1" * 1_000_000, "x" * 1_000_000, "a+" * 500_000,
    "9" * 100_000, "1/" + "9" * 100_000, "0." + "3" * 100_000, r"\boxed{" * 100_000, "the answer is " * 50_000,
    "$" * 100_000, "*" * 100_000, "`" * 100_000, "####" * 50_000, "\\\\" * 50_000, "answer" * 100_000,
    "<answer>" * 10_000, "answer: " + " " * 100_000, "<think>" * 10_000, "wait " * 100_000, "1," * 100_000,
    "1 " * 100_000,
    "(" + "1," * 3000 + "1)", "aaaaaaaaaaaa!" * 1000, r"\text{" * 1000, r"\frac", r"\frac{1}", r"\sqrt", "^", "_",
    r"\begin{pmatrix}1", "__import__('os').system('false')", "lambda: 0", "nan", "-inf", "1/0", r"\frac{1}{0}", "",
    "\ud800\udfff", "\x001\x00", "𝟕" * 1000, "½" * 1000,
]  # fmt: skip
"""Refused before any worker is asked, or cheap to compare."""


def hostile() -> list[JudgeRequest]:
    """Return the hundred hostile answers, each as a box: those for a worker first, then those for the guard."""
    return [JudgeRequest(text=rf"\boxed{{{answer}}}", gold="1") for answer in [*TO_A_WORKER, *TO_THE_GUARD]]


def ordinary(count: int = NUM_ORDINARY, seed: int = 0) -> list[JudgeRequest]:
    """Return ordinary answers, half of them right; one in fifty needs a worker."""
    r = random.Random(seed)
    items = []
    for i in range(count):
        n, c = r.randint(2, 999), r.choice(SQUARE_FREE)
        wrong = i % 2
        if i % 50 == 0:
            text, gold = rf"\boxed{{{n}\sqrt{{{c}}}}}", rf"\sqrt{{{n * n * c + wrong}}}"
        elif i % 3 == 0:
            text, gold = f"... so the answer is {n}/{n + 7}.", rf"\frac{{{2 * n + wrong}}}{{{2 * n + 14}}}"
        else:
            text, gold = f"First we add, then we get {n}.\n#### {n:,}", str(n + wrong)
        items.append(JudgeRequest(text=text, gold=gold))
    return items


def mixed(ordinary: list[JudgeRequest], hostile: list[JudgeRequest]) -> tuple[list[JudgeRequest], list[int]]:
    """Return the ordinary answers with the hostile ones spread evenly among them, and where the ordinary ones stand."""
    step = len(ordinary) // len(hostile) or 1
    items: list[JudgeRequest] = []
    places: list[int] = []
    left = iter(hostile)
    for i, item in enumerate(ordinary):
        if i % step == 0 and (bad := next(left, None)) is not None:
            items.append(bad)
        places.append(len(items))
        items.append(item)
    return [*items, *left], places
