"""What a checkpoint's files must say beside fitting their digests: a folder from elsewhere can be whole and wrong."""

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch

_FINITE_ROWS = 2**24  # numbers that are looked at together, so that a large policy needs no mask of its size
_MOST_A_STEP = 2**20  # problems that a step comes by, those that a curriculum passes over among them
_TALLIED = {"num_steps", "reward", "first", "largest", "seconds", "bits"}
_VECTORS = ("theta_D", "first_moment_D", "second_moment_D")


def check_content(state: Mapping[str, Any], tensors: Mapping[str, torch.Tensor], *, step: int) -> None:
    """Raise ValueError, naming the first value that a run after `step` iterations cannot have.

    `state` is what `state.json` holds, `tensors` what lies beside it. KeyError names what is not there at all.
    """
    if state["step"] != step:
        raise ValueError(f"it is of step {state['step']!r}, and its folder of step {step}")
    rules: dict[str, tuple[Callable[[Any], bool], str]] = {
        "step": (_is_count, "a number of at least 0"),
        "position": (_is_count, "a number of at least 0"),
        "num_updates": (_is_count, "a number of at least 0"),
        "tokens_per_micro_batch": (lambda value: _is_count(value) and value > 0, "a number of at least 1"),
        "seconds": (lambda value: _is_finite(value) and value >= 0, "a number of at least 0"),
        "best": (_is_finite, "a finite number"),
        "problems": (lambda value: isinstance(value, str), "a text"),
        "config": (lambda value: isinstance(value, dict), "an object"),
        "environment": (lambda value: isinstance(value, dict), "an object"),
        "layout": (_is_layout, "the shape of each tensor"),
    }
    for name, (is_right, rule) in rules.items():
        if not is_right(state[name]):
            raise ValueError(f"its {name} is {_short(state[name])}, which must be {rule}")
    if state["position"] > step * _MOST_A_STEP:
        raise ValueError(f"its position is {state['position']}, which {step} steps cannot have come to")
    engine = state.get("engine", {})
    if not (isinstance(engine, dict) and all(map(_is_count, engine.values()))):
        raise ValueError(f"its engine is {_short(engine)}, which must be sizes of at least 0")
    if not _is_tally(state.get("tally")):
        raise ValueError(f"its tally is {_short(state['tally'])}, which must be counts over its steps")
    size = sum(math.prod(shape) for shape in state["layout"].values())
    for name in _VECTORS:
        _check_vector(name, tensors[name], size)
    counts_P2 = tensors.get("solved_P2")
    if counts_P2 is not None and not (
        counts_P2.dtype == torch.float64
        and counts_P2.dim() == 2
        and counts_P2.shape[1] == 2
        and bool((counts_P2.isfinite() & (counts_P2 >= 0)).all())
    ):
        raise ValueError(f"its solved_P2 {tuple(counts_P2.shape)} must be two counts of at least 0 a problem, in fp64")


def _check_vector(name: str, vector_D: torch.Tensor, size: int) -> None:
    if vector_D.dtype != torch.float32 or tuple(vector_D.shape) != (size,):
        found = f"{str(vector_D.dtype).removeprefix('torch.')} {tuple(vector_D.shape)}"
        raise ValueError(f"its {name} is {found}, which must be float32 ({size},)")
    for part_D in vector_D.split(_FINITE_ROWS):
        if not bool(part_D.isfinite().all()):
            raise ValueError(f"its {name} holds numbers that are not finite")


def _is_count(value: object) -> bool:
    return type(value) is int and 0 <= value < 2**63


def _is_finite(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _is_layout(layout: object) -> bool:
    return isinstance(layout, dict) and all(
        isinstance(shape, list) and bool(shape) and all(_is_count(size) and size > 0 for size in shape)
        for shape in layout.values()
    )


def _is_tally(tally: object) -> bool:
    if tally is None:
        return True
    if not isinstance(tally, dict) or tally.keys() | {"bits"} != _TALLIED:  # older ones count no bits
        return False
    parts = [tally[name] for name in ("first", "largest", "seconds")]
    return (
        _is_count(tally["num_steps"])
        and _is_finite(tally.get("bits", 0.0))
        and (tally["reward"] is None or _is_finite(tally["reward"]))
        and all(isinstance(part, dict) and all(map(_is_finite, part.values())) for part in parts)
    )


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:80]}..."
