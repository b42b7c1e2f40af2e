"""What training a micro-batch takes beside the model, in bytes: on paper, from a model's sizes.

Memory is linear in positions. What the forward pass of a decoder layer saves for the backward pass is added up from the
shapes of the tensors that autograd holds (`saved_by_layer`); the peak is reached either while logits exist, with
everything saved, or in the backward pass of a layer. Compared with measured peaks in tests/test_memory_plan.py and with
the one point that was measured on a GPU (docs/gpu.md).
"""

from dataclasses import dataclass
from typing import Any

BLOCK_SCORES = 5  # fp32 tensors of a block's scores that exist at once where attention materialises them
LOGITS = 4  # fp32 tensors of a chunk of logits that exist at once
# A layer's backward pass, in times of what it saves: what it holds beside that, all of it or at its attention, which
# comes when half of the layer is done.
_BESIDE, _BESIDE_AT_ATTENTION = 2.0, 0.4
_RECOMPUTED, _RECOMPUTED_AT_ATTENTION = 3.0, 1.4  # and where the layer's own is computed again in the backward pass


@dataclass(frozen=True, slots=True, kw_only=True)
class DecoderSizes:
    """The sizes of a decoder of the Llama kind, from its config.json.

    `inner` counts the neurons of all experts that a token passes through; `query` and `key` are heads times head size.

    Example: Qwen3-1.7B has layers 28, hidden 2048, inner 6144, heads 16, query 2048, key 1024, vocabulary 151,936 and
    norms on queries and keys.
    """

    layers: int
    hidden: int
    inner: int
    heads: int
    query: int
    key: int
    vocabulary: int
    has_query_norms: bool

    @classmethod
    def of(cls, config: Any) -> "DecoderSizes":
        """Return the sizes that a Transformers configuration names."""
        config = config.get_text_config()
        heads = config.num_attention_heads
        size = getattr(config, "head_dim", None) or config.hidden_size // heads
        key_heads = getattr(config, "num_key_value_heads", None) or heads
        per_expert = getattr(config, "moe_intermediate_size", None)
        if per_expert is None:
            inner = getattr(config, "intermediate_size", 4 * config.hidden_size)
            inner *= getattr(config, "num_experts_per_tok", 1) or 1
        else:
            inner = per_expert * config.num_experts_per_tok
        return cls(
            layers=config.num_hidden_layers,
            hidden=config.hidden_size,
            inner=inner,
            heads=heads,
            query=heads * size,
            key=key_heads * size,
            vocabulary=config.vocab_size,
            has_query_norms=config.model_type.startswith(("qwen3", "olmo2", "gemma3")),
        )

    def cache_bytes(self, itemsize: int) -> int:
        """Return the bytes that a token takes in a server's cache of keys and values."""
        return 2 * self.layers * self.key * itemsize

    def saved_by_layer(self, itemsize: int, *, is_compiled: bool) -> int:
        """Return the bytes a position that a layer with low-rank updates saves for its backward pass.

        Plain modules keep fp32 copies of what a norm is given and four tensors of the gated layer; compiled ones keep
        inputs as they are and three (rlora/kernels/install.py). Kept besides: the inputs of the adapted layers, and
        queries, keys, values and outputs of attention.
        """
        normed = 2 * self.hidden + ((self.query + self.key) if self.has_query_norms else 0)
        norms = normed * (itemsize if is_compiled else 4)
        inputs = 2 * self.hidden
        attention = self.query + 2 * self.key + self.query
        gated = (3 if is_compiled else 4) * self.inner
        return norms + itemsize * (inputs + attention + gated)


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchMemory:
    """Bytes that a micro-batch takes: `kept` a position from its forward to its backward pass, and beside that the
    larger of `logits`, those of a chunk of tokens, and `temporary` a position while a layer is differentiated.
    """

    kept: float
    temporary: float
    logits: int

    def of(self, positions: int) -> int:
        """Return the bytes at the peak of a micro-batch of so many positions."""
        return int(positions * self.kept + max(positions * self.temporary, self.logits))

    def positions(self, num_bytes: float) -> int:
        """Return how many positions fit into `num_bytes`; 0 when not even the logits do."""
        while_logits = (num_bytes - self.logits) / self.kept
        return max(0, int(min(while_logits, num_bytes / (self.kept + self.temporary))))


def batch_memory(
    saved_by_layer: float, *, layers: int, input_bytes: int, scores: int, logits: int, is_recomputed: bool
) -> BatchMemory:
    """Return what a micro-batch takes whose layers save `saved_by_layer` bytes a position.

    `input_bytes` is a position's hidden state, all that a layer keeps which is computed again; `scores` what a position
    takes in scores of attention that are materialised.
    """
    beside, at_attention = (_RECOMPUTED, _RECOMPUTED_AT_ATTENTION) if is_recomputed else (_BESIDE, _BESIDE_AT_ATTENTION)
    beside, at_attention = (min(times, layers) for times in (beside, at_attention))
    return BatchMemory(
        kept=layers * (input_bytes if is_recomputed else saved_by_layer),
        temporary=max(beside * saved_by_layer, at_attention * saved_by_layer + scores),
        logits=logits,
    )


def expected_batch_memory(
    sizes: DecoderSizes, *, itemsize: int, chunk_tokens: int, score_block: int, is_compiled: bool, is_recomputed: bool
) -> BatchMemory:
    """Return what a micro-batch of a model of these sizes takes, on paper.

    `chunk_tokens` have their logits at once, `score_block` queries their scores (0: none are materialised).
    """
    return batch_memory(
        sizes.saved_by_layer(itemsize, is_compiled=is_compiled),
        layers=sizes.layers,
        input_bytes=sizes.hidden * itemsize,
        scores=BLOCK_SCORES * sizes.heads * score_block * 4,
        logits=LOGITS * chunk_tokens * sizes.vocabulary * 4,
        is_recomputed=is_recomputed,
    )
