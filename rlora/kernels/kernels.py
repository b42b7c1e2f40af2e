"""What a transformer layer and the logits need beside products: plain functions, and the same compiled.

Sums and functions are computed in fp32 and rounded once, at the end, as inference engines do; Transformers' modules
round after each operation. Every kernel comes with its derivative written out, so that nothing but its inputs is kept.
Tokens are N rows or B rows of T positions; H is the hidden size, D a head's.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from rlora.kernels.attention import Attention
from rlora.kernels.low_rank import LowRank

Tensor = torch.Tensor


def norm(x_NH: Tensor, weight_H: Tensor, epsilon: float) -> tuple[Tensor, Tensor]:
    """Return the RMS norm of each row times the weight, and 1 / the root mean square (N, 1) in fp32."""
    x = x_NH.float()
    inverse_N1 = torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + epsilon)
    return (x * inverse_N1 * weight_H.float()).to(x_NH.dtype), inverse_N1


def norm_backward(grad_NH: Tensor, x_NH: Tensor, weight_H: Tensor, inverse_N1: Tensor) -> Tensor:
    """Return the gradient of the norm's input."""
    grad, direction = grad_NH.float() * weight_H.float(), x_NH.float() * inverse_N1
    along = (grad * direction).mean(-1, keepdim=True)
    return ((grad - direction * along) * inverse_N1).to(x_NH.dtype)


def norm_weight_backward(grad_NH: Tensor, x_NH: Tensor, inverse_N1: Tensor) -> Tensor:
    """Return the gradient of the norm's weight, fp32."""
    return (grad_NH.float() * x_NH.float() * inverse_N1).sum(0)


def gate(gate_NI: Tensor, up_NI: Tensor) -> Tensor:
    """Return silu(gate) x up."""
    gate = gate_NI.float()
    return (gate * torch.sigmoid(gate) * up_NI.float()).to(gate_NI.dtype)


def gate_backward(grad_NI: Tensor, gate_NI: Tensor, up_NI: Tensor) -> tuple[Tensor, Tensor]:
    """Return the gradients of gate and up."""
    gate, grad = gate_NI.float(), grad_NI.float()
    sigmoid = torch.sigmoid(gate)
    silu = gate * sigmoid
    grad_gate = grad * up_NI.float() * (sigmoid + silu * (1 - sigmoid))
    return grad_gate.to(gate_NI.dtype), (grad * silu).to(up_NI.dtype)


def _rotated(x: Tensor, cos: Tensor, sin: Tensor, sign: float) -> Tensor:
    """Turn the halves of the last dimension as planes, forwards (sign 1) or back (-1)."""
    x, half = x.float(), x.shape[-1] // 2
    low, high = x[..., :half], x[..., half:]
    if sign > 0:
        return x * cos + torch.cat((-high, low), -1) * sin
    turned = x * sin
    return x * cos + torch.cat((turned[..., half:], -turned[..., :half]), -1)


def rotate(query: Tensor, key: Tensor, cos_BTD: Tensor, sin_BTD: Tensor) -> tuple[Tensor, Tensor]:
    """Return query and key (B, heads, T, D) with their positions turned in, contiguous however they come."""
    cos, sin = cos_BTD.float().unsqueeze(1), sin_BTD.float().unsqueeze(1)
    return (
        _rotated(query, cos, sin, 1).to(query.dtype).contiguous(),
        _rotated(key, cos, sin, 1).to(key.dtype).contiguous(),
    )


def rotate_backward(grad_query: Tensor, grad_key: Tensor, cos_BTD: Tensor, sin_BTD: Tensor) -> tuple[Tensor, Tensor]:
    """Return the gradients of query and key before rotation, (B, T, heads, D) contiguous: as projections make them."""
    cos, sin = cos_BTD.float().unsqueeze(2), sin_BTD.float().unsqueeze(2)
    query, key = grad_query.transpose(1, 2), grad_key.transpose(1, 2)
    return (
        _rotated(query, cos, sin, -1).to(query.dtype).contiguous(),
        _rotated(key, cos, sin, -1).to(key.dtype).contiguous(),
    )


def softmax(scores: Tensor, mask: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """Return softmax(scale x scores + mask) and the log-normalizers (B, heads, T, 1) in fp32.

    Scores are (B, heads, T, keys), the mask (B, 1, T, keys) of 0 and -inf.
    """
    logits = scores.float() * scale + mask.float()
    largest = logits.amax(-1, keepdim=True)
    weights = (logits - largest).exp()
    normalizer = weights.sum(-1, keepdim=True)
    return (weights / normalizer).to(scores.dtype), largest + normalizer.log()


def softmax_backward(
    scores: Tensor, mask: Tensor, scale: float, normalizer: Tensor, grad: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the softmax again, and the gradient of the scores."""
    weights, grad_weights = (scores.float() * scale + mask.float() - normalizer).exp(), grad.float()
    along = (weights * grad_weights).sum(-1, keepdim=True)
    return weights.to(scores.dtype), (weights * (grad_weights - along) * scale).to(scores.dtype)


def token_statistics(
    product_NV: Tensor, lost_NV: Tensor, targets_N: Tensor, temperature: float, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return log-probabilities (N) of the targets, entropies (N), log-normalizers (N) and probabilities (N, V).

    Logits are the sum of two tensors divided by the temperature (see logprobs.logits). Probabilities have `dtype`; all
    else is fp32.
    """
    logits_NV = (product_NV.float() + lost_NV.float()) / temperature
    largest_N1 = logits_NV.amax(-1, keepdim=True)
    below_NV = logits_NV - largest_N1
    e_NV = below_NV.exp()
    sum_N1 = e_NV.sum(-1, keepdim=True)
    entropy_N1 = sum_N1.log() - (e_NV * below_NV).sum(-1, keepdim=True) / sum_N1
    logprobs_N1 = below_NV.gather(1, targets_N[:, None]) - sum_N1.log()
    p_NV = (e_NV * (1 / sum_N1)).to(dtype)
    return logprobs_N1.squeeze(1), entropy_N1.squeeze(1), (largest_N1 + sum_N1.log()).squeeze(1), p_NV


def rank_one_backward(
    grads: Sequence[Tensor], factors_b: Sequence[Tensor], h_NM: Tensor, x_NI: Tensor, scale: float
) -> tuple[Tensor, Tensor, list[Tensor]]:
    """Return the gradients of h (N, M), of all A (M, I) and of each scaled B (O, 1) of M rank-1 updates of one input.

    `grads` are those of the outputs (N, O) and `factors_b` are (O, 1); gradients of factors are fp32. These are
    products of matrices with vectors, for which the general product takes half as long again.
    """
    grads = [grad_NO.float() for grad_NO in grads]
    columns = [(grad * b_O1.float().T).sum(1, keepdim=True) for grad, b_O1 in zip(grads, factors_b, strict=True)]
    grad_h_NM = torch.cat(columns, 1).to(x_NI.dtype)
    x, h = x_NI.float(), h_NM.float()
    grad_a = [(x * column.to(x_NI.dtype).float()).sum(0, keepdim=True) for column in columns]
    grad_b = [(grad * h[:, i : i + 1]).sum(0)[:, None] * scale for i, grad in enumerate(grads)]
    return grad_h_NM, torch.cat(grad_a), grad_b


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Kernels:
    """One set of the functions of this module, plain or compiled; compiled, perhaps frozen layers with updates and
    attention too.
    """

    norm: Callable[..., tuple[Tensor, Tensor]] = norm
    norm_backward: Callable[..., Tensor] = norm_backward
    norm_weight_backward: Callable[..., Tensor] = norm_weight_backward
    gate: Callable[..., Tensor] = gate
    gate_backward: Callable[..., tuple[Tensor, Tensor]] = gate_backward
    rotate: Callable[..., tuple[Tensor, Tensor]] = rotate
    rotate_backward: Callable[..., tuple[Tensor, Tensor]] = rotate_backward
    softmax: Callable[..., tuple[Tensor, Tensor]] = softmax
    softmax_backward: Callable[..., tuple[Tensor, Tensor]] = softmax_backward
    token_statistics: Callable[..., tuple[Tensor, Tensor, Tensor, Tensor]] = token_statistics
    rank_one_backward: Callable[..., tuple[Tensor, Tensor, list[Tensor]]] = rank_one_backward
    low_rank: LowRank | None = None
    attention: Attention | None = None


PLAIN = Kernels()
