"""Several policies on one base: each is, bit for bit, what it would be on a base of its own."""

import pytest
import torch
from support.engines import random_b
from support.mixtures import make_mixture
from support.training import ADVANTAGES, groups_at

from rlora.lora.config import LoraConfig
from rlora.lora.low_rank import LowRank
from rlora.model.base import Base
from rlora.model.sources import ModelConfig
from rlora.train.batching import BatchConfig, build_batch
from rlora.train.losses import LossConfig
from rlora.train.optimizer import OptimizerConfig
from rlora.train.policy import Policy
from rlora.train.trainer import Trainer

pytestmark = pytest.mark.unit
MODEL = ModelConfig(name="m", dtype="float32", compile="off")
UNEQUAL = [
    LoraConfig(rank=1),
    LoraConfig(rank=4, alpha=8.0),
    LoraConfig(rank=2, layers="attention"),
    LoraConfig(rank=2, layers="mlp"),
    LoraConfig(rank=2, layers="all+unembedding"),
    LoraConfig(rank=2, variant="pissa"),
]


def trained(policies: list[Policy], num_steps: int = 3) -> list[tuple[torch.Tensor, list[dict[str, float]]]]:
    """Train policies by turns, step after step, and return each one's numbers and metrics."""
    trainers = []
    for index, policy in enumerate(policies):
        random_b(policy, scale=0.02, seed=index)
        optimizer = OptimizerConfig(learning_rate=1e-2 * (index + 1))
        trainers.append(Trainer(policy, optimizer, LossConfig(kl_coefficient=0.1 * index)))
    metrics = [[] for _ in policies]
    for step in range(num_steps):
        for index, trainer in enumerate(trainers):
            batch = build_batch(groups_at(step), ADVANTAGES, BatchConfig(), version=step, keep_all=True)
            metrics[index].append(trainer.apply(batch))
    return [(policy.flat.theta_D, rows) for policy, rows in zip(policies, metrics, strict=True)]


@pytest.mark.parametrize("model", [MODEL, ModelConfig(name="m", dtype="bfloat16", compile="on")], ids=["fp32", "bf16"])
def test_policies_of_unequal_shape_trained_by_turns_equal_policies_alone(toy_dir, model) -> None:
    base = Base.load(toy_dir, model)
    together = trained([Policy(base, LowRank(base, lora, seed=seed)) for seed, lora in enumerate(UNEQUAL)])
    alone_bases = [Base.load(toy_dir, model) for _ in UNEQUAL]
    policies = [Policy(own, LowRank(own, UNEQUAL[seed], seed=seed)) for seed, own in enumerate(alone_bases)]
    alone = trained(policies)
    for (theta_D, rows), (own_D, own_rows) in zip(together, alone, strict=True):
        assert torch.equal(theta_D, own_D)
        assert rows == own_rows
    norms = {float(theta_D.norm()) for theta_D, _ in together}
    assert len(norms) == len(UNEQUAL)


def test_policies_on_experts_share_the_wrapped_experts(tmp_path) -> None:
    folder = make_mixture(tmp_path / "mixture", "qwen3_moe")
    base, own = Base.load(folder, MODEL), Base.load(folder, MODEL)
    first, second = (Policy(base, LowRank(base, LoraConfig(rank=rank), seed=rank)) for rank in (2, 4))
    random_b(first, scale=0.1, seed=1)
    random_b(second, scale=0.1, seed=2)
    alone = Policy(own, LowRank(own, LoraConfig(rank=4), seed=4))
    random_b(alone, scale=0.1, seed=2)
    tokens = torch.tensor([[5, 6, 7, 8]])
    with torch.no_grad():
        seen = [policy.next_token_logits(tokens) for policy in (second, first, second, alone)]
        with first.adapter_off():
            base_seen = first.next_token_logits(tokens)
    assert torch.equal(seen[0], seen[2])
    assert torch.equal(seen[2], seen[3])
    assert not torch.equal(seen[1], seen[3])
    assert torch.equal(base_seen, Policy(own, LowRank(own, LoraConfig(rank=1), seed=0)).next_token_logits(tokens))


def test_layers_computed_again_in_the_backward_pass_are_the_same_policys(toy_dir) -> None:
    """The base is scored between forward and backward pass: what is computed again must be the policy, not the base."""
    gradients = []
    for above in (None, 0):
        base = Base.load(toy_dir, MODEL)
        base.recompute_above = above
        policies = [Policy(base, LowRank(base, LoraConfig(rank=rank), seed=rank)) for rank in (1, 2)]
        gradients.append([theta_D for theta_D, _ in trained(policies, num_steps=1)])
    for kept, again in zip(*gradients, strict=True):
        torch.testing.assert_close(again, kept, rtol=1e-6, atol=1e-7)
