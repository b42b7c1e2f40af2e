"""Choose a model's linear layers and experts, and let them carry low-rank updates.

Left out: convolutions, routers, which stay frozen, and what lies beside the blocks.
"""

from collections.abc import Iterator, Mapping
from math import prod
from typing import Any

import torch
from torch import nn

from rlora.errors import ConfigError
from rlora.lora.config import LoraConfig, is_attention, layer_kinds
from rlora.lora.linear import LoraLinear, SharedInput
from rlora.lora.variants.experts import LoraExperts, expert_rank, fused_experts, projection_shapes
from rlora.model.products import PLAIN, Products

_SHARED_INPUT = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))  # names of siblings in Transformers' models

_ROUTERS = ("gate", "router", "shared_expert_gate")


def adapted_layers(model: nn.Module, layers: str) -> dict[str, Any]:
    """Return the linear layers and fused experts that `layers` names, by path, in the model's order.

    Raises ConfigError if there are none, or for the unembedding of a model whose embeddings are tied to it.
    """
    kinds, modules = layer_kinds(layers), dict(_as_loaded(model))
    head = _loaded(getattr(model, "get_output_embeddings", lambda: None)())
    if "unembedding" in kinds:
        _refuse_tied(model, head)
    experts = fused_experts(modules.items()) if "experts" in kinds else {}

    def is_adapted(name: str, module: nn.Module) -> bool:
        if module is head:
            return "unembedding" in kinds
        return name in experts or (isinstance(module, nn.Linear) and _is_chosen(name, kinds))

    found = {name: module for name, module in modules.items() if is_adapted(name, module)}
    if not found:
        others = sorted({type(module).__name__ for name, module in modules.items() if _has_matrix(name, module, head)})
        raise ConfigError(
            f"the model has no linear layers for lora.layers={layers!r}: only torch.nn.Linear and known experts carry "
            f"an update, and the matrices in its blocks are of {', '.join(others) or 'no class'}. Take another model, "
            "or other --lora.layers where there are some."
        )
    return found


def left_out(model: nn.Module, layers: str) -> list[str]:
    """Return the names of matrices in the model's blocks that carry no update though their kinds are asked for, without
    numbers: routers, and what is no linear layer.

    Example:
        >>> left_out(model, "all")  # of a mixture of experts
        ['mlp.gate']
    """
    if not {"attention", "mlp"} <= layer_kinds(layers):
        return []
    adapted, modules = adapted_layers(model, layers), dict(_as_loaded(model))
    head = _loaded(getattr(model, "get_output_embeddings", lambda: None)())
    names = [name for name, module in modules.items() if _has_matrix(name, module, head) and name not in adapted]
    return sorted({".".join(part for part in name.split(".")[-2:] if not part.isdigit()) for name in names})


def _has_matrix(name: str, module: nn.Module, head: nn.Module | None) -> bool:
    """Whether a module in one of the blocks, or behind them, computes with a matrix of its own."""
    weight = getattr(module, "weight", None)
    is_matrix = isinstance(weight, torch.Tensor) and weight.dim() >= 2 and not isinstance(module, nn.Embedding)
    return is_matrix and module is not head and "." in name


def _loaded(module: Any) -> Any:
    """Return the module that was loaded, where a policy has wrapped it."""
    return module.base if isinstance(module, LoraLinear | LoraExperts) else module


def _as_loaded(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Yield the modules of `model` by path, in order, as if none were wrapped."""
    wrapped = tuple(f"{name}." for name, module in model.named_modules() if module is not _loaded(module))
    for name, module in model.named_modules():
        if not name.startswith(wrapped):
            yield name, _loaded(module)


def _is_chosen(name: str, kinds: frozenset[str]) -> bool:
    parts = name.split(".")
    if parts[-1] in _ROUTERS:
        return False
    if is_attention(name):
        return "attention" in kinds
    if "experts" in parts:
        return "experts" in kinds
    is_in_block = any(part.isdigit() or part in ("mlp", "feed_forward", "ffn") for part in parts[:-1])
    return "mlp" in kinds and is_in_block


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
            shapes |= dict.fromkeys(expert_names(name, module, projection, "lora_A"), (rank, num_inputs))
            shapes |= dict.fromkeys(expert_names(name, module, projection, "lora_B"), (num_outputs, rank))
    return shapes


def expert_names(name: str, module: Any, projection: str, factor: str) -> list[str]:
    """Return the names of a factor of all experts of a layer, in order."""
    return [f"{name}.{expert}.{projection}.{factor}" for expert in range(module.num_experts)]


def num_parameters(model: nn.Module, config: LoraConfig) -> int:
    """Return how many numbers a policy on `model` has; the model may lie on the meta device, without weights."""
    return sum(map(prod, adapter_shapes(model, config).values()))


def wrap(
    model: nn.Module, chosen: Mapping[str, Any], products: Products = PLAIN
) -> dict[str, LoraLinear | LoraExperts]:
    """Let the chosen layers of `model` carry updates, and return what stands in their place by path, in that order.

    A layer that another policy had wrapped already is shared with it.
    """
    wrapped: dict[str, LoraLinear | LoraExperts] = {}
    for name, module in chosen.items():
        found = model.get_submodule(name)
        if not isinstance(found, LoraLinear | LoraExperts):
            found = LoraLinear(module, products) if isinstance(module, nn.Linear) else LoraExperts(module)
            parent, _, child = name.rpartition(".")
            setattr(model.get_submodule(parent), child, found)
        wrapped[name] = found
    _join({name: layer for name, layer in wrapped.items() if isinstance(layer, LoraLinear)})
    return wrapped


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


def _join(wrapped: Mapping[str, LoraLinear]) -> None:
    """Let the projections of a block that share their input be computed together."""
    for parent in {name.rpartition(".")[0] for name in wrapped}:
        for siblings in _SHARED_INPUT:
            layers = [wrapped[name] for child in siblings if (name := f"{parent}.{child}") in wrapped]
            if len(layers) > 1 and layers[0].shared is None:
                SharedInput(layers)
