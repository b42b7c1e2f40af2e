"""The low-rank parametrisation: one policy's updates of the layers of a base."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from rlora.lora.adapter import Adapter
from rlora.lora.config import LoraConfig
from rlora.lora.flat import FlatVector, lay_out
from rlora.lora.initialize import initial_a, initial_b
from rlora.lora.inject import adapted_layers, adapter_shapes, expert_names, wrap
from rlora.lora.linear import Factors, LoraLinear
from rlora.lora.variants.experts import projection_shapes
from rlora.lora.variants.pissa import principal_factors
from rlora.lora.variants.unembedding import adapted_logits, adapted_token_logprobs
from rlora.model.base import Base


class LowRank:
    """A policy's low-rank updates: one flat vector, whose leaves the base's layers compute with while it is selected.

    The layers of a base are wrapped once, whatever the number of policies on it, which may differ in rank, scale and
    layers. The fused experts of a layer share the leaves `EXPERTS.PROJECTION.lora_A` (E, R, I) and `.lora_B` (E, O, R).
    """

    def __init__(self, base: Base, config: LoraConfig, *, seed: int):
        """Start with B at zero and A from `seed`, or with PiSSA both from the weights.

        Raises:
            ConfigError: the model has no such layers, or they cannot carry this update.
        """
        self._base, self.config = base, config
        chosen, shapes = adapted_layers(base.model, config.layers), adapter_shapes(base.model, config)
        self.flat = FlatVector(lay_out(shapes), base.device, stacks=_stacks(chosen))
        self.flat.assign(
            _principal(chosen, config)
            if config.variant == "pissa"
            else {name: _initial(name, shape, seed) for name, shape in shapes.items()}
        )
        self._start = self.flat.tensors() if config.variant == "pissa" else None
        layers: dict[str, Any] = wrap(base.model, chosen, base.products)
        self._updates = [(layers[name], self._factors_of(name, module)) for name, module in chosen.items()]
        head = base.model.get_output_embeddings()  # wrapped by now if it is among the chosen
        self._head = next((layer for layer in layers.values() if layer is head), None)
        self._head_VH = None if self._head is None else base.head_VH.to(base.head_dtype)

    def _factors_of(self, name: str, module: Any) -> Factors | dict[str, Factors]:
        if isinstance(module, nn.Linear):
            return self._leaves(name)
        return {projection: self._leaves(f"{name}.{projection}") for projection in projection_shapes(module)}

    def _leaves(self, path: str) -> Factors:
        a, b = self.flat.parameters[f"{path}.lora_A"], self.flat.parameters[f"{path}.lora_B"]
        start = None if self._start is None else (a.detach().clone(), b.detach().clone())
        return Factors(a=a, b=b, scale=self.config.scale_at(a.shape[-2]), start=start)

    @property
    def rate_factor(self) -> float:
        """Alpha: the factor by which a step of the optimizer counts."""
        return self.config.effective_alpha

    @property
    def held(self) -> list[torch.Tensor]:
        """Tensors beside the base's that are computed with as they are held."""
        return [self.flat.theta_D] if self._head_VH is None else [self.flat.theta_D, self._head_VH]

    def enter(self) -> None:
        """Let the base's layers carry these updates."""
        for layer, factors in self._updates:
            layer.factors = factors

    def leave(self) -> None:
        """Take the updates off the base's layers."""
        for layer, _ in self._updates:
            layer.factors = None

    def refresh_served(self) -> None:
        """Nothing: the layers read the vector itself."""

    @contextmanager
    def swapped(self, tensors: Mapping[str, torch.Tensor]) -> Iterator[None]:
        """Hold other numbers for the length of the block."""
        current_D = self.flat.theta_D.clone()
        self.flat.assign(tensors)
        try:
            yield
        finally:
            self.flat.theta_D.copy_(current_D)

    def token_logprobs(
        self, hidden_NH: torch.Tensor, targets_N: torch.Tensor, temperature: float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return log-probabilities (with gradient) of `targets_N` and entropies (N), nats."""
        if self._head_VH is None:
            return self._base.token_logprobs(hidden_NH, targets_N, temperature)
        assert isinstance(self._head, LoraLinear)
        return adapted_token_logprobs(hidden_NH, self._head_VH, self._head, targets_N, temperature=temperature)

    def logits(self, hidden_NH: torch.Tensor) -> torch.Tensor:
        """Return fp32 logits (N, V)."""
        if self._head_VH is None:
            return self._base.logits(hidden_NH)
        assert isinstance(self._head, LoraLinear)
        return adapted_logits(hidden_NH, self._head_VH, self._head)

    def snapshot(self, version: int) -> Adapter:
        """Return the numbers as they are now, copied, called `version`."""
        return Adapter(
            policy=0,
            version=version,
            config=self.config,
            base_model=self._base.name,
            tensors=self.flat.tensors(),
            start=self._start,
        )


def _stacks(chosen: Mapping[str, Any]) -> dict[str, list[str]]:
    """Return the leaves that fused experts share, with the tensors of each."""
    return {
        f"{name}.{projection}.{factor}": expert_names(name, module, projection, factor)
        for name, module in chosen.items()
        if not isinstance(module, nn.Linear)
        for projection in projection_shapes(module)
        for factor in ("lora_A", "lora_B")
    }


def _initial(name: str, shape: tuple[int, ...], seed: int) -> torch.Tensor:
    layer, _, factor = name.rpartition(".")
    return initial_a(*shape, seed=seed, layer=layer) if factor == "lora_A" else initial_b(*shape)


def _principal(chosen: Mapping[str, nn.Linear], config: LoraConfig) -> dict[str, torch.Tensor]:
    factors = {name: principal_factors(linear.weight, config.rank, config.scale) for name, linear in chosen.items()}
    return {f"{name}.{factor}": of[i] for name, of in factors.items() for i, factor in enumerate(("lora_A", "lora_B"))}
