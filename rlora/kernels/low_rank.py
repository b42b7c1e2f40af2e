"""Frozen linear layers with low-rank updates, as compiled from low_rank.cpp for the processor at hand.

A general product reorders a frozen weight each time, a fifth of its time with 700 rows, and takes a matrix of a few
columns at a third to a half of the rate it is meant for, once for each of some thirty small products a layer. Here a
layer's products are two calls: base and update are summed together, so that an activation is read and written once,
factors are taken as they are trained, in fp32, and added to their gradients in fp32.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from rlora.kernels.native import address, call

Tensor = torch.Tensor
Weight = tuple[Tensor, Tensor | None]  # W (O, I) and the bias (O), if there is one


@dataclass(frozen=True, slots=True, eq=False)
class LowRank:
    """The products of M layers that share an input x (N, I), each with an update A (R, I) and B (O, R), or of none.

    h (N, S) holds x A^T of all of them side by side. Factors, their gradients and logits are fp32, all else bfloat16.
    Each matrix has its numbers in rows without gaps
    between columns.
    """

    library: Any
    has_bases: bool  # whether the products with W are ours too: elsewhere PyTorch's are faster

    @staticmethod
    def takes(rows_NI: Tensor, layers: Sequence[Weight]) -> bool:
        """Return whether rows, of inputs or of outputs' gradients, and layers are of the kind that is compiled."""
        held = [one for layer in layers for one in layer if one is not None]
        is_even = all(size % 2 == 0 for w_OI, _ in layers for size in w_OI.shape)
        has_rows = len(rows_NI) > 0 and rows_NI.stride(1) == 1 and all(one.is_contiguous() for one in held)
        are_same = all(one.dtype == torch.bfloat16 and one.device.type == "cpu" for one in (rows_NI, *held))
        return is_even and has_rows and are_same

    def outputs(
        self,
        x_NI: Tensor,
        layers: Sequence[Weight],
        all_a: Sequence[Tensor] = (),
        all_b: Sequence[Tensor] = (),
        scale: float = 1.0,
    ) -> tuple[Tensor, ...]:
        """Return the outputs (N, O) of frozen layers, differentiable in their input and factors."""
        return _Layers.apply(self, x_NI, layers, scale, *all_a, *all_b)

    def forward(
        self, x_NI: Tensor, layers: Sequence[Weight], all_a: Sequence[Tensor], all_b: Sequence[Tensor], scale: float
    ) -> tuple[list[Tensor], Tensor]:
        """Return the outputs (N, O), x W^T + bias + h (scale B)^T, and h; `all_a` and `all_b` may be empty."""
        if self.has_bases:
            outputs = [x_NI.new_empty(len(x_NI), len(w_OI)) for w_OI, _ in layers]
        else:
            outputs = [torch.nn.functional.linear(x_NI, *layer) for layer in layers]
        h_NS = x_NI.new_empty(len(x_NI), sum(a_RI.shape[-2] for a_RI in all_a))
        if self.has_bases or all_a:
            self._call(self.library.rlora_forward, x_NI, h_NS, None, None, layers, outputs, all_a, all_b, (), (), scale)
        return outputs, h_NS

    def logits(self, x_NI: Tensor, w_OI: Tensor) -> Tensor:
        """Return x W^T (N, O) in fp32, in which it is summed, unknown to autograd."""
        assert self.has_bases
        logits_NO = x_NI.new_empty(len(x_NI), len(w_OI), dtype=torch.float32)
        self._call(self.library.rlora_forward, x_NI, None, None, None, [(w_OI, None)], [logits_NO], (), (), (), (), 1.0)
        return logits_NO

    def backward(
        self,
        grads: Sequence[Tensor],
        layers: Sequence[Weight],
        all_a: Sequence[Tensor] = (),
        all_b: Sequence[Tensor] = (),
        scale: float = 1.0,
        *,
        x_NI: Tensor | None = None,
        h_NS: Tensor | None = None,
        grad_a: Sequence[Tensor] = (),
        grad_b: Sequence[Tensor] = (),
        needs_x: bool = True,
    ) -> Tensor | None:
        """Return the gradient of x, if it is needed, where `grads` (N, O) are those of the outputs.

        Adds the gradients of each A to `grad_a` and of each B to `grad_b`, for which x and h are needed.
        """
        grad_x_NI = grad_h_NS = None
        if needs_x and self.has_bases:
            grad_x_NI = grads[0].new_empty(len(grads[0]), layers[0][0].shape[1])
        elif needs_x:
            grad_x_NI = grads[0] @ layers[0][0]
            for grad_NO, (w_OI, _) in zip(grads[1:], layers[1:], strict=True):
                grad_x_NI.addmm_(grad_NO, w_OI)
        if all_a or (self.has_bases and needs_x):
            grad_h_NS = None if h_NS is None else torch.empty_like(h_NS)
            function = self.library.rlora_backward
            self._call(function, x_NI, h_NS, grad_h_NS, grad_x_NI, layers, grads, all_a, all_b, grad_a, grad_b, scale)
        return grad_x_NI

    def _call(
        self,
        function: Any,
        x_NI: Tensor | None,
        h_NS: Tensor | None,
        grad_h_NS: Tensor | None,
        grad_x_NI: Tensor | None,
        layers: Sequence[Weight],
        outputs: Sequence[Tensor],
        all_a: Sequence[Tensor],
        all_b: Sequence[Tensor],
        grad_a: Sequence[Tensor],
        grad_b: Sequence[Tensor],
        scale: float,
    ) -> None:
        """Call with the numbers of the source's struct Arguments."""
        ranks = [a_RI.shape[-2] for a_RI in all_a] or [0] * len(layers)
        x = (0, 0) if x_NI is None else (address(x_NI, has_gaps=True), x_NI.stride(0))
        sizes = (len(outputs[0]), layers[0][0].shape[1], sum(ranks), outputs[0].dtype == torch.float32)
        places = (address(one) for one in (h_NS, grad_h_NS, grad_x_NI))
        numbers = [torch.get_num_threads(), *sizes, *x, *places, len(layers)]
        for index, ((w_OI, bias_O), y_NO) in enumerate(zip(layers, outputs, strict=True)):
            weight = (address(w_OI), address(bias_O)) if self.has_bases else (0, 0)
            a_RI, b_OR = (all_a[index], all_b[index]) if all_a else (None, None)
            of_a, of_b = (grad_a[index], grad_b[index]) if grad_a else (None, None)
            y = (y_NO.shape[1], address(y_NO, has_gaps=True), y_NO.stride(0))
            assert y_NO.shape == (sizes[0], len(w_OI))
            assert w_OI.shape[1] == sizes[1]
            if a_RI is not None and b_OR is not None:
                assert a_RI.shape[-1] == sizes[1]
                assert b_OR.shape[-2:] == (len(w_OI), ranks[index])
            numbers += (*weight, address(a_RI), ranks[index], address(b_OR), *y, address(of_a), address(of_b))
        assert self.has_bases or min(ranks) > 0  # a layer without both has nothing to compute
        assert h_NS is None or h_NS.shape == (sizes[0], sum(ranks))
        assert x_NI is None or x_NI.shape == sizes[:2]
        call(function, numbers, scale)


class _Layers(torch.autograd.Function):
    """What LowRank computes, with its gradients.

    Those of factors are added where they belong at once if there is such a place: to `grad` of the leaves. Autograd
    would add them by a pass of its own, 8 ms of 800 at rank 32.
    """

    @staticmethod
    def forward(ctx, low_rank, x_NI, bases, scale, *factors):
        num_updates = len(factors) // 2
        outputs, h_NS = low_rank.forward(x_NI, bases, factors[:num_updates], factors[num_updates:], scale)
        if factors:
            ctx.save_for_backward(x_NI, h_NS, *factors)
        ctx.scale, ctx.low_rank, ctx.bases = scale, low_rank, bases
        ctx.grads = [factor.grad if factor.is_leaf else None for factor in factors]
        return tuple(outputs)

    @staticmethod
    def backward(ctx, *grads):  # pyright: ignore[reportIncompatibleMethodOverride] - one name a gradient
        x_NI, h_NS, *factors = ctx.saved_tensors or (None, None)
        grads = [grad_NO if grad_NO.stride(1) == 1 else grad_NO.contiguous() for grad_NO in grads]
        sums = [
            torch.zeros_like(factor) if grad is None else grad for factor, grad in zip(factors, ctx.grads, strict=True)
        ]
        half = len(factors) // 2
        grad_x_NI = ctx.low_rank.backward(
            grads,
            ctx.bases,
            factors[:half],
            factors[half:],
            ctx.scale,
            x_NI=x_NI,
            h_NS=h_NS,
            grad_a=sums[:half],
            grad_b=sums[half:],
            needs_x=ctx.needs_input_grad[1],
        )
        own = (one if grad is None else None for one, grad in zip(sums, ctx.grads, strict=True))
        return None, grad_x_NI, None, None, *own
