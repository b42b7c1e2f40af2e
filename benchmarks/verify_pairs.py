"""Answers that are equal to a gold, and near misses that are not, by construction: no grader made these labels."""

import math
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction

Cases = Iterator["Case"]
SQUARE_FREE = (2, 3, 5, 6, 7, 10, 11, 13, 14, 15)
SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
SUBSCRIPTS = str.maketrans("0123456789", "₀₁₂₃₄₅₆₇₈₉")
BASE_NAMES = ("two", "three", "four", "five", "six", "seven", "eight", "nine")
FULL_WIDTH = str.maketrans("0123456789", "０１２３４５６７８９")


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A completion with its gold, and whether the gold's value is what it says."""

    category: str
    text: str
    gold: str
    is_equal: bool
    is_truncated: bool = False


def frac(x: Fraction, command: str = "\\frac") -> str:
    return f"{'-' if x < 0 else ''}{command}{{{abs(x.numerator)}}}{{{x.denominator}}}"


def boxed(category: str, gold: str, equal: list[str], different: list[str]) -> Cases:
    """Yield a boxed answer for each form of the gold's value and for each near miss."""
    for answers, is_equal in ((equal, True), (different, False)):
        for answer in answers:
            yield Case(category=category, text=rf"So it is $\boxed{{{answer}}}$.", gold=gold, is_equal=is_equal)


def fraction(r: random.Random) -> Fraction:
    x = Fraction(r.choice([-1, 1]) * r.randint(1, 400), r.randint(3, 60))
    return x if x.denominator > 2 else fraction(r)


def fractions(r: random.Random) -> Cases:
    x, k = fraction(r), r.randint(2, 9)
    n, d = x.numerator, x.denominator
    whole, rest = divmod(abs(n), d)
    mixed = f"{'-' if n < 0 else ''}{whole}\\frac{{{rest}}}{{{d}}}" if whole else frac(x, "\\tfrac")
    equal = [frac(x, "\\dfrac"), f"{n}/{d}", frac(Fraction(n, d)), f"{k * n}/{k * d}", mixed, f"x = {frac(x)}"]
    different = [f"{n + 1}/{d}", f"{n}/{d + 1}", f"{-n}/{d}", f"{d}/{n}", f"{float(x):.5f}0001", f"{n}{d}"]
    yield from boxed("value, not form", frac(x), equal, different)


def numerals(r: random.Random) -> Cases:
    n = r.randint(1000, 10**9)
    grouped = f"{n:,}"
    equal = [grouped, grouped.replace(",", "{,}"), grouped.replace(",", "\\,"), f"+{n}", f"00{n}", f"{n}.0",
             f"\\${grouped}", f"{n} \\text{{ cm}}^2", f"{n}\\%", f"{n}^\\circ", f"{n}."]  # fmt: skip
    wrong = str(n)
    at = r.randrange(len(wrong))
    wrong = wrong[:at] + str((int(wrong[at]) + 1) % 10) + wrong[at + 1 :]
    different = [f"-{n}", wrong, f"{n}0", f"{n / 10:.1f}", f"{n + 1:,}"]
    yield from boxed("numerals and units", str(n), equal, different)
    power = r.randint(3, 12)
    digit = r.randint(11, 99)
    equal = [f"{digit / 10} \\times 10^{{{power}}}", f"{digit / 10}e{power}", str(digit * 10 ** (power - 1))]
    different = [f"{digit / 10} \\times 10^{{{power + 1}}}", f"{digit / 10}e{power - 1}", f"{digit / 10}"]
    yield from boxed("numerals and units", f"{digit} \\cdot 10^{{{power - 1}}}", equal, different)


def surds(r: random.Random) -> Cases:
    a, b, c, d = r.randint(1, 30), r.randint(2, 9), r.choice(SQUARE_FREE), r.randint(2, 20)
    gold = rf"\frac{{{a}+{b}\sqrt{{{c}}}}}{{{d}}}"
    equal = [rf"\frac{{{a}}}{{{d}}} + \frac{{\sqrt{{{b * b * c}}}}}{{{d}}}", f"({b}√{c} + {a})/{d}",
             rf"\frac{{{a * c} + {b * c}\sqrt{c if c < 10 else f'{{{c}}}'}}}{{{c * d}}}",
             rf"\frac{{{a * a - b * b * c}}}{{{d}({a}-{b}\sqrt{{{c}}})}}"]  # fmt: skip
    different = [rf"\frac{{{a}-{b}\sqrt{{{c}}}}}{{{d}}}", rf"\frac{{{a}+{b + 1}\sqrt{{{c}}}}}{{{d}}}",
                 rf"\frac{{{a}+{b}\sqrt{{{c}}}}}{{{d + 1}}}", rf"{a}+\frac{{{b}\sqrt{{{c}}}}}{{{d}}}"]  # fmt: skip
    yield from boxed("value, not form", gold, equal, different)


def polynomials(r: random.Random) -> Cases:
    p, q, s = r.randint(1, 9), r.randint(1, 9), r.randint(2, 6)
    b, c = s * (p - q), -s * p * q
    gold = f"{s}x^2{f'{b:+d}x' if b else ''}{c:+d}"
    equal = [f"{s}(x-{q})(x+{p})", f"({s}x-{s * q})(x+{p})", f"f(x) = {gold}", f"{c}{b:+d}x+{s}x²"]
    different = [f"{s}(x+{q})(x+{p})", gold.replace("x", "y"), f"{s}x^2{b + 1:+d}x{c:+d}", f"{s}x^3{b:+d}x{c:+d}",
                 f"{gold} = 0"]  # fmt: skip
    yield from boxed("expressions", gold, equal, different)
    k = r.randint(2, 7)
    line = f"{s}x+{p}y = {q}"
    equal = [f"{q} = {p}y+{s}x", f"{s}x+{p}y-{q} = 0", f"{k * s}x+{k * p}y = {k * q}", f"{s}x = {q}-{p}y"]
    different = [f"{s}x-{p}y = {q}", f"{s}x+{p}y = {q + 1}", f"{s}x+{p}z = {q}", f"{k * s}x+{k * p}y = {q}", str(q)]
    yield from boxed("expressions", line, equal, different)


def intervals(r: random.Random) -> Cases:
    a = r.randint(-20, 10)
    b = a + r.randint(1, 30)
    left, right = r.choice("(["), r.choice(")]")
    signs = "<" if left == "(" else r"\le", "<" if right == ")" else "≤"
    equal = [rf"\left{left} {a}, {b} \right{right}", f"{a} {signs[0]} x {signs[1]} {b}",
             rf"x \in {left}{a},{b}{right}"]  # fmt: skip
    other = {"(": "[", "[": "(", ")": "]", "]": ")"}
    different = [f"{other[left]}{a},{b}{right}", f"{left}{a},{b}{other[right]}", f"{left}{a},{b + 1}{right}",
                 rf"\{{{a},{b}\}}", f"{left}{a - 1},{b}{right}"]  # fmt: skip
    yield from boxed("order and brackets", f"{left}{a},{b}{right}", equal, different)
    equal = [rf"x < {a} \text{{ or }} x > {b}", rf"({b}, ∞) ∪ (−∞, {a})", rf"(-\infty,{a}) \cup ({b},+\infty)"]
    different = [
        rf"(-\infty,{a}] \cup ({b},\infty)",
        rf"(-\infty,{a})",
        f"({a},{b})",
        rf"(-\infty,{b}) \cup ({a},\infty)",
    ]
    yield from boxed("order and brackets", rf"(-\infty,{a})\cup({b},\infty)", equal, different)


def collections(r: random.Random) -> Cases:
    values = r.sample(range(-40, 40), r.randint(2, 4))
    turned = values[1:] + values[:1]
    join = lambda items, sep=", ": sep.join(map(str, items))  # noqa: E731
    equal = [rf"\{{{join(turned)}\}}", join(turned), f"{join(turned[:-1])} and {turned[-1]}",
             r" \text{ or } ".join(f"x = {v}" for v in turned)]  # fmt: skip
    different = [f"({join(values)})", join(values[1:]), join([*values, 99]), join([values[0] + 100, *values[1:]])]
    yield from boxed("order and brackets", rf"\{{{join(values)}\}}", equal, different)
    different = [f"({join(turned)})", rf"\{{{join(values)}\}}", f"({join(values[1:])})", f"({join(values)}, 1)"]
    yield from boxed("order and brackets", f"({join(values)})", [f"( {join(values, ' , ')} )"], different)
    a, b = r.randint(1, 9), r.choice(SQUARE_FREE)
    equal = [
        rf"{a}+\sqrt{{{b}}}, {a}-\sqrt{{{b}}}",
        f"{a} ± √{b}",
        rf"\{{{a}-\sqrt{b if b < 10 else f'{{{b}}}'}, √{b}+{a}\}}",
    ]
    different = [
        rf"{a}+\sqrt{{{b}}}",
        rf"{a} \pm \sqrt{{{b + 16}}}",
        rf"-{a} \pm \sqrt{{{b}}}",
        rf"{a}+\sqrt{{{b}}}, {a}",
    ]
    yield from boxed("order and brackets", rf"{a} \pm \sqrt{{{b}}}", equal, different)


def matrices(r: random.Random) -> Cases:
    rows = [[r.randint(-9, 9) for _ in range(2)] for _ in range(2)]
    rows[0][1] = rows[1][0] + r.randint(1, 5)
    body = lambda m: r" \\ ".join(" & ".join(map(str, row)) for row in m)  # noqa: E731
    changed = [rows[0], [rows[1][0] + 1, rows[1][1]]]
    equal = [rf"\begin{{bmatrix}} {body(rows)} \end{{bmatrix}}", rf"\begin{{pmatrix}}{body(rows)}\end{{pmatrix}}"]
    different = [
        rf"\begin{{pmatrix}} {body(m)} \end{{pmatrix}}" for m in (changed, [*zip(*rows, strict=True)], rows[:1])
    ]
    yield from boxed("order and brackets", rf"\begin{{pmatrix}} {body(rows)} \end{{pmatrix}}", equal, different)


def bases(r: random.Random) -> Cases:
    base, n = r.randint(2, 9), r.randint(20, 9999)
    digits, rest = "", n
    while rest:
        digits, rest = str(rest % base) + digits, rest // base
    equal = [f"{digits}_{base}", digits + str(base).translate(SUBSCRIPTS), f"({digits})_{{{base}}}",
             rf"{digits}_{{\text{{{BASE_NAMES[base - 2]}}}}}"]  # fmt: skip
    different = [digits, str(n), f"{digits}_{{{base + 1}}}", f"{digits}0_{{{base}}}"]
    yield from boxed("bases", f"{digits}_{{{base}}}", equal, different)
    hexadecimal = f"A{r.randint(10, 99)}F"
    equal = [f"{hexadecimal}_{{16}}", rf"\text{{{hexadecimal}}}_{{16}}"]
    yield from boxed("bases", f"{hexadecimal}_{{16}}", equal, [f"{hexadecimal}_{{15}}", f"B{hexadecimal[1:]}_{{16}}"])


def unicode_forms(r: random.Random) -> Cases:
    n, p, c = r.randint(2, 99), r.randint(2, 9), r.choice(SQUARE_FREE)
    yield from boxed("Unicode", str(-n), [f"−{n}", f"–{n}", f"－{str(n).translate(FULL_WIDTH)}"], [str(n), f"−{n + 1}"])
    power = [f"{n}x{str(p).translate(SUPERSCRIPTS)}", f"{n}·x^{p}"]
    yield from boxed("Unicode", f"{n}x^{{{p}}}", power, [f"{n}x{str(p + 1).translate(SUPERSCRIPTS)}", f"{n}x{p}"])
    yield from boxed("Unicode", rf"{n}\sqrt{{{c}}}", [f"{n}√{c}", f"{n}√({c})", f"{n}⋅√{c}"], [f"√{c}", f"{n}√{c + 1}"])
    yield from boxed("Unicode", rf"{n}\pi", [f"{n}π", f"{n} × π", f"{n}𝜋"], [f"{n}", f"{n + 1}π"])
    mark, value = r.choice([("½", "1/2"), ("⅓", "1/3"), ("¾", "3/4"), ("⅖", "2/5"), ("⅞", "7/8")])
    yield from boxed(
        "Unicode", rf"{n} + {value}", [f"{n}{mark}", f"{n} {value.replace('/', '⁄')}"], [mark, f"{n + 1}{mark}"]
    )
    small = f"10{str(-p).translate(SUPERSCRIPTS)}"
    yield from boxed("Unicode", f"10^{{-{p}}}", [small], [f"10{str(p).translate(SUPERSCRIPTS)}", small + "⁰"])


def exactness(r: random.Random) -> Cases:
    x = fraction(r)
    decimal = f"{float(x):.6f}"
    if Fraction(decimal) != x:
        yield from boxed("tolerance", frac(x), [], [decimal, f"{float(x):.3f}", f"{float(x):.10f}"])
        yield from boxed("tolerance", decimal, [frac(x), decimal + "0"], [f"{float(x) + 2e-6:.6f}", frac(x + 1)])
    c, n = r.choice(SQUARE_FREE), r.randint(20, 60)
    yield from boxed("tolerance", rf"\sqrt{{{c}}}", [], [f"{math.sqrt(c):.4f}", f"{math.sqrt(c):.12f}"])
    yield from boxed(
        "tolerance", rf"\frac{{1}}{{{n}!}}", [rf"\frac{{{n + 1}}}{{{n + 1}!}}"], [rf"\frac{{1}}{{{n + 1}!}}", "0"]
    )
    yield from boxed(
        "tolerance", f"10^{{{n}}}", [f"1{'0' * n}"], [rf"10^{{{n}}}+1", f"1{'0' * (n - 1)}1", f"10^{{{n + 1}}}"]
    )
    tenth = r.randint(11, 99)
    yield from boxed(
        "tolerance", rf"{tenth}.5", [rf"\frac{{{2 * tenth + 1}}}{{2}}", f"{tenth}.50"], [f"{tenth}.6", f"{tenth}"]
    )


def functions(r: random.Random) -> Cases:
    a, n, k = r.randint(2, 9), r.randint(2, 6), r.randint(3, 7)
    yield from boxed("value, not form", str(n), [rf"\log_{{{a}}} {a**n}", rf"\ln e^{{{n}}}", rf"\sqrt[3]{{{n**3}}}"],
                     [rf"\log_{{{a}}} {a ** (n + 1)}", rf"\ln {n}", rf"\sqrt[3]{{{n**3 + 1}}}"])  # fmt: skip
    yield from boxed("value, not form", str(math.factorial(k)), [f"{k}!", rf"{k}\cdot {k - 1}!"], [f"{k + 1}!", str(k)])
    yield from boxed(
        "value, not form", str(math.comb(k + 2, 2)), [rf"\binom{{{k + 2}}}{{2}}"], [rf"\binom{{{k + 2}}}{{1}}"]
    )
    b = r.randint(1, 9)
    equal = [f"{b}i+{a}", rf"{a} + {b} i", f"({a}+{b}i)"]
    yield from boxed("value, not form", f"{a}+{b}i", equal, [f"{a}-{b}i", str(a), f"{b}i", f"{a + 1}+{b}i"])
    degrees, sine = r.choice([(30, "1/2"), (45, r"\frac{\sqrt2}{2}"), (60, r"\frac{\sqrt3}{2}"), (90, "1")])
    yield from boxed("value, not form", sine, [rf"\sin {degrees}^\circ", rf"\cos({90 - degrees}°)"],
                     [rf"\sin {degrees}", rf"-\sin {degrees}^\circ"])  # fmt: skip


VALUES: tuple[Callable[[random.Random], Cases], ...] = (
    fractions, numerals, surds, polynomials, intervals, collections, matrices, bases, unicode_forms, exactness,
    functions,
)  # fmt: skip
