"""Frozen weights in the order in which oneDNN multiplies with them, for 16-bit products on CPUs.

Given a weight as it lies in memory, oneDNN reorders it at every product: a fifth of its time with 700 rows, more
with fewer. A frozen weight is reordered once, for products with it and for those with its transpose, by the operators
that torch.compile uses for weights that it may freeze. The bits of the results were the same wherever measured.
"""

import sys

import psutil
import torch
from torch import nn

Tensor = torch.Tensor
_ROWS = 512  # what oneDNN is told to expect; the order is the same for all numbers


def can_be_packed(weight: Tensor) -> bool:
    """Return whether PyTorch's products with the weight are oneDNN's."""
    is_cpu = weight.device.type == "cpu" and torch.backends.mkldnn.is_available()
    return is_cpu and weight.dtype == torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported()


class PackedWeight:
    """A weight W (O, I), held twice: for x W^T and for g W."""

    def __init__(self, weight_OI: Tensor):
        """Reorder copies of a weight that `can_be_packed`."""
        weight_OI = weight_OI.detach()
        self._weight = torch.ops.mkldnn._reorder_linear_weight(weight_OI.contiguous(), _ROWS)
        self._transposed = torch.ops.mkldnn._reorder_linear_weight(weight_OI.T.contiguous(), _ROWS)

    def dense(self) -> Tensor:
        """Return a copy of W as it lay in memory."""
        return self._weight.to_dense()

    def times(self, x_NI: Tensor, bias_O: Tensor | None = None) -> Tensor:
        """Return x W^T + bias."""
        return torch.ops.mkldnn._linear_pointwise(x_NI, self._weight, bias_O, "none", [], "")

    def times_less(self, x_NI: Tensor, less_NO: Tensor) -> Tensor:
        """Return x W^T less what is given, rounded once: with the rounded x W^T, what the rounding lost."""
        return torch.ops.mkldnn._linear_pointwise.binary(x_NI, less_NO, self._weight, None, "sub")

    def through(self, grad_NO: Tensor, added_NI: Tensor | None = None) -> Tensor:
        """Return g W, and what is given added to it before it is rounded."""
        if added_NI is None:
            return torch.ops.mkldnn._linear_pointwise(grad_NO, self._transposed, None, "none", [], "")
        return torch.ops.mkldnn._linear_pointwise.binary(grad_NO, added_NI, self._transposed, None, "add")


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x_NI, base):
        ctx.base = base
        return base.product(x_NI)

    @staticmethod
    def backward(ctx, grad_NO):  # pyright: ignore[reportIncompatibleMethodOverride] - one name a gradient
        return ctx.base.packed.through(grad_NO), None


class PackedLinear(nn.Module):
    """A frozen linear layer that holds its weight packed, and in no other way."""

    def __init__(self, linear: nn.Linear):
        """Take over a layer's weight and bias."""
        super().__init__()
        self.in_features, self.out_features, self.bias = linear.in_features, linear.out_features, linear.bias
        self.packed = PackedWeight(linear.weight)

    @property
    def weight(self) -> Tensor:
        """A copy of the weight (O, I)."""
        return self.packed.dense()

    def product(self, x_NI: Tensor) -> Tensor:
        """Return x W^T + bias, unknown to autograd."""
        return self.packed.times(x_NI, self.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Return the layer's output for x (..., I) as (..., O)."""
        return _Product.apply(x.reshape(-1, x.shape[-1]), self).view(*x.shape[:-1], -1)


def pack_frozen(model: nn.Module, head: nn.Linear, *, is_head_packed: bool) -> PackedWeight | None:
    """Replace the frozen linear layers of a model by packed ones where they can be; return the packed unembedding.

    The unembedding `head` itself is kept as it is. Says so on stderr and packs nothing where that would take more than
    a quarter of the memory that is free.
    """
    found = [
        (parent, name, child)
        for parent in model.modules()
        for name, child in parent.named_children()
        if type(child) is nn.Linear and child is not head and can_be_packed(child.weight)
    ]
    is_head_packed = is_head_packed and can_be_packed(head.weight)
    more = sum(linear.weight.nbytes for *_, linear in found) + 2 * head.weight.nbytes * is_head_packed
    if more > psutil.virtual_memory().available / 4:
        print(
            f"Weights are not packed, so training is slower: packing would take {more / 1e9:.1f} GB more, over a "
            "quarter of the memory that is free.",
            file=sys.stderr,
        )
        return None
    for parent, name, linear in found:
        setattr(parent, name, PackedLinear(linear))
    if found:  # all of a file stays mapped, and in memory, while one of its weights is in use
        for parameter in model.parameters():
            if not parameter.requires_grad:
                parameter.data = parameter.data.clone()
    return PackedWeight(head.weight) if is_head_packed else None
