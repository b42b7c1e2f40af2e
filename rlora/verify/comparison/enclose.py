"""Double-precision values with a bound on their error: proves that two expressions differ, without a worker.

Each value is (v, err) with the true value within `err` of v; first-order rules with a margin of two. What the rules
do not cover is None: undecided, never a guess. Equality is never concluded here.
"""

import cmath
import hashlib
import math
from functools import lru_cache

from rlora.verify.comparison.exact import exact
from rlora.verify.reading.nodes import Node

Enclosure = tuple[complex, float]
_EPS = 4e-16
_CONSTANTS = {"pi": (complex(math.pi), _EPS), "e": (complex(math.e), _EPS), "i": (1j, 0.0)}
_SMOOTH = {"sin": cmath.sin, "cos": cmath.cos, "sinh": cmath.sinh, "cosh": cmath.cosh}


@lru_cache(maxsize=4096)
def point(name: str, salt: int) -> float:
    """Return a fixed pseudo-random value in (1, 3) for a variable."""
    digest = hashlib.blake2b(f"point {salt}/{name}".encode(), digest_size=6).digest()
    return 1 + 2 * int.from_bytes(digest, "big") / 2**48


def enclose(node: Node, salt: int) -> Enclosure | None:
    """Return a value and its error bound at the point that `salt` chooses, or None where it cannot be bounded."""
    try:
        value = _enclose(node, salt)
    except (OverflowError, ValueError, ZeroDivisionError):
        return None
    return value if value is not None and cmath.isfinite(value[0]) and math.isfinite(value[1]) else None


def _enclose(node: Node, salt: int) -> Enclosure | None:
    match node.op:
        case "num":
            assert node.number is not None
            v = float(node.number)
            return complex(v), abs(v) * _EPS
        case "sym":
            v = point(node.name, salt)
            return complex(v), 0.0
        case "const":
            return _CONSTANTS.get(node.name)
        case "neg" | "deg" | "unit":
            inner = _enclose(node.args[0], salt)
            return inner if inner is None or node.op != "neg" else (-inner[0], inner[1])
        case "add" | "mul" | "div" | "pow":
            a, b = _enclose(node.args[0], salt), _enclose(node.args[1], salt)
            return None if a is None or b is None else _binary(node, a, b)
        case "fn":
            a = _enclose(node.args[0], salt)
            return _function(node.name, a) if a is not None and len(node.args) == 1 else _from_exact(node)
    return _from_exact(node)


def _from_exact(node: Node) -> Enclosure | None:
    value = exact(node)
    return None if value is None else (complex(float(value)), abs(float(value)) * _EPS)


def _binary(node: Node, a: Enclosure, b: Enclosure) -> Enclosure | None:
    (x, ex), (y, ey) = a, b
    if node.op == "add":
        return x + y, ex + ey + _EPS * (abs(x) + abs(y))
    if node.op == "mul":
        v = x * y
        return v, abs(x) * ey + abs(y) * ex + ex * ey + 2 * _EPS * abs(v)
    if node.op == "div":
        if abs(y) <= 2 * ey or y == 0:
            return None
        v = x / y
        return v, (ex + abs(v) * ey) / (abs(y) - ey) + 2 * _EPS * abs(v)
    exponent = exact(node.args[1])
    if exponent is not None and exponent.denominator == 1 and abs(exponent) <= 1000 and abs(x) > 4 * ex:
        v = x ** int(exponent)
        relative = ex / (abs(x) - ex) + 4 * _EPS
        return v, abs(v) * math.expm1(min(700.0, 2 * abs(int(exponent)) * relative))
    if x.imag or ex >= x.real / 4 or x.real <= 0 or (node.args[0].op == "const" and node.args[0].name == "inf"):
        return None
    log_v, error = y * math.log(x.real), abs(y) * (2 * ex / x.real + 4 * _EPS) + ey * (abs(math.log(x.real)) + 0.5)
    v = cmath.exp(log_v)
    return v, abs(v) * math.expm1(min(700.0, 2 * error + 4 * _EPS * (1 + abs(log_v))))


def _function(name: str, a: Enclosure) -> Enclosure | None:
    x, ex = a
    if name == "abs":
        return complex(abs(x)), ex + _EPS * abs(x)
    if name in _SMOOTH and abs(x) < 1e6 and ex < 0.1:
        v = _SMOOTH[name](x)
        slope = (
            math.cosh(min(700.0, abs(x.imag) + 0.2)) if name in ("sin", "cos") else math.cosh(min(700.0, abs(x) + 0.2))
        )
        return v, slope * (ex + 4 * _EPS * (1 + abs(x)))
    if x.imag or x.real <= 4 * ex:
        return None
    if name == "sqrt":
        v = math.sqrt(x.real)
        return complex(v), ex / v + 2 * _EPS * v
    if name == "ln":
        v = math.log(x.real)
        return complex(v), 2 * ex / x.real + 4 * _EPS * (1 + abs(v))
    if name == "arctan":
        return complex(math.atan(x.real)), ex + 8 * _EPS
    if name == "tan" and abs(x) < 1e6:
        v = math.tan(x.real)
        slope = 1 + v * v
        error = ex + 4 * _EPS * (1 + abs(x))
        return (complex(v), 2 * slope * error) if abs(v) * error < 1e-3 else None
    return None


def is_different(a: Node, b: Node) -> bool:
    """Whether the values are proven to differ at a point where both are well defined."""
    for salt in (1, 2):
        left, right = enclose(a, salt), enclose(b, salt)
        if left is not None and right is not None:
            gap, error = abs(left[0] - right[0]), left[1] + right[1]
            if gap > 2 * error + 1e-300:
                return True
    return False
