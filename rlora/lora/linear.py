"""A frozen linear layer with a low-rank update: y = x W^T + bias + (alpha / r) (x A^T) B^T.

The factors are read from fp32 leaves and rounded to the dtype of the base, with the scale folded into B, inside one
autograd function: this is what a server does when it loads the adapter, so trainer and sampler compute the same
function, while gradients reach the fp32 leaves straight through. No gradient of W is computed and nothing is copied.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from rlora.lora.variants.pissa import difference_factors
from rlora.model.products import PLAIN, Products

_ALIGNED = 8  # columns of 16-bit numbers that a GPU's fast products take at once


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Factors:
    """One policy's update of one layer: scale x B A, or with `start` (PiSSA) scale x (B A - B0 A0).

    `a` (..., R, I) and `b` (..., O, R) are fp32 leaves, `start` their initial values, `scale` is alpha / r. Leaves of
    fused experts have the experts as their first dimension.
    """

    a: torch.Tensor
    b: torch.Tensor
    scale: float
    start: tuple[torch.Tensor, torch.Tensor] | None = None

    def computed(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the fp32 A and B that are computed with: the leaves, or with PiSSA those of the difference."""
        return (self.a, self.b) if self.start is None else difference_factors(self.a, self.b, *self.start)


class _LowRankUpdates(torch.autograd.Function):
    """The products of M layers with one input, and their gradients for one policy.

    x is (N, I); each layer has a base with W (O, I), A (R, I) and B (O, R). All A are one product with x, all
    gradients of x are summed by the products themselves, and all gradients of A are one product.
    """

    @staticmethod
    def forward(ctx, x_NI, scale, products, bases, *factors):
        all_a, all_b = factors[: len(bases)], factors[len(bases) :]
        ranks = [len(a_RI) for a_RI in all_a]
        a_SI = torch.cat(all_a).to(x_NI.dtype)  # S: the ranks of all layers
        scaled = [b_OR.to(x_NI.dtype) * scale for b_OR in all_b]
        ctx.is_padded = not products.is_compiled and is_padding_worth_it(ranks, x_NI.device)
        if ctx.is_padded:
            a_SI, scaled = _padded(a_SI, scaled, ranks)
        h_NS = x_NI @ a_SI.T
        parts = [h_NS] * len(bases) if ctx.is_padded else h_NS.split(ranks, 1)
        outputs = [_product(x_NI, base) for base in bases]
        for y_NO, b_OR, h_NR in zip(outputs, scaled, parts, strict=True):
            y_NO.addmm_(h_NR, b_OR.T)
        ctx.save_for_backward(x_NI, a_SI, h_NS, *scaled)
        ctx.scale, ctx.products, ctx.bases, ctx.ranks = scale, products, bases, ranks
        return tuple(outputs)

    @staticmethod
    def backward(ctx, *grads):  # pyright: ignore[reportIncompatibleMethodOverride] - one name a gradient
        x_NI, a_SI, h_NS, *scaled = ctx.saved_tensors
        ranks = ctx.ranks
        if ctx.is_padded:
            found = _padded_gradients(grads, scaled, h_NS, x_NI, ctx.scale, ranks)
        else:
            found = ctx.products.rank_one_gradients(grads, scaled, h_NS, x_NI, ctx.scale) if max(ranks) == 1 else None
        grad_h_NS, grad_a_SI, grad_b = found or _gradients(grads, scaled, h_NS, x_NI, ctx.scale)
        grad_x_NI = None
        if ctx.needs_input_grad[0]:
            grad_x_NI = _through(grads, ctx.bases)
            grad_x_NI.addmm_(grad_h_NS, a_SI)
        return grad_x_NI, None, None, None, *grad_a_SI.split(ranks), *grad_b


def is_padding_worth_it(ranks: Sequence[int], device: torch.device) -> bool:
    """Return whether products of layers with one input are to have a multiple of 8 columns, and have not.

    On CUDA others take an unaligned kernel: with one column a pass at rank 1 took longer than at rank 32 (docs/log.md).
    """
    return device.type == "cuda" and any(rank % _ALIGNED for rank in ranks)


def _padded(
    a_SI: torch.Tensor, scaled: Sequence[torch.Tensor], ranks: Sequence[int]
) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Return A with rows of zeros behind, (S, I), and each B (O, S) with zeros in the columns that are not its own, so
    that every product has S columns, a multiple of 8; adding zeros changes no number.
    """
    padded_a = nn.functional.pad(a_SI, (0, 0, 0, -len(a_SI) % _ALIGNED))
    offsets, width = [sum(ranks[:index]) for index in range(len(ranks))], len(padded_a)
    padded_b = [
        nn.functional.pad(b_OR, (offset, width - offset - rank))
        for b_OR, offset, rank in zip(scaled, offsets, ranks, strict=True)
    ]
    return padded_a, padded_b


def _padded_gradients(
    grads: Sequence[torch.Tensor],
    scaled: Sequence[torch.Tensor],
    h_NS: torch.Tensor,
    x_NI: torch.Tensor,
    scale: float,
    ranks: Sequence[int],
) -> tuple[torch.Tensor, torch.Tensor, list[torch.Tensor]]:
    """Return what `_gradients` does, of factors as `_padded` leaves them; the gradient of h has S columns too."""
    grad_h_NS = grads[0] @ scaled[0]
    for grad_NO, b_OS in zip(grads[1:], scaled[1:], strict=True):
        grad_h_NS.addmm_(grad_NO, b_OS)
    grad_b, offset = [], 0
    for grad_NO, rank in zip(grads, ranks, strict=True):
        grad_b.append((grad_NO.T @ h_NS)[:, offset : offset + rank].float().mul_(scale))
        offset += rank
    return grad_h_NS, (grad_h_NS.T @ x_NI)[:offset].float(), grad_b


def _product(x_NI: torch.Tensor, base: nn.Linear) -> torch.Tensor:
    """Return x W^T + bias of a layer."""
    return x_NI @ base.weight.T if base.bias is None else torch.addmm(base.bias, x_NI, base.weight.T)


def _through(grads: Sequence[torch.Tensor], bases: Sequence[nn.Linear]) -> torch.Tensor:
    """Return the sum of each output's gradient times W."""
    sum_NI = grads[0] @ bases[0].weight
    for grad_NO, base in zip(grads[1:], bases[1:], strict=True):
        sum_NI.addmm_(grad_NO, base.weight)
    return sum_NI


def _gradients(
    grads: Sequence[torch.Tensor], scaled: Sequence[torch.Tensor], h_NS: torch.Tensor, x_NI: torch.Tensor, scale: float
) -> tuple[torch.Tensor, torch.Tensor, list[torch.Tensor]]:
    """Return the gradients of h (N, S), of all A (S, I) and of each B (O, R); those of factors are fp32."""
    ranks = [b_OR.shape[1] for b_OR in scaled]
    grad_h_NS = torch.cat([grad_NO @ b_OR for grad_NO, b_OR in zip(grads, scaled, strict=True)], 1)
    grad_b = [(grad_NO.T @ h_NR).float().mul_(scale) for grad_NO, h_NR in zip(grads, h_NS.split(ranks, 1), strict=True)]
    return grad_h_NS, (grad_h_NS.T @ x_NI).float(), grad_b


def _updated(layers: "Sequence[LoraLinear]", x: torch.Tensor) -> list[torch.Tensor]:
    """Return the outputs (..., O) of layers that are all given x (..., I)."""
    x_NI = x.reshape(-1, x.shape[-1])  # 2-D: a 3-D input with a frozen weight is multiplied row by row (a copy each)
    factors = [layer.factors for layer in layers if layer.factors is not None]
    assert len(factors) == len(layers)  # a policy adapts all layers with one input, or none
    all_a, all_b = zip(*(one.computed() for one in factors), strict=True)
    bases, products, scale = [layer.base for layer in layers], layers[0].products, factors[0].scale
    weights = [(base.weight, base.bias) for base in bases]
    outputs = products.layers(x_NI, weights, all_a, all_b, scale)
    if outputs is None:
        outputs = _LowRankUpdates.apply(x_NI, scale, products, bases, *all_a, *all_b)
    return [y_NO.view(*x.shape[:-1], y_NO.shape[1]) for y_NO in outputs]


class SharedInput:
    """Layers that a model gives the same tensor one after the other, as query, key and value projections.

    The first that is asked has all of them computed; the others find theirs ready. Whether the tensor is the same is
    seen, not assumed: a layer that is given another one is computed with that.
    """

    def __init__(self, layers: "Sequence[LoraLinear]"):
        """Join `layers`."""
        self._layers = list(layers)
        self._input: torch.Tensor | None = None
        self._version = 0
        self._ready: dict[LoraLinear, torch.Tensor] = {}
        for layer in layers:
            layer.shared = self

    def output(self, layer: "LoraLinear", x: torch.Tensor) -> torch.Tensor:
        """Return what `layer` makes of x (..., I)."""
        if self._input is not x or self._version != x._version or layer not in self._ready:
            self._ready = dict(zip(self._layers, _updated(self._layers, x), strict=True))
            self._input, self._version = x, x._version
        found = self._ready.pop(layer)
        if not self._ready:
            self._input = None
        return found

    def forget(self) -> None:
        """Drop what is ready: after a pass that failed half-way it would hold the graph of all layers before it."""
        self._input = None
        self._ready.clear()


class LoraLinear(nn.Module):
    """A frozen `nn.Linear` whose output carries the update of the policy that is computed with, if there is one."""

    def __init__(self, base: nn.Linear, products: Products = PLAIN):
        """Wrap `base`, without an update."""
        super().__init__()
        self.base = base.requires_grad_(False)
        self.factors: Factors | None = None
        self.shared: SharedInput | None = None
        self.products = products

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the layer's output for x (..., I) as (..., O)."""
        if self.factors is not None:
            return _updated([self], x)[0] if self.shared is None else self.shared.output(self, x)
        return self.base(x.reshape(-1, x.shape[-1])).view(*x.shape[:-1], self.base.out_features)


def forget_shared_inputs(model: nn.Module) -> None:
    """Free what layers with a shared input hold of a forward pass that failed."""
    for module in model.modules():
        if isinstance(module, LoraLinear) and module.shared is not None:
            module.shared.forget()
