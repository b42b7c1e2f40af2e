"""Choose a model's linear layers and put a low-rank update on each.

Left out: convolutions, and fused experts, which need a layout of their own.
"""

from collections.abc import Mapping, Sequence
from math import prod

from torch import nn

from rlora.errors import ConfigError
from rlora.lora.config import LoraConfig, layer_kinds
from rlora.lora.flat import FlatVector, lay_out
from rlora.lora.initialize import initial_a, initial_b
from rlora.lora.linear import LoraLinear, SharedInput

_SHARED_INPUT = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))  # names of siblings in Transformers' models


def adapted_layers(model: nn.Module, layers: str) -> dict[str, nn.Linear]:
    """Return the linear layers that `layers` names, by path, in the model's order.

    Raises ConfigError if there are none, or for the unembedding of a model whose embeddings are tied to it.
    """
    kinds = layer_kinds(layers)
    head = getattr(model, "get_output_embeddings", lambda: None)()
    if "unembedding" in kinds:
        _refuse_tied(model, head)
    found = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and ("unembedding" in kinds if module is head else _is_chosen(name, kinds))
    }
    if not found:
        raise ConfigError(f"the model has no linear layers for lora.layers={layers!r}. Try --lora.layers all.")
    return found


def _is_chosen(name: str, kinds: frozenset[str]) -> bool:
    is_attention = any("attn" in part or "attention" in part for part in name.split("."))
    is_mlp = any(part in ("mlp", "feed_forward", "ffn") for part in name.split("."))
    return (is_attention and "attention" in kinds) or (is_mlp and "mlp" in kinds)


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


def adapter_shapes(model: nn.Module, config: LoraConfig) -> dict[str, tuple[int, ...]]:
    """Return the shapes of a policy's tensors: `PATH.lora_A` (R, I) and `PATH.lora_B` (O, R), in the model's order."""
    shapes: dict[str, tuple[int, ...]] = {}
    for name, linear in adapted_layers(model, config.layers).items():
        shapes[f"{name}.lora_A"] = (config.rank, linear.in_features)
        shapes[f"{name}.lora_B"] = (linear.out_features, config.rank)
    return shapes


def num_parameters(model: nn.Module, config: LoraConfig) -> int:
    """Return how many numbers a policy on `model` has; the model may lie on the meta device, without weights."""
    return sum(map(prod, adapter_shapes(model, config).values()))


def inject(model: nn.Module, config: LoraConfig, *, seeds: Sequence[int]) -> tuple[FlatVector, list[LoraLinear]]:
    """Replace the chosen layers of `model` and return the cohort's flat vector with the layers that read it.

    `seeds` holds one seed a policy: B starts at zero and A from its policy's seed.
    """
    chosen = adapted_layers(model, config.layers)
    device = next(iter(chosen.values())).weight.device
    flat = FlatVector(lay_out(adapter_shapes(model, config)), len(seeds), device)
    for policy, seed in enumerate(seeds):
        initial = {}
        for name, linear in chosen.items():
            initial[f"{name}.lora_A"] = initial_a(config.rank, linear.in_features, seed=seed, layer=name)
            initial[f"{name}.lora_B"] = initial_b(linear.out_features, config.rank)
        flat.assign(initial, policy)
    wrapped: dict[str, LoraLinear] = {}
    for name, linear in chosen.items():
        parent, _, child = name.rpartition(".")
        layer = LoraLinear(linear, flat.parameters[f"{name}.lora_A"], flat.parameters[f"{name}.lora_B"], config.scale)
        setattr(model.get_submodule(parent), child, layer)
        wrapped[name] = layer
    _join(wrapped)
    return flat, list(wrapped.values())


def _join(wrapped: Mapping[str, LoraLinear]) -> None:
    """Let the projections of a block that share their input be computed together."""
    for parent in {name.rpartition(".")[0] for name in wrapped}:
        for siblings in _SHARED_INPUT:
            layers = [wrapped[name] for child in siblings if (name := f"{parent}.{child}") in wrapped]
            if len(layers) > 1:
                SharedInput(layers)
