"""The canary: tokens drawn after each swap from which the proof tells versions apart, and where it is best drawn."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from rlora.train.policy import Policy

CANARY_PROMPTS = 2
CANARY_LENGTH = 33  # whole blocks of the prompt cache and one token more: the samples share the blocks
CANARY_SAMPLES = 16
CERTAIN = 1e-4  # nats; a token drawn with less surprise may have the same bits under any version
_STARTS = 16  # places from which the canary is tried
_ROWS = 8  # of them that are computed at once


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Canary:
    """What was drawn (prompt, token, the sampler's log-probability), and the trainer's of every token (P, V)."""

    drawn: tuple[tuple[int, int, float], ...]
    trainer_logprobs_PV: torch.Tensor

    def pick(self, trainer_logprobs_PV: torch.Tensor | None) -> torch.Tensor:
        """Return, for each distinct drawn token, the log-probability by a trainer's table, or the sampler's (None)."""
        distinct = sorted(set(self.drawn))
        if trainer_logprobs_PV is None:
            return torch.tensor([logprob for _, _, logprob in distinct])
        return torch.stack([trainer_logprobs_PV[row, token] for row, token, _ in distinct])


@torch.no_grad()
def canary_prompts(
    policy: Policy, prompts: Sequence[Sequence[int]], *, longest: int | None = None
) -> list[tuple[int, ...]]:
    """Return `CANARY_PROMPTS` sequences of one length, after which the base is least certain of the next token.

    A prompt's end may leave no doubt ("What is 27 + 85?" is answered by repeating a 2), and a token without doubt tells
    no versions apart. So prompts are joined, and the sequences start where their ends have the highest mean entropy.
    """
    chains = []
    for first in range(min(CANARY_PROMPTS, len(prompts))):
        chains.append([token for prompt in [*prompts[first:], *prompts[:first]] for token in prompt])
    length = min(len(chains[0]), longest or CANARY_LENGTH, CANARY_LENGTH)
    starts = range(min(_STARTS, len(chains[0]) - length + 1))
    rows = [chain[start : start + length] for start in starts for chain in chains]
    entropies_B = []
    with policy.adapter_off():
        for part_BT in torch.tensor(rows, device=policy.device).split(_ROWS):
            log_p_BV = policy.next_token_logits(part_BT).log_softmax(-1)
            entropies_B.append(-(log_p_BV.exp() * log_p_BV).sum(-1))
    best = starts[int(torch.cat(entropies_B).view(len(starts), len(chains)).mean(1).argmax())]
    return [tuple(chain[best : best + length]) for chain in chains]
