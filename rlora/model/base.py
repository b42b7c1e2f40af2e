"""A base model on this machine: frozen weights, the policy that it computes with, and what every policy needs of it.

Several policies can stand on one base; one of them, or none, is computed with at a time.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import torch

from rlora.kernels.install import install, left_plain
from rlora.model.attention import has_scores, visible_ranges
from rlora.model.loading import load_model, products_for
from rlora.model.logprobs import logits, token_logprobs
from rlora.model.products import PLAIN, Products
from rlora.model.sources import DTYPES, ModelConfig, default_device
from rlora.system.memory import recompute_layers
from rlora.system.screen import say


class Weights(Protocol):
    """What a base can compute with in place of its own weights, or beside them."""

    def enter(self) -> None:
        """Let the base's layers compute with these."""
        ...

    def leave(self) -> None:
        """Let the base's layers compute as they were loaded."""
        ...


class Base:
    """A frozen causal language model.

    `name` is what adapters call it, `folder` where it was loaded from, `head_dtype` the precision of its logits.
    `recompute_above` are the positions above which layers are computed again in the backward pass (None: never).
    """

    def __init__(self, model: Any, *, name: str, folder: Path, head_dtype: torch.dtype, products: Products = PLAIN):
        """Freeze `model` in place, and let it compute by `products`, with what stands between them."""
        self.products = products
        if products.kernels is not None:
            install(model, products.kernels)
            if plain := left_plain(model):
                say(f"No compiled kernel fits {', '.join(plain)}: computed plainly (docs/speed.md).")
        self.model = model.requires_grad_(False).eval()
        self.name, self.folder, self.head_dtype = name, folder, head_dtype
        self.recompute_above: int | None = None
        self._head = model.get_output_embeddings()
        self._selected: Weights | None = None

    @classmethod
    def load(
        cls,
        folder: Path,
        config: ModelConfig,
        *,
        device: torch.device | None = None,
        weights: Mapping[str, torch.Tensor] | None = None,
    ) -> "Base":
        """Load the model in `folder` onto `device`, the GPU where there is one, or take `weights`, which lie in the
        engine by the names of the parameters, and are read and never written to.

        Raises:
            ConfigError: the model is not supported.
        """
        device = device or default_device()
        return cls(
            load_model(folder, config, device, weights=weights),
            name=config.name,
            folder=folder,
            head_dtype=DTYPES[config.head_dtype],
            products=products_for(config, device),
        )

    @property
    def device(self) -> torch.device:
        """Where the weights lie."""
        return self._head.weight.device

    @property
    def dtype(self) -> torch.dtype:
        """Precision of the weights, to which factors (or all trained weights) are rounded."""
        return self._head.weight.dtype

    @property
    def num_tokens(self) -> int:
        """Rows of the embedding: a token's id is below it."""
        return self.model.get_input_embeddings().weight.shape[0]

    @property
    def head_VH(self) -> torch.Tensor:
        """The unembedding (V, H) as it is computed with now, without an update."""
        return self._head.weight.detach()

    @property
    def has_materialised_scores(self) -> bool:
        """Whether attention writes a block's scores to memory: on the CPU, unless a compiled product takes it all."""
        return self.device.type == "cpu" and has_scores(self.products, self.dtype)

    def select(self, weights: Weights | None) -> None:
        """Compute with `weights` from now on, or as loaded (None). What is selected already costs nothing."""
        if self._selected is weights:
            return
        if self._selected is not None:
            self._selected.leave()
        if weights is not None:
            weights.enter()
        self._selected = weights

    def hidden_states(
        self, tokens_BT: torch.Tensor, positions_BT: torch.Tensor, segments_BT: torch.Tensor
    ) -> torch.Tensor:
        """Return the last layer's output (B, T, H) of rows as `MicroBatch` describes them."""
        if self.recompute_above is not None:
            recompute_layers(self.model, is_on=tokens_BT.numel() > self.recompute_above)
        return self.model.base_model(
            input_ids=tokens_BT,
            position_ids=positions_BT,
            attention_mask=visible_ranges(segments_BT),
            use_cache=False,
        ).last_hidden_state

    def last_hidden_state(self, tokens_BT: torch.Tensor, cache: Any = None) -> torch.Tensor:
        """Return the last layer's output (B, H) at the end of `tokens_BT` (rows of one length), appended to `cache`."""
        past, length = cache.get_seq_length() if cache is not None else 0, tokens_BT.shape[1]
        is_seen_TT = torch.ones(length, past + length, dtype=torch.bool, device=self.device).tril(past)
        hidden_BTH = self.model.base_model(
            input_ids=tokens_BT,
            position_ids=torch.arange(past, past + length, device=self.device).expand(tokens_BT.shape),
            attention_mask=is_seen_TT.expand(len(tokens_BT), 1, -1, -1),
            past_key_values=cache,
            use_cache=cache is not None,
        ).last_hidden_state
        return hidden_BTH[:, -1]

    def token_logprobs(
        self, hidden_NH: torch.Tensor, targets_N: torch.Tensor, temperature: float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return log-probabilities of `targets_N` and entropies (N), nats, of the unembedding without an update."""
        return token_logprobs(
            hidden_NH,
            self.head_VH,
            targets_N,
            temperature=temperature,
            dtype=self.head_dtype,
            products=self.products,
        )

    def logits(self, hidden_NH: torch.Tensor) -> torch.Tensor:
        """Return fp32 logits (N, V) of the unembedding without an update."""
        return logits(hidden_NH, self.head_VH, self.head_dtype, self.products)
