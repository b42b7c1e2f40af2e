"""How many positions a micro-batch may hold: as configured, or measured from a memory budget; halved when memory runs
out.
"""

import gc
from collections.abc import Callable
from dataclasses import replace
from typing import Any, TypeVar

import torch

from rlora.errors import OutOfMemoryError
from rlora.lora.linear import forget_shared_inputs
from rlora.model.attention import BLOCK
from rlora.model.base import Base
from rlora.model.logprobs import chunk_tokens
from rlora.system.memory import give_back_freed_memory
from rlora.train.batch_memory import BLOCK_SCORES, LOGITS, BatchMemory, batch_memory
from rlora.train.batching import BatchConfig, MicroBatch, made_up_row, stack
from rlora.train.policy import Policy

T = TypeVar("T")
LEAST_TOKENS = 16  # below it a micro-batch is one completion anyway
_PROBED_TOKENS = 512  # positions of the row that is measured
_SIGNS = (  # in messages of PyTorch's allocator, C++, oneDNN (which says no more) and CUDA's libraries
    "can't allocate memory",
    "bad_alloc",
    "could not create a primitive",
    "could not create a memory",
    "out of memory",
    "ALLOC_FAILED",
)


class TokenBudget:
    """The positions of a micro-batch, `tokens`, which only shrink; part of the checkpoint, since rounding hangs on it.

    `say` is told when memory ran out.
    """

    def __init__(self, config: BatchConfig, say: Callable[[str], None] = print):
        """Start with what `config` says."""
        self._config, self.tokens, self.say = config, config.tokens_per_micro_batch, say

    def limits(self) -> BatchConfig:
        """Return how groups are cut now."""
        row = min(self._config.tokens_per_row, self.tokens)
        return replace(self._config, tokens_per_micro_batch=self.tokens, tokens_per_row=row)

    def halve(self, base: Base, reason: str) -> None:
        """Halve the tokens; longer rows, each a micro-batch by itself, have their layers computed again from now on.

        Raises OutOfMemoryError where micro-batches are as small as they get.
        """
        if self.tokens // 2 < LEAST_TOKENS:
            raise OutOfMemoryError(
                f"memory ran out with micro-batches of {self.tokens} tokens ({reason}), also with layers computed "
                "again. Go on in a branch (--branch NEW_DIR) with a lower --sampling.max-tokens or "
                "--sampler.kv-cache-gb (in supervised training: --max-tokens), or free memory and start the same "
                "command again."
            )
        self.say(
            f"Out of memory with micro-batches of {self.tokens} tokens ({reason}); going on with {self.tokens // 2}, "
            "longer rows with layers computed again."
        )
        self.tokens //= 2
        above = base.recompute_above
        base.recompute_above = self.tokens if above is None else min(above, self.tokens)
        gc.collect()
        give_back_freed_memory()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether PyTorch, on the CPU or a GPU, or Python failed to allocate: this error, or one that it came of."""
    found: BaseException | None = error
    while found is not None:
        if isinstance(found, MemoryError | torch.OutOfMemoryError) or any(sign in str(found) for sign in _SIGNS):
            return True
        found = found.__cause__ or found.__context__
    return False


def within_memory(budget: TokenBudget, policy: Policy, work: Callable[[BatchConfig], T]) -> tuple[T, int]:
    """Return what `work` makes with micro-batches that memory has room for, and how often it ran out before.

    Where it runs out, the work is done again with micro-batches half as large. Raises OutOfMemoryError where the
    smallest do not fit, and what `work` raises.
    """
    num_failures = 0
    while True:
        try:
            return work(budget.limits()), num_failures
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            reason = next(iter(str(error).splitlines()), type(error).__name__)  # Python's own say nothing
        num_failures += 1
        forget_shared_inputs(policy.model)
        budget.halve(policy.base, reason)


def measured_batch_memory(policy: Policy, *, row_tokens: int) -> tuple[BatchMemory, BatchMemory]:
    """Return what micro-batches with rows of up to `row_tokens` positions take, with layers kept and computed again.

    Measured is what the forward pass of one row saves for the backward pass, weights left out: a short row, since
    memory is linear in positions.
    """
    num_tokens, config = min(row_tokens, _PROBED_TOKENS), policy.model.config.get_text_config()
    length = max(1, num_tokens // 2)
    probe = stack([made_up_row(num_tokens - length, length + 1)]).to(policy.device)
    saved_by_layer = _saved_bytes(policy, probe) / probe.num_positions / config.num_hidden_layers
    score_block = min(BLOCK, row_tokens) if policy.base.has_materialised_scores else 0

    def memory(*, is_recomputed: bool) -> BatchMemory:
        return batch_memory(
            saved_by_layer,
            layers=config.num_hidden_layers,
            input_bytes=config.hidden_size * policy.dtype.itemsize,
            scores=BLOCK_SCORES * config.num_attention_heads * score_block * 4,
            logits=LOGITS * chunk_tokens(policy.device) * config.vocab_size * 4,
            is_recomputed=is_recomputed,
        )

    return memory(is_recomputed=False), memory(is_recomputed=True)


def _saved_bytes(policy: Policy, micro_batch: MicroBatch) -> int:
    weights = {tensor.untyped_storage().data_ptr() for tensor in policy.weights}
    saved: dict[int, int] = {}

    def note(tensor: torch.Tensor) -> Any:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        scores = policy.score(micro_batch)  # kept until here, so that no storage is used twice
    del scores
    return sum(saved.values())
