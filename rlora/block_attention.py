"""Attention on a GPU that computes only the blocks of positions that are seen: PyTorch's flex_attention, compiled.

A row's prompt is seen by all its completions, which do not see each other: with four completions most of the scores of
a dense mask are never needed, and a mask of T x T positions is a gigabyte at 32k. Here blocks of 128 x 128 positions
are marked once for a pass, from `rlora.attention.visible_ranges`; the kernel skips the others. Not run on a GPU yet
(docs/gpu.md).
"""

import sys
from collections.abc import Callable
from functools import cache
from typing import Any, TypeVar

import torch
from torch import nn
from torch.nn.attention.flex_attention import BlockMask, flex_attention

Tensor = torch.Tensor
T = TypeVar("T")
BLOCK = 128  # positions, of queries and of keys; the kernel's own
_TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 3e-2, torch.float16: 4e-3}  # of the norm, of outputs and gradients


def padded_ranges(ranges_BT2: Tensor) -> Tensor:
    """Return ranges for whole blocks of positions; those added see themselves alone."""
    length = ranges_BT2.shape[1]
    place = torch.arange(length, -(-length // BLOCK) * BLOCK, dtype=torch.int32, device=ranges_BT2.device)
    added_P2 = torch.stack((torch.zeros_like(place), place), 1)
    return torch.cat((ranges_BT2, added_P2.expand(len(ranges_BT2), -1, -1)), 1)


def kept_with(ranges_B1T2: Tensor, make: Callable[[Tensor], T]) -> T:
    """Return what `make` makes of the ranges, made once and freed with them: all layers of a pass are given the same
    ranges, also where they are computed again.
    """
    name = f"rlora_{make.__name__}"
    if not hasattr(ranges_B1T2, name):
        setattr(ranges_B1T2, name, make(ranges_B1T2))
    return getattr(ranges_B1T2, name)


def block_mask(ranges_B1T2: Tensor) -> BlockMask:
    """Return which blocks of keys each block of queries sees wholly or in part.

    Made from the ranges' ends in each block, so that no tensor of T x T exists; in a block that is seen in part, the
    mask decides for each position.
    """
    ranges_BT2 = padded_ranges(ranges_B1T2.squeeze(1))
    before_BT, start_BT = ranges_BT2.unbind(-1)
    num_rows, length = before_BT.shape
    before_BNQ, start_BNQ = (values.view(num_rows, -1, BLOCK) for values in (before_BT, start_BT))
    first_N = torch.arange(0, length, BLOCK, device=ranges_BT2.device)  # of a block of keys, or of queries
    last_N, first_of_query_N1 = first_N + BLOCK - 1, first_N[:, None]
    is_causal_NN = first_N <= first_of_query_N1 + BLOCK - 1

    def by_block(values_BN: Tensor) -> Tensor:
        return values_BN[:, :, None]

    is_seen_BNN = by_block(before_BNQ.amax(2)) > first_N
    is_seen_BNN |= (by_block(start_BNQ.amin(2)) <= last_N) & is_causal_NN
    is_whole_BNN = by_block(before_BNQ.amin(2)) > last_N
    is_whole_BNN |= (by_block(start_BNQ.amax(2)) <= first_N) & (last_N <= first_of_query_N1)

    def is_visible(row: Tensor, _head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return (key < before_BT[row, query]) | ((key >= start_BT[row, query]) & (key <= query))

    counts, indices = _ordered(is_seen_BNN & ~is_whole_BNN)
    whole_counts, whole_indices = _ordered(is_whole_BNN)
    return BlockMask.from_kv_blocks(counts, indices, whole_counts, whole_indices, BLOCK_SIZE=BLOCK, mask_mod=is_visible)


def _ordered(is_marked_BNN: Tensor) -> tuple[Tensor, Tensor]:
    """Return how many blocks of keys are marked, (B, 1, N), and their numbers, marked ones first, (B, 1, N, N)."""
    order = is_marked_BNN.to(torch.int8).argsort(dim=-1, descending=True, stable=True)
    return is_marked_BNN.sum(-1, dtype=torch.int32)[:, None], order.to(torch.int32)[:, None]


def attend_blocks(
    query: Tensor, key: Tensor, value: Tensor, ranges_B1T2: Tensor, scale: float, *, flex: Callable[..., Any]
) -> Tensor:
    """Return softmax(scale q k^T) v over what is seen, (B, heads, T, D), for q (B, heads, T, D) and fewer key heads.

    `flex` is flex_attention, compiled or not. The marks of blocks stay with the ranges, whose layers share them.
    """
    length = query.shape[2]
    mask = kept_with(ranges_B1T2, block_mask)
    missing = -length % BLOCK
    if missing:
        query, key, value = (nn.functional.pad(one, (0, 0, 0, missing)) for one in (query, key, value))
    out = flex(query, key, value, block_mask=mask, scale=scale, enable_gqa=query.shape[1] != key.shape[1])
    return out[:, :, :length]


def compiled_flex() -> Callable[..., Any]:
    """Return flex_attention compiled: without, it would make all scores. Lengths that change recompile it once."""
    return torch.compile(flex_attention)


@cache
def working_flex(device: torch.device, dtype: torch.dtype, num_shared: int, size: int) -> Callable[..., Any] | None:
    """Return flex_attention, compiled, where it computes the same as a dense mask for heads of this kind; else None.

    Tried once in a process on random numbers, outputs and gradients; what is wrong is said on stderr.
    """
    flex = compiled_flex()
    try:
        error = _error_on_random_numbers(flex, device, dtype, num_shared, size)
    except torch.OutOfMemoryError:
        raise
    except Exception as reason:  # a compiler fails in any way; the dense mask is there
        text = next(iter(str(reason).strip().splitlines()), "")
        _tell(f"cannot be compiled ({type(reason).__name__}: {text})")
        return None
    if not error <= _TOLERANCE[dtype]:
        _tell(f"is off by {error:.2g} of the norm")
        return None
    return flex


def _tell(what: str) -> None:
    print(
        f"Attention by blocks {what}, so a dense mask is used: long rows take more time and memory (docs/gpu.md).",
        file=sys.stderr,
    )


def _error_on_random_numbers(
    flex: Callable[..., Any], device: torch.device, dtype: torch.dtype, num_shared: int, size: int
) -> float:
    """Return by how much of its norm output or a gradient differs from those of a dense mask, at most."""
    random = torch.Generator().manual_seed(0)
    segments = torch.tensor([0] * 70 + [1] * 90 + [2] * 110 + [-1] * 30)
    is_start = segments.diff(prepend=torch.tensor([-2])) != 0
    place = torch.arange(len(segments))
    start, before = torch.where(is_start, place, 0).cummax(0).values, torch.where(segments > 0, 70, 0)
    is_seen_TT = (place < before[:, None]) | ((place >= start[:, None]) & (place <= place[:, None]))
    ranges_B1T2 = torch.stack((before, start), 1).to(device, torch.int32)[None, None]
    shapes = [(1, heads, len(segments), size) for heads in (2 * num_shared, 2, 2, 2 * num_shared)]
    *inputs, upstream = (torch.randn(shape, generator=random).to(device, dtype) for shape in shapes)
    results = []
    for is_dense in (True, False):
        leaves = [one.clone().requires_grad_() for one in inputs]
        if is_dense:
            repeated = (one.repeat_interleave(num_shared, 1) for one in leaves[1:])
            out = nn.functional.scaled_dot_product_attention(leaves[0], *repeated, attn_mask=is_seen_TT.to(device))
        else:
            query, key, value = leaves
            out = attend_blocks(query, key, value, ranges_B1T2, size**-0.5, flex=flex)
        results.append((out, *torch.autograd.grad(out, leaves, upstream)))
    return max(float((ours - dense).norm() / dense.norm()) for dense, ours in zip(*results, strict=True))
