"""Every weight of a model in one flat fp32 vector that is trained, and the rounded copy that the model computes with.

The vector, its gradient and AdamW's moments are fp32, as for adapters. The model reads its weights from a second flat
buffer in the base's precision: `refresh_served` fills it from the vector after an update, and pointing the model at
another buffer serves the base or an older version without moving a number. Gradients come out of autograd in the base's
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
from rlora.full.head import trained_token_logprobs
from rlora.full.weights import FullWeights, check_names
from rlora.lora.flat import FlatVector, lay_out
from rlora.model.base import Base


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


class Full:
    """All weights of a base, trained: `flat` holds them, the model reads their rounded values while it is selected."""

    def __init__(self, base: Base):
        """Take over the parameters of the base's model, of which no other policy may have wrapped a layer.

        Raises:
            ConfigError: the weights are not all of one precision, or not named in memory as in the model's files.
        """
        self._base, self.config = base, None
        named: dict[str, nn.Parameter] = dict(base.model.named_parameters())  # a tied weight is there once
        if len(dtypes := {parameter.dtype for parameter in named.values()}) != 1:
            raise ConfigError(
                f"full fine-tuning needs weights of one precision, the model has {sorted(map(str, dtypes))}; try "
                "--model.dtype float32."
            )
        check_names(base.folder, {name: tuple(weight.shape) for name, weight in named.items()})
        head = base.model.get_output_embeddings().weight
        self._parameters = list(named.values())
        self.flat = FlatVector(lay_out({name: tuple(p.shape) for name, p in named.items()}), base.device)
        self.flat.assign({name: parameter.detach() for name, parameter in named.items()})
        self._served_D = self.flat.theta_D if base.dtype == torch.float32 else self.flat.theta_D.to(base.dtype)
        self._base_D = self._served_D.clone()
        self._head_slot = next(i for i, parameter in enumerate(self._parameters) if parameter is head)
        self._hook(base.model)
        base.select(self)  # which frees the weights as they were loaded

    @property
    def rate_factor(self) -> float:
        """1: a step of the optimizer counts as it is."""
        return 1.0

    @property
    def held(self) -> list[torch.Tensor]:
        """Tensors beside the base's that are computed with as they are held: none."""
        return []

    @property
    def _grad_head_VH(self) -> torch.Tensor:
        """The unembedding's slot of the flat gradient, fp32."""
        return self.flat.view(self.flat.grad_D, self.flat.slots[self._head_slot])

    def _hook(self, model: Any) -> None:
        """Let every gradient end in the flat one."""
        grads = [self.flat.view(self.flat.grad_D, slot) for slot in self.flat.slots]

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

    def enter(self) -> None:
        """Let the model compute with the policy's weights."""
        self._point_at(self._served_D)

    def leave(self) -> None:
        """Let the model compute with the base's kept weights."""
        self._point_at(self._base_D)

    @torch.no_grad()
    def refresh_served(self) -> None:
        """Fill what the model computes with from the vector, to be called after each change of the vector."""
        if self._served_D.dtype != torch.float32:
            self._served_D.copy_(self.flat.theta_D)

    @contextmanager
    def swapped(self, tensors: Mapping[str, torch.Tensor]) -> Iterator[None]:
        """Compute with these weights for the length of the block."""
        served_D = self._served_D
        other_D = torch.cat([tensors[slot.name].flatten() for slot in self.flat.slots])
        self._served_D = other_D.to(served_D)
        self._point_at(self._served_D)
        try:
            yield
        finally:
            self._served_D = served_D
            self._point_at(served_D)

    def token_logprobs(
        self, hidden_NH: torch.Tensor, targets_N: torch.Tensor, temperature: float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return log-probabilities (with gradient) of `targets_N` and entropies (N), nats."""
        if not torch.is_grad_enabled():
            return self._base.token_logprobs(hidden_NH, targets_N, temperature)
        return trained_token_logprobs(
            hidden_NH,
            self._base.head_VH,
            targets_N,
            grad_head_VH=self._grad_head_VH,
            temperature=temperature,
            dtype=self._base.head_dtype,
            products=self._base.products,
        )

    def logits(self, hidden_NH: torch.Tensor) -> torch.Tensor:
        """Return fp32 logits (N, V)."""
        return self._base.logits(hidden_NH)

    def snapshot(self, version: int) -> FullWeights:
        """Return the weights as they are served now, copied to the CPU as views into one tensor, called `version`."""
        copied_D = self._served_D.detach().to("cpu", copy=True)
        return FullWeights(
            policy=0,
            version=version,
            base_model=self._base.name,
            base_dir=self._base.folder,
            tensors={
                slot.name: copied_D[slot.offset : slot.offset + slot.size].view(slot.shape) for slot in self.flat.slots
            },
        )
