"""What memory a cohort takes, said before anything is loaded; each figure was measured (docs/cohorts.md)."""

from collections.abc import Sequence
from dataclasses import dataclass

from rlora.lora.inject import num_parameters
from rlora.model.sources import DTYPES, config_dir, empty_model, num_weights
from rlora.run_config import RunConfig
from rlora.train.card import GIB
from rlora.train.memory_plan import SEQUENCES

_RUNTIME = {"vllm": 0.75e9, "torch": 0.6e9}  # bytes of Python, PyTorch and the engine without a model
_TRAINED = 16  # bytes of a number: vector, gradient and AdamW's two moments
_COPIES = 3 * 4  # the versions that are served, that were before, and that a checkpoint is written from, fp32
_SERVED = 3 * 2  # in the engine's slot and in its cache of adapters, 16-bit
_TABLES = 3 * 2 * 4  # bytes of a token of the vocabulary: log-probabilities of three versions after two canary prompts
_ROW = 112  # bytes of a token of the vocabulary for each completion that the engine generates at once
_WRITER = 24e6  # bytes of the process that writes a member's rollouts


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """Bytes that a cohort takes: `shared` by all its members, and `members` for each of them."""

    shared: float
    members: Sequence[float]

    @property
    def total(self) -> float:
        """All of it."""
        return self.shared + sum(self.members)

    def summary(self) -> str:
        """Return it as a line."""
        each = f"{min(self.members) / 1e6:.0f} MB"
        if max(self.members) > 1.05 * min(self.members):
            each += f" to {max(self.members) / 1e6:.0f} MB"
        return (
            f"Memory, calculated: {self.total / 1e9:.2f} GB: {self.shared / 1e9:.2f} GB for base, engine and a "
            f"micro-batch, and {each} for each of {len(self.members)} members."
        )


def estimate(configs: Sequence[RunConfig]) -> Estimate:
    """Return what members of these configurations take together on a CPU, with their own process alone."""
    first = configs[0]
    model = empty_model(config_dir(first.model), first.model)
    shape = model.config.get_text_config()
    itemsize, kind = DTYPES[first.model.dtype].itemsize, first.sampler.resolved_kind
    weights = num_weights(model) * itemsize
    vocabulary, hidden, layers = shape.vocab_size, shape.hidden_size, shape.num_hidden_layers
    tokens = max(config.batch.tokens_per_micro_batch for config in configs)
    activations = tokens * layers * hidden * itemsize * 34 + tokens * vocabulary * 4 * 0.25
    cache = first.sampler.kv_cache_gb * GIB if kind == "vllm" else 0.0
    members = [
        num_parameters(model, config.lora) * (_TRAINED + _COPIES + _SERVED) + vocabulary * _TABLES + _WRITER
        for config in configs
    ]
    asked = sum(config.problems_per_step * config.samples_per_problem for config in configs)
    rows = min(asked, first.sampler.max_num_seqs or SEQUENCES) if kind == "vllm" else 0
    shared = _RUNTIME.get(kind, 1e9) + 2 * weights + cache + activations + rows * vocabulary * _ROW
    return Estimate(shared=shared, members=members)
