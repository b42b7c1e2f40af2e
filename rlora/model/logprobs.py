"""Token log-probabilities and entropies from hidden states, in chunks: memory does not grow with vocabulary x length.

Only positions that are trained reach this module. Because the unembedding is frozen, the derivative of a token's
log-probability with respect to its hidden state is one vector, (W[target] - p W) / temperature; it is computed in the
forward pass while the chunk's probabilities p exist, so no logits are kept and none are computed twice.
"""

from dataclasses import dataclass

import torch

from rlora.model.products import PLAIN, Products

CHUNK_TOKENS = 192  # fewer read the unembedding more often; 192 x 49,152 logits are 19 MB in bf16, 38 in fp32
_CUDA_CHUNK_TOKENS = 1024  # 192 take 4 % more of a pass there


def chunk_tokens(device: torch.device) -> int:
    """Return how many tokens' logits exist at once."""
    return CHUNK_TOKENS if device.type == "cpu" else max(CHUNK_TOKENS, _CUDA_CHUNK_TOKENS)


def logits(
    hidden_NH: torch.Tensor, head_VH: torch.Tensor, dtype: torch.dtype, products: Products = PLAIN
) -> torch.Tensor:
    """Return the logits (N, V), fp32, in the precision `dtype`, without a gradient.

    An fp32 product of 16-bit numbers is one product on CUDA, which leaves its sums in fp32, and so do compiled
    `products` on the CPU. PyTorch's products there do not: it is made of two, since such a product sums in fp32 and
    then rounds, and computed once more with the rounded result subtracted from the sum, it gives what the rounding
    lost. Together that is 2 x 8 bits of bf16, an error of 2e-4 at logits of 40, at two fifths of the time. On CUDA the
    second would give nothing: the error stays 0.12 (docs/log.md).
    """
    product_NV, lost_NV = _logits_and_rest(hidden_NH, head_VH, dtype, products)
    return product_NV.float() if lost_NV is None else product_NV.float().add_(lost_NV)


def _logits_and_rest(
    hidden_NH: torch.Tensor, head_VH: torch.Tensor, dtype: torch.dtype, products: Products
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Return two tensors whose sum in fp32 is the logits, or the logits and None."""
    if dtype == torch.float32 and hidden_NH.dtype == head_VH.dtype != torch.float32:
        if hidden_NH.is_cuda:
            return torch.mm(hidden_NH, head_VH.T, out_dtype=torch.float32), None
        if (low_rank := products.through(hidden_NH, head_VH)) is not None:
            return low_rank.logits(hidden_NH, head_VH), None
        rounded_NV = hidden_NH @ head_VH.T
        return rounded_NV, rounded_NV.neg().addmm_(hidden_NH, head_VH.T)
    return hidden_NH.to(dtype) @ head_VH.to(dtype).T, None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ChunkStatistics:
    """What is known of C tokens: log-probabilities, entropies and log-normalizers, in nats and fp32.

    `residual_CV` holds the probabilities less 1 at the target, by which log-probabilities fall as logits rise.
    """

    logprobs_C: torch.Tensor
    entropy_C: torch.Tensor
    normalizer_C: torch.Tensor
    residual_CV: torch.Tensor


def chunk_statistics(
    hidden_CH: torch.Tensor,
    head_VH: torch.Tensor,
    dtype: torch.dtype,
    targets_C: torch.Tensor,
    temperature: float,
    products: Products,
) -> ChunkStatistics:
    """Return what `targets_C` have under the logits (see `logits`) divided by the temperature.

    The residual is in the dtype of `head_VH`.
    """
    if products.kernels is not None:
        product_CV, lost_CV = _logits_and_rest(hidden_CH, head_VH, dtype, products)
        lost_CV = product_CV.new_zeros(1, 1) if lost_CV is None else lost_CV
        logprobs_C, entropy_C, normalizer_C, p_CV = products.kernels.token_statistics(
            product_CV, lost_CV, targets_C, temperature, head_VH.dtype
        )
    else:
        logits_CV = logits(hidden_CH, head_VH, dtype)
        if temperature != 1:
            logits_CV.div_(temperature)
        log_p_CV = logits_CV.log_softmax(-1)  # not less the log of the sum: that is rounded at the size of the logits
        logprobs_C, p_CV = log_p_CV.gather(1, targets_C[:, None]).squeeze(1), log_p_CV.exp()
        normalizer_C = logits_CV.gather(1, targets_C[:, None]).squeeze(1) - logprobs_C
        entropy_C = -torch.linalg.vecdot(p_CV, log_p_CV)
    residual_CV = p_CV.to(head_VH.dtype)
    row_C = torch.arange(len(targets_C), device=targets_C.device)  # indexing: scatter_ copies 16-bit numbers thrice
    residual_CV[row_C, targets_C] = logprobs_C.expm1().to(residual_CV.dtype)  # 0.999 - 1, not 1 - 1
    return ChunkStatistics(
        logprobs_C=logprobs_C, entropy_C=entropy_C, normalizer_C=normalizer_C, residual_CV=residual_CV
    )


def through(grad_CV: torch.Tensor, head_VH: torch.Tensor, products: Products) -> torch.Tensor:
    """Return the gradient of hidden states (C, H) for that of their logits."""
    if (low_rank := products.through(grad_CV, head_VH)) is None:
        return grad_CV @ head_VH
    grad_CH = low_rank.backward([grad_CV], [(head_VH, None)])
    assert grad_CH is not None
    return grad_CH


class _TokenLogprobs(torch.autograd.Function):
    @staticmethod
    def forward(ctx, hidden_NH, head_VH, dtype, targets_N, temperature, products):
        num_tokens = hidden_NH.shape[0]
        logprobs_N = hidden_NH.new_empty(num_tokens, dtype=torch.float32)
        entropy_N = torch.empty_like(logprobs_N)
        jacobian_NH = torch.empty_like(hidden_NH) if ctx.needs_input_grad[0] else None
        size = chunk_tokens(hidden_NH.device)
        for start in range(0, num_tokens, size):
            part = slice(start, start + size)
            found = chunk_statistics(hidden_NH[part], head_VH, dtype, targets_N[part], temperature, products)
            logprobs_N[part], entropy_N[part] = found.logprobs_C, found.entropy_C
            if jacobian_NH is not None:
                jacobian_NH[part] = through(found.residual_CV, head_VH, products).div_(-temperature)
        ctx.save_for_backward(jacobian_NH)
        ctx.mark_non_differentiable(entropy_N)
        return logprobs_N, entropy_N

    @staticmethod
    def backward(ctx, grad_logprobs_N, _grad_entropy_N):  # pyright: ignore[reportIncompatibleMethodOverride] - one name a gradient
        (jacobian_NH,) = ctx.saved_tensors
        return grad_logprobs_N[:, None].to(jacobian_NH.dtype) * jacobian_NH, *(None,) * 5


def token_logprobs(
    hidden_NH: torch.Tensor,
    head_VH: torch.Tensor,
    targets_N: torch.Tensor,
    *,
    temperature: float = 1.0,
    dtype: torch.dtype | None = None,
    products: Products = PLAIN,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return log-probabilities (nats, differentiable in the hidden states) of `targets_N` and entropies (nats,
    constant).

    Logits are computed in `dtype` (fp32 for agreement with the sampler; by default that of `head_VH`) and softened by
    `temperature`; `products` make them and what follows cheaper.
    """
    return _TokenLogprobs.apply(hidden_NH, head_VH, dtype or head_VH.dtype, targets_N, temperature, products)
