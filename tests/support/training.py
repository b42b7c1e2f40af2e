"""Groups, advantages and options for single updates."""

import dataclasses

import torch

from rlora.train.optimizer import OptimizerConfig
from support.rollouts import completion, group

SGD_LIKE = OptimizerConfig(learning_rate=1e-3, max_grad_norm=0.0)


def groups(seed: int = 0):
    random = torch.Generator().manual_seed(seed)

    def tokens(count: int) -> list[int]:
        return torch.randint(2, 50, (count,), generator=random).tolist()

    shapes = [(6, [4, 9, 1]), (11, [3, 3, 12]), (5, [8, 2, 2])]
    return [
        group(tokens(prompt), [completion(tokens(length), logprob=-3.0) for length in lengths], [1.0, 0.0, 0.0])
        for prompt, lengths in shapes
    ]


ADVANTAGES = [[0.7, -0.3, -0.4], [0.5, 0.0, -0.5], [0.0, 0.0, 0.0]]


def groups_at(version: int):
    def renew(rollout):
        return dataclasses.replace(rollout, completion=dataclasses.replace(rollout.completion, version=version))

    return [dataclasses.replace(one, rollouts=tuple(renew(r) for r in one.rollouts)) for one in groups()]
