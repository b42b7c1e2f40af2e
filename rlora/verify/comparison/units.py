"""Values in units: converted where both sides have one, dropped where one side has none."""

from rlora.verify.reading.nodes import PI, Node, contains, num, op, sym


def in_units(gold: Node, answer: Node) -> tuple[Node, Node] | None:
    """Return two values in base units, which are variables; without any unit where one side has none, as 5 cm for 5.

    None where that side has several units, so that no one value is meant.
    """
    are_measured = [contains(side, "unit") or contains(side, "deg") for side in (gold, answer)]
    if not all(are_measured) and len(_units(gold) | _units(answer)) > 1:
        return None
    left, right = (_converted(side, all(are_measured)) for side in (gold, answer))
    return left, right


def _units(node: Node) -> set[tuple[object, ...]]:
    own = {(node.name, node.number)} if node.op == "unit" else {(node.op,)} if node.op == "deg" else set()
    return own.union(*map(_units, node.args))


def _converted(node: Node, is_kept: bool) -> Node:
    args = tuple(_converted(child, is_kept) for child in node.args)
    if node.op not in ("unit", "deg"):
        return Node(node.op, args, node.name, node.number, node.places)
    (value,) = args
    if not is_kept:
        return value
    if node.op == "deg" or node.number is None:
        return op("mul", op("mul", value, op("div", PI, num(180))), sym(" rad"))
    value = op("mul", value, num(node.number))
    for part in node.name.split():
        base, _, power = part.rpartition("^")
        value = op("mul", value, op("pow", sym(f" {base}"), num(int(power))))
    return value
