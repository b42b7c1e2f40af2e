"""What is known of each token of a step's rollouts, beside the rollouts: `rollouts/step-000012.tokens`.

The rollouts say what was sampled; this file says what the trainer made of it, so that a reader sees in which words
trainer and sampler differ, and which tokens were trained. It is a safetensors file of five tensors, 5 bytes a token.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load as tensors_of
from safetensors.numpy import save as bytes_of

from rlora.errors import RunDirError
from rlora.model.tokens import SPELLING_UNKNOWN
from rlora.train.token_log import TrainedTokens
from rlora.types import Group


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TokenValues:
    """The C rollouts of a step in order, and their N tokens one after the other.

    `num_tokens_C` (int32) and `advantages_C` (float32) are a rollout's; `num_bytes_N` (uint8) is how many bytes of the
    text, in UTF-8, a token spells; `difference_N` is ln p - ln q, trainer's less sampler's, and `entropy_N` the
    trainer's, both in nats, float16, and not a number where a token was not trained.
    """

    num_tokens_C: np.ndarray
    advantages_C: np.ndarray
    num_bytes_N: np.ndarray
    difference_N: np.ndarray
    entropy_N: np.ndarray

    @classmethod
    def of(
        cls,
        groups: Sequence[Group],
        advantages_PG: Sequence[Sequence[float]],
        trained: TrainedTokens,
        num_bytes_V: np.ndarray,
    ) -> "TokenValues":
        """Return the values of a step's groups, of which `trained` were; `num_bytes_V` is the vocabulary's."""
        completions = [rollout.completion for group in groups for rollout in group.rollouts]
        num_tokens_C = np.array([len(completion.token_ids) for completion in completions], dtype=np.int32)
        ids_N = np.array([token for completion in completions for token in completion.token_ids], dtype=np.int64)
        difference_N, entropy_N = (np.full(len(ids_N), np.nan, dtype=np.float16) for _ in range(2))
        starts = np.concatenate([[0], np.cumsum(num_tokens_C)])
        place = {id(completion): int(start) for completion, start in zip(completions, starts[:-1], strict=True)}
        gaps = (trained.trainer_logprobs_N - trained.sampler_logprobs_N).float().numpy()
        entropies, done = trained.entropies_N.float().numpy(), 0
        for completion in trained.completions:
            here, count = place[id(completion)], len(completion.token_ids)
            difference_N[here : here + count] = gaps[done : done + count]
            entropy_N[here : here + count] = entropies[done : done + count]
            done += count
        is_known_N = ids_N < len(num_bytes_V)
        num_bytes_N = np.where(is_known_N, num_bytes_V[np.where(is_known_N, ids_N, 0)], SPELLING_UNKNOWN)
        return cls(
            num_tokens_C=num_tokens_C,
            advantages_C=np.array([value for row in advantages_PG for value in row], dtype=np.float32),
            num_bytes_N=num_bytes_N.astype(np.uint8),
            difference_N=difference_N,
            entropy_N=entropy_N,
        )

    def to_bytes(self) -> bytes:
        """Return the file's content."""
        return bytes_of({name: getattr(self, name) for name in self.__slots__})


def read_token_values(path: Path) -> TokenValues:
    """Return the values in a file; RunDirError where it holds something else, or tensors that do not fit together."""
    kinds = {"num_tokens_C": "i4", "advantages_C": "f4", "num_bytes_N": "u1", "difference_N": "f2", "entropy_N": "f2"}
    try:
        tensors: dict[str, Any] = tensors_of(path.read_bytes())
    except (OSError, SafetensorError) as error:
        raise RunDirError(f"{path} cannot be read: {error}. Remove it: it is shown, and nothing else.") from error
    found = {name: tensors[name].dtype.str[1:] for name in sorted(tensors) if tensors[name].ndim == 1}
    if found != dict(sorted(kinds.items())):
        raise RunDirError(f"{path} holds other tensors than a step's token values. Remove it.")
    values = TokenValues(**tensors)
    num_tokens = int(values.num_tokens_C.sum())
    is_whole = len(values.advantages_C) == len(values.num_tokens_C) and all(
        len(getattr(values, name)) == num_tokens for name in kinds if name.endswith("_N")
    )
    if not is_whole or (values.num_tokens_C < 0).any():
        raise RunDirError(f"{path} holds tensors that do not fit together. Remove it.")
    return values
