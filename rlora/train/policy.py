"""The base model and the cohort of policies on it: load, score tokens, hand over a snapshot."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from rlora.full.head import trained_token_logprobs
from rlora.full.parameters import FullParameters
from rlora.full.weights import FullWeights, Snapshot, check_names
from rlora.kernels.install import install, left_plain
from rlora.kernels.kernels import Kernels
from rlora.lora.config import LoraConfig
from rlora.lora.inject import inject
from rlora.lora.linear import LoraLinear
from rlora.lora.peft.peft_format import Adapter, load_adapter_tensors
from rlora.lora.variants.experts import LoraExperts
from rlora.lora.variants.unembedding import adapted_logits, adapted_token_logprobs
from rlora.model.attention import has_scores, visible_ranges
from rlora.model.loading import kernels_for, load_model
from rlora.model.logprobs import logits, token_logprobs
from rlora.model.sources import DTYPES, ModelConfig, default_device
from rlora.system.memory import recompute_layers
from rlora.system.screen import say
from rlora.train.batching import MicroBatch


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TokenScores:
    """The policy's view of N trained tokens, in row order: log-probabilities and entropies in nats."""

    logprobs_N: torch.Tensor
    entropy_N: torch.Tensor


class Policy:
    """A base model with K low-rank policies, or one of which every weight is trained, in one flat vector.

    `version` counts the updates they have had.
    """

    def __init__(
        self,
        model: Any,
        config: LoraConfig | None,
        *,
        seeds: Sequence[int],
        base_name: str,
        base_dir: Path,
        head_dtype: torch.dtype,
        kernels: Kernels | None = None,
    ):
        """Wrap a causal language model, loaded from `base_dir`, in place.

        `config` is the shape of the adapters, with one of `seeds` a policy; None trains every weight of one policy.
        With `kernels`, frozen layers and what surrounds the products are computed by them.
        """
        self.kernels = kernels
        if kernels is not None:
            install(model, kernels)
            if plain := left_plain(model):
                say(f"No compiled kernel fits {', '.join(plain)}: computed plainly (docs/speed.md).")
        self.model, self.config, self.base_name = model.requires_grad_(False).eval(), config, base_name
        self._base_dir, self._head_dtype, self.version = base_dir, head_dtype, 0
        self.recompute_above: int | None = None
        self._full: FullParameters | None = None
        self._adapted_head: LoraLinear | None = None
        if config is None:
            assert len(seeds) == 1
            self._full = FullParameters(model)
            self.flat = self._full.flat
        else:
            head = model.get_output_embeddings()
            self.flat, self._layers = inject(model, config, seeds=seeds)
            linear = [layer for layer in self._layers if isinstance(layer, LoraLinear)]
            for layer in linear:
                layer.kernels = kernels
            self._adapted_head = next((layer for layer in linear if layer.base is head), None)
            self._frozen_head_VH = head.weight.detach()
            if self._adapted_head is not None:
                self._adapted_head_VH = self._frozen_head_VH.to(head_dtype)
        self._start = self.flat.tensors() if config is not None and config.variant == "pissa" else None

    @classmethod
    def load(
        cls,
        folder: Path,
        model_config: ModelConfig,
        lora: LoraConfig | None,
        *,
        seeds: Sequence[int],
        init_adapter: Path | None = None,
        device: torch.device | None = None,
        weights: Mapping[str, torch.Tensor] | None = None,
    ) -> "Policy":
        """Load the base from `folder` onto `device` and start every policy from its seed, or from a PEFT adapter.

        `lora` None makes every weight trainable; otherwise the base may lie in `weights` already, by the names of its
        parameters, which are read and never written to. Raises ConfigError for a model that is not supported.
        """
        assert weights is None or lora is not None
        model = load_model(folder, model_config, device or default_device(), weights=weights)
        if lora is None:
            check_names(folder, {name: tuple(weight.shape) for name, weight in model.named_parameters()})
        policy = cls(
            model,
            lora,
            seeds=seeds,
            base_name=model_config.name,
            base_dir=folder,
            head_dtype=DTYPES[model_config.head_dtype],
            kernels=kernels_for(model_config, device or default_device()),
        )
        if init_adapter is not None:
            assert lora is not None
            tensors = load_adapter_tensors(init_adapter, lora, {slot.name: slot.shape for slot in policy.flat.slots})
            for index in range(len(seeds)):
                policy.flat.assign(tensors, index)
        return policy

    @property
    def device(self) -> torch.device:
        """Where the base lies."""
        return self._head_VH.device

    @property
    def num_policies(self) -> int:
        """K."""
        return self.flat.theta_KD.shape[0]

    @property
    def dtype(self) -> torch.dtype:
        """Precision of the base, to which factors (or all weights) are rounded."""
        return self._head_VH.dtype

    @property
    def alpha(self) -> float:
        """The factor by which a step of the optimizer counts: that of the adapters; 1 where every weight is trained."""
        return 1.0 if self.config is None else self.config.effective_alpha

    @property
    def _head_VH(self) -> torch.Tensor:
        return self._frozen_head_VH if self._full is None else self._full.head_VH

    @property
    def weights(self) -> list[torch.Tensor]:
        """The weights that are computed with as they are held."""
        copied = [] if self._adapted_head is None else [self._adapted_head_VH]
        return [*self.model.state_dict().values(), *copied]

    @property
    def has_materialised_scores(self) -> bool:
        """Whether attention writes a block's scores to memory: on the CPU, unless a compiled product takes it all."""
        return self.device.type == "cpu" and has_scores(self.kernels, self.dtype)

    def score(self, micro_batch: MicroBatch, *, temperature: float = 1.0) -> TokenScores:
        """Return log-probabilities (with gradient, unless disabled) and entropies of the trained tokens.

        Layers are computed again in the backward pass if there are more positions than `recompute_above` (None: never).
        """
        if self.recompute_above is not None:
            recompute_layers(self.model, is_on=micro_batch.num_positions > self.recompute_above)
        hidden_BTH = self.model.base_model(
            input_ids=micro_batch.tokens_BT,
            position_ids=micro_batch.positions_BT,
            attention_mask=visible_ranges(micro_batch.segments_BT),
            use_cache=False,
        ).last_hidden_state
        hidden_NH = hidden_BTH.flatten(0, 1)[micro_batch.source_N]
        logprobs_N, entropy_N = self._token_logprobs(hidden_NH, micro_batch.target_N, temperature)
        return TokenScores(logprobs_N=logprobs_N, entropy_N=entropy_N)

    def _token_logprobs(
        self, hidden_NH: torch.Tensor, targets_N: torch.Tensor, temperature: float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        if self._full is not None and torch.is_grad_enabled():
            return trained_token_logprobs(
                hidden_NH,
                self._head_VH,
                targets_N,
                grad_head_VH=self._full.grad_head_VH,
                temperature=temperature,
                dtype=self._head_dtype,
                kernels=self.kernels,
            )
        update = self._adapted_head
        if update is not None and update.is_enabled:
            return adapted_token_logprobs(hidden_NH, self._adapted_head_VH, update, targets_N, temperature=temperature)
        return token_logprobs(
            hidden_NH,
            self._head_VH,
            targets_N,
            temperature=temperature,
            dtype=self._head_dtype,
            kernels=self.kernels,
        )

    def next_token_logits(self, tokens_BT: torch.Tensor, cache: Any = None) -> torch.Tensor:
        """Return fp32 logits (B, V) of the token after `tokens_BT` (rows of one length), appended to `cache`."""
        past, length = cache.get_seq_length() if cache is not None else 0, tokens_BT.shape[1]
        is_seen_TT = torch.ones(length, past + length, dtype=torch.bool, device=self.device).tril(past)
        hidden_BTH = self.model.base_model(
            input_ids=tokens_BT,
            position_ids=torch.arange(past, past + length, device=self.device).expand(tokens_BT.shape),
            attention_mask=is_seen_TT.expand(len(tokens_BT), 1, -1, -1),
            past_key_values=cache,
            use_cache=cache is not None,
        ).last_hidden_state
        last_BH = hidden_BTH[:, -1]
        if self._adapted_head is not None and self._adapted_head.is_enabled:
            return adapted_logits(last_BH, self._adapted_head_VH, self._adapted_head)
        return logits(last_BH, self._head_VH, self._head_dtype, self.kernels)

    def round_off(self) -> None:
        """Let the model compute with the vector as it is now; adapters read it themselves."""
        if self._full is not None:
            self._full.round_off()

    @contextmanager
    def adapter_off(self) -> Iterator[None]:
        """Score with the base model: the same weights without the update, or the base's kept copy of all weights."""
        if self._full is not None:
            with self._full.base():
                yield
            return
        _switch(self._layers, is_enabled=False)
        try:
            yield
        finally:
            _switch(self._layers, is_enabled=True)

    @contextmanager
    def swapped(self, snapshots: Sequence[Snapshot]) -> Iterator[None]:
        """Score with other versions than the current one, for the length of the block."""
        if self._full is not None:
            with self._full.others(snapshots[0].tensors):
                yield
            return
        current_KD = self.flat.theta_KD.clone()
        try:
            for snapshot in snapshots:
                self.assign(snapshot)
            yield
        finally:
            self.flat.theta_KD.copy_(current_KD)

    def assign(self, snapshot: Snapshot) -> None:
        """Take over a snapshot's numbers, for the policy that it is of."""
        self.flat.assign(snapshot.tensors, snapshot.policy)
        self.round_off()

    def snapshot(self, policy: int = 0) -> Snapshot:
        """Return the current version of one policy, copied: its adapter, or all weights as the sampler serves them."""
        return self.adapter(policy) if self._full is None else self.full_weights()

    def full_weights(self) -> FullWeights:
        """Return the current version of a policy of which every weight is trained, rounded to the base's precision."""
        assert self._full is not None
        return FullWeights(
            policy=0,
            version=self.version,
            base_model=self.base_name,
            base_dir=self._base_dir,
            tensors=self._full.tensors(),
        )

    def adapter(self, policy: int = 0) -> Adapter:
        """Return the current version of one low-rank policy, copied."""
        assert self.config is not None
        return Adapter(
            policy=policy,
            version=self.version,
            config=self.config,
            base_model=self.base_name,
            tensors=self.flat.tensors(policy),
            start=self._start,
        )


def _switch(layers: Sequence[LoraLinear | LoraExperts], *, is_enabled: bool) -> None:
    for layer in layers:
        layer.is_enabled = is_enabled
