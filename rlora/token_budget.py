"""How many positions a micro-batch may hold: as configured, or measured from a memory budget; halved when memory runs
out.
"""

import gc
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from rlora.attention import BLOCK, mask_for
from rlora.batching import BatchConfig, MicroBatch, build_batch, made_up_row, stack
from rlora.errors import OutOfMemoryError
from rlora.logprobs import chunk_tokens
from rlora.lora.linear import forget_shared_inputs
from rlora.memory import give_back_freed_memory
from rlora.policy import Policy
from rlora.trainer import Trainer
from rlora.types import Group

LEAST_TOKENS = 16  # below it a micro-batch is one completion anyway
_KEPT = {"cpu": 1.0, "cuda": 1.3}  # times what the forward pass saves: on a GPU, what lies unused between counts
_TEMPORARIES = 5  # times what a layer saves: what its backward pass holds beside, or, computed again, in all
_SCORES = 5  # fp32 tensors of a block's scores that exist at once where they are materialised
_SIGNS = (  # in messages of PyTorch's allocator, C++, oneDNN (which says no more) and CUDA's libraries
    "can't allocate memory",
    "bad_alloc",
    "could not create a primitive",
    "could not create a memory",
    "out of memory",
    "ALLOC_FAILED",
)
_LOGITS = 4  # fp32 tensors of a chunk of logits that exist at once


class TokenBudget:
    """The positions of a micro-batch, `tokens`, which only shrink; part of the checkpoint, since rounding hangs on it.

    `say` is told when memory ran out.
    """

    def __init__(self, config: BatchConfig, tokens: int, say: Callable[[str], None] = print):
        """Start with `tokens`."""
        self._config, self.tokens, self.say = config, tokens, say

    def step(
        self, trainer: Trainer, groups: Sequence[Group], advantages_PG: Sequence[Sequence[float]], *, keep_all: bool
    ) -> dict[str, float]:
        """Cut the groups into a batch and train on it; after running out of memory again, with half the tokens.

        Returns the trainer's metrics. Raises OutOfMemoryError, with the policy as it was, when single completions do
        not fit.
        """
        num_failures = 0
        while True:
            batch = build_batch(groups, advantages_PG, self._cut(), version=trainer.policy.version, keep_all=keep_all)
            try:
                metrics = trainer.step(batch)
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                reason = next(iter(str(error).splitlines()), type(error).__name__)  # Python's own say nothing
            else:
                return metrics | {"batch/tokens_allowed": self.tokens, "batch/num_out_of_memory": num_failures}
            num_failures += 1
            forget_shared_inputs(trainer.policy.model)
            self._halve(reason)

    def _cut(self) -> BatchConfig:
        row = min(self._config.tokens_per_row, self.tokens)
        return replace(self._config, tokens_per_micro_batch=self.tokens, tokens_per_row=row)

    def _halve(self, reason: str) -> None:
        if self.tokens // 2 < LEAST_TOKENS:
            raise OutOfMemoryError(
                f"memory ran out with micro-batches of {self.tokens} tokens ({reason}). Add --batch.recompute to the "
                "same command, or go on in a branch (--branch NEW_DIR) with a lower --sampling.max-tokens or "
                "--sampler.kv-cache-gb."
            )
        self.say(
            f"Out of memory with micro-batches of {self.tokens} tokens ({reason}); going on with {self.tokens // 2}."
        )
        self.tokens //= 2
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


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchMemory:
    """What training a micro-batch takes beside the model, in bytes: something for each position, and for logits."""

    per_position: float
    logits: int
    row_tokens: int

    def of(self, tokens: int) -> int:
        """Return the bytes that a micro-batch of `tokens` positions takes."""
        return int(tokens * self.per_position) + self.logits

    def tokens(self, memory_gb: float) -> int:
        """Return how many positions fit into `memory_gb` GiB; OutOfMemoryError when not even one row does."""
        tokens = int((memory_gb * 2**30 - self.logits) / self.per_position)
        if tokens < self.row_tokens:
            raise OutOfMemoryError(
                f"there are {memory_gb * 1024:.4g} MiB for batches (--memory-budget, or on a GPU half of what is left "
                f"there); a row of {self.row_tokens} tokens of this model takes "
                f"{self.of(self.row_tokens) / 2**20:.4g}. Give more, or add --batch.recompute."
            )
        return tokens


def batch_memory(policy: Policy, *, row_tokens: int, recompute: bool) -> BatchMemory:
    """Measure what a micro-batch takes: what the forward pass of one row of `row_tokens` positions saves for the
    backward pass, weights left out.
    """
    probe, config = _probe(row_tokens).to(policy.device), policy.model.config
    saved = _saved_bytes(policy, probe) / row_tokens
    layers, hidden = config.num_hidden_layers, config.hidden_size
    kept = layers * hidden * policy.dtype.itemsize if recompute else _KEPT[policy.device.type] * saved
    per_position = kept + min(_TEMPORARIES, layers) * saved / layers
    if policy.device.type == "cpu" and mask_for(probe.segments_BT, policy.kernels, policy.dtype).is_floating_point():
        per_position += _SCORES * config.num_attention_heads * min(BLOCK, row_tokens) * 4
    logits = _LOGITS * chunk_tokens(policy.device) * config.vocab_size * 4
    return BatchMemory(per_position=per_position, logits=logits, row_tokens=row_tokens)


def _probe(num_tokens: int) -> MicroBatch:
    length = max(1, num_tokens // 2)
    return stack([made_up_row(num_tokens - length, length + 1)])


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
