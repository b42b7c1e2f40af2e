"""Every weight of a model in one flat fp32 vector that is trained, and the rounded copy that the model computes with.

The vector, its gradient and AdamW's moments are fp32, as for adapters. The model reads its weights from a second flat
buffer in the base's precision: `round_off` fills it from the vector after an update, and pointing the model at another
buffer serves the base or an older version without moving a number. Gradients come out of autograd in the base's
precision and are added to the flat fp32 gradient as soon as each is complete, so they are held once. Two weights do not
pass through autograd, since a dense gradient of the vocabulary's size would be made, rounded and thrown away for each
micro-batch: the unembedding (see head.py) and the embedding add to the flat gradient themselves; tied, they share a
slot.

Memory, bytes a weight in bf16: 4 vector, 4 gradient, 8 moments, 2 the model, 2 the base.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from rlora.errors import ConfigError
from rlora.lora.flat import FlatVector, lay_out


class _Lookup(torch.autograd.Function):
    """An embedding whose backward pass adds to an fp32 gradient in place, in the order of the tokens."""

    @staticmethod
    def forward(ctx, tokens, weight_VH, grad_VH, padding_id):
        ctx.save_for_backward(tokens)
        ctx.grad_VH, ctx.padding_id = grad_VH, padding_id  # a place to write to, which others write to as well
        return nn.functional.embedding(tokens, weight_VH)

    @staticmethod
    def backward(ctx, grad):  # pyright: ignore[reportIncompatibleMethodOverride] - one name a gradient
        (tokens,) = ctx.saved_tensors
        tokens_N, grad_NH = tokens.flatten(), grad.flatten(0, -2).float()
        if ctx.padding_id is not None:  # as nn.Embedding does: its row has no gradient as an input
            is_kept_N = tokens_N != ctx.padding_id
            tokens_N, grad_NH = tokens_N[is_kept_N], grad_NH[is_kept_N]
        ctx.grad_VH.index_put_((tokens_N,), grad_NH, accumulate=True)
        return None, None, None, None


class TrainedEmbedding(nn.Module):
    """A plain `nn.Embedding` whose gradient goes straight into the flat vector's."""

    def __init__(self, base: nn.Embedding, grad_VH: torch.Tensor):
        """Wrap `base`; `grad_VH` is its slot of the flat gradient."""
        super().__init__()
        self.base, self._grad_VH = base, grad_VH

    @property
    def weight(self) -> torch.Tensor:
        """The embedding's weight (V, H)."""
        return self.base.weight

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Return the rows of `tokens`, (..., H)."""
        return _Lookup.apply(tokens, self.base.weight, self._grad_VH, self.base.padding_idx)


class FullParameters:
    """The weights of `model`, all trained: `flat` holds them as one policy, the model reads their rounded values."""

    def __init__(self, model: Any):
        """Take over the parameters of `model`.

        Raises ConfigError for a model whose weights are not all of one precision.
        """
        named: dict[str, nn.Parameter] = dict(model.named_parameters())  # a tied weight is there once
        if len(dtypes := {parameter.dtype for parameter in named.values()}) != 1:
            raise ConfigError(
                f"full fine-tuning needs weights of one precision, the model has {sorted(map(str, dtypes))}; try "
                "--model.dtype float32."
            )
        head = model.get_output_embeddings().weight
        self._parameters = list(named.values())
        device, dtype = head.device, head.dtype
        self.flat = FlatVector(lay_out({name: tuple(p.shape) for name, p in named.items()}), 1, device)
        self.flat.assign({name: parameter.detach() for name, parameter in named.items()})
        theta_D = self.flat.theta_KD[0]
        self._served_D = theta_D if dtype == torch.float32 else theta_D.to(dtype)
        self._base_D = self._served_D.clone()
        self._head_slot = next(i for i, parameter in enumerate(self._parameters) if parameter is head)
        self._hook(model)
        self._point_at(self._served_D)

    @property
    def head_VH(self) -> torch.Tensor:
        """The unembedding (V, H) as the model computes with it now."""
        return self._parameters[self._head_slot].detach()

    @property
    def grad_head_VH(self) -> torch.Tensor:
        """The unembedding's slot of the flat gradient, fp32."""
        return self.flat.view(self.flat.grad_KD, self.flat.slots[self._head_slot])[0]

    def _hook(self, model: Any) -> None:
        """Let every gradient end in the flat one."""
        grads = [self.flat.view(self.flat.grad_KD, slot)[0] for slot in self.flat.slots]

        def add_to(grad: torch.Tensor) -> Any:
            def add(parameter: torch.Tensor) -> None:
                assert parameter.grad is not None
                try:
                    grad.add_(parameter.grad)
                finally:  # out of memory here, the next try must not find it and add it twice
                    parameter.grad = None

            return add

        embedding = model.get_input_embeddings()
        is_plain = type(embedding) is nn.Embedding and embedding.max_norm is None and not embedding.scale_grad_by_freq
        for parameter, grad in zip(self._parameters, grads, strict=True):
            parameter.requires_grad_(True)
            if is_plain and parameter is embedding.weight:
                model.set_input_embeddings(TrainedEmbedding(embedding, grad))
            else:
                parameter.register_post_accumulate_grad_hook(add_to(grad))

    def _point_at(self, weights_D: torch.Tensor) -> None:
        """Let the model compute with the numbers in `weights_D`."""
        for parameter, slot in zip(self._parameters, self.flat.slots, strict=True):
            parameter.data = weights_D[slot.offset : slot.offset + slot.size].view(slot.shape)

    @torch.no_grad()
    def round_off(self) -> None:
        """Fill what the model computes with from the vector, to be called after each change of the vector."""
        if self._served_D.dtype != torch.float32:
            self._served_D.copy_(self.flat.theta_KD[0])

    @contextmanager
    def base(self) -> Iterator[None]:
        """Compute with the base's weights for the length of the block."""
        with self._pointed_at(self._base_D):
            yield

    @contextmanager
    def others(self, tensors: Mapping[str, torch.Tensor]) -> Iterator[None]:
        """Compute with these weights for the length of the block."""
        other_D = torch.cat([tensors[slot.name].flatten() for slot in self.flat.slots])
        with self._pointed_at(other_D.to(self._served_D)):
            yield

    @contextmanager
    def _pointed_at(self, weights_D: torch.Tensor) -> Iterator[None]:
        self._point_at(weights_D)
        try:
            yield
        finally:
            self._point_at(self._served_D)

    def tensors(self) -> dict[str, torch.Tensor]:
        """Return copies of the rounded weights by name, on the CPU, as views into one tensor."""
        copied_D = self._served_D.detach().to("cpu", copy=True)
        return {slot.name: copied_D[slot.offset : slot.offset + slot.size].view(slot.shape) for slot in self.flat.slots}
