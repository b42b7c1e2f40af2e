"""Models with compiled kernels and without, and their gradients."""

import torch

from rlora.lora.config import LoraConfig
from rlora.model.sources import ModelConfig
from rlora.train.batching import build_batch
from rlora.train.losses import LossConfig
from rlora.train.policy import Policy
from rlora.train.trainer import Trainer
from support.engines import random_b
from support.training import ADVANTAGES, SGD_LIKE, groups

ON = ModelConfig(dtype="float32", compile="on")


OFF = ModelConfig(dtype="float32", compile="off")


def gradient_of(folder, config, rank, batch, temperature) -> torch.Tensor:
    policy = Policy.load(folder, config, LoraConfig(rank=rank), seed=0)
    random_b(policy, scale=0.01 * rank)
    trainer = Trainer(policy, SGD_LIKE, LossConfig(), temperature=temperature)
    trainer.apply(build_batch(groups(), ADVANTAGES, batch, version=0))
    return policy.flat.grad_D
