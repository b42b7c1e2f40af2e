"""The shape of the adapters: rank, scale, layers and variant."""

import math
from dataclasses import dataclass, replace
from typing import Literal

from rlora.errors import ConfigError

KINDS = ("attention", "mlp", "experts", "unembedding")
_COVERED = {"all": ("attention", "mlp", "experts"), "mlp": ("mlp", "experts")}  # by a name that covers more than itself
Variant = Literal["lora", "rslora", "pissa"]


@dataclass(frozen=True, slots=True, kw_only=True)
class LoraConfig:
    """The shape of the adapters."""

    rank: int = 1
    """Rank of the update of each layer, 1 to 512; of an expert: this over the experts a token meets, at least 1."""
    alpha: float = 32.0
    """The update is scaled by alpha / rank; the step size that matters is alpha x learning rate."""
    layers: str = "all"
    """Which matrices carry an update: attention, mlp (with its experts), experts, unembedding, joined by +; all stands
    for attention+mlp. The unembedding must not be tied to the embeddings, and vLLM's CPU build serves neither it nor
    experts.
    """

    variant: Variant = "lora"
    """lora; rslora, scaled by alpha / sqrt(rank); or pissa, which starts from each matrix's principal singular vectors
    and is served at twice the rank (it failed under RL in the literature). There is no DoRA: vLLM does not serve it.
    LoRA+ is --optimizer.b-rate-ratio.
    """

    def check(self) -> None:
        """Raise ConfigError for a value that breaks a rule."""
        if not 1 <= self.rank <= 512:
            raise ConfigError(f"lora.rank is {self.rank}; it must be from 1 to 512. Try --lora.rank 1.")
        if not (self.alpha > 0 and math.isfinite(self.alpha)):
            raise ConfigError(f"lora.alpha is {self.alpha}; it must be above 0. Try --lora.alpha 32.")
        layer_kinds(self.layers)

    @property
    def has_unembedding(self) -> bool:
        """Whether the unembedding carries an update."""
        return "unembedding" in layer_kinds(self.layers)

    @property
    def scale(self) -> float:
        """The factor of the update: alpha / rank, or with rslora alpha / sqrt(rank)."""
        return self.scale_at(self.rank)

    def scale_at(self, rank: int) -> float:
        """Return the factor of an update of another rank, which is an expert's."""
        return self.alpha / (rank**0.5 if self.variant == "rslora" else rank)

    @property
    def effective_alpha(self) -> float:
        """The alpha of plain LoRA that scales the update as much."""
        return self.alpha if self.variant != "rslora" else self.scale * self.rank

    @property
    def served(self) -> "LoraConfig":
        """The shape in which samplers and files hold the adapter: PiSSA's is a plain one of twice the rank."""
        if self.variant != "pissa":
            return self
        return replace(self, variant="lora", rank=2 * self.rank, alpha=2 * self.alpha)


def layer_kinds(layers: str) -> frozenset[str]:
    """Return the kinds of layers that `layers` names ("all+unembedding"); ConfigError for an unknown one."""
    kinds: set[str] = set()
    for part in layers.split("+"):
        if part != "all" and part not in KINDS:
            raise ConfigError(
                f"lora.layers is {layers!r}; it must be all, or some of {', '.join(KINDS)} joined by +. "
                "Try --lora.layers all."
            )
        kinds.update(_COVERED.get(part, (part,)))
    return frozenset(kinds)


def is_attention(layer: str) -> bool:
    """Whether the layer at a path belongs to attention."""
    return any("attn" in part or "attention" in part for part in layer.split("."))
