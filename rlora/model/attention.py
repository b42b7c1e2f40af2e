"""Attention over rows that hold one prompt and several of its completions, computed once for the prompt.

Registered with Transformers under `ATTENTION`. Who sees whom is said by ranges, two numbers a position, and nothing is
made that grows with the square of a row. On the CPU scores are materialised, those of a block of queries at a time:
PyTorch's fused kernel measured 36 ms a layer in the backward pass where this takes 4 (docs/log.md). They are computed
again in the backward pass, so that no layer keeps them. In bfloat16, with the processor's instructions for it, a
compiled product leaves out what is not seen and writes no scores at all (rlora.kernels.attention). On CUDA it is
PyTorch's flex_attention (rlora.model.flex), and where that cannot be compiled, the fused kernel with a mask of all
pairs.
"""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn

from rlora.kernels.kernels import PLAIN, Kernels
from rlora.model import flex
from rlora.model.products import Products

ATTENTION = "rlora"
BLOCK = 192  # queries; shorter blocks are more calls, longer ones more products that nothing sees (docs/log.md)


def visibility_mask(segments_BT: torch.Tensor) -> torch.Tensor:
    """Return which positions see which, (B, 1, T, T) bool, for rows of one prompt (segment 0) and completions (1, 2,
    ...).

    A position sees itself, the prompt before it and its own segment before it; padding (-1) sees padding alone.
    """
    size = segments_BT.shape[1]
    is_before_TT = torch.ones(size, size, dtype=torch.bool, device=segments_BT.device).tril()
    of_query, of_key = segments_BT[:, None, :, None], segments_BT[:, None, None, :]
    return is_before_TT & ((of_key == of_query) | ((of_key == 0) & (of_query > 0)))


def visible_ranges(segments_BT: torch.Tensor) -> torch.Tensor:
    """Return what `visibility_mask` says as ranges, (B, 1, T, 2) int32, for rows whose segments follow one another.

    A position t sees those before its first number (the prompt's, for a completion) and those from its second number (a
    segment's start) up to t.
    """
    segments_BT = segments_BT.to(torch.int32)
    place_T = torch.arange(segments_BT.shape[1], dtype=torch.int32, device=segments_BT.device)
    is_start_BT = segments_BT.diff(dim=1, prepend=segments_BT[:, :1] - 1) != 0
    start_BT = torch.where(is_start_BT, place_T, 0).cummax(1).values
    before_BT = (segments_BT == 0).sum(1, keepdim=True, dtype=torch.int32) * (segments_BT > 0)
    return torch.stack((before_BT, start_BT), 2).to(torch.int32).unsqueeze(1)


def _seen(ranges_B1T2: torch.Tensor, queries: slice, keys: slice) -> torch.Tensor:
    """Return ranges as booleans, (B, 1, queries, keys), of some queries and the keys from the first on."""
    place_T = torch.arange(ranges_B1T2.shape[2], dtype=torch.int32, device=ranges_B1T2.device)
    before, start = ranges_B1T2[:, :, queries].split(1, -1)
    place_K = place_T[keys]
    return (place_K < before) | ((place_K >= start) & (place_K <= place_T[queries, None]))


def mask_of(ranges_B1T2: torch.Tensor) -> torch.Tensor:
    """Return ranges as booleans, (B, 1, T, T)."""
    return _seen(ranges_B1T2, slice(None), slice(None))


def has_scores(products: Products, dtype: torch.dtype) -> bool:
    """Return whether attention on the CPU makes scores, of `BLOCK` queries at a time, in a model of this precision."""
    return products.kernels is None or products.kernels.attention is None or dtype != torch.bfloat16


def attend(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor,
    scaling: float,
    dropout: float = 0.0,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """Return softmax(q k^T scaling) v, (B, T, heads, head size), for query (B, heads, T, .) and fewer key and value
    heads.

    The signature is Transformers'. Softmax is in fp32; `attention_mask` says what is seen, as ranges (see
    `visible_ranges`), or as booleans or a bias (B, 1, T, keys). With `kernels` on the module (see rlora.kernels) the
    softmax is theirs, and with ranges all of it, if they take it.
    """
    assert dropout == 0.0
    kernels: Kernels = getattr(module, "kernels", PLAIN)
    has_ranges = attention_mask.dtype == torch.int32
    if has_ranges and kernels.attention is not None and kernels.attention.takes(query, key, value):
        return kernels.attention.outputs(query, key, value, attention_mask.squeeze(1), scaling), None
    if has_ranges and takes_blocks(query, key, scaling):
        return flex.attend(query, key, value, _kept(attention_mask, flex.block_mask), scaling), None
    if query.device.type == "cpu":
        return _Attend.apply(query, key, value, attention_mask, scaling, kernels), None
    mask = _kept(attention_mask, mask_of) if has_ranges else attention_mask
    return attend_by_mask(query, key, value, mask, scaling), None


def attend_by_mask(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor, scaling: float
) -> torch.Tensor:
    """Return the same by PyTorch's fused kernel, for booleans or a bias (B, 1, T, keys)."""
    if mask.is_floating_point():
        mask = mask.to(query.dtype)
    # with heads that share keys, only some GPUs have a fused kernel for a mask; the others would keep all scores
    key, value = (one.repeat_interleave(query.shape[1] // one.shape[1], 1) for one in (key, value))
    out = nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=scaling)
    return out.transpose(1, 2).contiguous()


def takes_blocks(query: torch.Tensor, key: torch.Tensor, scaling: float) -> bool:
    """Return whether attention by blocks is what a GPU computes of these: compiled there, with rows of ranges."""
    return query.is_cuda and flex.is_usable(query, key, scaling)


def _kept(ranges_B1T2: torch.Tensor, make: Callable[[torch.Tensor], Any]) -> Any:
    """Return what `make` makes of the ranges, made once and held by them: all layers of a pass are given the same ones,
    also when they are recomputed, and it is freed with them.
    """
    if not hasattr(ranges_B1T2, make.__name__):
        setattr(ranges_B1T2, make.__name__, make(ranges_B1T2))
    return getattr(ranges_B1T2, make.__name__)


def as_bias(is_seen: torch.Tensor) -> torch.Tensor:
    """Return what is added to scores, fp32: 0 where something is seen and -inf elsewhere."""
    return torch.zeros(is_seen.shape, device=is_seen.device).masked_fill_(~is_seen, float("-inf"))


def _bias(mask: torch.Tensor, queries: slice, keys: slice) -> torch.Tensor:
    """Return what is added to the scores of a block, (B, 1, queries, keys), for any form of the mask."""
    if mask.dtype == torch.int32:
        return as_bias(_seen(mask, queries, keys))
    block = mask[:, :, queries, keys]
    return block if mask.is_floating_point() else as_bias(block)


class _Attend(torch.autograd.Function):
    """softmax(q k^T scaling + mask) v as (B, T, heads, D), for q (B, heads, T, D); the mask is as in `attend`.

    Blocks of queries leave out the keys that come after them, since nothing sees what comes later.
    """

    @staticmethod
    def forward(ctx, query, key, value, mask, scaling, kernels):
        num_heads, outs, normalizers = query.shape[1], [], []
        for queries, keys in _blocks(query.shape[2], key.shape[2]):
            scores = _grouped(query[:, :, queries], key) @ key[:, :, keys].transpose(2, 3)
            weights, normalizer = kernels.softmax(_by_head(scores, num_heads), _bias(mask, queries, keys), scaling)
            product = weights.view(scores.shape) @ value[:, :, keys]
            outs.append(_by_head(product, num_heads).transpose(1, 2))
            normalizers.append(normalizer)
        ctx.save_for_backward(query, key, value, mask, *normalizers)
        ctx.scaling, ctx.kernels = scaling, kernels
        return _joined(outs, 1).contiguous()

    @staticmethod
    def backward(ctx, grad_out):  # pyright: ignore[reportIncompatibleMethodOverride] - one name a gradient
        query, key, value, mask, *normalizers = ctx.saved_tensors
        grad_out, num_heads = grad_out.transpose(1, 2), query.shape[1]
        blocks = list(zip(_blocks(query.shape[2], key.shape[2]), normalizers, strict=True))
        grad_queries, grad_key, grad_value = [], None, None
        for (queries, keys), normalizer in reversed(blocks):  # the last one has all keys
            q, grad = _grouped(query[:, :, queries], key), _grouped(grad_out[:, :, queries], key)
            k, v = key[:, :, keys], value[:, :, keys]
            scores, grad_weights = q @ k.transpose(2, 3), grad @ v.transpose(2, 3)
            weights, grad_scores = ctx.kernels.softmax_backward(
                _by_head(scores, num_heads),
                _bias(mask, queries, keys),
                ctx.scaling,
                normalizer,
                _by_head(grad_weights, num_heads),
            )
            weights, grad_scores = weights.view(scores.shape), grad_scores.view(scores.shape)
            grad_queries.append(_by_head(grad_scores @ k, num_heads))
            of_key, of_value = grad_scores.transpose(2, 3) @ q, weights.transpose(2, 3) @ grad
            if grad_key is None or grad_value is None:
                sums = torch.float32 if len(blocks) > 1 else key.dtype
                grad_key, grad_value = of_key.to(sums), of_value.to(sums)
            else:
                grad_key[:, :, keys] += of_key
                grad_value[:, :, keys] += of_value
        assert grad_key is not None
        assert grad_value is not None
        grad_query = _joined(grad_queries[::-1], 2)
        return grad_query, grad_key.to(key.dtype), grad_value.to(value.dtype), None, None, None


def _joined(parts: list[torch.Tensor], dim: int) -> torch.Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim)


def _blocks(num_queries: int, num_keys: int) -> Iterator[tuple[slice, slice]]:
    """Yield blocks of the queries, which are the last positions, and the keys up to each block's end."""
    for start in range(0, num_queries, BLOCK):
        end = min(start + BLOCK, num_queries)
        yield slice(start, end), slice(0, num_keys - num_queries + end)


def _grouped(query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
    """Return the heads that share a key head as rows of one product, (B, key heads, shared x T, .)."""
    num_rows, num_heads, length, size = query.shape
    return query.reshape(num_rows, key.shape[1], num_heads // key.shape[1] * length, size)


def _by_head(grouped: torch.Tensor, num_heads: int) -> torch.Tensor:
    """Undo `_grouped`: (B, heads, T, .)."""
    num_rows, key_heads, length, size = grouped.shape
    return grouped.view(num_rows, num_heads, key_heads * length // num_heads, size)


def register() -> None:
    """Make `attn_implementation=ATTENTION` known to Transformers."""
    from transformers import AttentionInterface

    AttentionInterface.register(ATTENTION, attend)
