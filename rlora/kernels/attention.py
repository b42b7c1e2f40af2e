"""Attention of which each position sees two ranges of positions, as compiled from attention.cpp.

A general product would compute what nothing sees (of rows that hold several completions, more than half) and write all
scores to memory; this leaves out what a block of positions does not see, and keeps no scores.
"""

from dataclasses import dataclass
from typing import Any

import torch

from rlora.kernels.native import address, call

Tensor = torch.Tensor


@dataclass(frozen=True, slots=True, eq=False)
class Attention:
    """softmax(scale q k^T) v over what is seen, differentiable; all bfloat16.

    q is (B, heads, T, D), k and v (B, key heads, T, D), their last dimension without gaps. `seen_BT2`, int32, says that
    t sees the positions before its first number, and those from the second up to t.
    """

    library: Any

    @staticmethod
    def takes(query: Tensor, key: Tensor, value: Tensor) -> bool:
        """Return whether these are of the kind that is compiled."""
        are_same = all(one.dtype == torch.bfloat16 and one.device.type == "cpu" for one in (query, key, value))
        sizes = {one.shape[-1] for one in (query, key, value)} | {0}
        lengths = {one.shape[2] for one in (query, key, value)}
        has_rows = all(one.stride(-1) == 1 and one.numel() > 0 for one in (query, key, value))
        return are_same and has_rows and len(sizes) == 2 and max(sizes) % 2 == 0 and len(lengths) == 1

    def outputs(self, query: Tensor, key: Tensor, value: Tensor, seen_BT2: Tensor, scale: float) -> Tensor:
        """Return (B, T, heads, D)."""
        return _Attend.apply(self, query, key, value, seen_BT2, scale)

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, seen_BT2: Tensor, scale: float
    ) -> tuple[Tensor, Tensor]:
        """Return the output, and log2 of the softmax's denominators (B, heads, T)."""
        num_rows, num_heads, length, size = query.shape
        out = query.new_empty(num_rows, length, num_heads, size)
        normalizer = query.new_empty(num_rows, num_heads, length, dtype=torch.float32)
        self._call(self.library.rlora_attend, query, key, value, seen_BT2, out, normalizer, (), scale)
        return out, normalizer

    def backward(
        self,
        grad: Tensor,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        seen_BT2: Tensor,
        normalizer: Tensor,
        scale: float,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return the gradients of q, k and v for that of the output, contiguous."""
        grads = query.new_empty(query.shape), key.new_empty(key.shape), value.new_empty(value.shape)
        function = self.library.rlora_attend_backward
        self._call(function, query, key, value, seen_BT2, grad, normalizer, grads, scale)
        return grads

    def _call(
        self,
        function: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        seen_BT2: Tensor,
        out: Tensor,
        normalizer: Tensor,
        grads: tuple[Tensor, ...],
        scale: float,
    ) -> None:
        """Call with the numbers of the source's struct Arguments."""
        num_rows, num_heads, length, size = query.shape
        key_heads = key.shape[1]
        assert num_heads % key_heads == 0
        assert key.shape == value.shape == (num_rows, key_heads, length, size)
        assert out.shape == (num_rows, length, num_heads, size)
        assert normalizer.shape == (num_rows, num_heads, length)
        assert seen_BT2.shape == (num_rows, length, 2)
        assert seen_BT2.dtype == torch.int32
        numbers = [torch.get_num_threads(), num_rows, num_heads, key_heads, length, size, address(seen_BT2)]
        for one in (query, key, value, out.transpose(1, 2)):
            numbers += (address(one, has_gaps=True), *one.stride()[:3])
        numbers += (address(normalizer), *(address(one) for one in grads or (None, None, None)))
        call(function, numbers, scale)


class _Attend(torch.autograd.Function):
    @staticmethod
    def forward(ctx, attention, query, key, value, seen_BT2, scale):
        out, normalizer = attention.forward(query, key, value, seen_BT2, scale)
        ctx.save_for_backward(query, key, value, seen_BT2, normalizer)
        ctx.attention, ctx.scale = attention, scale
        return out

    @staticmethod
    def backward(ctx, grad):  # pyright: ignore[reportIncompatibleMethodOverride] - one name a gradient
        grad = grad if grad.stride(-1) == 1 else grad.contiguous()
        return None, *ctx.attention.backward(grad, *ctx.saved_tensors, ctx.scale), None, None
