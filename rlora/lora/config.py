"""The shape of the adapters: rank, scale and layers."""

from dataclasses import dataclass

from rlora.errors import ConfigError

KINDS = ("attention", "mlp", "unembedding")
_ALL = ("attention", "mlp")


@dataclass(frozen=True, slots=True, kw_only=True)
class LoraConfig:
    """The shape of the adapters."""

    rank: int = 1
    """Rank of the update of each layer, 1 to 512."""
    alpha: float = 32.0
    """The update is scaled by alpha / rank; the step size that matters is alpha x learning rate."""
    layers: str = "all"
    """Which matrices carry an update: attention, mlp, unembedding, joined by +; all stands for attention+mlp. The
    unembedding must not be tied to the embeddings, and vLLM's CPU build does not serve it.
    """

    def check(self) -> None:
        """Raise ConfigError for a value that breaks a rule."""
        if not 1 <= self.rank <= 512:
            raise ConfigError(f"lora.rank is {self.rank}; it must be from 1 to 512. Try --lora.rank 1.")
        if not self.alpha > 0:
            raise ConfigError(f"lora.alpha is {self.alpha}; it must be above 0. Try --lora.alpha 32.")
        layer_kinds(self.layers)

    @property
    def has_unembedding(self) -> bool:
        """Whether the unembedding carries an update."""
        return "unembedding" in layer_kinds(self.layers)

    @property
    def scale(self) -> float:
        """The factor alpha / rank of the update."""
        return self.alpha / self.rank


def layer_kinds(layers: str) -> frozenset[str]:
    """Return the kinds of layers that `layers` names ("all+unembedding"); ConfigError for an unknown one."""
    kinds: set[str] = set()
    for part in layers.split("+"):
        if part != "all" and part not in KINDS:
            raise ConfigError(
                f"lora.layers is {layers!r}; it must be all, or some of {', '.join(KINDS)} joined by +. "
                "Try --lora.layers all."
            )
        kinds.update(_ALL if part == "all" else (part,))
    return frozenset(kinds)
