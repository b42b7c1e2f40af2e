"""Token log-probabilities and entropies from hidden states, in chunks: memory does not grow with vocabulary x length.

Only positions that are trained reach this module. Because the unembedding is frozen, the derivative of a token's
log-probability with respect to its hidden state is one vector, (W[target] - p W) / temperature; it is computed in the
forward pass while the chunk's probabilities p exist, so no logits are kept and none are computed twice.
"""

import torch

CHUNK_TOKENS = 128  # 128 x 49,152 fp32 logits are 25 MB


def logits(hidden_NH: torch.Tensor, head_VH: torch.Tensor, low_head_VH: torch.Tensor) -> torch.Tensor:
    """Return the logits (N, V), fp32, in the precision of `head_VH`; `low_head_VH` is the same in the model's.

    An fp32 product of 16-bit numbers is made of two 16-bit products: such a product sums in fp32 and then rounds, and
    computed once more with the rounded result subtracted from the sum, it gives what the rounding lost. Together that
    is 2 x 8 bits of bf16, an error of 2e-4 at logits of 40, at two fifths of the time (docs/log.md).
    """
    if head_VH.dtype == torch.float32 and hidden_NH.dtype == low_head_VH.dtype != torch.float32:
        rounded_NV = hidden_NH @ low_head_VH.T
        lost_NV = torch.addmm(rounded_NV, hidden_NH, low_head_VH.T, beta=-1)
        return rounded_NV.float().add_(lost_NV)
    return (hidden_NH.to(head_VH.dtype) @ head_VH.T).float()


class _TokenLogprobs(torch.autograd.Function):
    @staticmethod
    def forward(ctx, hidden_NH, head_VH, gradient_head_VH, targets_N, temperature):
        num_tokens = hidden_NH.shape[0]
        logprobs_N = hidden_NH.new_empty(num_tokens, dtype=torch.float32)
        entropy_N = torch.empty_like(logprobs_N)
        jacobian_NH = torch.empty_like(hidden_NH) if ctx.needs_input_grad[0] else None
        for start in range(0, num_tokens, CHUNK_TOKENS):
            part = slice(start, start + CHUNK_TOKENS)
            logits_CV = logits(hidden_NH[part], head_VH, gradient_head_VH)
            log_p_CV = logits_CV.div_(temperature).log_softmax(-1) if temperature != 1 else logits_CV.log_softmax(-1)
            del logits_CV
            p_CV = log_p_CV.exp()
            logprobs_N[part] = log_p_CV.gather(1, targets_N[part, None]).squeeze(1)
            entropy_N[part] = -torch.linalg.vecdot(p_CV, log_p_CV)
            if jacobian_NH is not None:
                expected_CH = p_CV.to(gradient_head_VH.dtype) @ gradient_head_VH
                jacobian_NH[part] = (gradient_head_VH[targets_N[part]] - expected_CH) / temperature
        ctx.save_for_backward(jacobian_NH)
        ctx.mark_non_differentiable(entropy_N)
        return logprobs_N, entropy_N

    @staticmethod
    def backward(ctx, grad_logprobs_N, _grad_entropy_N):  # pyright: ignore[reportIncompatibleMethodOverride] - one name a gradient
        (jacobian_NH,) = ctx.saved_tensors
        return grad_logprobs_N[:, None].to(jacobian_NH.dtype) * jacobian_NH, None, None, None, None


def token_logprobs(
    hidden_NH: torch.Tensor,
    head_VH: torch.Tensor,
    targets_N: torch.Tensor,
    *,
    temperature: float = 1.0,
    gradient_head_VH: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return log-probabilities (nats, differentiable in the hidden states) of `targets_N` and entropies (nats,
    constant).

    Logits are computed in the dtype of `head_VH` (fp32 for agreement with the sampler) and softened by `temperature`;
    `gradient_head_VH`, the same weights in the dtype of the model, makes the products cheaper.
    """
    return _TokenLogprobs.apply(
        hidden_NH, head_VH, gradient_head_VH if gradient_head_VH is not None else head_VH, targets_N, temperature
    )
