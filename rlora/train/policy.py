"""A policy: what is trained on a base, and its version. Score tokens with it, hand over a snapshot of it."""

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch

from rlora.full.parameters import Full
from rlora.full.weights import Snapshot
from rlora.lora.config import LoraConfig
from rlora.lora.flat import FlatVector
from rlora.lora.low_rank import LowRank
from rlora.lora.peft.peft_format import load_adapter_tensors
from rlora.model.base import Base
from rlora.model.sources import ModelConfig
from rlora.train.batching import MicroBatch


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TokenScores:
    """The policy's view of N trained tokens, in row order: log-probabilities and entropies in nats."""

    logprobs_N: torch.Tensor
    entropy_N: torch.Tensor


class Parametrization(Protocol):
    """What of a base is trained: low-rank updates beside its weights, or all of its weights."""

    @property
    def config(self) -> LoraConfig | None:
        """The shape of the adapters; None where every weight is trained."""
        ...

    @property
    def flat(self) -> FlatVector:
        """The D numbers, and their gradient."""
        ...

    @property
    def rate_factor(self) -> float:
        """The factor by which a step of the optimizer counts."""
        ...

    @property
    def held(self) -> list[torch.Tensor]:
        """Tensors beside the base's that are computed with as they are held."""
        ...

    def enter(self) -> None:
        """Let the base compute with these numbers."""
        ...

    def leave(self) -> None:
        """Let the base compute as it was loaded."""
        ...

    def refresh_served(self) -> None:
        """Let what is computed with follow a change of the numbers."""
        ...

    def swapped(self, tensors: Mapping[str, torch.Tensor]) -> AbstractContextManager[None]:
        """Compute with other numbers, as `snapshot` gives them, for the length of the block."""
        ...

    def token_logprobs(
        self, hidden_NH: torch.Tensor, targets_N: torch.Tensor, temperature: float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return log-probabilities (with gradient, unless disabled) of `targets_N` and entropies (N), nats."""
        ...

    def logits(self, hidden_NH: torch.Tensor) -> torch.Tensor:
        """Return fp32 logits (N, V)."""
        ...

    def snapshot(self, version: int) -> Snapshot:
        """Return the numbers as they are now, copied, called `version`."""
        ...


class Policy:
    """One parametrisation of a base. `version` counts the updates it has had.

    Example:
        >>> base = Base.load(folder, ModelConfig())
        >>> policies = [Policy(base, LowRank(base, LoraConfig(rank=rank), seed=0)) for rank in (1, 4)]
        >>> policies[1].score(micro_batch).logprobs_N
    """

    def __init__(self, base: Base, parametrization: Parametrization):
        """Train `parametrization`, which was made on `base`, and let the base compute with it from now on."""
        self.base, self.parametrization, self.version = base, parametrization, 0
        self._is_off = False
        self._select()

    @classmethod
    def load(
        cls,
        folder: Path,
        model_config: ModelConfig,
        lora: LoraConfig | None,
        *,
        seed: int,
        init_adapter: Path | None = None,
        device: torch.device | None = None,
        weights: Mapping[str, torch.Tensor] | None = None,
    ) -> "Policy":
        """Load a base (see `Base.load`) and the one policy on it, from `seed` or from a PEFT adapter.

        `lora` None makes every weight trainable, which the engine's own `weights` are not.
        """
        assert lora is not None or weights is None
        base = Base.load(folder, model_config, device=device, weights=weights)
        return cls.on(base, lora, seed=seed, init_adapter=init_adapter)

    @classmethod
    def on(cls, base: Base, lora: LoraConfig | None, *, seed: int, init_adapter: Path | None = None) -> "Policy":
        """Return a new policy on `base`, from `seed` or from a PEFT adapter; `lora` None makes every weight trainable.

        Raises:
            ConfigError: the base has no layers that can carry the adapters.
            AdapterError: the initial adapter does not fit.
        """
        assert lora is not None or init_adapter is None
        policy = cls(base, Full(base) if lora is None else LowRank(base, lora, seed=seed))
        if lora is not None and init_adapter is not None:
            shapes = {slot.name: slot.shape for slot in policy.flat.slots}
            policy.flat.assign(load_adapter_tensors(init_adapter, lora, shapes))
        return policy

    @property
    def flat(self) -> FlatVector:
        """The policy's numbers and their gradient."""
        return self.parametrization.flat

    @property
    def config(self) -> LoraConfig | None:
        """The shape of the adapters; None where every weight is trained."""
        return self.parametrization.config

    @property
    def model(self) -> Any:
        """The base's model."""
        return self.base.model

    @property
    def device(self) -> torch.device:
        """Where the base lies."""
        return self.base.device

    @property
    def dtype(self) -> torch.dtype:
        """Precision of the base, to which factors (or all weights) are rounded."""
        return self.base.dtype

    @property
    def weights(self) -> list[torch.Tensor]:
        """What is computed with as it is held."""
        return [*self.base.model.state_dict().values(), *self.parametrization.held]

    def _select(self) -> None:
        self.base.select(None if self._is_off else self.parametrization)

    def hidden_states(self, micro_batch: MicroBatch) -> torch.Tensor:
        """Return the last layer's output (N, H) where it predicts the trained tokens."""
        self._select()
        hidden_BTH = self.base.hidden_states(micro_batch.tokens_BT, micro_batch.positions_BT, micro_batch.segments_BT)
        return hidden_BTH.flatten(0, 1)[micro_batch.source_N]

    def score(self, micro_batch: MicroBatch, *, temperature: float = 1.0) -> TokenScores:
        """Return log-probabilities (with gradient, unless disabled) and entropies of the trained tokens."""
        return self.score_hidden(self.hidden_states(micro_batch), micro_batch, temperature=temperature)

    def score_hidden(
        self, hidden_NH: torch.Tensor, micro_batch: MicroBatch, *, temperature: float = 1.0
    ) -> TokenScores:
        """Return what `score` does, of what `hidden_states` returned."""
        head = self.base if self._is_off else self.parametrization
        logprobs_N, entropy_N = head.token_logprobs(hidden_NH, micro_batch.target_N, temperature)
        return TokenScores(logprobs_N=logprobs_N, entropy_N=entropy_N)

    def logits(self, hidden_NH: torch.Tensor) -> torch.Tensor:
        """Return fp32 logits (N, V) of what `hidden_states` returned."""
        return (self.base if self._is_off else self.parametrization).logits(hidden_NH)

    def next_token_logits(self, tokens_BT: torch.Tensor, cache: Any = None) -> torch.Tensor:
        """Return fp32 logits (B, V) of the token after `tokens_BT` (rows of one length), appended to `cache`."""
        self._select()
        return self.logits(self.base.last_hidden_state(tokens_BT, cache))

    def refresh_served(self) -> None:
        """Let what is computed with follow a change of the numbers."""
        self.parametrization.refresh_served()

    @contextmanager
    def adapter_off(self) -> Iterator[None]:
        """Score with the base for the length of the block."""
        self._is_off = True
        try:
            yield
        finally:
            self._is_off = False
            self._select()  # layers may have to be computed again for a gradient of before

    @contextmanager
    def swapped(self, snapshot: Snapshot) -> Iterator[None]:
        """Score with another version for the length of the block."""
        self._select()
        with self.parametrization.swapped(snapshot.tensors):
            yield

    def assign(self, snapshot: Snapshot) -> None:
        """Take over a snapshot's numbers."""
        self.flat.assign(snapshot.tensors)
        self.refresh_served()

    def snapshot(self) -> Snapshot:
        """Return the current version, copied: an adapter, or all weights as the sampler serves them."""
        return self.parametrization.snapshot(self.version)
