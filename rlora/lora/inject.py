"""Choose a model's linear layers and experts and put a low-rank update on each.

Left out: convolutions, and routers, which stay frozen.
"""

from collections.abc import Mapping, Sequence
from math import prod
from typing import Any

import torch
from torch import nn

from rlora.errors import ConfigError
from rlora.lora.config import LoraConfig, is_attention, layer_kinds
from rlora.lora.flat import FlatVector, lay_out
from rlora.lora.initialize import initial_a, initial_b
from rlora.lora.linear import LoraLinear, SharedInput
from rlora.lora.variants.experts import LoraExperts, expert_rank, fused_experts, projection_shapes
from rlora.lora.variants.pissa import principal_factors

_SHARED_INPUT = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))  # names of siblings in Transformers' models

_ROUTERS = ("gate", "router", "shared_expert_gate")


def adapted_layers(model: nn.Module, layers: str) -> dict[str, Any]:
    """Return the linear layers and fused experts that `layers` names, by path, in the model's order.

    Raises ConfigError if there are none, or for the unembedding of a model whose embeddings are tied to it.
    """
    kinds = layer_kinds(layers)
    head = getattr(model, "get_output_embeddings", lambda: None)()
    if "unembedding" in kinds:
        _refuse_tied(model, head)
    experts = fused_experts(model) if "experts" in kinds else {}

    def is_adapted(name: str, module: nn.Module) -> bool:
        if module is head:
            return "unembedding" in kinds
        return name in experts or (isinstance(module, nn.Linear) and _is_chosen(name, kinds))

    found = {name: module for name, module in model.named_modules() if is_adapted(name, module)}
    if not found:
        raise ConfigError(f"the model has no linear layers for lora.layers={layers!r}. Try --lora.layers all.")
    return found


def _is_chosen(name: str, kinds: frozenset[str]) -> bool:
    parts = name.split(".")
    if parts[-1] in _ROUTERS:
        return False
    if is_attention(name):
        return "attention" in kinds
    if "experts" in parts:
        return "experts" in kinds
    return "mlp" in kinds and any(part in ("mlp", "feed_forward", "ffn") for part in parts)


def _refuse_tied(model: nn.Module, head: nn.Module | None) -> None:
    if not isinstance(head, nn.Linear):
        raise ConfigError("lora.layers names the unembedding, which the model does not have; take it out.")
    embeddings = getattr(model, "get_input_embeddings", lambda: None)()
    if getattr(getattr(model, "config", None), "tie_word_embeddings", False) or (
        embeddings is not None and embeddings.weight is head.weight
    ):
        raise ConfigError(
            "lora.layers names the unembedding, but the model's input embeddings are the same matrix (tied): servers "
            "and merged weights would change both. Take it out: --lora.layers all."
        )


def adapter_shapes(model: Any, config: LoraConfig) -> dict[str, tuple[int, ...]]:
    """Return the shapes of a policy's tensors: `PATH.lora_A` (R, I) and `PATH.lora_B` (O, R), in the model's order.

    An expert's projection has the path `EXPERTS.NUMBER.PROJECTION`, also where the model fuses its experts, and the
    experts' tensors of one kind are neighbours. Raises ConfigError for layers that the variant is not made for.
    """
    shapes: dict[str, tuple[int, ...]] = {}
    for name, module in adapted_layers(model, config.layers).items():
        rank = config.rank
        _check_variant(config, name, module)
        if "experts" in name.split("."):
            rank = expert_rank(rank, model.config.num_experts_per_tok)
        if isinstance(module, nn.Linear):
            shapes[f"{name}.lora_A"] = (rank, module.in_features)
            shapes[f"{name}.lora_B"] = (module.out_features, rank)
            continue
        for projection, (num_outputs, num_inputs) in projection_shapes(module).items():
            shapes |= dict.fromkeys(_expert_names(name, module, projection, "lora_A"), (rank, num_inputs))
            shapes |= dict.fromkeys(_expert_names(name, module, projection, "lora_B"), (num_outputs, rank))
    return shapes


def _expert_names(name: str, module: Any, projection: str, factor: str) -> list[str]:
    return [f"{name}.{expert}.{projection}.{factor}" for expert in range(module.num_experts)]


def num_parameters(model: nn.Module, config: LoraConfig) -> int:
    """Return how many numbers a policy on `model` has; the model may lie on the meta device, without weights."""
    return sum(map(prod, adapter_shapes(model, config).values()))


def inject(
    model: nn.Module, config: LoraConfig, *, seeds: Sequence[int]
) -> tuple[FlatVector, list[LoraLinear | LoraExperts]]:
    """Replace the chosen layers of `model` and return the cohort's flat vector with the layers that read it.

    `seeds` holds one seed a policy: B starts at zero and A from its policy's seed; with PiSSA both from the weights.
    The fused experts of a layer share the leaves `EXPERTS.PROJECTION.lora_A` (K, E, R, I) and `.lora_B` (K, E, O, R).
    """
    chosen, shapes = adapted_layers(model, config.layers), adapter_shapes(model, config)
    stacks = {
        f"{name}.{projection}.{factor}": _expert_names(name, module, projection, factor)
        for name, module in chosen.items()
        if not isinstance(module, nn.Linear)
        for projection in projection_shapes(module)
        for factor in ("lora_A", "lora_B")
    }
    device = next(next(iter(chosen.values())).parameters()).device
    flat = FlatVector(lay_out(shapes), len(seeds), device, stacks=stacks)
    for policy, seed in enumerate(seeds):
        initial = {name: _initial(name, shape, seed) for name, shape in shapes.items()}
        flat.assign(_principal(chosen, config) if config.variant == "pissa" else initial, policy)
    wrapped = {}
    for name, module in chosen.items():
        parent, _, child = name.rpartition(".")
        layer = _wrapped(name, module, flat, config)
        setattr(model.get_submodule(parent), child, layer)
        wrapped[name] = layer
    _join({name: layer for name, layer in wrapped.items() if isinstance(layer, LoraLinear)})
    return flat, list(wrapped.values())


def _initial(name: str, shape: tuple[int, ...], seed: int) -> torch.Tensor:
    layer, _, factor = name.rpartition(".")
    return initial_a(*shape, seed=seed, layer=layer) if factor == "lora_A" else initial_b(*shape)


def _principal(chosen: Mapping[str, nn.Linear], config: LoraConfig) -> dict[str, torch.Tensor]:
    factors = {name: principal_factors(linear.weight, config.rank, config.scale) for name, linear in chosen.items()}
    return {f"{name}.{factor}": of[i] for name, of in factors.items() for i, factor in enumerate(("lora_A", "lora_B"))}


def _check_variant(config: LoraConfig, name: str, module: Any) -> None:
    if config.variant != "lora" and "experts" in name.split("."):
        raise ConfigError(
            f"lora.variant is {config.variant!r}, which is not made for experts, as {name}; take "
            "--lora.layers attention, or --lora.variant lora."
        )
    if config.variant == "pissa" and config.rank > (smaller := min(module.in_features, module.out_features)):
        raise ConfigError(
            f"lora.rank is {config.rank}, and {name} has only {smaller} singular vectors for PiSSA to start from; "
            f"try --lora.rank {smaller}, or --lora.variant lora."
        )


def _wrapped(name: str, module: Any, flat: FlatVector, config: LoraConfig) -> LoraLinear | LoraExperts:
    def leaves(path: str) -> tuple[nn.Parameter, nn.Parameter]:
        return flat.parameters[f"{path}.lora_A"], flat.parameters[f"{path}.lora_B"]

    if isinstance(module, nn.Linear):
        a_KRI, b_KOR = leaves(name)
        start = (a_KRI.detach().clone(), b_KOR.detach().clone()) if config.variant == "pissa" else None
        return LoraLinear(module, a_KRI, b_KOR, config.scale_at(a_KRI.shape[1]), start=start)
    factors = {projection: leaves(f"{name}.{projection}") for projection in projection_shapes(module)}
    return LoraExperts(module, factors, config.scale_at(factors["down_proj"][0].shape[2]))


def _join(wrapped: Mapping[str, LoraLinear]) -> None:
    """Let the projections of a block that share their input be computed together."""
    for parent in {name.rpartition(".")[0] for name in wrapped}:
        for siblings in _SHARED_INPUT:
            layers = [wrapped[name] for child in siblings if (name := f"{parent}.{child}") in wrapped]
            if len(layers) > 1:
                SharedInput(layers)
