"""Attention over rows that hold one prompt and several of its completions, computed once for the prompt.

Registered with Transformers under `ATTENTION`. On the CPU scores are materialised: rows are short (batching bounds
them), and PyTorch's fused kernel measured 36 ms a layer in the backward pass where this takes 4 (docs/log.md). They are
computed again in the backward pass, so that no layer keeps them: memory would grow with the square of a row. On CUDA
the fused kernel is used.
"""

from typing import Any

import torch
from torch import nn

ATTENTION = "rlora"


def visibility_mask(segments_BT: torch.Tensor) -> torch.Tensor:
    """Return which positions see which, (B, 1, T, T) bool, for rows of one prompt (segment 0) and completions (1, 2,
    ...).

    A position sees itself, the prompt before it and its own segment before it; padding (-1) sees padding alone.
    """
    size = segments_BT.shape[1]
    is_before_TT = torch.ones(size, size, dtype=torch.bool, device=segments_BT.device).tril()
    of_query, of_key = segments_BT[:, None, :, None], segments_BT[:, None, None, :]
    return is_before_TT & ((of_key == of_query) | ((of_key == 0) & (of_query > 0)))


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

    The signature is Transformers'. Softmax is in fp32; `attention_mask` (B, 1, T, keys) says what is seen.
    """
    assert dropout == 0.0
    num_rows, num_heads, length, head_size = query.shape
    if query.device.type != "cpu":
        out = nn.functional.scaled_dot_product_attention(
            query, key, value, attn_mask=attention_mask, scale=scaling, enable_gqa=key.shape[1] != num_heads
        )
        return out.transpose(1, 2).contiguous(), None
    shared = num_heads // key.shape[1]  # query heads that share a key head become rows of one product
    grouped = (query * scaling).reshape(num_rows, key.shape[1], shared * length, head_size)
    out = _Attend.apply(grouped, key, value, attention_mask)
    return out.view(num_rows, num_heads, length, head_size).transpose(1, 2).contiguous(), None


class _Attend(torch.autograd.Function):
    """softmax(q k^T) v of what `is_seen` (B, 1, T, keys) lets see; q is (B, key heads, queries, head size)."""

    @staticmethod
    def forward(ctx, query, key, value, is_seen):
        out = _weights(query, key, is_seen).to(value.dtype) @ value
        ctx.save_for_backward(query, key, value, is_seen, out)
        return out

    @staticmethod
    def backward(ctx, grad):  # pyright: ignore[reportIncompatibleMethodOverride] - one name a gradient
        query, key, value, is_seen, out = ctx.saved_tensors
        weights = _weights(query, key, is_seen)
        mean = torch.linalg.vecdot(grad.float(), out.float()).unsqueeze(-1)  # of the weights' gradient, under them
        grad_value = weights.to(grad.dtype).transpose(2, 3) @ grad
        grad_scores = (grad @ value.transpose(2, 3)).float().sub_(mean).mul_(weights).to(grad.dtype)
        return grad_scores @ key, grad_scores.transpose(2, 3) @ query, grad_value, None


def _weights(query: torch.Tensor, key: torch.Tensor, is_seen: torch.Tensor) -> torch.Tensor:
    """Return the softmax of the visible scores, fp32, (B, key heads, queries, keys)."""
    scores = query @ key.transpose(2, 3)
    by_position = scores.unflatten(2, (-1, is_seen.shape[2]))
    by_position.masked_fill_(~is_seen.unsqueeze(2), float("-inf"))
    return scores.softmax(-1, dtype=torch.float32)


def register() -> None:
    """Make `attn_implementation=ATTENTION` known to Transformers."""
    from transformers import AttentionInterface

    AttentionInterface.register(ATTENTION, attend)
