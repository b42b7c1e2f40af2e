"""Rates: LoRA+, the invariance of the parametrisation, and what is recommended."""

import pytest
import torch
from support.policies import make_policy
from support.training import ADVANTAGES, groups, groups_at

from rlora.lora.config import LoraConfig
from rlora.lora.learning_rate import recommend
from rlora.train.batching import BatchConfig, build_batch
from rlora.train.losses import LossConfig
from rlora.train.optimizer import OptimizerConfig
from rlora.train.policy import Policy
from rlora.train.trainer import Trainer

pytestmark = pytest.mark.unit


def trajectory(toy_dir, *, p: float, q: float, scale_b: float, epsilon: float, num_steps: int = 4) -> list[dict]:
    """Return A / p and B / q after each update of the policy with alpha / (p q), p A, q B, and rates p and q times."""
    policy = make_policy(toy_dir, lora=LoraConfig(rank=2, alpha=32 / (p * q)), scale_b=scale_b)
    for name, parameter in policy.flat.parameters.items():
        parameter.data.mul_(p if name.endswith("lora_A") else q)
    config = OptimizerConfig(learning_rate=2e-3 * p, b_rate_ratio=q / p, epsilon=epsilon, max_grad_norm=0.0)
    trainer, found = Trainer(policy, config, LossConfig()), []
    for version in range(num_steps):
        metrics = trainer.apply(build_batch(groups_at(version), ADVANTAGES, BatchConfig(), version=version))
        assert metrics["optimizer/step_size"] == pytest.approx(32 * 2e-3 / p)  # alpha x init_A x rate of B is invariant
        tensors = policy.flat.tensors()
        found.append({name: tensor / (p if name.endswith("lora_A") else q) for name, tensor in tensors.items()})
    return found


@pytest.mark.parametrize(("scale_b", "epsilon"), [(0.05, 0.0), (0.0, 1e-30)])  # from B = 0 the first gradient of A is 0
@pytest.mark.parametrize(("p", "q"), [(2.0, 1.0), (1.0, 8.0), (0.25, 16.0), (4.0, 0.5)])
def test_two_parametrisations_have_the_same_trajectory_bit_for_bit(toy_dir, p, q, scale_b, epsilon) -> None:
    """The invariance of "LoRA Without Regret": p and q are powers of two, so that nothing is rounded differently."""
    plain = trajectory(toy_dir, p=1.0, q=1.0, scale_b=scale_b, epsilon=epsilon)
    other = trajectory(toy_dir, p=p, q=q, scale_b=scale_b, epsilon=epsilon)
    for one, two in zip(plain, other, strict=True):
        assert all(torch.equal(tensor, two[name]) for name, tensor in one.items())
    moved = [float((plain[-1][name] - plain[0][name]).abs().max()) for name in plain[0]]
    assert min(moved) > 1e-3


def test_the_first_update_moves_a_by_the_rate_and_b_by_the_ratio_times_it(toy_dir) -> None:
    policy = make_policy(toy_dir)
    before = policy.flat.tensors()
    trainer = Trainer(policy, OptimizerConfig(learning_rate=1e-3, b_rate_ratio=16.0, max_grad_norm=0.0), LossConfig())
    metrics = trainer.apply(build_batch(groups(), ADVANTAGES, BatchConfig(), version=0))
    assert metrics["optimizer/learning_rate"] == 1e-3
    assert metrics["optimizer/step_size"] == pytest.approx(32 * 16e-3)
    for name, tensor in policy.flat.tensors().items():
        moved = float((tensor - before[name]).abs().median())  # Adam's first step is the rate, for every number
        assert moved == pytest.approx(16e-3 if name.endswith("lora_B") else 1e-3, rel=1e-2), name


def test_the_state_is_that_of_the_whole_vectors_and_goes_on_exactly(toy_dir) -> None:
    def trained(versions: range, ratio: float, start: dict | None = None) -> tuple[Policy, Trainer]:
        policy = make_policy(toy_dir)
        trainer = Trainer(policy, OptimizerConfig(learning_rate=1e-3, b_rate_ratio=ratio), LossConfig())
        if start is not None:
            trainer.restore(**start)
        for version in versions:
            trainer.apply(build_batch(groups_at(version), ADVANTAGES, BatchConfig(), version=version))
        return policy, trainer

    half, trainer = trained(range(2), 4.0)
    state = trainer.state()
    assert state.num_updates == 2
    assert state.first_moment_D.shape == half.flat.theta_D.shape
    plain = trained(range(1), 1.0)[1].state()
    assert torch.equal(trained(range(1), 4.0)[1].state().first_moment_D, plain.first_moment_D)
    start = {"slots": half.flat.slots, "theta_D": half.flat.theta_D.clone(), "optimizer": state, "version": 2}
    resumed, straight = trained(range(2, 4), 4.0, start), trained(range(4), 4.0)
    assert torch.equal(resumed[0].flat.theta_D, straight[0].flat.theta_D)
    for name in ("first_moment_D", "second_moment_D"):
        assert torch.equal(getattr(resumed[1].state(), name), getattr(straight[1].state(), name))


def advice(name: str, model_type: str, hidden_size: int, **options):
    return recommend(model_name=name, model_type=model_type, hidden_size=hidden_size, **options)


@pytest.mark.parametrize(
    ("options", "low", "rate", "high"),
    [
        ({"name": "bundled", "model_type": "llama", "hidden_size": 576}, 1.5e-4, 6e-4, 1e-3),
        ({"name": "Qwen/Qwen3-1.7B-Base", "model_type": "qwen3", "hidden_size": 2048}, 2e-5, 6e-5, 2e-4),
        (
            {"name": "models/Qwen3-1.7B/", "model_type": "qwen3", "hidden_size": 2048, "method": "full"},
            9e-6,
            2e-5,
            2.5e-5,
        ),
    ],
)
def test_a_measured_model_gets_its_own_window(options, low, rate, high) -> None:
    found = advice(**options)
    assert found.is_measured
    assert (found.low, found.rate, found.high) == pytest.approx((low, rate, high))
    assert "measured: " in found.source


def test_other_models_get_the_window_scaled_by_the_fitted_rule() -> None:
    llama = advice("meta-llama/Llama-3.1-8B", "llama", 4096)
    assert not llama.is_measured
    assert llama.rate == pytest.approx(6e-5 * 0.5**0.781)
    assert (llama.low, llama.high) == pytest.approx((2e-5 * 0.5**0.781, 2e-4 * 0.5**0.781))
    qwen = advice("Qwen/Qwen3-8B", "qwen3", 4096, method="full")
    assert (qwen.low, qwen.rate) == pytest.approx((9e-6 * 0.5**0.0775, 2e-5 * 0.5**0.0775))
    other = advice("allenai/OLMo-2-7B", "olmo2", 4096)
    assert other.low == pytest.approx(llama.low)
    assert other.high == pytest.approx(2e-4 * 0.5**0.0775)
    assert llama.rate < other.rate < qwen.rate * 10
    assert "both Llama's and Qwen's" in other.source


def test_long_runs_start_lower_and_rank_moves_nothing() -> None:
    short, long = (advice("x", "llama", 4096, num_steps=steps) for steps in (99, 100))
    assert long.rate == pytest.approx(short.rate * 10 / 15)
    assert long.high == short.high
    assert advice("x", "llama", 4096, rank=512) == advice("x", "llama", 4096)
    full = advice("x", "llama", 4096, method="full", num_steps=1000)
    assert full == advice("x", "llama", 4096, method="full", alpha=1.0)


@pytest.mark.parametrize(
    ("name", "model_type", "hidden_size", "rate", "num_steps"),
    [
        ("meta-llama/Llama-3.1-8B", "llama", 4096, 4e-5, 15),  # GSM8K, rank 32
        ("meta-llama/Llama-3.1-8B-Instruct", "llama", 4096, 8e-5, 220),
        ("Qwen/Qwen3-8B", "qwen3", 4096, 8e-5, 20),  # MATH, rank 32
        ("Qwen/Qwen3-1.7B", "qwen3", 2048, 8e-5, 50),  # MATH, rank 1
    ],
)
def test_rates_of_public_runs_that_learned_lie_in_the_window(name, model_type, hidden_size, rate, num_steps) -> None:
    assert advice(name, model_type, hidden_size, num_steps=num_steps).warning(rate) is None


def test_both_units_are_told_and_alpha_x_rate_stays() -> None:
    plain, other = (advice("bundled", "llama", 576, alpha=alpha) for alpha in (32.0, 8.0))
    assert other.rate == pytest.approx(4 * plain.rate)
    assert "6.0e-04 (alpha x rate 1.9e-02), window 1.5e-04 to 1.0e-03 (4.8e-03 to 3.2e-02)" in str(plain)
    assert "2.4e-03 (alpha x rate 1.9e-02)" in str(other)
    assert plain.warning(1.5e-4) is None
    assert "1.4e-04 is below the known window, 1.5e-04 to 1.0e-03, so little may be learned" in str(
        plain.warning(1.4e-4)
    )
    assert "is above the known window" in str(plain.warning(1.1e-3))


def test_no_rate_is_advised_at_which_the_log_has_a_collapse() -> None:
    for num_steps in (50, 120):
        for data in ("gsm8k", "math", "jsonl"):
            found = advice("bundled", "llama", 576, num_steps=num_steps, data=data)
            assert found.rate == pytest.approx(1.5e-4)
            assert found.high < 3e-4
            assert "the policy may collapse" in str(found.warning(3e-4))
            assert found.warning(1.5e-4) is None
    assert advice("bundled", "llama", 576, data="arithmetic") == advice("bundled", "llama", 576)
    assert advice("Qwen/Qwen3-8B", "qwen3", 4096, data="gsm8k") == advice("Qwen/Qwen3-8B", "qwen3", 4096)
