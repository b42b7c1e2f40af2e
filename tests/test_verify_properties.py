"""Pairs that are equal, and near misses that are not, by construction: no grader made these labels."""

import math
from fractions import Fraction

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from rlora.verify import Verifier, equal, matches
from rlora.verify.extraction.extract import extract

pytestmark = pytest.mark.unit
quick = settings(max_examples=60, deadline=None, derandomize=True)

integers = st.integers(-999, 999)
nonzero = integers.filter(bool)
fractions = st.builds(Fraction, integers, st.integers(2, 60)).filter(lambda x: x.denominator > 1)
square_free = st.sampled_from([2, 3, 5, 6, 7, 10, 11, 13, 15, 17, 19, 21])


def _frac(x: Fraction, command: str = "\\frac") -> str:
    sign = "-" if x < 0 else ""
    return f"{sign}{command}{{{abs(x.numerator)}}}{{{x.denominator}}}"


def _mixed(x: Fraction) -> str:
    whole, rest = divmod(abs(x.numerator), x.denominator)
    body = f"{whole} {rest}/{x.denominator}" if whole else f"{rest}/{x.denominator}"
    return ("-" if x < 0 else "") + body


def _polynomial(coefficients: list[int], name: str = "x") -> str:
    terms = [f"{c:+d}{name}^{{{power}}}" for power, c in reversed(list(enumerate(coefficients))) if c]
    return "".join(terms).lstrip("+") or "0"


def _times(a: list[int], b: list[int]) -> list[int]:
    out = [0] * (len(a) + len(b) - 1)
    for i, x in enumerate(a):
        for j, y in enumerate(b):
            out[i + j] += x * y
    return out


def _assert_equal(a: str, b: str) -> None:
    assert equal(a, b), (a, b)
    assert equal(b, a), (b, a)


def _assert_different(a: str, b: str) -> None:
    assert not equal(a, b), (a, b)
    assert not equal(b, a), (b, a)


@quick
@given(fractions, st.integers(2, 12))
def test_forms_of_a_fraction(x: Fraction, k: int) -> None:
    for other in (
        _frac(x, "\\dfrac"),
        f"{x.numerator}/{x.denominator}",
        _mixed(x),
        f"{k * x.numerator}/{k * x.denominator}",
        f"x = {_frac(x)}",
    ):
        _assert_equal(_frac(x), other)
    _assert_equal(_frac(x), f"{x.numerator}⁄{x.denominator}".replace("-", "−"))


@quick
@given(fractions)
def test_near_misses_of_a_fraction(x: Fraction) -> None:
    for other in (
        -x,
        x + 1,
        Fraction(x.numerator + 1, x.denominator),
        Fraction(x.numerator, x.denominator + 1),
        1 / x if x else x + 2,
    ):
        if other != x:
            _assert_different(_frac(x), f"{other.numerator}/{other.denominator}")
    decimal = f"{float(x):.6f}"
    if Fraction(decimal) != x:
        _assert_different(_frac(x), decimal)
        assert matches(decimal, _frac(x))


@quick
@given(st.integers(1000, 10**12))
def test_thousands_and_digits(n: int) -> None:
    for other in (
        f"{n:,}",
        f"{n:,}".replace(",", "{,}"),
        f"{n:,}".replace(",", ",\\!"),
        f"{n:,}".replace(",", "\\,"),
        f"+{n}",
        f"0{n}",
        f"{n}.0",
        f"\\${n:,}",
    ):
        _assert_equal(str(n), other)
    position = len(str(n)) // 2
    digit = str((int(str(n)[position]) + 1) % 10)
    _assert_different(str(n), str(n)[:position] + digit + str(n)[position + 1 :])
    _assert_different(str(n), str(n) + "0")


@quick
@given(nonzero, nonzero, square_free, st.integers(1, 40))
def test_surds(a: int, b: int, c: int, d: int) -> None:
    text = rf"\frac{{{a}{b:+d}\sqrt{{{c}}}}}{{{d}}}"
    sign = "+" if b > 0 else "-"
    _assert_equal(text, rf"\frac{{{a}}}{{{d}}} {sign} \frac{{\sqrt{{{b * b * c}}}}}{{{d}}}")
    _assert_equal(text, rf"\frac{{{a * c}{b * c:+d}\sqrt{{{c}}}}}{{{c * d}}}")
    _assert_equal(text, rf"({b}√{c} + {a})/{d}")
    for other in ((-a, b, c, d), (a, -b, c, d), (a, b, c + 1, d), (a, b, c, d + 1), (a + 1, b, c, d)):
        assume(math.isqrt(c + 1) ** 2 != c + 1)
        _assert_different(text, rf"\frac{{{other[0]}{other[1]:+d}\sqrt{{{other[2]}}}}}{{{other[3]}}}")


@quick
@given(st.lists(st.integers(-9, 9), min_size=2, max_size=4), st.integers(1, 9), st.integers(0, 3))
def test_polynomials(roots: list[int], scale: int, at: int) -> None:
    expanded = [scale]
    for root in roots:
        expanded = _times(expanded, [-root, 1])
    factored = str(scale) + "".join(f"(x{-root:+d})" for root in roots)
    _assert_equal(_polynomial(expanded), factored)
    _assert_equal("f(x) = " + _polynomial(expanded), factored.replace("x", "(x)"))
    changed = list(expanded)
    changed[at % len(changed)] += 1
    _assert_different(_polynomial(changed), factored)
    _assert_different(_polynomial(expanded, "y"), factored)


@quick
@given(nonzero, nonzero, integers, st.integers(2, 9))
def test_equations(a: int, b: int, c: int, k: int) -> None:
    line = f"{a}x{b:+d}y = {c}"
    _assert_equal(line, f"{c} = {b}y{a:+d}x")
    _assert_equal(line, f"{a}x{b:+d}y{-c:+d} = 0")
    _assert_equal(line, f"{k * a}x{k * b:+d}y = {k * c}")
    _assert_different(line, f"{a}x{b:+d}y = {c + 1}")
    _assert_different(line, f"{a}x{-b:+d}y = {c}")
    _assert_different(line, f"{a}x{b:+d}z = {c}")


@quick
@given(fractions, fractions, st.sampled_from(["()", "[]", "(]", "[)"]))
def test_intervals(a: Fraction, b: Fraction, brackets: str) -> None:
    assume(a < b)
    text = f"{brackets[0]}{_frac(a)}, {_frac(b)}{brackets[1]}"
    _assert_equal(
        text, f"\\left{brackets[0]} {a.numerator}/{a.denominator},{_frac(b, chr(92) + 'dfrac')}\\right{brackets[1]}"
    )
    left, right = ("<" if brackets[0] == "(" else r"\le"), ("<" if brackets[1] == ")" else "≤")
    _assert_equal(text, f"{_frac(a)} {left} x {right} {_frac(b)}")
    other = {"(": "[", "[": "(", ")": "]", "]": ")"}
    _assert_different(text, f"{other[brackets[0]]}{_frac(a)}, {_frac(b)}{brackets[1]}")
    _assert_different(text, f"{brackets[0]}{_frac(a)}, {_frac(b)}{other[brackets[1]]}")
    _assert_different(text, f"{brackets[0]}{_frac(-a)}, {_frac(b)}{brackets[1]}")


@quick
@given(st.lists(integers, min_size=2, max_size=5, unique=True), st.randoms(use_true_random=False))
def test_order_counts_in_tuples_and_not_in_sets(values: list[int], random) -> None:
    shuffled = list(values)
    random.shuffle(shuffled)
    join = lambda items, sep=", ": sep.join(map(str, items))  # noqa: E731
    _assert_equal(rf"\{{{join(values)}\}}", rf"\{{{join(shuffled)}\}}")
    _assert_equal(join(values), f"{join(shuffled[:-1])} and {shuffled[-1]}")
    _assert_equal(join(values), " or ".join(f"x={v}" for v in shuffled))
    _assert_equal(f"({join(values)})", f"({join(values, ' , ')})")
    if shuffled != values:
        _assert_different(f"({join(values)})", f"({join(shuffled)})")
    _assert_different(rf"\{{{join(values)}\}}", rf"\{{{join(values[1:])}\}}")
    _assert_different(join(values), join([*values[:-1], values[-1] + 1000]))
    _assert_different(f"({join(values)})", rf"\{{{join(values)}\}}")


@quick
@given(nonzero, nonzero)
def test_complex_numbers(a: int, b: int) -> None:
    _assert_equal(f"{a}{b:+d}i", f"{b}i{a:+d}")
    _assert_different(f"{a}{b:+d}i", f"{a}{-b:+d}i")
    _assert_different(f"{a}{b:+d}i", f"{a}")
    if a != b:
        _assert_different(f"{a}{b:+d}i", f"{b}{a:+d}i")


@quick
@given(st.integers(2, 10**6), st.integers(2, 9))
def test_bases(n: int, base: int) -> None:
    digits, rest = "", n
    while rest:
        digits, rest = str(rest % base) + digits, rest // base
    _assert_equal(f"{digits}_{base}", rf"{digits}_{{{base}}}")
    _assert_equal(f"{digits}_{base}", digits + "₀₁₂₃₄₅₆₇₈₉"[base])
    _assert_different(f"{digits}_{base}", digits)
    _assert_different(f"{digits}_{base}", str(n))
    _assert_different(f"{digits}_{base}", rf"{digits}_{{{base + 1}}}")


@quick
@given(st.lists(st.lists(integers, min_size=2, max_size=3), min_size=2, max_size=3))
def test_matrices(rows: list[list[int]]) -> None:
    assume(len({len(row) for row in rows}) == 1)
    body = r" \\ ".join(" & ".join(map(str, row)) for row in rows)
    text = rf"\begin{{pmatrix}} {body} \end{{pmatrix}}"
    _assert_equal(text, rf"\begin{{bmatrix}} {body.replace(' ', '')} \end{{bmatrix}}")
    changed = [list(row) for row in rows]
    changed[-1][0] += 1
    other = r" \\ ".join(" & ".join(map(str, row)) for row in changed)
    _assert_different(text, rf"\begin{{pmatrix}} {other} \end{{pmatrix}}")


@quick
@given(
    integers,
    integers,
    st.sampled_from(
        [r"\boxed{{{}}}", "The answer is {}.", "#### {}", "**{}**", "`{}`", "<think>hm</think>{}", "so\n\n${}$"]
    ),
)
def test_completions(n: int, other: int, frame: str) -> None:
    with Verifier() as verifier:
        assert verifier.judge(frame.format(n), str(n), last_number=False).is_correct
        assert verifier.judge(f"First {other}. " + frame.format(n), str(n)).is_correct or frame.startswith(
            ("####", "<think>")
        )
        if n != other:
            assert not verifier.judge(frame.format(n), str(other)).is_correct
            assert not verifier.judge(frame.format(f"{n} or {other}"), str(n)).is_correct
            assert not verifier.judge(rf"\boxed{{{n}}} wait, that is wrong. " + frame.format(other), str(n)).is_correct


PIECES = [*"0123456789.,+-*/^_(){}[]|=<>!%$ abxyeif\n'&;:½√²∞π", "\\frac", "\\sqrt", "\\boxed{", "\\text{", "\\pm",
"\\cup", "\\infty", "\\sin",
          "\\log", "^\\circ", "\\begin{pmatrix}", "\\end{pmatrix}", "\\\\", "\\{", "\\}", " or ", "\\in", "\\le",
          "10^", "!", "\\pi", "\\left(", "i"]  # fmt: skip


@settings(max_examples=300, deadline=None, derandomize=True)
@given(st.lists(st.sampled_from(PIECES), max_size=24).map("".join))
def test_no_text_raises_and_equality_is_symmetric(text: str) -> None:
    extract(text)
    for other in ("7", "x+1", "(1,2)", text):
        assert equal(text, other) == equal(other, text)
