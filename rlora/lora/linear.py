"""A frozen linear layer with a low-rank update: y = x W^T + bias + (alpha / r) (x A^T) B^T.

The factors are read from fp32 leaves and rounded to the dtype of the base, with the scale folded into B, inside one
autograd function: this is what a server does when it loads the adapter, so trainer and sampler compute the same
function, while gradients reach the fp32 leaves straight through. No gradient of W is computed and nothing is copied.
"""

import torch
from torch import nn


class _LowRankUpdate(torch.autograd.Function):
    """The layer's product with its gradient for one policy; x is (N, I), W (O, I), A (1, R, I), B (1, O, R)."""

    @staticmethod
    def forward(ctx, x_NI, weight_OI, bias_O, a_KRI, b_KOR, scale):
        a_RI = a_KRI[0].to(x_NI.dtype)
        b_OR = b_KOR[0].to(x_NI.dtype) * scale
        h_NR = x_NI @ a_RI.T
        y_NO = torch.addmm(bias_O, x_NI, weight_OI.T) if bias_O is not None else x_NI @ weight_OI.T
        y_NO.addmm_(h_NR, b_OR.T)
        ctx.save_for_backward(x_NI, weight_OI, a_RI, b_OR, h_NR)
        ctx.scale = scale
        return y_NO

    @staticmethod
    def backward(ctx, grad_NO):  # pyright: ignore[reportIncompatibleMethodOverride] - one name a gradient
        x_NI, weight_OI, a_RI, b_OR, h_NR = ctx.saved_tensors
        grad_h_NR = grad_NO @ b_OR
        grad_x_NI = None
        if ctx.needs_input_grad[0]:
            grad_x_NI = grad_NO @ weight_OI
            grad_x_NI.addmm_(grad_h_NR, a_RI)
        grad_a_KRI = (grad_h_NR.T @ x_NI).float().unsqueeze(0)
        grad_b_KOR = (grad_NO.T @ h_NR).float().mul_(ctx.scale).unsqueeze(0)
        return grad_x_NI, None, None, grad_a_KRI, grad_b_KOR, None


class LoraLinear(nn.Module):
    """A frozen `nn.Linear` whose output carries the update of the cohort's policy, or of none when switched off."""

    def __init__(self, base: nn.Linear, a_KRI: nn.Parameter, b_KOR: nn.Parameter, scale: float):
        """Wrap `base`; `a_KRI` (K, R, I) and `b_KOR` (K, O, R) are fp32 leaves, `scale` is alpha / r."""
        super().__init__()
        self.base = base.requires_grad_(False)
        self.a_KRI, self.b_KOR, self.scale = a_KRI, b_KOR, scale
        self.is_enabled = True

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the layer's output for x (..., I) as (..., O)."""
        x_NI = x.reshape(
            -1, x.shape[-1]
        )  # 2-D: a 3-D input with a frozen weight is multiplied row by row (a copy each)
        if self.is_enabled:
            y_NO = _LowRankUpdate.apply(x_NI, self.base.weight, self.base.bias, self.a_KRI, self.b_KOR, self.scale)
        else:
            y_NO = nn.functional.linear(x_NI, self.base.weight, self.base.bias)
        return y_NO.view(*x.shape[:-1], -1)
