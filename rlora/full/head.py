"""Token log-probabilities whose gradient also reaches the unembedding, without logits being held.

The derivative of a token's log-probability by its logits is (1[target] - p) / temperature, which has as many numbers as
the vocabulary. p of the first tokens of a micro-batch is kept from the forward pass, rounded, up to a fixed number of
bytes; p of the others is made again in the backward pass, one block of the vocabulary for all of them at once. Either
way the weight's gradient is added straight to the flat fp32 gradient, and memory is flat in vocabulary x length.
"""

import torch

from rlora.model import logprobs
from rlora.model.products import PLAIN, Products

KEPT_BYTES = 2**27  # 1,365 tokens of 49,152 in bf16
_BLOCK = 8192  # rows of the weight whose gradient is made at once


class _TrainedHead(torch.autograd.Function):
    @staticmethod
    def forward(ctx, hidden_NH, head_VH, dtype, grad_head_VH, targets_N, temperature, products):
        values_N = torch.empty(len(targets_N), device=hidden_NH.device)
        entropy_N, normalizer_N = torch.empty_like(values_N), torch.empty_like(values_N)
        num_kept = min(len(targets_N), KEPT_BYTES // (len(head_VH) * hidden_NH.element_size()))
        kept_MV = hidden_NH.new_empty(num_kept, len(head_VH))
        size = logprobs.chunk_tokens(hidden_NH.device)
        for start in range(0, len(targets_N), size):
            part = slice(start, start + size)
            found = logprobs.chunk_statistics(hidden_NH[part], head_VH, dtype, targets_N[part], temperature, products)
            values_N[part], entropy_N[part] = found.logprobs_C, found.entropy_C
            normalizer_N[part] = found.normalizer_C
            if start < num_kept:
                end = min(num_kept, start + size)
                kept_MV[start:end] = found.residual_CV[: end - start]
        ctx.save_for_backward(hidden_NH, head_VH, targets_N, normalizer_N, kept_MV)
        ctx.dtype, ctx.grad_head_VH, ctx.temperature, ctx.products = dtype, grad_head_VH, temperature, products
        ctx.mark_non_differentiable(entropy_N)
        return values_N, entropy_N

    @staticmethod
    def backward(ctx, grad_values_N, _grad_entropy_N):  # pyright: ignore[reportIncompatibleMethodOverride] - one name a gradient
        hidden_NH, head_VH, targets_N, normalizer_N, kept_MV = ctx.saved_tensors
        scale_N1 = grad_values_N[:, None] / -ctx.temperature
        scaled_NH = (hidden_NH * scale_N1).to(hidden_NH.dtype)
        grad_NH = torch.empty_like(hidden_NH, dtype=torch.float32)
        kept = slice(0, len(kept_MV))
        grad_NH[kept] = logprobs.through(kept_MV, head_VH, ctx.products)
        for start in range(0, len(head_VH) if len(kept_MV) else 0, _BLOCK):
            block = slice(start, start + _BLOCK)
            ctx.grad_head_VH[block] += kept_MV[:, block].T @ scaled_NH[kept]
        rest = slice(len(kept_MV), None)
        grad_NH[rest] = 0
        num_rest = len(targets_N) - len(kept_MV)
        size = block_rows(num_rest, len(head_VH), logprobs.chunk_tokens(hidden_NH.device))
        for start in range(0, len(head_VH) if num_rest else 0, size):
            block = slice(start, start + size)
            logits_NV = logprobs.logits(hidden_NH[rest], head_VH[block], ctx.dtype, ctx.products)
            p_NV = logits_NV.div_(ctx.temperature).sub_(normalizer_N[rest, None]).exp_()
            low_NV = _minus_one(p_NV, targets_N[rest] - start).to(hidden_NH.dtype)
            grad_NH[rest] += logprobs.through(low_NV, head_VH[block], ctx.products)
            ctx.grad_head_VH[block] += low_NV.T @ scaled_NH[rest]
        return grad_NH.mul_(scale_N1).to(hidden_NH.dtype), None, None, None, None, None, None


def block_rows(num_tokens: int, vocabulary: int, chunk: int) -> int:
    """Return for how many rows of the weight logits of all tokens are about as many as a chunk's; even, as compiled
    products take them.
    """
    return max(64, chunk * vocabulary // max(1, num_tokens) // 64 * 64)


def _minus_one(p_NV: torch.Tensor, column_N: torch.Tensor) -> torch.Tensor:
    """Subtract 1 from each row's column in place, where the row has it."""
    row_N = ((column_N >= 0) & (column_N < p_NV.shape[1])).nonzero()[:, 0]
    p_NV[row_N, column_N[row_N]] -= 1
    return p_NV


def trained_token_logprobs(
    hidden_NH: torch.Tensor,
    head_VH: torch.Tensor,
    targets_N: torch.Tensor,
    *,
    grad_head_VH: torch.Tensor,
    temperature: float = 1.0,
    dtype: torch.dtype | None = None,
    products: Products = PLAIN,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return what `token_logprobs` returns; the backward pass also adds the weight's gradient to `grad_head_VH` (fp32).

    Logits are computed in `dtype`, by default that of `head_VH`, which is that of the hidden states.
    """
    dtype = dtype or head_VH.dtype
    return _TrainedHead.apply(hidden_NH, head_VH, dtype, grad_head_VH, targets_N, temperature, products)
