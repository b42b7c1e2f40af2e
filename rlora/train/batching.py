"""Groups and advantages -> a `Batch` of micro-batches: rows sorted by length, cut by a token budget, hardly padded.

A row is a prompt followed by several of its completions, which see the prompt and themselves (see attention.py): the
prompt is computed once for them all. A rollout whose advantage is zero has no gradient and is left out, but its tokens
stay in the denominator, so leaving it out is exact.
"""

from collections.abc import Sequence, Sized
from dataclasses import dataclass
from typing import TypeVar

import torch

from rlora.errors import ConfigError, StaleBatchError
from rlora.types import Completion, Group, Prompt, StopReason

R = TypeVar("R", bound=Sized)
MAX_PADDING_SHARE = 0.05  # of a micro-batch's positions


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchConfig:
    """How a step's rollouts are cut into micro-batches."""

    tokens_per_micro_batch: int = 2048
    """Positions computed at once, padding included; bounds the trainer's memory and changes nothing but rounding."""
    tokens_per_row: int = 512
    """Completions share one computation of their prompt up to this row length; attention costs its square. In
    supervised training examples share a row, and see themselves alone. 0 shares nothing.
    """
    recompute: bool = False
    """Keep only the input of each layer and compute the layer again in the backward pass: much less memory, a third
    more time. False does so for rows alone that would not fit into memory otherwise, and says so.
    """
    mask_truncated: bool = False
    """Leave completions that hit the token limit out of the loss; otherwise they are trained with their reward, 0."""

    def check(self) -> None:
        """Raise ConfigError for a value that breaks a rule."""
        if self.tokens_per_micro_batch < 1:
            raise ConfigError(f"batch.tokens_per_micro_batch is {self.tokens_per_micro_batch}; it must be at least 1.")
        if self.tokens_per_row < 0:
            raise ConfigError(f"batch.tokens_per_row is {self.tokens_per_row}; it must be at least 0.")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class MicroBatch:
    """Rows that are computed together, padded on the right, and the N tokens that are trained.

    `tokens_BT` are the inputs and `positions_BT` their places in prompt + completion; `segments_BT` is 0 in the prompt,
    c in the row's c-th completion and -1 in padding. Of a trained token, `source_N` is
    the index into the flattened (B, T) of the position that predicts it, `target_N` its id, `sampler_logprobs_N` and
    `advantages_N` what the loss needs, `completion_N` its completion, numbered within the micro-batch. Supervised rows
    (`rlora.train.packing`) have neither prompt nor completions: examples are segments 1, 2, ..., which `completion_N`
    numbers, and the two that the loss needs are empty.
    """

    tokens_BT: torch.Tensor
    positions_BT: torch.Tensor
    segments_BT: torch.Tensor
    source_N: torch.Tensor
    target_N: torch.Tensor
    sampler_logprobs_N: torch.Tensor
    advantages_N: torch.Tensor
    completion_N: torch.Tensor

    @property
    def num_positions(self) -> int:
        """Positions computed, padding included."""
        return self.tokens_BT.numel()

    def to(self, device: torch.device | str) -> "MicroBatch":
        """Return the micro-batch on `device`."""
        return MicroBatch(**{name: getattr(self, name).to(device) for name in self.__slots__})


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Batch:
    """A step's training data: micro-batches, the denominator, and the version of the policy that sampled it.

    `num_trained_tokens` counts the completion tokens of every sampled rollout, those left out for lack of signal
    included. `num_positions` and `num_padding` count what is computed; `num_unshared_positions` what would be
    if every completion had its prompt computed for itself. `completions` are those that are trained, in the order of
    their tokens in the micro-batches. A supervised batch has examples in place of rollouts.
    """

    micro_batches: tuple[MicroBatch, ...]
    num_trained_tokens: int
    version: int
    num_positions: int
    num_padding: int
    num_unshared_positions: int
    completions: tuple[Completion, ...] = ()
    is_supervised: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One prompt and the completions computed with it, each with its advantage."""

    prompt: tuple[int, ...]
    completions: tuple[Completion, ...]
    advantages: tuple[float, ...]

    def __len__(self) -> int:
        """Positions computed: a completion's last token predicts nothing."""
        return len(self.prompt) + sum(len(completion.token_ids) - 1 for completion in self.completions)


def build_batch(
    groups: Sequence[Group],
    advantages_PG: Sequence[Sequence[float]],
    config: BatchConfig,
    *,
    version: int,
    keep_all: bool = False,
) -> Batch:
    """Return the batch of a step; `keep_all` keeps rollouts without advantage, as a loss with a KL term needs.

    Raises StaleBatchError when a completion was sampled from another version than `version`.
    """
    rows: list[Row] = []
    num_trained = num_unshared = 0
    for group, advantages_G in zip(groups, advantages_PG, strict=True):
        kept: list[tuple[Completion, float]] = []
        for rollout, advantage in zip(group.rollouts, advantages_G, strict=True):
            completion = rollout.completion
            if completion.version != version:
                raise StaleBatchError(f"a completion of version {completion.version} in the batch of version {version}")
            if not completion.token_ids or (config.mask_truncated and completion.stop is StopReason.LENGTH):
                continue
            num_trained += len(completion.token_ids)
            if advantage != 0 or keep_all:
                kept.append((completion, advantage))
                num_unshared += len(group.prompt.token_ids) + len(completion.token_ids) - 1
        rows += share_prompt(group.prompt, kept, config.tokens_per_row)
    parts = cut(sorted(rows, key=len, reverse=True), config.tokens_per_micro_batch)
    num_positions = sum(len(part) * len(part[0]) for part in parts)
    return Batch(
        micro_batches=tuple(stack(part) for part in parts),
        num_trained_tokens=num_trained,
        version=version,
        num_positions=num_positions,
        num_padding=num_positions - sum(map(len, rows)),
        num_unshared_positions=num_unshared,
        completions=tuple(completion for part in parts for row in part for completion in row.completions),
    )


def share_prompt(prompt: Prompt, kept: Sequence[tuple[Completion, float]], limit: int) -> list[Row]:
    """Return rows that hold all completions of a prompt, as many a row as fit `limit` positions and at least one."""
    rows: list[Row] = []
    for completion, advantage in kept:
        alone = Row(prompt=prompt.token_ids, completions=(completion,), advantages=(advantage,))
        last = rows[-1] if rows else None
        if last and len(last) + len(completion.token_ids) <= limit:
            rows[-1] = Row(
                prompt=last.prompt,
                completions=(*last.completions, completion),
                advantages=(*last.advantages, advantage),
            )
        else:
            rows.append(alone)
    return rows


def cut(rows: Sequence[R], budget: int) -> list[list[R]]:
    """Cut rows, longest first, so that each part fits the budget (or is one row) and holds little padding."""
    parts: list[list[R]] = []
    used = 0
    for row in rows:
        if parts:
            positions = (len(parts[-1]) + 1) * len(parts[-1][0])
            if positions <= budget and positions - used - len(row) <= MAX_PADDING_SHARE * positions:
                parts[-1].append(row)
                used += len(row)
                continue
        parts.append([row])
        used = len(row)
    return parts


def stack(rows: Sequence[Row]) -> MicroBatch:
    """Return the micro-batch of `rows`, padded to the longest."""
    shape = (len(rows), max(map(len, rows)))
    tokens_BT, positions_BT = torch.zeros(shape, dtype=torch.long), torch.zeros(shape, dtype=torch.long)
    segments_BT = torch.full(shape, -1)
    source, target, logprobs, advantages, completion_index = [], [], [], [], []
    num_completions = 0
    for index, row in enumerate(rows):
        start = len(row.prompt)
        tokens_BT[index, :start] = torch.tensor(row.prompt)
        positions_BT[index, :start] = torch.arange(start)
        segments_BT[index, :start] = 0
        for number, (completion, advantage) in enumerate(zip(row.completions, row.advantages, strict=True), start=1):
            length = len(completion.token_ids)
            part = slice(start, start + length - 1)
            tokens_BT[index, part] = torch.tensor(completion.token_ids[:-1], dtype=torch.long)
            positions_BT[index, part] = torch.arange(len(row.prompt), len(row.prompt) + length - 1)
            segments_BT[index, part] = number
            base = index * shape[1]
            source += [base + len(row.prompt) - 1, *range(base + start, base + start + length - 1)]
            target += completion.token_ids
            logprobs += completion.logprobs
            advantages += [advantage] * length
            completion_index += [num_completions] * length
            start += length - 1
            num_completions += 1
    return MicroBatch(
        tokens_BT=tokens_BT,
        positions_BT=positions_BT,
        segments_BT=segments_BT,
        source_N=torch.tensor(source),
        target_N=torch.tensor(target),
        sampler_logprobs_N=torch.tensor(logprobs),
        advantages_N=torch.tensor(advantages),
        completion_N=torch.tensor(completion_index),
    )


def made_up_row(num_prompt_tokens: int, num_completion_tokens: int, *, num_completions: int = 1) -> Row:
    """Return a row of these sizes with nothing in it, to measure or to warm up with."""
    completion = Completion(
        token_ids=(0,) * num_completion_tokens,
        logprobs=(0.0,) * num_completion_tokens,
        text="",
        stop=StopReason.END,
        policy=0,
        version=0,
    )
    return Row(
        prompt=(0,) * num_prompt_tokens,
        completions=(completion,) * num_completions,
        advantages=(1.0,) * num_completions,
    )
