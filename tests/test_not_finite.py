"""Numbers that cannot be trained on end a run with one error that blames the right thing, and nothing was written."""

import dataclasses

import pytest
import torch
from support.rollouts import completion, group
from support.runs import SIZE, rows, toy

from rlora.errors import ConfigError, NonFiniteError, RewardError
from rlora.evaluation.config import PRESETS
from rlora.loop import run
from rlora.lora.config import LoraConfig
from rlora.model.sources import ModelConfig
from rlora.recipe import failures_at
from rlora.store.checkpoint import CheckpointFolder
from rlora.train.losses import LossConfig
from rlora.train.optimizer import FlatAdamW, OptimizerConfig
from rlora.train.policy import Policy
from rlora.train.trainer import Trainer
from rlora.types import SamplingParams

pytestmark = pytest.mark.loop


@pytest.mark.parametrize("reward", [float("nan"), float("inf"), -float("inf"), 1e30, -1e7, 10**400])
def test_a_reward_that_is_none_is_blamed_on_the_judge_before_anything_is_written(tmp_path, reward) -> None:
    calls = []

    def score(completion, problem):
        calls.extend([completion] * ("/train/" in problem.id))
        return reward if len(calls) > 6 * 64 * 2 else float(len(completion) % 2)

    with pytest.raises(RewardError, match="a reward must be finite, from -1e\\+06 to 1e\\+06"):
        run(toy(tmp_path / "run", **SIZE), reward=score)
    assert [row["step"] for row in rows(tmp_path / "run")] == [0, 1]
    assert {path.stem for path in (tmp_path / "run" / "rollouts").iterdir()} == {"step-000000", "step-000001"}


@pytest.mark.parametrize(
    "optimizer",
    [
        OptimizerConfig(learning_rate=1e38),
        OptimizerConfig(learning_rate=1e-2, epsilon=0.0, beta2=0.0),
    ],
)
def test_an_update_that_makes_no_numbers_is_taken_back_and_blamed(tmp_path, optimizer) -> None:
    config = toy(tmp_path / "run", **SIZE, optimizer=optimizer)
    with pytest.raises(NonFiniteError, match=r"the update made numbers of the policy that are not finite.*epsilon"):
        run(config)
    found = CheckpointFolder(tmp_path / "run" / "checkpoints").newest()
    assert found is not None
    assert bool(found.theta_D.isfinite().all())
    assert len(rows(tmp_path / "run")) == found.step


@pytest.mark.parametrize("lora", [LoraConfig(), None])
@pytest.mark.parametrize(
    ("optimizer", "advantage"),
    [
        (OptimizerConfig(learning_rate=3e38), 0.5),
        (OptimizerConfig(learning_rate=3e38, updates_per_batch=2), 0.5),
        (OptimizerConfig(epsilon=0.0, beta2=0.0), 0.5),
        (OptimizerConfig(max_grad_norm=0.0), 1e30),
    ],
)
def test_the_policy_keeps_its_last_good_version(toy_dir, lora, optimizer, advantage) -> None:
    policy = Policy.load(toy_dir, ModelConfig(name="toy", dtype="float32"), lora, seed=0)
    trainer = Trainer(policy, optimizer, LossConfig())
    before, moments = policy.flat.theta_D.clone(), trainer.state()
    groups = [group([3, 4], [completion([5, 6, 0]), completion([7, 0])], [1.0, 0.0])]
    with pytest.raises(NonFiniteError, match="the policy keeps its last good version"):
        trainer.step(groups, [[advantage, -advantage]])
    assert torch.equal(policy.flat.theta_D, before)
    after = trainer.state()
    assert torch.equal(after.first_moment_D, moments.first_moment_D)
    assert torch.equal(after.second_moment_D, moments.second_moment_D)
    assert after.num_updates == 0
    assert policy.version == 0


@pytest.mark.parametrize("lora", [LoraConfig(), None])
def test_an_ordinary_update_is_known_to_stay_finite_without_a_copy(toy_dir, lora) -> None:
    flat = Policy.load(toy_dir, ModelConfig(name="toy", dtype="float32"), lora, seed=0).flat
    optimizer = FlatAdamW(flat, OptimizerConfig())
    flat.grad_D.normal_()
    assert optimizer.stays_finite(1e-3, float(flat.grad_D.norm()))
    optimizer.step(1e-3)
    assert optimizer.is_finite()
    assert not optimizer.stays_finite(1e38, 1.0)
    assert not optimizer.stays_finite(1e-3, 1e25)
    flat.grad_D[3] = 1e25
    optimizer.step(1e-3)
    assert not optimizer.is_finite()  # the second moment is not
    assert not optimizer.stays_finite(0.0, 0.0)


@pytest.mark.parametrize("temperature", [1e-40, 0.001, 1e9, float("inf"), float("nan"), -1.0])
def test_a_temperature_that_divides_into_nothing_is_refused(tmp_path, temperature) -> None:
    with pytest.raises(ConfigError, match="temperature is"):
        toy(tmp_path / "run", sampling=SamplingParams(temperature=temperature)).check()
    with pytest.raises(ConfigError, match="temperature is"):
        dataclasses.replace(PRESETS["toy"], temperature=temperature).check()


@pytest.mark.parametrize(
    ("stated", "count"),
    [("2:1", 1), ("2:2", 2), *((text, 0) for text in ("", "0:", "2:1:2", "2:-9", "x", ":", "2:1e3", "2:٣", "1:2"))],
)
def test_what_no_process_before_can_have_stated_of_failures_counts_as_none(stated, count) -> None:
    assert failures_at(2, stated) == count
