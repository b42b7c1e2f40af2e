"""Attention on CUDA from ranges, by PyTorch's flex_attention: blocks of which nothing is seen are not computed.

Its blocks are made from the ranges (see `rlora.model.attention.visible_ranges`) as they are, so that nothing grows with
the square of a row but one number for each pair of blocks. Left out: heads of fewer than 16 numbers, which it refuses.
"""

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from rlora.system.screen import say

Tensor = torch.Tensor

BLOCK = 128  # positions; the size that flex_attention's kernels are made for
_LEAST_BLOCKS = 2  # of a row: sizes of one would be compiled for by themselves
_RECOMPILATIONS = 64  # of flex_attention in a process, four for each shape of heads
_SEGMENT = 216  # positions of each segment of what is tried: no multiple of a block
_SAME = {torch.float32: 1e-4, torch.bfloat16: 2e-2, torch.float16: 4e-3}  # of the norm: some times what is rounding


def block_mask(ranges_B1T2: Tensor) -> Any:
    """Return ranges as flex_attention's BlockMask for rows filled up to whole blocks, with what sees itself alone.

    Ranges are those of rows whose segments follow one another: no start comes before that of an earlier position.
    """
    from torch.nn.attention.flex_attention import BlockMask

    length = ranges_B1T2.shape[2]
    size = max(_LEAST_BLOCKS, -(-length // BLOCK)) * BLOCK
    place_T = torch.arange(size, dtype=torch.int32, device=ranges_B1T2.device)
    start_BT = place_T.repeat(len(ranges_B1T2), 1)
    before_BT = torch.zeros_like(start_BT)
    before_BT[:, :length], start_BT[:, :length] = ranges_B1T2[:, 0].unbind(-1)

    def is_seen(row: Tensor, _head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return (key < before_BT[row, query]) | ((key >= start_BT[row, query]) & (key <= query))

    edge_K = place_T[::BLOCK]  # of a block of keys, its first position
    most_before, first_start = _by_block(before_BT).amax(-1), _by_block(start_BT).amin(-1)
    seen_BQK = (most_before > edge_K) | (first_start < edge_K + BLOCK)
    # where both ranges join, all that comes before is seen
    is_joined_BT = before_BT >= start_BT
    least_before = _by_block(before_BT.masked_fill(is_joined_BT, size)).amin(-1)
    last_start = _by_block(start_BT.masked_fill(is_joined_BT, 0)).amax(-1)
    full_BQK = (least_before >= edge_K + BLOCK) | (last_start <= edge_K)
    is_past_QK = edge_K[:, None] > edge_K
    full_BQK &= is_past_QK
    seen_BQK &= is_past_QK | (edge_K[:, None] == edge_K)
    partly, wholly = _listed(seen_BQK & ~full_BQK), _listed(full_BQK)
    return BlockMask.from_kv_blocks(*partly, *wholly, BLOCK_SIZE=BLOCK, mask_mod=is_seen)


def _by_block(numbers_BT: Tensor) -> Tensor:
    """Return the numbers of each block of queries, (B, Q, 1, positions)."""
    return numbers_BT.unflatten(1, (-1, BLOCK)).unsqueeze(2)


def _listed(is_wanted_BQK: Tensor) -> tuple[Tensor, Tensor]:
    """Return how many blocks of keys each block of queries wants (B, 1, Q), and these, then the others (B, 1, Q, K)."""
    is_wanted = is_wanted_BQK.unsqueeze(1).int()
    return is_wanted.sum(-1, dtype=torch.int32), is_wanted.argsort(dim=-1, descending=True, stable=True).int()


def attend(query: Tensor, key: Tensor, value: Tensor, blocks: Any, scaling: float) -> Tensor:
    """Return softmax(q k^T scaling) v, (B, T, heads, D), of what the BlockMask `blocks` says is seen.

    q is (B, heads, T, D); k and v may have fewer heads.
    """
    length, size = query.shape[2], blocks.shape[-1]
    # in one order of memory, whatever the length: another one would be compiled anew
    inputs = (nn.functional.pad(one, (0, 0, 0, size - length)).contiguous() for one in (query, key, value))
    out = compiled()(*inputs, block_mask=blocks, scale=scaling, enable_gqa=True)
    return out[:, :, :length].transpose(1, 2).contiguous()


@functools.cache
def compiled() -> Any:
    """Return flex_attention compiled for any number of rows and positions; run plainly it would make all scores.

    Compiled anew is each shape of heads, precision and scaling, with and without gradients, for one row and several.
    """
    import torch._dynamo
    from torch.nn.attention.flex_attention import flex_attention

    config = torch._dynamo.config
    config.recompile_limit = max(config.recompile_limit, _RECOMPILATIONS)
    return torch.compile(flex_attention, dynamic=True, fullgraph=True)


def is_usable(query: Tensor, key: Tensor, scaling: float) -> bool:
    """Return whether flex_attention can be compiled for heads such as these, and gives what the formula does."""
    return is_usable_for(query.device, query.dtype, query.shape[1], key.shape[1], query.shape[3], scaling)


@functools.cache
def is_usable_for(
    device: torch.device, dtype: torch.dtype, num_heads: int, key_heads: int, size: int, scaling: float
) -> bool:
    """Try it, once for each shape of heads; where it cannot be used say so on stderr.

    All that is needed later is compiled here, from sizes that differ: such as happen to be equal would be taken for the
    same one.
    """
    rows, blocks = [count for count in range(3, 9) if count not in (num_heads, key_heads, size)][:2]
    try:
        for num_rows in (rows, 1):
            error = _largest_error(device, dtype, (num_rows, num_heads, key_heads, blocks * BLOCK - 7, size), scaling)
            if not error <= _SAME[dtype]:
                raise ArithmeticError(f"it is off by {error:.2g} of what is right")
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # whatever a compiler or a kernel can do wrong
        reason = next(iter(str(error).splitlines()), "") or type(error).__name__
        say(
            f"flex_attention cannot be used for {num_heads} heads of {size} ({dtype}): {reason}. Attention is computed "
            "with a mask of all pairs of positions: slower, and with memory that grows with the square of a row."
        )
        return False
    return True


def _largest_error(
    device: torch.device, dtype: torch.dtype, sizes: tuple[int, int, int, int, int], scaling: float
) -> float:
    """Return by how much of their norm outputs or gradients are off at most.

    Numbers are random, rows hold a prompt, completions and padding; `sizes` are rows, heads, key heads, T and D.
    """
    num_rows, num_heads, key_heads, length, size = sizes
    random = torch.Generator().manual_seed(0)
    shapes = [(num_rows, heads, length, size) for heads in (num_heads, key_heads, key_heads, num_heads)]
    numbers = [torch.randn(shape, generator=random).to(dtype) for shape in shapes]
    place_T = torch.arange(length, dtype=torch.int32)
    start_T = place_T // _SEGMENT * _SEGMENT
    before_T = torch.where((start_T > 0) & (start_T < start_T[-1]), _SEGMENT, 0)
    is_seen_TT = (place_T < before_T[:, None]) | ((place_T >= start_T[:, None]) & (place_T <= place_T[:, None]))
    blocks = block_mask(torch.stack((before_T, start_T), 1).int().expand(num_rows, 1, -1, -1).to(device))

    def by_blocks(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return attend(query, key, value, blocks, scaling)

    def by_formula(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        key, value = (one.repeat_interleave(num_heads // key_heads, 1) for one in (key, value))
        scores = (query @ key.transpose(2, 3) * scaling).masked_fill(~is_seen_TT, float("-inf"))
        return (scores.softmax(-1) @ value).transpose(1, 2)

    # nothing of this is for the hooks of a layer that is being recomputed: it would be computed again, without end
    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(lambda one: one, lambda one: one):
        given = [one.to(device) for one in numbers]
        found = _with_gradients(by_blocks, given)
        exact = _with_gradients(by_formula, [one.float() for one in numbers])
    with torch.no_grad():
        found.append(by_blocks(*given[:3]))
    pairs = zip(found, [*exact, exact[0]], strict=True)
    return max(float((ours.cpu().float() - theirs).norm() / theirs.norm()) for ours, theirs in pairs)


def _with_gradients(function: Callable[[Tensor, Tensor, Tensor], Tensor], numbers: list[Tensor]) -> list[Tensor]:
    """Return what a function makes of the first three, and their gradients for the fourth as that of its output."""
    query, key, value = (one.detach().requires_grad_() for one in numbers[:3])
    out = function(query, key, value)
    return [out.detach(), *torch.autograd.grad(out, (query, key, value), numbers[3].transpose(1, 2))]
