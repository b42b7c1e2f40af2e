"""Sums, products, integrals and limits, which only SymPy can give a value; in the worker, under its deadline.

SymPy must find a closed form: a numerical integral or series that merely agrees to some digits proves nothing.
"""

import re
from typing import Any

import sympy
from latex2sympy2_extended import latex2sympy

from rlora.verify.reading.normalize import plain_latex

_UNEVALUATED = (sympy.Sum, sympy.Product, sympy.Integral, sympy.Limit, sympy.Derivative)
_DIGITS = 60
_UNBRACED = [
    re.compile(rf"({before})\s*(\\pi|[0-9A-Za-z])")
    for before in (r"\\frac", r"\\frac\s*\{[^{}]*\}", r"\\sqrt(?:\[\w+\])?")
]
_NAME = re.compile(r"^\s*[A-Za-z](?:_\w)?(?:\([A-Za-z]\))?\s*=")


def _braced(text: str) -> str:
    """Return the text with the arguments of fractions and roots in braces, which latex2sympy needs."""
    for pattern in _UNBRACED:
        text = pattern.sub(r"\1{\2}", text)
    return text


def same_closed_form(a: str, b: str) -> bool | None:
    """Whether two expressions have the same closed form; None where SymPy finds none.

    Raises whatever the parser raises for a text it does not read: the worker's boundary turns that into a verdict.
    """
    left: Any
    right: Any
    left, right = (sympy.sympify(latex2sympy(_braced(_NAME.sub("", plain_latex(text))))).doit() for text in (a, b))
    if any(isinstance(side, bool) or side.has(*_UNEVALUATED) for side in (left, right)):
        return None
    if not all(isinstance(side, sympy.Expr) for side in (left, right)):
        return None
    difference = left - right
    if difference.free_symbols:
        return True if sympy.simplify(difference) == 0 else None
    if difference == 0:
        return True
    value = difference.evalf(_DIGITS)
    size = max(abs(left.evalf(_DIGITS)), abs(right.evalf(_DIGITS)), sympy.Integer(1))
    if not value.is_number or value.has(sympy.nan, sympy.zoo, sympy.oo):
        return None
    return bool(abs(value) < size * sympy.Float(10) ** (20 - _DIGITS))
