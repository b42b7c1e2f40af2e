"""Answers by the kind of mistake that once paid or refused them: right forms, and near misses that are not."""

import pytest

from rlora.verify import Verifier, equal

pytestmark = pytest.mark.unit

RIGHT = {  # family: (gold, answer)
    "an applied letter": [
        ("4", r"g\left(0\right)=4"), ("12", r"\sigma(6)=12"), ("x+y", "v(x,y)=x+y"),
        (r"\sqrt x", r"f^{-1}\left(x\right)=\sqrt{x}"),
        ("3e^{-t}", "y(t)=3e^{-t}"), ("2x", r"\frac{dy}{dx}=2x"), (r"3y^2", r"\frac{\partial u}{\partial y}=3y^2"),
        ("2x", "f'(x)=2x"), ("6", r"\frac{d^2y}{dx^2}=6"), ("x+1", r"(f\circ g)(x)=x+1"),
        ("0.3", r"P(A|B)=0.3"), ("7", r"\text{Var}(X)=7"), ("7", r"\det(A)=7"), ("7", r"\deg(f)=7"), ("7", r"\#S=7"),
    ],
    "bound names": [
        ("f(t)=t^2+1", "f(x)=1+x^2"), (r"x=k\pi", r"n\pi"),
        (r"\frac{\pi}{4}+\pi k, \pi k", r"n\pi, n\pi+\frac{\pi}{4}"),
        ("f(x)=2", r"f(x)=2\text{ for all real }x"), (r"n\pi", r"n\pi\text{ where }n\text{ is an integer}"),
        (r"2n\pi", r"2n\pi, n\in\mathbb{Z}"), ("h(a,b)=a-2b", "h(x,y)=x-2y"),
        ("a_n=3n", "a_k=3k"), ("P(x)=x^2+1", "P(t)=t^2+1"), ("x^2+C", "x^2+c"),
    ],
    "named entries": [
        ("(2,7)", "n=7, m=2"), ("(1,2,3)", "a=1, c=3, b=2"), ("(p,q)=(4,9)", "(q,p)=(9,4)"), ("-1,6", "x_1=6, x_2=-1"),
        ("2,4,8", "T(1)=2, T(2)=4, T(3)=8"), ("(5,6)", r"\begin{cases}x=5\\y=6\end{cases}"),
    ],
    "named quantities": [
        ("19", "p+q=19"), ("19", "AB+CD=4+15=19"), (r"\frac23", r"\frac{a}{b}=\frac23"), ("8", "|z|=8"),
        ("8", r"\gcd(a,b)=8"),
        ("0.67", r"\frac23\approx0.67"),
    ],
    "set-builder": [
        (r"\{t\mid t>1\}", r"(1,\infty)"), (r"[-1,4)", r"\{x: -1\le x<4\}"),
        (r"\{x\in\mathbb{R} : x\ne3\}", r"(-\infty,3)\cup(3,\infty)"),
        (r"x\le 0\text{ or }x=5", r"(-\infty,0]\cup\{5\}"), (r"x\ne4", r"x>4\text{ or }x<4"),
        (r"x\ne4", r"\mathbb{R}-\{4\}"), (r"x\ne4", r"\mathbb{R}\setminus\{4\}"),
        (r"x\ne4", r"\mathbb{R}\backslash\{4\}"),
    ],
    "tuples, matrices and cases": [
        ("(3,0),(-3,0)", r"(\pm3,0)"), ("(1,2),(1,-2),(-1,2),(-1,-2)", r"(\pm1,\pm2)"),
        ("(1,-2),(-1,2)", r"(\pm1,\mp2)"),
        (r"\begin{pmatrix}2\\4\end{pmatrix}", r"2\begin{bmatrix}1\\2\end{bmatrix}"),
        (r"\begin{pmatrix}-1&0\end{pmatrix}", r"-\begin{pmatrix}1&0\end{pmatrix}"),
        (r"f(x)=\begin{cases}1&x>0\\0&x\le0\end{cases}", r"\begin{cases}0&\text{if }x\le0\\1,&x>0\end{cases}"),
        ("3,5", r"3\text{ old cats and }5\text{ dogs}"),
        ("(1,2)", r"\left\{\begin{array}{l}x=1\\y=2\end{array}\right."),
        ("17", r"\begin{array}{c}17\end{array}"), ("2,9", r"\text{Minimum: }2,\ \text{Maximum: }9"),
    ],
    "two inequalities for one interval": [(r"2<x\le7", r"x>2,\ x\le7"), ("(2,7)", r"x<7\text{ and }x>2")],
    "equations divided by what cannot be 0": [
        ("xyz=6", r"z=\frac{6}{xy}"), ("y=x^{-2}", "x^2y=1"),
        ("xy=12", r"y=\frac{12}{x}"), (r"y=\frac{1}{x}", "xy=1"), (r"uv+1=0", r"u=-\frac1v"),
    ],
    "number words": [
        ("7000", r"7\text{ thousand}"), ("2500000", r"2.5\text{ million dollars}"), ("48", r"4\text{ dozen eggs}"),
        ("3/11", r"3\text{ elevenths}"),
        ("0.07", r"7\text{ hundredths}"), ("110_2", r"110\text{ in binary}"), ("17_8", "17 octal"),
        ("3/16", r"3\text{ sixteenths}"), ("0.15", r"3\text{ twentieths}"), ("15", r"\text{fifteen}"),
        ("21", r"\text{twenty-one}"), ("100", r"\text{one hundred}"), ("26_7", r"26_{\text{base }7}"),
        ("12", r"12\text{ only}"), ("-9", r"\text{negative }9"),
        (r"-\infty", r"\text{negative infinity}"), ("9", r"\text{the number }9"),
    ],
    "points": [("(4,7)", "P(4,7)"), ("(4,7)", r"\{x=4,y=7\}")],
    "choices by letter and by value": [("(A) 7", "7"), ("7", r"\textbf{(A) }7"), ("(A) 7", "A")],
    "words in a list": [("line segment, circle", r"\text{line segment and circle}")],
    "ratios": [("8:3", r"8\text{ to }3"), ("8:3", "8 to 3")],
    "units": [
        ("3 m", "300 cm"), ("90 km/h", "25 m/s"), (r"4\text{ m/s}", r"4\,\mathrm{m\,s^{-1}}"),
        (r"8\text{ square inches}", r"8\text{ in}^2"),
        ("7", r"7\,\mathrm{cm^3}"), ("135", r"2\text{ hours }15\text{ minutes}"), ("6", r"6\text{ years old}"),
        ("20", r"20\text{ pupils per class}"),
        (r"20^\circ\text{C}", r"20\text{ degrees Celsius}"), ("1 day", "24 hours"),
        ("12", r"12\text{ cups of rice}"), ("1", r"1\text{ marble}"),
        ("3 quarts", "0.75 gallons"), (r"\$9", r"900\text{ cents}"), (r"\$9.50", "9.5"),
        (r"\$1,200", r"1200\text{ dollars}"), (r"25\%", r"25\text{ per cent}"),
        ("5", r"5\ \mathrm{m}\,\mathrm{s}^{-1}"),
    ],
    "percent and of": [("6", r"12\%\text{ of }50"), ("15", r"\frac13\text{ of }45"), ("15", r"15\%"),
    (r"0.3", r"5\% \cdot 6")],
    "identities on a part of the line": [
        (r"\cos(\arcsin x)", r"\sqrt{1-x^2}"), (r"\sqrt{(x-1)(2-x)}", r"\sqrt{x-1}\sqrt{2-x}"), (r"|u^2+4|", "u^2+4"),
        (r"\arccos(1-2a)", r"2\arcsin\sqrt a"), (r"\sqrt{x-50}^2", "x-50"),
    ],
    "letters that are no units": [("11t+3", "3 + 11 t"), ("6sz-6s", "6 s z - 6 s"), ("3", "3 m")],
    "times of day": [("3:00 PM", r"3\text{ p.m.}"), (r"11\text{ a.m.}", "11 AM"), ("08:15 AM", r"8:15\text{ am}")],
    "layout": [
        ("42", r"\rm 42"), ("42", r"\color{blue}{42}"), ("42", r"\hspace{2pt}\Large 42"),
        ("5-2i", r"\mathbf{5-2i}"), ("42", r"42\\"),
        (r"\frac58", r"\nicefrac{5}{8}"), ("6", "6{}"), (r"\frac34", r"\pmb{\frac34}"), ("17", r"\mathtt{17}"),
        ("10:45", r"10\text{:}45"), ("60000", "6 x 10^4"), (r"\text{Monday}", r"\text{Monday}\;."),
        ("D", r"D\text{: all of them}"),
    ],
}  # fmt: skip

WRONG = {
    "an applied letter": [("2x+1", r"f\left(x\right)=2x-1"), ("4", "g(4)=5"), ("x+y", "v(x,y)=x-y")],
    "bound names": [("f(x)=x", "f(x)=y"), ("x^2+C", "x^2"), ("x^2+C", "x^2+2c"), ("f(x)=x+y", "f(y)=y+y"),
        ("n+1", "k+1"), (r"n\pi", r"2k\pi"),
    ("f(x)=x", "g(x)=x+1"), ("a_n=3n", "a_k=3n"), ("a_n=3n", "b_k=3k"), ("P(x)=x^2", "P(t)=x^2")],
    "two inequalities for one interval": [(r"2<x\le7", r"x\ge2,\ x\le7"), ("(2,7)", r"x<7,\ y>2"),
        ("(2,7)", "x>7, x<2"),
    ("(2,7)", r"x<7\text{ or }x>2")],
    "equations divided by what may be 0": [("xy=12", "y=12x"), ("xy=0", "y=0"), ("xy=x", "y=1"),
        (r"y=\frac{2}{x}", "xy=3")],
    "points": [("(4,7)", "P(7,4)"), (r"\{x=4,y=7\}", "(7,4)")],
    "choices by letter and by value": [("(A) 7", "8"), ("(A) 7", "B"), ("7", r"\textbf{(A) }8"), ("7", "A7")],
    "words in a list": [("line segment, circle", r"\text{line segment and square}")],
    "ratios": [("8", r"8\text{ to }3"), ("8:3", r"3\text{ to }8"), ("8:3", r"8\text{ to }4")],
    "named entries": [
        ("(2,7)", "n=2, m=7"), ("(4,9)", "(q,p)=(4,9)"), ("a=1, b=2", "a=2, b=1"), ("x_1=2,x_2=5", "x_1=5,x_2=2"),
        ("2,4,8", "T(1)=4, T(2)=2, T(3)=8"),
    ],
    "named quantities": [("19", "p+q=18"), ("19", "2x=19"), ("19", "x=19y"), ("19", "p+q=19=20"),
    ("19", r"2.5\approx19"), ("x+y=1", "1"), ("7", r"7\approx8"), ("7", r"7\sim 8"), ("0.3", r"P(A|B)=0.4"),
    ("3", r"\det(A)=3=4")],
    "set-builder": [(r"\{t\mid t>1\}", r"[1,\infty)"), (r"\{x: x>2\}", r"\{x: x<2\}"), (r"\{x: x\ne3\}", "3")],
    "tuples, matrices and cases": [
        ("(1,1),(-1,-1)", r"(\pm1,\pm1)"), (r"\begin{pmatrix}2\\4\end{pmatrix}", r"3\begin{pmatrix}1\\2\end{pmatrix}"),
        (r"\begin{cases}1&x>0\\0&x\le0\end{cases}", r"\begin{cases}0&x>0\\1&x\le0\end{cases}"),
    ],
    "number words": [
        ("7", r"7\text{ thousand}"), ("5", r"5\text{ fifths}"), ("4", r"4\text{ dozen}"),
        ("101", r"101\text{ in base }3"), ("6", r"6\text{ halves}"),
        ("9", r"9\text{ tenths}"), ("2", r"2\text{ tens}"), ("5", r"5\text{ thirteenths}"),
        ("5", r"5\text{ twentieths}"),
        ("5", r"5\text{ sixtieths}"), ("21", r"\text{twelve}"), ("3", r"\text{third}"), ("6", r"\text{negative }6"),
    ],
    "words that change a number": [
        ("4", r"4\text{ below zero}"), ("4", r"4\text{ degrees below zero}"), ("3", r"3\text{ under par}"),
        ("3", r"3\text{ squared}"), ("3", "3 (wrong)"),
        ("6", r"6\text{ bang}"), ("5", r"5\text{ out of }8"), ("5", r"5\text{ per thousand}"),
        ("5", r"5\text{ less than }9"),
        ("5", r"5\text{, also }7"), ("5", r"5\text{ remainder }2"), ("9", r"9\text{ modulo }10"),
        ("6", r"6\text{ backwards}"), ("6", r"6\text{ below}"),
    ],
    "units": [
        ("5 cm", "5 m"), ("5 kg", "5 g"), (r"3\text{ m}^2", r"3\text{ m}^3"), ("60 mph", "60 km/h"),
        ("2 hours", "2 minutes"), (r"45^\circ", r"45\text{ radians}"),
        ("5 dollars", "5 cents"), ("2 hours 15 minutes", "30"), ("4 miles", "4 km"), (r"\$9", r"9\text{ cents}"),
        (r"\$9", r"9\text{ kg}"), (r"\$9", r"90\text{ dollars}"), ("20", r"20\text{ s^uare feet}"),
        ("20", r"20\text{ miles^}"),
    ],
    "percent and of": [("600", r"12\%\text{ of }50"), ("30", r"5\% \cdot 6")],
    "identities on a part of the line": [
        ("|x-40|", "40-x"), ("|x-2000|", "x-2000"), ("x", r"\max(x,-20)"), ("1", r"\frac{|t+15|}{t+15}"),
        ("y-9", r"\sqrt{y^2-18y+81}"), (r"\sqrt{1-x}", "1-x"),
    ],
    "times of day": [("3:00 PM", "3:00 AM"), ("3:00 PM", "3"), ("3:10 PM", "3 PM")],
    "letters that are no units": [("9", "4+5 h"), ("14", "3 + 11 t"), ("8", "10 - 2 g")],
}  # fmt: skip
SYMMETRIC = ["bound names", "named entries", "set-builder", "tuples, matrices and cases", "number words", "units"]


def _cases(table: dict[str, list[tuple[str, str]]]) -> list[tuple[str, str]]:
    return [pair for pairs in table.values() for pair in pairs]


@pytest.fixture(scope="module")
def verifier():
    with Verifier() as made:
        yield made


@pytest.mark.parametrize(("gold", "answer"), _cases(RIGHT))
def test_right_answers_are_paid(verifier, gold: str, answer: str) -> None:
    assert verifier.judge(rf"Hence it is $\boxed{{{answer}}}$.", gold, last_number=False).is_correct


@pytest.mark.parametrize(("gold", "answer"), _cases(WRONG))
def test_near_misses_are_not(verifier, gold: str, answer: str) -> None:
    assert not verifier.judge(rf"Hence it is $\boxed{{{answer}}}$.", gold, last_number=False).is_correct
    assert not equal(gold, answer)
    assert not equal(answer, gold)


@pytest.mark.parametrize(("a", "b"), [pair for family in SYMMETRIC for pair in RIGHT[family]])
def test_what_is_paid_is_equal_in_both_orders(a: str, b: str) -> None:
    assert equal(a, b)
    assert equal(b, a)
