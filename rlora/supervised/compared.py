"""The held-out examples that a run keeps in its folder, and how far a merged model is from the adapter on them."""

from array import array
from collections.abc import Sequence
from pathlib import Path

import torch

from rlora.errors import RunDirError
from rlora.system.files import write_atomically
from rlora.system.records import line_of, rows_in
from rlora.tasks.examples import Example
from rlora.train.batching import BatchConfig
from rlora.train.packing import pack, stack_packed
from rlora.train.policy import Policy

COMPARED_FILE = "held-out.jsonl"
_NUM_COMPARED = 64
_CHUNK_TOKENS = 128  # of which two policies' probabilities exist at once


def save_compared(run_dir: Path, examples: Sequence[Example]) -> None:
    """Keep the first held-out examples of a run."""
    rows = [
        {"id": each.id, "token_ids": list(each.token_ids), "is_trained": list(each.is_trained)}
        for each in examples[:_NUM_COMPARED]
    ]
    with write_atomically(run_dir / COMPARED_FILE) as path:
        path.write_text("".join(f"{line_of(row)}\n" for row in rows), encoding="utf-8")


def load_compared(run_dir: Path) -> list[Example]:
    """Return what `save_compared` kept; RunDirError where it is not there or was changed."""
    path = run_dir / COMPARED_FILE
    if not path.is_file():
        raise RunDirError(f"{path} is not there, and on its examples a merged model is compared with the adapter.")
    return [
        Example(id=row["id"], token_ids=array("i", row["token_ids"]), is_trained=bytes(row["is_trained"]))
        for row in rows_in(path, may_be_cut=False)[0]
    ]


@torch.no_grad()
def mean_exact_kl(reference: Policy, other: Policy, examples: Sequence[Example]) -> float:
    """Return the mean KL divergence, nats a trained token, of another policy from the reference: the sum over the
    vocabulary of p (ln p - ln q) where each trained token is predicted. Nothing is sampled.
    """
    total, count = 0.0, 0
    for rows in pack(examples, BatchConfig(tokens_per_row=0)):
        micro_batch = stack_packed(rows).to(reference.device)
        hidden = [policy.hidden_states(micro_batch) for policy in (reference, other)]
        for start in range(0, len(hidden[0]), _CHUNK_TOKENS):
            part = slice(start, start + _CHUNK_TOKENS)
            log_p_NV = reference.logits(hidden[0][part]).log_softmax(-1)
            log_q_NV = other.logits(hidden[1][part]).log_softmax(-1)
            total += float((log_p_NV.exp() * (log_p_NV - log_q_NV)).sum(-1).double().sum())
        count += len(hidden[0])
    return total / count
