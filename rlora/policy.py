"""The base model and the cohort of policies on it: load, score tokens, hand over an adapter."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from rlora import attention
from rlora.attention import visibility_mask
from rlora.batching import MicroBatch
from rlora.errors import ConfigError
from rlora.logprobs import token_logprobs
from rlora.lora.config import LoraConfig
from rlora.lora.inject import inject
from rlora.lora.linear import LoraLinear
from rlora.lora.peft_format import Adapter, load_adapter_tensors
from rlora.lora.unembedding import adapted_logits, adapted_token_logprobs
from rlora.models import DTYPES, ModelConfig, default_device


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TokenScores:
    """The policy's view of N trained tokens, in row order: log-probabilities and entropies in nats."""

    logprobs_N: torch.Tensor
    entropy_N: torch.Tensor


class Policy:
    """A frozen base model with K low-rank policies in one flat vector; `version` counts the updates they have had."""

    def __init__(
        self, model: Any, config: LoraConfig, *, seeds: Sequence[int], base_name: str, head_dtype: torch.dtype
    ):
        """Wrap a loaded causal language model in place; `seeds` holds one seed a policy."""
        _refuse_unsupported(model.config)
        self.model, self.config, self.base_name = model.requires_grad_(False).eval(), config, base_name
        head = model.get_output_embeddings()
        self.flat, self._layers = inject(model, config, seeds=seeds)
        self._adapted_head = next((layer for layer in self._layers if layer.base is head), None)
        weight_VH = head.weight
        self._head_VH, self._gradient_head_VH = weight_VH.detach().to(head_dtype), weight_VH.detach()
        self.version = 0

    @classmethod
    def load(
        cls,
        folder: Path,
        model_config: ModelConfig,
        lora: LoraConfig,
        *,
        seeds: Sequence[int],
        init_adapter: Path | None = None,
        device: torch.device | None = None,
    ) -> "Policy":
        """Load the base from `folder` onto `device` and start every policy from its seed, or from a PEFT adapter."""
        from transformers import AutoModelForCausalLM

        attention.register()
        model: Any = AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=DTYPES[model_config.dtype],
            attn_implementation=attention.ATTENTION,
            trust_remote_code=model_config.trust_remote_code,
            use_safetensors=True,
        )
        model = model.to(device or default_device())
        policy = cls(model, lora, seeds=seeds, base_name=model_config.name, head_dtype=DTYPES[model_config.head_dtype])
        if init_adapter is not None:
            tensors = load_adapter_tensors(init_adapter, lora, {slot.name: slot.shape for slot in policy.flat.slots})
            for index in range(len(seeds)):
                policy.flat.assign(tensors, index)
        return policy

    @property
    def device(self) -> torch.device:
        """Where the base lies."""
        return self._gradient_head_VH.device

    @property
    def num_policies(self) -> int:
        """K."""
        return self.flat.theta_KD.shape[0]

    @property
    def dtype(self) -> torch.dtype:
        """Precision of the base, to which the factors are rounded."""
        return self._gradient_head_VH.dtype

    def score(self, micro_batch: MicroBatch, *, temperature: float = 1.0) -> TokenScores:
        """Return log-probabilities (with gradient, unless disabled) and entropies of the trained tokens."""
        hidden_BTH = self.model.base_model(
            input_ids=micro_batch.tokens_BT,
            position_ids=micro_batch.positions_BT,
            attention_mask=visibility_mask(micro_batch.segments_BT),
            use_cache=False,
        ).last_hidden_state
        logprobs_N, entropy_N = self._token_logprobs(
            hidden_BTH.flatten(0, 1)[micro_batch.source_N], micro_batch.target_N, temperature
        )
        return TokenScores(logprobs_N=logprobs_N, entropy_N=entropy_N)

    def _token_logprobs(
        self, hidden_NH: torch.Tensor, targets_N: torch.Tensor, temperature: float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        if self._adapted_head is not None and self._adapted_head.is_enabled:
            return adapted_token_logprobs(
                hidden_NH, self._head_VH, self._adapted_head, targets_N, temperature=temperature
            )
        return token_logprobs(
            hidden_NH, self._head_VH, targets_N, temperature=temperature, gradient_head_VH=self._gradient_head_VH
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
            return adapted_logits(last_BH, self._head_VH, self._adapted_head)
        return (last_BH.to(self._head_VH.dtype) @ self._head_VH.T).float()

    @contextmanager
    def adapter_off(self) -> Iterator[None]:
        """Score with the base model: the same weights, without the update, so no second model is needed."""
        _switch(self._layers, is_enabled=False)
        try:
            yield
        finally:
            _switch(self._layers, is_enabled=True)

    @contextmanager
    def swapped(self, theta_KD: torch.Tensor) -> Iterator[None]:
        """Score with other numbers than the current ones, for the length of the block."""
        current_KD = self.flat.theta_KD.clone()
        self.flat.theta_KD.copy_(theta_KD)
        try:
            yield
        finally:
            self.flat.theta_KD.copy_(current_KD)

    def adapter(self, policy: int = 0) -> Adapter:
        """Return the current version of one policy, copied."""
        return Adapter(
            policy=policy,
            version=self.version,
            config=self.config,
            base_model=self.base_name,
            tensors=self.flat.tensors(policy),
        )


def _switch(layers: Sequence[LoraLinear], *, is_enabled: bool) -> None:
    for layer in layers:
        layer.is_enabled = is_enabled


def _refuse_unsupported(config: Any) -> None:
    """Refuse models whose log-probabilities would be computed wrongly."""
    if "sliding_attention" in (getattr(config, "layer_types", None) or ()):
        raise ConfigError(
            "the model has sliding-window attention, which is not supported: long rows would be scored wrongly."
        )
    for field in ("final_logit_softcapping", "logits_scaling", "logit_scale"):
        if getattr(config, field, None) not in (None, 1, 1.0):
            raise ConfigError(
                f"the model transforms its logits ({field}={getattr(config, field)}), which is not supported."
            )
