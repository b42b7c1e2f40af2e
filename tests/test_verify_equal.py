"""The conventions of docs/verifier.md: for each line, pairs that are equal and near misses that are not."""

import pytest

from rlora.verify import equal, matches

pytestmark = pytest.mark.unit

EQUAL = {
    "value, not form": [
        ("6/4", "3/2"), ("6!", "720"), (r"\log_2 8", "3"), (r"\sin 30^\circ", "1/2"),
        ("1/\\sqrt 3", r"\frac{\sqrt3}{3}"),
        ("(x+1)^2", "x^2+2x+1"), (r"\binom{5}{2}", "10"), (r"\sqrt{2}\sqrt{3}", r"\sqrt6"),
        (r"\frac{1}{\sqrt5-2}", r"\sqrt5+2"),
        ("(-8)^{1/3}", "-2"), (r"\sqrt[3]{-8}", "-2"), (r"\sin^2 x+\cos^2 x", "1"), ("x^{1/2}", r"\sqrt{x}"),
        ("2^{100}", str(2**100)),
        (r"\frac{2004!}{2006!}", r"\frac{1}{2005\cdot 2006}"), (r"\frac47", "4/7"), (r"\tan^2(y)+1", r"\sec^2 y"),
        ("|{-3}|", "3"),
        (r"\log 100", "2"), (r"\ln e^3", "3"), (r"0.\overline{3}", "1/3"), ("(x^4-1)/(x-1)", "x^3+x^2+x+1"),
        (r"\cos 2\pi/3", "-1/2"),
    ],
    "named values": [
        ("x=5", "5"), ("5=x", "5"), ("f(x)=2x+1", "2x+1"), ("y=2x+1", "f(x)=2x+1"), ("P(A)=2/3", "2/3"),
        (r"f^{-1}(x)=2x", "2x"),
        (r"\angle ABC=90^\circ", "90"), (r"\overline{AB}=5", "5"), ("x=1/3\\approx 0.33", "1/3"),
        (r"x\approx 11", "11"),
        ("(x,y)=(3,4)", "(3,4)"), ("3+4=7", "7"), ("Area = 5", "5"), (r"\text{Area} = 5", "5"),
    ],
    "equations": [
        ("a=b", "b=a"), ("2x+z-5=0", "z=5-2x"), ("2x+4y-3=0", r"y=-\frac12x+\frac34"),
        ("x^2/4+y^2/3=1", "3x^2+4y^2=12"),
    ],
    "inequalities and sets": [
        ("x>5", "5<x"), ("x>5", r"(5,\infty)"), (r"-2\le x\le 7", r"x\in[-2,7]"), ("x<1", "-x>-1"),
        (r"\mathbb{R}", r"(-\infty,\infty)"),
        (r"x\ne 2", r"(-\infty,2)\cup(2,\infty)"), (r"\mathbb{R}\setminus\{2\}", r"(2,\infty)\cup(-\infty,2)"),
        ("x<3 or x>5", r"(5,\infty)\cup(-\infty,3)"), (r"\emptyset", r"\{\}"), ("no solution", r"\emptyset"),
    ],
    "lists": [
        ("1,2,3", "3,1,2"), ("1, 2 and 3", "1,2,3"), (r"\{1,2\}", r"\{2,1\}"), (r"\pm 3", "3,-3"),
        (r"2\pm\sqrt3", r"2-\sqrt3, 2+\sqrt3"),
        ("x=2 or x=3", "{2,3}"), (r"12\text{ and }13", "12,13"), ("x=3,y=4", "(3,4)"), (r"\{5\}", "5"),
    ],
    "tuples and matrices": [
        ("(1,2)", "( 1 , 2 )"), (r"\left(\frac12,1\right)", "(0.5,1)"), (r"\langle 1,2\rangle", "(1,2)"),
        (r"\begin{pmatrix}1&2\\3&4\end{pmatrix}", r"\begin{bmatrix}1&2\\3&4\end{bmatrix}"),
        (r"\begin{pmatrix}1\\2\end{pmatrix}", "(1,2)"),
    ],
    "numerals": [
        ("1,234", "1234"), (r"1{,}234", "1234"), (r"1\,234", "1234"), (r"1,\!234", "1234"),
        ("1,234,567.5", "1234567.5"), ("007", "7"),
        ("+7", "7"), ("7.", "7"), ("6 3/4", "27/4"), (r"6\frac34", "27/4"), (r"-6\frac{3}{4}", "-27/4"),
        ("1.5e3", "1500"),
        (r"1.5\times 10^3", "1500"), (".5", "1/2"), ("2,74", "2.74"), ("1 234", "1234"), ("1 234 567", "1234567"),
    ],
    "units": [
        ("5 cm", "5"), (r"5\text{ cm}", "5"), (r"10\text{ cm}^2", "10"), (r"65\%", "65"), ("28 percent", "28"),
        ("90°", "90"), (r"\$42", "42"),
        ("$42", "42"), ("€42", "42"), ("7 apples", "7"), (r"\frac13\text{ meters}", "1/3"), ("40 min", "40"),
        ("60 miles per hour", "60"),
        ("5 m/s", "5"), (r"12\text{ m}/\text{s}", "12"), ("5 dollars", "$5"),
    ],
    "bases": [
        ("52_8", "52_{8}"), ("101₂", "101_2"), (r"101_{\text{two}}", "101_2"), ("0101_2", "101_2"),
        (r"\text{A5}_{11}", "A5_{11}"),
              ("A2F_{16}", r"\text{A2F}_{16}"), (r"(52)_8", "52_8")],
    "complex": [("3+4i", "4i+3"), (r"e^{i\pi}", "-1"), (r"\frac{1}{i}", "-i"), (r"\cos\pi+i\sin\pi", "-1")],
    "text": [
        ("(C)", "C"), (r"\textbf{(C)}", "c"), (r"\text{yes}", "Yes"), (r"\text{B,C}", "C, B"), ("VW", r"\text{VW}"),
        ("1:03 PM", "1:03 p.m."),
        (r"\text{East}", "east."), ("Option C", "C"), (r"\text{two lines}", "Two lines"), ("C.", "(C)"), ("C)", "C"),
        ("(C) 42", "C"), (r"\textbf{(C)}\ 42", "C"), ("C. 42", "C"), ("an ellipse", r"\text{ellipse}"),
        (r"\mbox{four}", "4"),
    ],
    "unicode": [
        ("−5", "-5"), ("３", "3"), ("½", "1/2"), ("2½", "5/2"), ("x²", "x^2"), ("x⁻¹", "1/x"), ("√2", r"\sqrt2"),
        ("∛8", "2"), ("3√2/2", r"\frac{3\sqrt2}{2}"),
        ("2π", r"2\pi"), ("(−∞, 3]", r"(-\infty,3]"), ("{1,2}∪{3}", r"\{1,2\}\cup\{3\}"), ("3⁄4", "3/4"),
        ("2×3", "6"), ("6÷4", "3/2"),
        ("x ≤ 3", r"x\le 3"), ("±2", r"\pm 2"), ("𝑥+1", "x+1"), ("1 234", "1234"), ("30°", "30"),
        ("√(x+1)", r"\sqrt{x+1}"), ("٣", "3"), ("ℝ", r"\mathbb{R}"),
        ("∅", r"\emptyset"), ("x∈[1,2]", r"x\in[1,2]"), ("10⁻³", "0.001"), ("（1，2）", "(1,2)"),
    ],
}  # fmt: skip

DIFFERENT = {
    "variables": [
        ("2x+1", "2y+1"), ("x=5", "y=5"), ("x>5", "y>5"), ("x", "x^2"), (r"\sqrt{x^2}", "x"), ("x=2y", "y=2x"),
        ("ab", "a+b")],
    "exact": [
        ("0.333333", "1/3"), ("3.14159", r"\pi"), ("1/2004!", "1/2006!"), ("10^{20}", "10^{20}+1"),
        ("1+e^{-1000}", "1"),
        (r"e^{\pi\sqrt{163}}", "640320^3+744"), ("10^{10^{10}}", "10^{10^{10}}+1"), ("2004!+1", "2004!"),
        (r"\frac{1}{2^{99}}", r"\frac{1}{2^{98}}"),
        ("5", "-5"), ("4", r"4\sqrt2"), ("2", r"\frac{1+\sqrt5}{2}"),
    ],
    "order and brackets": [
        ("(1,2)", "(2,1)"), ("(1,2)", "[1,2]"), ("(1,2]", "[1,2)"), (r"\{1,2\}", "(1,2)"), ("1,2,3", "1,2"),
        ("x>5", r"x\ge 5"), ("x>5", "x<5"),
        ("x>5", r"[5,\infty)"), (r"\begin{pmatrix}1&2\\3&4\end{pmatrix}", r"\begin{pmatrix}1&3\\2&4\end{pmatrix}"),
        ("1:2", "2:1"),
        (r"[1,2]\cup[3,4]", "[1,2]"), (r"\pm 3", "3"), ("5", "5 or 7"), ("5", "5,7"), ("x=5", "x=-5"),
    ],
    "equations": [
        ("7=11a+c", "11a+c"), ("2x+z=1", "1"), ("x+y=1", "x-y=1"), ("2x=10", "10"), ("xy=6", "6"), ("x^2=49", "49"),
        ("x^2=4", "x=2"), ("x+y=1", "x+y=2"),
        ("y=2x", "y=2x+1")],
    "numerals": [
        ("1234", "1,235"), ("32, 349", "32349"), ("6 3/4", "18/4"), ("65\\%", "0.65"), ("1.5e3", "150"),
        ("12:00", "1:00"), ("6 3/4", "6.34")],
    "bases": [("52_8", "52"), ("52_8", "42"), ("52_8", "52_9"), ("101_2", "5"), ("A5_{11}", "A6_{11}")],
    "text": [
        ("yes", "no"), ("A", "B"), ("yes", "x"), ("east", "west"), ("1:03 PM", "1:03 AM"), ("5", "five hundred"),
        ("no solution", "0"), ("(D) 42", "C"), ("(A) 3 (B) 4", "B"), ("(A) 3 (B) 4", "A"), (r"\text{(C)}+1", "C"),
        ("A) 3 or B) 4", "A")],
    "units": [("5 cm", "6 cm"), (r"90^\circ", r"\frac{\pi}{2}"), (r"\sin 30", "1/2")],
    "nonsense": [
        ("7", ""), ("", ""), ("7", r"\frac{7}{0}"), ("nan", "7"), (r"\infty", "7"), (r"\infty", r"-\infty"),
        ("7", "not 7"), ("7", "7?"), ("2", "2^{10}")],
}  # fmt: skip


def _cases(table: dict[str, list[tuple[str, str]]]) -> list[tuple[str, str]]:
    return [pair for pairs in table.values() for pair in pairs]


@pytest.mark.parametrize(("a", "b"), _cases(EQUAL))
def test_equal_pairs_are_equal_in_both_orders(a: str, b: str) -> None:
    assert equal(a, b) is True
    assert equal(b, a) is True
    assert matches(a, b) is True


@pytest.mark.parametrize(("a", "b"), _cases(DIFFERENT))
def test_near_misses_differ_in_both_orders(a: str, b: str) -> None:
    assert equal(a, b) is False
    assert equal(b, a) is False


@pytest.mark.parametrize(
    ("gold", "answer", "expected"),
    [
        ("3.14", r"\pi", True), ("3.14", "3.14159", False), ("3.14", "3.15", False), ("3.14", "3.145", False),
        ("3.14", "3.135", False), ("0.333", "1/3", True), ("0.33", "1/3", False), ("1/3", "0.33", False),
        (r"\pi", "3.14", False), ("0.5", "1/2", True), ("48.0", "48", True), ("7.0", "7.04", False),
        ("7", "7.04", False), ("-3.14", r"-\pi", True), ("-3.14", r"\pi", False), ("1.5e3", "1480", False),
        ("1.5e3", "1500", True), ("1.5e3", "1600", False), ("1.41", r"\sqrt{2}", True), ("1.4", r"\sqrt{2}", False),
        ("1.41", r"\sqrt{3}", False), ("1.42", r"\sqrt{2}", False), (r"\$187.12", "187.1234", False),
        ("(0.333, 2)", "(1/3, 2)", True), ("0.13", "1/8", False), ("0.125", "1/8", True), ("0.12", "1/8", False),
        ("6.46", r"12.91\sin 30^\circ", False), ("6.455", r"12.91\sin 30^\circ", True), ("3.14", "x", False),
    ],
)  # fmt: skip
def test_a_decimal_gold_is_its_value_or_what_has_no_end_and_rounds_to_its_three_figures(
    gold: str, answer: str, expected: bool
) -> None:
    assert matches(gold, answer) is expected
