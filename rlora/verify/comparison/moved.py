"""Relations that become one another when terms are moved over or both sides are scaled."""

from fractions import Fraction
from functools import partial, reduce
from itertools import product

from rlora.verify.comparison.canonical import canonical
from rlora.verify.comparison.decide import Decision, Ternary
from rlora.verify.comparison.names import replaced
from rlora.verify.comparison.relations import FLIPPED, ZERO, difference, ratio_sign, renamed
from rlora.verify.reading.nodes import Node, num, op, sym, symbols


def moved(gold: Node, answer: Node, sign: str, other_sign: str, decide: Decision) -> Ternary:
    """Decide whether one relation becomes the other when terms are moved over or both sides are scaled."""
    a, b = difference(gold), difference(answer)
    if not symbols(a) or symbols(a) != symbols(b):
        return False
    turns = {1: sign == other_sign, -1: sign == FLIPPED.get(other_sign, other_sign)}
    turn = ratio_sign(a, b)
    if not turns.get(turn, False) and (turn or not all(turns.values())):
        return False
    if any(decide.same(side, ZERO) is not False for side in (a, b)):
        return False
    verdict = _proportional(a, b, decide)
    return _divided(a, b, decide) if verdict is False and sign == "=" else verdict


def _proportional(a: Node, b: Node, decide: Decision) -> Ternary:
    return decide.same(op("mul", a, renamed(b)), op("mul", b, renamed(a)))


def _divided(a: Node, b: Node, decide: Decision) -> bool:
    """Whether one is the other times variables that cannot be 0, as in xy - 6 = 0 and y - 6/x = 0."""
    for left, right in ((a, b), (b, a)):
        at_zero = {name: canonical(replaced(left, {name: ZERO})) for name in sorted(symbols(left))}
        names = [name for name, value in at_zero.items() if isinstance(value, Fraction) and value][:3]
        for powers in product(range(3), repeat=len(names)):
            factors = (op("pow", sym(name), num(power)) for name, power in zip(names, powers, strict=True))
            if any(powers) and _proportional(left, reduce(partial(op, "mul"), factors, right), decide):
                return True
    return False
