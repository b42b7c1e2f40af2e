"""The trainer against a reference: Transformers' own forward pass on plain rows, and the loss written out by hand."""

import dataclasses
import math

import pytest
import torch
from support.engines import random_b
from support.policies import TOY_MODEL, make_policy
from support.rollouts import completion, group
from support.training import ADVANTAGES, SGD_LIKE, groups, groups_at
from torch.utils._python_dispatch import TorchDispatchMode

from rlora.errors import ConfigError, NonFiniteError, StaleBatchError
from rlora.lora.config import LoraConfig
from rlora.lora.flat import norm
from rlora.model.sources import ModelConfig
from rlora.train.batching import BatchConfig, build_batch
from rlora.train.losses import LOSSES, LossConfig
from rlora.train.optimizer import OptimizerConfig, learning_rate_at
from rlora.train.policy import Policy
from rlora.train.trainer import Trainer

pytestmark = pytest.mark.unit


def reference_gradient(policy, *, temperature: float) -> torch.Tensor:
    """Return the gradient of -sum(ratio x advantage) / tokens, each completion computed alone by Transformers."""
    policy.flat.zero_grad()
    policy.model.set_attn_implementation("eager")
    total = sum(len(r.completion.token_ids) for g in groups() for r in g.rollouts)
    for one, advantages in zip(groups(), ADVANTAGES, strict=True):
        for rollout, advantage in zip(one.rollouts, advantages, strict=True):
            prompt, answer = one.prompt.token_ids, rollout.completion.token_ids
            logits = policy.model(torch.tensor([prompt + answer])).logits[0, len(prompt) - 1 : -1] / temperature
            logprobs = logits.log_softmax(-1)[torch.arange(len(answer)), torch.tensor(answer)]
            ratio = (logprobs - torch.tensor(rollout.completion.logprobs)).exp()
            (-(ratio * advantage).sum() / total).backward()
    gradient = policy.flat.grad_D.clone()
    policy.model.set_attn_implementation("rlora")
    return gradient


@pytest.mark.parametrize("temperature", [1.0, 0.8])
@pytest.mark.parametrize(
    "batch",
    [
        BatchConfig(),
        BatchConfig(tokens_per_micro_batch=1),
        BatchConfig(tokens_per_row=0),
        BatchConfig(tokens_per_micro_batch=40, tokens_per_row=20),
    ],
)
def test_gradient_equals_the_reference_whatever_the_micro_batches_and_sharing(toy_dir, batch, temperature) -> None:
    policy = make_policy(toy_dir)
    expected = reference_gradient(policy, temperature=temperature)
    trainer = Trainer(policy, SGD_LIKE, LossConfig(), temperature=temperature)
    metrics = trainer.apply(build_batch(groups(), ADVANTAGES, batch, version=0))
    actual = policy.flat.grad_D
    assert float((actual - expected).norm() / expected.norm()) < 1e-5
    assert metrics["optimizer/grad_norm"] == pytest.approx(float(expected.norm()), rel=1e-4)


def test_dropping_groups_without_signal_is_exact(toy_dir) -> None:
    gradients = []
    for keep_all in (False, True):
        policy = make_policy(toy_dir)
        batch = build_batch(groups(), ADVANTAGES, BatchConfig(), version=0, keep_all=keep_all)
        Trainer(policy, SGD_LIKE, LossConfig()).apply(batch)
        gradients.append(policy.flat.grad_D)
    assert float((gradients[0] - gradients[1]).norm() / gradients[0].norm()) < 1e-5


def test_kl_term_pulls_towards_the_base(toy_dir) -> None:
    policy = make_policy(toy_dir, scale_b=0.1)
    zeros = [[0.0] * 3] * 3
    trainer = Trainer(policy, OptimizerConfig(learning_rate=3e-3), LossConfig(kl_coefficient=1.0))
    divergences = []
    for version in range(8):
        batch = build_batch(groups_at(version), zeros, BatchConfig(), version=version, keep_all=True)
        divergences.append(trainer.apply(batch)["loss/kl_to_base"])
    assert divergences[-1] < 0.7 * divergences[0]


def test_training_raises_the_probability_of_what_was_rewarded(toy_dir) -> None:
    policy = make_policy(toy_dir, scale_b=0.0)
    trainer = Trainer(policy, OptimizerConfig(learning_rate=1e-2), LossConfig(name="reinforce"))
    rewarded = [[1.0, 0.0, 0.0]] * 3
    before = trained_logprobs(policy)
    for version in range(10):
        trainer.apply(build_batch(groups_at(version), rewarded, BatchConfig(), version=version))
    assert float((trained_logprobs(policy) - before).mean()) > 0.5


def trained_logprobs(policy) -> torch.Tensor:
    batch = build_batch(groups(), [[1.0, 0.0, 0.0]] * 3, BatchConfig(), version=0)
    with torch.no_grad():
        return torch.cat([policy.score(part).logprobs_N for part in batch.micro_batches])


def test_several_updates_clip_against_the_first_version(toy_dir) -> None:
    policy = make_policy(toy_dir)
    config = OptimizerConfig(learning_rate=5e-2, updates_per_batch=4)
    trainer = Trainer(policy, config, LossConfig(name="ppo", clip_low=0.05, clip_high=0.05))
    metrics = trainer.apply(build_batch(groups(), ADVANTAGES, BatchConfig(), version=0))
    assert metrics["loss/clipped_share"] > 0.2  # the fourth update's ratios left the clip; the first's are all 1
    assert policy.version == 1
    first = Trainer(make_policy(toy_dir), OptimizerConfig(learning_rate=5e-2), LossConfig(name="ppo", clip_low=1.0))
    once = first.apply(build_batch(groups(), ADVANTAGES, BatchConfig(), version=0))
    assert metrics["agreement/kl_k3"] == pytest.approx(once["agreement/kl_k3"])


def test_empty_batch_makes_no_step_and_keeps_the_moments(toy_dir) -> None:
    policy = make_policy(toy_dir)
    trainer = Trainer(policy, OptimizerConfig(learning_rate=1e-2), LossConfig())
    trainer.apply(build_batch(groups(), ADVANTAGES, BatchConfig(), version=0))
    theta, before = policy.flat.theta_D.clone(), trainer.state()
    metrics = trainer.apply(build_batch(groups_at(1), [[0.0] * 3] * 3, BatchConfig(), version=1))
    assert metrics["optimizer/is_empty_batch"] == 1
    assert policy.version == 2
    assert torch.equal(policy.flat.theta_D, theta)
    after = trainer.state()
    assert before.num_updates == after.num_updates == 1
    assert torch.equal(after.first_moment_D, before.first_moment_D)
    assert torch.equal(after.second_moment_D, before.second_moment_D)
    assert float(after.first_moment_D.abs().max()) > 0


def test_non_finite_loss_is_an_error_and_leaves_the_policy(toy_dir) -> None:
    policy = make_policy(toy_dir)
    theta = policy.flat.theta_D.clone()
    broken = [group([3, 4], [completion([5, 6], logprob=-1e30), completion([7])], [1.0, 0.0])]
    with pytest.raises(NonFiniteError, match=r"at step 0 the loss is .*lower --optimizer.learning-rate"):
        Trainer(policy, SGD_LIKE, LossConfig()).apply(build_batch(broken, [[0.5, -0.5]], BatchConfig(), version=0))
    assert torch.equal(policy.flat.theta_D, theta)
    assert policy.version == 0


def test_batch_of_another_version_is_refused(toy_dir) -> None:
    trainer = Trainer(make_policy(toy_dir), SGD_LIKE, LossConfig())
    with pytest.raises(StaleBatchError, match="batch is of version 1, the policy of version 0"):
        trainer.apply(build_batch(groups_at(1), ADVANTAGES, BatchConfig(), version=1))


def test_gradient_is_clipped_to_the_norm(toy_dir) -> None:
    policy = make_policy(toy_dir)
    trainer = Trainer(policy, OptimizerConfig(learning_rate=1e-3, max_grad_norm=1e-3), LossConfig())
    metrics = trainer.apply(build_batch(groups(), ADVANTAGES, BatchConfig(), version=0))
    assert metrics["optimizer/grad_norm"] > 1e-3
    assert float(policy.flat.grad_D.norm()) == pytest.approx(1e-3, rel=1e-4)


def test_schedules() -> None:
    constant = OptimizerConfig(learning_rate=1.0)
    assert [learning_rate_at(constant, step) for step in (0, 5, 500)] == [1.0, 1.0, 1.0]
    linear = OptimizerConfig(learning_rate=1.0, schedule="linear", schedule_steps=10)
    assert [learning_rate_at(linear, step) for step in (0, 5, 10, 20)] == [1.0, 0.5, 0.0, 0.0]
    warm = OptimizerConfig(learning_rate=1.0, schedule="cosine", warmup_steps=4, schedule_steps=12)
    rates = [learning_rate_at(warm, step) for step in (0, 3, 4, 8, 12)]
    assert rates == pytest.approx([0.25, 1.0, 1.0, (1 + math.cos(math.pi / 2)) / 2, 0.0])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"learning_rate": -1e-4}, "optimizer.learning_rate is -0.0001; it must be above 0"),
        ({"learning_rate": math.nan}, "optimizer.learning_rate is nan"),
        ({"b_rate_ratio": 0.0}, "optimizer.b_rate_ratio is 0.0; it must be above 0"),
        ({"beta2": 1.0}, "both must be in"),
        ({"weight_decay": -1.0}, "must be at least 0"),
        ({"updates_per_batch": 0}, "updates_per_batch at least 1"),
    ],
)
def test_wrong_options_are_refused(options, message) -> None:
    with pytest.raises(ConfigError, match=message):
        OptimizerConfig(**options).check()


@pytest.mark.parametrize("is_full", [False, True])
def test_gradients_of_tokens_among_many_do_not_underflow_in_float16(toy_dir, is_full) -> None:
    """A token's share of the loss, 1 / 400,000, is among the smallest numbers that float16 has."""
    gradients = []
    for dtype in ("float32", "float16"):
        config = ModelConfig(name=TOY_MODEL.name, dtype=dtype, compile="off")
        policy = Policy.load(toy_dir, config, None if is_full else LoraConfig(rank=2), seed=0)
        if not is_full:
            random_b(policy, scale=0.01)
        batch = build_batch(groups(), ADVANTAGES, BatchConfig(), version=0)
        batch = dataclasses.replace(batch, num_trained_tokens=400_000)
        Trainer(policy, SGD_LIKE, LossConfig()).apply(batch)
        gradients.append(policy.flat.grad_D)
    exact, found = gradients
    assert (found - exact).norm() < 0.01 * exact.norm()


def test_norms_of_long_vectors_are_those_of_fp64() -> None:
    vector_D = torch.randn(5_000_000, generator=torch.Generator().manual_seed(0))
    exact = vector_D.double().norm()
    assert abs(norm(vector_D) / exact - 1) < 2e-6
    assert abs(vector_D[None].norm(dim=1) / exact - 1) > 1e-4  # of which PyTorch's own is not


class Waits(TorchDispatchMode):
    """Counts what waits for a GPU: numbers that Python asks for, and sizes that hang on them."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        aten = torch.ops.aten
        self.count += function.overloadpacket in (aten._local_scalar_dense, aten.nonzero, aten.bincount)
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("loss", LOSSES)
def test_a_micro_batch_asks_for_no_number(toy_dir, loss) -> None:
    """Each would let a GPU wait for Python and Python for the GPU."""
    counts = []
    for tokens in (1, 1000):
        trainer = Trainer(make_policy(toy_dir), SGD_LIKE, LossConfig(name=loss, kl_coefficient=0.1))
        config = BatchConfig(tokens_per_micro_batch=tokens, tokens_per_row=0 if tokens == 1 else 512)
        batch = build_batch(groups(), ADVANTAGES, config, version=0, keep_all=True)
        with Waits() as waits:
            metrics = trainer.apply(batch)
        counts.append((waits.count, metrics["batch/num_micro_batches"]))
    (many, num_many), (few, num_few) = counts
    assert num_many >= 3 * num_few
    assert many == few
