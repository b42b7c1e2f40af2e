"""Log-probabilities through an unembedding that carries a low-rank update, in chunks, and the logits themselves.

Unlike with a frozen unembedding, the gradient of B needs each chunk's probabilities weighted by what comes from above,
which is not known in the forward pass: the backward pass computes a chunk's logits again. Factors are rounded as
`rlora.lora.linear` does, and gradients reach the fp32 leaves straight through.
"""

import torch
from torch.utils.checkpoint import checkpoint

from rlora.lora.linear import LoraLinear
from rlora.model import logprobs


def adapted_logits(hidden_NH: torch.Tensor, head_VH: torch.Tensor, update: LoraLinear) -> torch.Tensor:
    """Return fp32 logits (N, V) of the unembedding `head_VH` (V, H) with the low-rank update of the layer `update`."""
    a_RH, b_VR = _served_factors(update, head_VH.dtype)
    return _logits(hidden_NH, head_VH, a_RH, b_VR)


def adapted_token_logprobs(
    hidden_NH: torch.Tensor,
    head_VH: torch.Tensor,
    update: LoraLinear,
    targets_N: torch.Tensor,
    *,
    temperature: float = 1.0,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return log-probabilities (nats, differentiable in hidden states and factors) of `targets_N` and entropies (nats).

    Logits are computed in the dtype of `head_VH` and softened by `temperature`; memory holds those of one chunk.
    """
    a_RH, b_VR = _served_factors(update, head_VH.dtype)
    values, entropies = [hidden_NH.new_empty(0, dtype=torch.float32)], [hidden_NH.new_empty(0, dtype=torch.float32)]
    size = logprobs.chunk_tokens(hidden_NH.device)
    for start in range(0, len(targets_N), size):
        part = slice(start, start + size)
        logprobs_C, entropy_C = checkpoint(
            _score_chunk,
            *(hidden_NH[part], head_VH, a_RH, b_VR, targets_N[part], temperature),
            use_reentrant=False,
            preserve_rng_state=False,
        )
        values.append(logprobs_C)
        entropies.append(entropy_C)
    return torch.cat(values), torch.cat(entropies)


def _score_chunk(
    hidden_CH: torch.Tensor,
    head_VH: torch.Tensor,
    a_RH: torch.Tensor,
    b_VR: torch.Tensor,
    targets_C: torch.Tensor,
    temperature: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    log_p_CV = (_logits(hidden_CH, head_VH, a_RH, b_VR) / temperature).log_softmax(-1)
    with torch.no_grad():
        entropy_C = -torch.linalg.vecdot(log_p_CV.exp(), log_p_CV)
    return log_p_CV.gather(1, targets_C[:, None]).squeeze(1), entropy_C


def _logits(hidden_NH: torch.Tensor, head_VH: torch.Tensor, a_RH: torch.Tensor, b_VR: torch.Tensor) -> torch.Tensor:
    hidden_NH = hidden_NH.to(head_VH.dtype)
    return (hidden_NH @ head_VH.T + (hidden_NH @ a_RH.T) @ b_VR.T).float()


def _served_factors(update: LoraLinear, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """Return A (R, H) and scale x B (V, R), rounded to the dtype of the base and held in `dtype`."""
    served = update.base.weight.dtype
    assert update.factors is not None
    (a_RH, b_VR), scale = update.factors.computed(), update.factors.scale
    rounded_a_RH, rounded_b_VR = a_RH.detach().to(served), b_VR.detach().to(served) * scale
    scaled_b_VR = b_VR * scale
    # x + (rounded - x) is `rounded` exactly, since the two are within a factor of two; its gradient is that of x
    a_RH = a_RH + (rounded_a_RH.float() - a_RH.detach())
    b_VR = scaled_b_VR + (rounded_b_VR.float() - scaled_b_VR.detach())
    return a_RH.to(dtype), b_VR.to(dtype)
