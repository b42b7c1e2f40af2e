"""Let a model's norms, gated layers, rotary embeddings and frozen linear layers compute with the kernels.

A module is taken over only when it has the parts that are expected and, if it is not a plain linear layer, computes the
same from random numbers; others stay as they are. Modules are kept, and only their `forward` is replaced: names of
weights and hooks stay.
"""

import inspect
from collections.abc import Callable
from types import FunctionType, MethodType
from typing import Any

import torch
from torch import nn

from rlora.kernels.kernels import Kernels

_ROTARY = "apply_rotary_pos_emb"  # the name in all of Transformers' models
_KINDS = ("Norm", "MLP", "Attention", "Experts")
_ROWS = 160  # as in rlora.train.warm_up: enough to be divided among threads
_TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 3e-2, torch.float16: 4e-3}  # four roundings


class _Norm(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x_NH, weight_H, epsilon, kernels):
        out_NH, inverse_N1 = kernels.norm(x_NH, weight_H, epsilon)
        ctx.save_for_backward(x_NH, weight_H, inverse_N1)
        ctx.kernels = kernels
        return out_NH

    @staticmethod
    def backward(ctx, grad_NH):  # pyright: ignore[reportIncompatibleMethodOverride] - one name a gradient
        x_NH, weight_H, inverse_N1 = ctx.saved_tensors
        grad_x_NH = grad_weight_H = None
        if ctx.needs_input_grad[0]:
            grad_x_NH = ctx.kernels.norm_backward(grad_NH, x_NH, weight_H, inverse_N1)
        if ctx.needs_input_grad[1]:
            grad_weight_H = ctx.kernels.norm_weight_backward(grad_NH, x_NH, inverse_N1).to(weight_H.dtype)
        return grad_x_NH, grad_weight_H, None, None


class _Gate(torch.autograd.Function):
    @staticmethod
    def forward(ctx, gate_NI, up_NI, kernels):
        ctx.save_for_backward(gate_NI, up_NI)
        ctx.kernels = kernels
        return kernels.gate(gate_NI, up_NI)

    @staticmethod
    def backward(ctx, grad_NI):  # pyright: ignore[reportIncompatibleMethodOverride] - one name a gradient
        return *ctx.kernels.gate_backward(grad_NI, *ctx.saved_tensors), None


class _Rotate(torch.autograd.Function):
    @staticmethod
    def forward(ctx, query, key, cos, sin, kernels):
        ctx.save_for_backward(cos, sin)
        ctx.kernels = kernels
        return kernels.rotate(query, key, cos, sin)

    @staticmethod
    def backward(ctx, grad_query, grad_key):  # pyright: ignore[reportIncompatibleMethodOverride] - one name a gradient
        query, key = ctx.kernels.rotate_backward(grad_query, grad_key, *ctx.saved_tensors)
        return query.transpose(1, 2), key.transpose(1, 2), None, None, None


def install(model: nn.Module, kernels: Kernels) -> dict[str, int]:
    """Replace what can be replaced in `model`, and return how many modules of each class now may use the kernels."""
    taken: dict[str, int] = {}
    for module in model.modules():
        forwards = (
            make(module, kernels) for make in (_norm_forward, _gated_forward, _attention_forward, _linear_forward)
        )
        if (forward := next(filter(None, forwards), None)) is not None:
            module.forward = forward
            taken[type(module).__name__] = taken.get(type(module).__name__, 0) + 1
    return taken


def left_plain(model: nn.Module) -> list[str]:
    """Return the names of classes that look as if the kernels were for them, of which a module was not taken over."""
    left = {type(module).__name__ for module in model.modules() if "forward" not in vars(module)}
    return sorted(name for name in left if name.endswith(_KINDS))


def _norm_forward(module: Any, kernels: Kernels) -> Callable[..., Any] | None:
    weight_H = getattr(module, "weight", None)
    epsilon = getattr(module, "variance_epsilon", getattr(module, "eps", None))
    if not (type(module).__name__.endswith("RMSNorm") and isinstance(weight_H, nn.Parameter) and epsilon is not None):
        return None

    def forward(hidden: torch.Tensor) -> torch.Tensor:
        rows_NH = hidden.reshape(-1, hidden.shape[-1])
        return _Norm.apply(rows_NH, module.weight, epsilon, kernels).view(hidden.shape)

    rows_NH = _random(weight_H, _ROWS, len(weight_H))
    return forward if _agree(lambda: type(module).forward(module, rows_NH), lambda: forward(rows_NH)) else None


def _gated_forward(module: Any, kernels: Kernels) -> Callable[..., Any] | None:
    parts = [getattr(module, name, None) for name in ("gate_proj", "up_proj", "down_proj")]
    if not all(isinstance(part, nn.Linear) for part in parts):
        return None

    def forward(x: torch.Tensor) -> torch.Tensor:
        gate, up = module.gate_proj(x), module.up_proj(x)
        gated_NI = _Gate.apply(gate.view(-1, gate.shape[-1]), up.view(-1, up.shape[-1]), kernels)
        return module.down_proj(gated_NI.view(gate.shape))

    x = _random(module.gate_proj.weight, 1, _ROWS, module.gate_proj.in_features)
    return forward if _agree(lambda: type(module).forward(module, x), lambda: forward(x)) else None


def _attention_forward(module: Any, kernels: Kernels) -> Callable[..., Any] | None:
    """Return the class's own forward, calling our rotary embedding instead of the library's."""
    function = inspect.unwrap(type(module).forward)
    plain = getattr(function, "__globals__", {}).get(_ROTARY)
    if plain is None or _ROTARY not in function.__code__.co_names or not hasattr(module, "q_proj"):
        return None

    def rotary(query: Any, key: Any, cos: Any, sin: Any, *args: Any, **kwargs: Any) -> Any:
        fits = query.dim() == 4 and cos.dim() == 3 and cos.shape[-1] == query.shape[-1] and not (args or kwargs)
        return _Rotate.apply(query, key, cos, sin, kernels) if fits else plain(query, key, cos, sin, *args, **kwargs)

    like, size = module.q_proj.weight, module.head_dim
    numbers = [_random(like, 1, *shape, size) for shape in ((4, _ROWS), (2, _ROWS), (_ROWS,), (_ROWS,))]
    if not _agree(lambda: torch.cat(plain(*numbers), 1), lambda: torch.cat(rotary(*numbers), 1)):
        return None
    ours = FunctionType(
        function.__code__,
        {**function.__globals__, _ROTARY: rotary},
        function.__name__,
        function.__defaults__,
        function.__closure__,
    )
    ours.__kwdefaults__ = function.__kwdefaults__
    module.kernels = kernels  # of which attention.attend takes the softmax
    return MethodType(ours, module)


def _linear_forward(module: Any, kernels: Kernels) -> Callable[..., Any] | None:
    """Return what a linear layer computes with while its weight is frozen."""
    low_rank = kernels.low_rank
    if type(module) is not nn.Linear or low_rank is None or not low_rank.has_bases:
        return None

    def forward(x: torch.Tensor) -> torch.Tensor:
        rows_NI, layers = x.reshape(-1, x.shape[-1]), [(module.weight, module.bias)]
        is_trained = any(parameter.requires_grad for parameter in module.parameters())
        if is_trained or not low_rank.takes(rows_NI, layers):
            return nn.Linear.forward(module, x)
        return low_rank.outputs(rows_NI, layers)[0].view(*x.shape[:-1], -1)

    return forward


def _random(like: torch.Tensor, *shape: int) -> torch.Tensor:
    random = torch.Generator().manual_seed(0)
    return torch.randn(*shape, generator=random).to(like.device, like.dtype)


def _agree(plain: Callable[[], Any], ours: Callable[[], Any]) -> bool:
    """Return whether both compute the same, up to rounding, from the same numbers."""
    with torch.no_grad():
        expected, found = plain(), ours()
    tolerance = _TOLERANCE[expected.dtype]
    size = float(expected.float().abs().max())
    return found.shape == expected.shape and bool((found - expected).abs().max() <= tolerance * size)
