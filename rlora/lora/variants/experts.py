"""A mixture of experts whose frozen, fused weights carry one low-rank update an expert and projection.

Transformers 5 keeps the experts of a layer in two 3-D parameters, `gate_up_proj` (E, 2F, H), the gate's rows first, and
`down_proj` (E, H, F), and computes down(act(gate) * up) for the `top_k` experts that the router chose for a token. Here
the (token, expert) pairs are sorted by expert, and each expert's pairs are multiplied at once. The factors of gate and
up are an update of `gate_up_proj` of twice the rank whose B is block-diagonal.

As in linear.py, the fp32 factors are rounded to the dtype of the base with the scale folded into B inside the autograd
function, and no gradient of a frozen weight is computed. The router is frozen and not adapted; the gradient goes
through its weights to the layers before it. Left out: experts with biases, without a gate or transposed (refused), and
the layout with one factor shared by all experts.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import nn

from rlora.errors import ConfigError
from rlora.lora.linear import Factors

PROJECTIONS = ("gate_proj", "up_proj", "down_proj")  # their names in checkpoints, PEFT and vLLM, where each is 2-D
_FLAGS = {"has_gate": True, "has_bias": False, "is_transposed": False, "is_concatenated": True}


def fused_experts(modules: Iterable[tuple[str, nn.Module]]) -> dict[str, Any]:
    """Return those of the modules that hold fused experts, by path; ConfigError for a layout not served here."""
    found = {}
    for name, module in modules:
        weight = getattr(module, "down_proj", None)
        if not (isinstance(weight, nn.Parameter) and weight.dim() == 3):
            continue
        if any(getattr(module, flag, None) != value for flag, value in _FLAGS.items()):
            raise ConfigError(
                f"the experts of {type(module).__name__} ({name}) are not laid out as those of Qwen3-MoE and OLMoE, "
                "which alone can carry adapters. Leave them out with --lora.layers attention."
            )
        found[name] = module
    return found


def expert_rank(total: int, num_active: int) -> int:
    """Return max(1, total / active), the rank of one expert's update, so that a token meets `total` in all.

    From "LoRA Without Regret" (doi 10.64434/tml.20250929). Raises ConfigError where the division leaves a rest.
    """
    if total > num_active and total % num_active:
        below = total - total % num_active
        raise ConfigError(
            f"lora.rank is {total}, and a token meets {num_active} experts: each would get {total / num_active:g}. "
            f"Try --lora.rank {below} or {below + num_active}, or leave the experts out with --lora.layers attention."
        )
    return max(1, total // num_active)


def projection_shapes(module: Any) -> dict[str, tuple[int, int]]:
    """Return (outputs, inputs) of one expert's projections by name."""
    _, num_hidden, num_inner = module.down_proj.shape
    return {
        "gate_proj": (num_inner, num_hidden),
        "up_proj": (num_inner, num_hidden),
        "down_proj": (num_hidden, num_inner),
    }


def projection_weight(module: Any, expert: int, projection: str) -> torch.Tensor:
    """Return one expert's projection (O, I) as a view into the fused weights."""
    if projection == "down_proj":
        return module.down_proj[expert]
    gate_OI, up_OI = module.gate_up_proj[expert].chunk(2)
    return gate_OI if projection == "gate_proj" else up_OI


class _Rows(torch.autograd.Function):
    """x[rows] where `rows` names every row `copies` times, with the gradient summed in a fixed order.

    The gradient of plain indexing adds in the order in which a GPU's threads arrive, which differs from run to run.
    """

    @staticmethod
    def forward(ctx, x_NI, rows_S, inverse_S, copies):
        ctx.save_for_backward(inverse_S)
        ctx.copies = copies
        return x_NI[rows_S]

    @staticmethod
    def backward(ctx, grad_SI):  # pyright: ignore[reportIncompatibleMethodOverride] - one name a gradient
        (inverse_S,) = ctx.saved_tensors
        grad_SI = grad_SI[inverse_S]
        return grad_SI if ctx.copies == 1 else grad_SI.unflatten(0, (-1, ctx.copies)).sum(1), None, None, None


class _ExpertProduct(torch.autograd.Function):
    """y[s] = x[s] W_e^T + (x[s] A_e^T) B_e^T for rows sorted by expert, with its gradient for one policy.

    x is (S, I), W (E, O, I), `groups` (expert, first row, end), and `factors` A (E, R, I), B (E, O / P, R) for
    each of the P equal parts of the outputs, or nothing.
    """

    @staticmethod
    def forward(ctx, x_SI, weight_EOI, groups, scale, *factors):
        y_SO = x_SI.new_empty(len(x_SI), weight_EOI.shape[1])
        for expert, start, end in groups:
            torch.mm(x_SI[start:end], weight_EOI[expert].T, out=y_SO[start:end])
        if not factors:
            ctx.save_for_backward(weight_EOI)
        else:
            a_ERI, b_EOR = _rounded(factors, scale, x_SI.dtype)
            h_SR = x_SI.new_empty(len(x_SI), a_ERI.shape[1])
            for expert, start, end in groups:
                torch.mm(x_SI[start:end], a_ERI[expert].T, out=h_SR[start:end])
                y_SO[start:end].addmm_(h_SR[start:end], b_EOR[expert].T)
            ctx.save_for_backward(weight_EOI, x_SI, a_ERI, b_EOR, h_SR)
        ctx.groups, ctx.scale, ctx.num_parts = groups, scale, len(factors) // 2
        return y_SO

    @staticmethod
    def backward(ctx, grad_SO):  # pyright: ignore[reportIncompatibleMethodOverride] - one name a gradient
        weight_EOI, *of_update = ctx.saved_tensors
        grad_x_SI = None
        if ctx.needs_input_grad[0]:
            grad_x_SI = grad_SO.new_empty(len(grad_SO), weight_EOI.shape[2])
            for expert, start, end in ctx.groups:
                torch.mm(grad_SO[start:end], weight_EOI[expert], out=grad_x_SI[start:end])
        if not of_update:
            return grad_x_SI, None, None, None
        x_SI, a_ERI, b_EOR, h_SR = of_update
        grad_a_ERI, grad_b_EOR = torch.zeros_like(a_ERI), torch.zeros_like(b_EOR)
        for expert, start, end in ctx.groups:
            grad_y, grad_h = grad_SO[start:end], grad_SO[start:end] @ b_EOR[expert]
            if grad_x_SI is not None:
                grad_x_SI[start:end].addmm_(grad_h, a_ERI[expert])
            torch.mm(grad_h.T, x_SI[start:end], out=grad_a_ERI[expert])
            torch.mm(grad_y.T, h_SR[start:end], out=grad_b_EOR[expert])
        grads = []
        for part in range(ctx.num_parts):
            rows, columns = _block(b_EOR, part, ctx.num_parts)
            grads.append(grad_a_ERI[:, columns].float())
            grads.append(grad_b_EOR[:, rows, columns].float().mul_(ctx.scale))
        return grad_x_SI, None, None, None, *grads


def _rounded(factors: tuple[torch.Tensor, ...], scale: float, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the factors of all parts as one A (E, P R, I) and one block-diagonal B (E, O, P R), rounded and scaled."""
    num_parts = len(factors) // 2
    a_ERI = torch.cat([part_ERI.to(dtype) for part_ERI in factors[::2]], 1)
    num_experts, num_outputs, _ = factors[1].shape
    b_EOR = a_ERI.new_zeros(num_experts, num_outputs * num_parts, a_ERI.shape[1])
    for part, part_EOR in enumerate(factors[1::2]):
        rows, columns = _block(b_EOR, part, num_parts)
        b_EOR[:, rows, columns] = part_EOR.to(dtype) * scale
    return a_ERI, b_EOR


def _block(b_EOR: torch.Tensor, part: int, num_parts: int) -> tuple[slice, slice]:
    """Return the outputs and the ranks of a part."""
    num_outputs, rank = b_EOR.shape[1] // num_parts, b_EOR.shape[2] // num_parts
    return slice(part * num_outputs, (part + 1) * num_outputs), slice(part * rank, (part + 1) * rank)


class LoraExperts(nn.Module):
    """Frozen fused experts whose outputs carry the updates of the policy that is computed with, if there is one.

    `factors` holds the leaves A (E, R, I) and B (E, O, R) by projection.
    """

    def __init__(self, base: Any):
        """Wrap `base`, without an update."""
        super().__init__()
        self.base = base.requires_grad_(False)
        self.factors: Mapping[str, Factors] | None = None

    def forward(self, hidden_states: torch.Tensor, top_k_index: torch.Tensor, top_k_weights: torch.Tensor):
        """Return the experts' weighted sum (N, H) for hidden states (N, H) and the router's choice and weights (N, k).

        The parameters are named as in Transformers, whose blocks call this module.
        """
        copies, expert_S = top_k_index.shape[1], top_k_index.reshape(-1)
        order_S = expert_S.argsort(stable=True)
        inverse_S = torch.empty_like(order_S).scatter_(0, order_S, torch.arange(len(order_S), device=order_S.device))
        groups = _groups(expert_S, self.base.num_experts)
        x_SH = _Rows.apply(hidden_states, order_S // copies, inverse_S, copies)
        gate_up, scale = _leaves(self.factors, "gate_proj", "up_proj")
        down, _ = _leaves(self.factors, "down_proj")
        inner_SF = _ExpertProduct.apply(x_SH, self.base.gate_up_proj, groups, scale, *gate_up)
        inner_SF = self.base._apply_gate(inner_SF)
        y_SH = _ExpertProduct.apply(inner_SF, self.base.down_proj, groups, scale, *down)
        weight_S = _Rows.apply(top_k_weights.reshape(-1), order_S, inverse_S, 1)
        y_SH = _Rows.apply(y_SH * weight_S[:, None], inverse_S, order_S, 1)
        return y_SH.unflatten(0, (-1, copies)).sum(1).to(hidden_states.dtype)


def _leaves(factors: Mapping[str, Factors] | None, *projections: str) -> tuple[tuple[torch.Tensor, ...], float]:
    """Return A and B of each projection in turn, and their scale; nothing of no policy."""
    if factors is None:
        return (), 1.0
    chosen = [factors[projection] for projection in projections]
    return tuple(leaf for one in chosen for leaf in (one.a, one.b)), chosen[0].scale


def _groups(expert_S: torch.Tensor, num_experts: int) -> list[tuple[int, int, int]]:
    """Return (expert, first row, end) of each expert that has rows, in rows sorted by expert."""
    ends = expert_S.bincount(minlength=num_experts).cumsum(0).tolist()
    return [(e, start, end) for e, (start, end) in enumerate(zip([0, *ends[:-1]], ends, strict=True)) if start < end]
