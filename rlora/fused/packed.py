"""Frozen weights in the order in which oneDNN multiplies with them, for 16-bit products on CPUs.

Given a weight as it lies in memory, oneDNN reorders it at every product: a fifth of its time with 700 rows, more
with fewer. A frozen weight is reordered once, for products with it and for those with its transpose. The bits of the
results are the same.
"""

import torch
from torch import nn

Tensor = torch.Tensor
_multiply = torch.ops.mkldnn._linear_pointwise  # as torch.compile has it for weights that it may freeze
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
        return _multiply(x_NI, self._weight, bias_O, "none", [], "")

    def times_less(self, x_NI: Tensor, less_NO: Tensor) -> Tensor:
        """Return x W^T less what is given, rounded once: with the rounded x W^T, what the rounding lost."""
        return _multiply.binary(x_NI, less_NO, self._weight, None, "sub")

    def through(self, grad_NO: Tensor, added_NI: Tensor | None = None) -> Tensor:
        """Return g W, and what is given added to it before it is rounded."""
        if added_NI is None:
            return _multiply(grad_NO, self._transposed, None, "none", [], "")
        return _multiply.binary(grad_NO, added_NI, self._transposed, None, "add")


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


def pack_linear_layers(model: nn.Module, *, left_out: nn.Module) -> None:
    """Replace the frozen linear layers of a model by packed ones where they can be, all but one."""
    num_packed = 0
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if type(child) is nn.Linear and child is not left_out and can_be_packed(child.weight):
                setattr(parent, name, PackedLinear(child))
                num_packed += 1
    if num_packed:  # all of a file stays mapped, and in memory, while one of its weights is in use
        for parameter in model.parameters():
            if not parameter.requires_grad:
                parameter.data = parameter.data.clone()
