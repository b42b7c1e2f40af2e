"""Choose a model's linear layers and put a low-rank update on each.

Left out: the unembedding (opt-in, later, only where the sampler's proof holds), convolutions, and fused experts, which
need a layout of their own.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from torch import nn

from rlora.errors import ConfigError
from rlora.lora.flat import FlatVector, lay_out
from rlora.lora.initialize import initial_a, initial_b
from rlora.lora.linear import LoraLinear

Layers = Literal["all", "attention", "mlp"]


@dataclass(frozen=True, slots=True, kw_only=True)
class LoraConfig:
    """The shape of the adapters."""

    rank: int = 1
    """Rank of the update of each layer, 1 to 512."""
    alpha: float = 32.0
    """The update is scaled by alpha / rank; the step size that matters is alpha x learning rate."""
    layers: Layers = "all"
    """Which linear layers carry an update: all (attention and MLP), attention, or mlp."""

    def check(self) -> None:
        """Raise ConfigError for a value that breaks a rule."""
        if not 1 <= self.rank <= 512:
            raise ConfigError(f"lora.rank is {self.rank}; it must be from 1 to 512. Try --lora.rank 1.")
        if not self.alpha > 0:
            raise ConfigError(f"lora.alpha is {self.alpha}; it must be above 0. Try --lora.alpha 32.")

    @property
    def scale(self) -> float:
        """The factor alpha / rank of the update."""
        return self.alpha / self.rank


def adapted_layers(model: nn.Module, layers: Layers) -> dict[str, nn.Linear]:
    """Return the linear layers that `layers` names, by path, in the model's order; ConfigError if there are none."""
    head = getattr(model, "get_output_embeddings", lambda: None)()
    found = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and module is not head and _is_chosen(name, layers)
    }
    if not found:
        raise ConfigError(f"the model has no linear layers for lora.layers={layers!r}. Try --lora.layers all.")
    return found


def _is_chosen(name: str, layers: Layers) -> bool:
    is_attention = any("attn" in part or "attention" in part for part in name.split("."))
    is_mlp = any(part in ("mlp", "feed_forward", "ffn") for part in name.split("."))
    return (is_attention and layers in ("all", "attention")) or (is_mlp and layers in ("all", "mlp"))


def inject(model: nn.Module, config: LoraConfig, *, seeds: Sequence[int]) -> tuple[FlatVector, list[LoraLinear]]:
    """Replace the chosen layers of `model` and return the cohort's flat vector with the layers that read it.

    `seeds` holds one seed a policy: B starts at zero and A from its policy's seed. Slots are named `PATH.lora_A` of
    shape (R, I) and `PATH.lora_B` of shape (O, R).
    """
    chosen = adapted_layers(model, config.layers)
    shapes: dict[str, tuple[int, ...]] = {}
    for name, linear in chosen.items():
        shapes[f"{name}.lora_A"] = (config.rank, linear.in_features)
        shapes[f"{name}.lora_B"] = (linear.out_features, config.rank)
    device = next(iter(chosen.values())).weight.device
    flat = FlatVector(lay_out(shapes), len(seeds), device)
    for policy, seed in enumerate(seeds):
        initial = {}
        for name, linear in chosen.items():
            initial[f"{name}.lora_A"] = initial_a(config.rank, linear.in_features, seed=seed, layer=name)
            initial[f"{name}.lora_B"] = initial_b(linear.out_features, config.rank)
        flat.assign(initial, policy)
    wrapped = []
    for name, linear in chosen.items():
        parent, _, child = name.rpartition(".")
        layer = LoraLinear(linear, flat.parameters[f"{name}.lora_A"], flat.parameters[f"{name}.lora_B"], config.scale)
        setattr(model.get_submodule(parent), child, layer)
        wrapped.append(layer)
    return flat, wrapped
