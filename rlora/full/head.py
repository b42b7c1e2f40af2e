"""Token log-probabilities whose gradient also reaches the unembedding, in blocks of the vocabulary.

The derivative of a token's log-probability by its logits is (1[target] - p) / temperature, which has as many numbers as
the vocabulary. It is made again in the backward pass, one block of the vocabulary for all tokens at once: so the
weight's gradient is complete after one product a block and is written once, straight into the flat fp32 gradient, and
neither logits nor a second copy of the weight's gradient exist.
"""

import torch

from rlora import logprobs
from rlora.logprobs import token_logprobs


class _TrainedHead(torch.autograd.Function):
    @staticmethod
    def forward(ctx, hidden_NH, head_VH, product_head_VH, grad_head_VH, targets_N, temperature):
        values_N, entropy_N = token_logprobs(
            hidden_NH.detach(), head_VH, targets_N, temperature=temperature, gradient_head_VH=product_head_VH
        )
        target_logits_N = torch.linalg.vecdot(hidden_NH.detach().to(head_VH.dtype), head_VH[targets_N]).float()
        normalizer_N = target_logits_N / temperature - values_N
        ctx.save_for_backward(hidden_NH, head_VH, product_head_VH, targets_N, normalizer_N)
        ctx.grad_head_VH, ctx.temperature = grad_head_VH, temperature
        ctx.mark_non_differentiable(entropy_N)
        return values_N, entropy_N

    @staticmethod
    def backward(ctx, grad_values_N, _grad_entropy_N):  # pyright: ignore[reportIncompatibleMethodOverride] - one name a gradient
        hidden_NH, head_VH, product_head_VH, targets_N, normalizer_N = ctx.saved_tensors
        scale_N = grad_values_N.float() / ctx.temperature
        rows_N = torch.arange(len(targets_N), device=targets_N.device)
        grad_hidden_NH = torch.zeros_like(hidden_NH, dtype=torch.float32)
        size = max(1, logprobs.CHUNK_TOKENS * head_VH.shape[0] // max(1, len(targets_N)))
        for start in range(0, head_VH.shape[0] if len(targets_N) else 0, size):
            block = slice(start, start + size)
            p_NV = logprobs.logits(hidden_NH, head_VH[block], product_head_VH[block]).div_(ctx.temperature).sub_(normalizer_N[:, None]).exp_()
            grad_logits_NV = p_NV.mul_(-scale_N[:, None])
            is_here_N = (targets_N >= start) & (targets_N < start + size)
            here = (rows_N[is_here_N], targets_N[is_here_N] - start)
            grad_logits_NV.index_put_(here, scale_N[is_here_N], accumulate=True)
            grad_low_NV = grad_logits_NV.to(hidden_NH.dtype)
            grad_hidden_NH += grad_low_NV @ product_head_VH[block]
            ctx.grad_head_VH[block] += grad_low_NV.T @ hidden_NH
        return grad_hidden_NH.to(hidden_NH.dtype), None, None, None, None, None


def trained_token_logprobs(
    hidden_NH: torch.Tensor,
    head_VH: torch.Tensor,
    targets_N: torch.Tensor,
    *,
    grad_head_VH: torch.Tensor,
    temperature: float = 1.0,
    product_head_VH: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return what `token_logprobs` returns; the backward pass also adds the weight's gradient to `grad_head_VH` (fp32).

    Logits are computed in the dtype of `head_VH`, and products of the gradient with `product_head_VH`, the same weights
    in the dtype of the hidden states.
    """
    product_head_VH = head_VH if product_head_VH is None else product_head_VH
    return _TrainedHead.apply(hidden_NH, head_VH, product_head_VH, grad_head_VH, targets_N, temperature)
