"""Supervised examples -> a `Batch` of micro-batches: several examples a row, each of which sees itself alone.

Rows are filled first-fit, longest first. What sees whom is said by segments, as in sampled rows, but from 1 on, so that
there is no prompt that all see; places in an example count from 0. So a packed batch has the loss and the gradient of
one with an example a row.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from rlora.train.batching import Batch, BatchConfig, MicroBatch, cut


class TokenExample(Protocol):
    """Token ids, and for each whether it is trained (1 or 0); the first never is. `len` is the positions computed."""

    @property
    def token_ids(self) -> Sequence[int]:
        """The tokens."""
        ...

    @property
    def is_trained(self) -> bytes:
        """One byte a token."""
        ...

    @property
    def num_trained(self) -> int:
        """How many tokens are trained."""
        ...

    def __len__(self) -> int:
        """One less than the tokens: the last predicts nothing."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class PackedRow:
    """Examples that are computed in one row, one after the other."""

    examples: tuple[TokenExample, ...]

    def __len__(self) -> int:
        """Positions computed."""
        return sum(map(len, self.examples))


def pack(examples: Sequence[TokenExample], config: BatchConfig, *, squares: bool = False) -> list[list[PackedRow]]:
    """Return the rows of each micro-batch, whose examples fill up to `config.tokens_per_row` positions a row.

    An example that is longer is a row by itself. `squares` says that attention computes the square of a row whoever
    sees whom: rows are as long as the longest example then.
    """
    ranked = sorted(examples, key=len, reverse=True)
    limit = min(config.tokens_per_row, len(ranked[0])) if squares and ranked else config.tokens_per_row
    rows: list[list[TokenExample]] = []
    left: list[int] = []
    for example in ranked:
        index = next((index for index, room in enumerate(left) if room >= len(example)), None)
        if index is None:
            rows.append([example])
            left.append(limit - len(example))
        else:
            rows[index].append(example)
            left[index] -= len(example)
    packed = [PackedRow(examples=tuple(row)) for row in rows]
    return cut(sorted(packed, key=len, reverse=True), config.tokens_per_micro_batch)


def pack_batch(examples: Sequence[TokenExample], config: BatchConfig, *, version: int, squares: bool = False) -> Batch:
    """Return the batch of an update; the denominator of its loss are the trained tokens of all examples.

    Example:
        >>> pack_batch(examples, BatchConfig(tokens_per_row=1024), version=0).num_trained_tokens
        2048
    """
    parts = pack(examples, config, squares=squares)
    num_positions = sum(len(part) * len(part[0]) for part in parts)
    num_used = sum(map(len, examples))
    return Batch(
        micro_batches=tuple(stack_packed(part) for part in parts),
        num_trained_tokens=sum(example.num_trained for example in examples),
        version=version,
        num_positions=num_positions,
        num_padding=num_positions - num_used,
        num_unshared_positions=num_used,
        is_supervised=True,
    )


def stack_packed(rows: Sequence[PackedRow]) -> MicroBatch:
    """Return the micro-batch of `rows`, padded to the longest; its `completion_N` numbers the examples row by row."""
    shape = (len(rows), max(map(len, rows)))
    tokens_BT, positions_BT = torch.zeros(shape, dtype=torch.long), torch.zeros(shape, dtype=torch.long)
    segments_BT = torch.full(shape, -1)
    source, target, number = [], [], []
    count = 0
    for index, row in enumerate(rows):
        start = 0
        for segment, example in enumerate(row.examples, start=1):
            ids, length = torch.tensor(example.token_ids, dtype=torch.long), len(example)
            part = slice(start, start + length)
            tokens_BT[index, part] = ids[:-1]
            positions_BT[index, part] = torch.arange(length)
            segments_BT[index, part] = segment
            trained = torch.frombuffer(bytearray(example.is_trained[1:]), dtype=torch.uint8).nonzero().squeeze(1)
            source.append(trained + (index * shape[1] + start))
            target.append(ids[1:][trained])
            number.append(torch.full_like(trained, count))
            start, count = start + length, count + 1
    empty_N = torch.zeros(0)
    return MicroBatch(
        tokens_BT=tokens_BT,
        positions_BT=positions_BT,
        segments_BT=segments_BT,
        source_N=torch.cat(source),
        target_N=torch.cat(target),
        sampler_logprobs_N=empty_N,
        advantages_N=empty_N,
        completion_N=torch.cat(number),
    )
