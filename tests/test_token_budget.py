"""Running out of memory, with allocations that really fail, and micro-batches sized from a budget."""

import subprocess
import sys
from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch
from support.policies import ROOT, TOY_MODEL, make_policy
from support.rollouts import completion, group
from support.runs import SIZE, rows, stopped, toy
from support.training import ADVANTAGES, SGD_LIKE, groups

from rlora import assemble
from rlora.errors import OutOfMemoryError
from rlora.loop import run
from rlora.model.sources import model_dir
from rlora.system.memory import recompute_layers
from rlora.train import trainer as trainer_module
from rlora.train.batching import BatchConfig, made_up_row, stack
from rlora.train.losses import LossConfig
from rlora.train.optimizer import OptimizerConfig
from rlora.train.policy import Policy
from rlora.train.token_budget import TokenBudget, is_out_of_memory, measured_batch_memory
from rlora.train.trainer import Trainer

TOO_MUCH = 1 << 52  # bytes


def policy_() -> Policy:
    return make_policy(model_dir(TOY_MODEL))


@contextmanager
def memory_for(num_positions: int, monkeypatch, *, calls: int = 1_000_000):
    """Within the block, scoring more positions at once, or more often than `calls`, asks for memory that is not
    there.
    """
    score, count = Policy.score, 0

    def limited(self, micro_batch, **options):
        nonlocal count
        count += 1
        if micro_batch.tokens_BT.numel() > num_positions or count > calls:
            torch.empty(TOO_MUCH, dtype=torch.uint8)
        return score(self, micro_batch, **options)

    with monkeypatch.context() as patch:
        patch.setattr(Policy, "score", limited)
        yield


def trainer_of(tokens: int, optimizer: OptimizerConfig = SGD_LIKE, loss: str = "importance_weighted") -> Trainer:
    return Trainer(policy_(), optimizer, LossConfig(name=loss), BatchConfig(tokens_per_micro_batch=tokens))


def trained(tokens: int, *, optimizer: OptimizerConfig = SGD_LIKE) -> tuple[Trainer, TokenBudget, dict]:
    trainer = trainer_of(tokens, optimizer)
    metrics = trainer.step(groups(), ADVANTAGES)
    return trainer, trainer.budget, metrics


@pytest.mark.unit
def test_real_failures_are_recognised() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(TOO_MUCH, dtype=torch.uint8)
    assert is_out_of_memory(caught.value)
    assert is_out_of_memory(MemoryError())
    assert is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory."))
    for message in (
        "could not create a primitive",
        "could not create a memory object",
        "std::bad_alloc",
        "CUDA error: out of memory",
        "Triton Error [CUDA]: out of memory",
        "CUDNN_STATUS_ALLOC_FAILED",
    ):
        assert is_out_of_memory(RuntimeError(message))
    compiling = RuntimeError("while compiling")
    compiling.__cause__ = MemoryError("std::bad_alloc")
    assert is_out_of_memory(compiling)
    assert not is_out_of_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))


@pytest.mark.unit
def test_out_of_memory_halves_the_tokens_and_gives_the_update_of_that_size(monkeypatch, capsys) -> None:
    with memory_for(22, monkeypatch):  # the rows of whole groups have 17 and 24 positions
        trainer, budget, metrics = trained(128)
    assert (budget.tokens, metrics["batch/num_out_of_memory"]) == (16, 3)
    assert trainer.policy.version == 1
    assert "Out of memory with micro-batches of 128 tokens" in capsys.readouterr().out
    expected, _, small = trained(16)
    assert torch.equal(trainer.policy.flat.theta_D, expected.policy.flat.theta_D)
    assert small["batch/tokens_allowed"] == metrics["batch/tokens_allowed"] == 16
    large, _, _ = trained(128)
    torch.testing.assert_close(large.policy.flat.grad_D, trainer.policy.flat.grad_D, rtol=1e-4, atol=1e-7)


@pytest.mark.unit
def test_memory_that_runs_out_between_two_projections_leaves_nothing_held() -> None:
    trainer = trainer_of(64)
    budget = trainer.budget
    attention = trainer.policy.model.model.layers[1].self_attn
    failures = iter([True])

    def run_out(*_: object) -> None:
        if next(failures, False):
            assert attention.k_proj.shared._input is not None  # the query's pass has made key and value ready
            torch.empty(TOO_MUCH, dtype=torch.uint8)

    seen = []
    budget.say = lambda line: seen.append((line, attention.k_proj.shared._input, attention.k_proj.shared._ready))
    attention.k_proj.register_forward_pre_hook(run_out)
    trainer.step(groups(), ADVANTAGES)
    assert [(held, dict(ready)) for _, held, ready in seen] == [(None, {})]
    assert budget.tokens == 32


@pytest.mark.unit
def test_an_error_of_python_without_a_message_is_survived_too() -> None:
    trainer = trainer_of(64)
    budget = trainer.budget
    failures, said = iter([True]), []
    budget.say = said.append

    def run_out(*_: object) -> None:
        if next(failures, False):
            raise MemoryError

    trainer.policy.model.model.layers[0].register_forward_pre_hook(run_out)
    trainer.step(groups(), ADVANTAGES)
    assert budget.tokens == 32
    assert "(MemoryError)" in said[0]


@pytest.mark.unit
def test_when_single_completions_do_not_fit_the_policy_is_as_it_was(monkeypatch) -> None:
    trainer = trainer_of(128)
    before = trainer.policy.flat.theta_D.clone()
    with (
        memory_for(4, monkeypatch),
        pytest.raises(OutOfMemoryError, match=r"16 tokens.*also with layers computed again"),
    ):
        trainer.step(groups(), ADVANTAGES)
    assert torch.equal(trainer.policy.flat.theta_D, before)
    assert trainer.policy.version == 0


@pytest.mark.unit
def test_memory_lost_in_a_later_update_of_a_batch_takes_the_first_back(monkeypatch) -> None:
    twice = OptimizerConfig(learning_rate=1e-3, updates_per_batch=2)
    once, _, _ = trained(128)  # to see how many scorings one pass over the batch takes
    with memory_for(10_000, monkeypatch, calls=2):  # log-probabilities of the batch's version, first update, then none
        trainer = trainer_of(128, twice, "ppo")
        before = trainer.policy.flat.theta_D.clone()
        with pytest.raises(OutOfMemoryError):
            trainer.step(groups(), ADVANTAGES)
    assert not torch.equal(once.policy.flat.theta_D, before)
    assert torch.equal(trainer.policy.flat.theta_D, before)
    assert trainer.state().num_updates == 0


@pytest.mark.unit
def test_memory_lost_on_the_metrics_does_not_train_on_a_batch_twice(monkeypatch) -> None:
    failures, made = iter([True]), trainer_module.token_metrics

    def run_out(log):
        if next(failures, False):
            torch.empty(TOO_MUCH, dtype=torch.uint8)
        return made(log)

    with monkeypatch.context() as patch:
        patch.setattr(trainer_module, "token_metrics", run_out)
        trainer, budget, metrics = trained(128)
    assert (budget.tokens, metrics["batch/num_out_of_memory"]) == (64, 1)
    expected, _, _ = trained(64)
    assert trainer.state().num_updates == 1
    assert torch.equal(trainer.policy.flat.theta_D, expected.policy.flat.theta_D)
    assert torch.equal(trainer.state().first_moment_D, expected.state().first_moment_D)


@pytest.mark.unit
def test_memory_lost_after_a_gradient_was_added_does_not_add_it_twice(monkeypatch) -> None:
    expected, _, _ = trained(16)
    score, calls = Policy.score, iter(range(100))

    def limited(self, micro_batch, **options):
        if next(calls) == 1:  # the second micro-batch of 32 tokens
            torch.empty(TOO_MUCH, dtype=torch.uint8)
        return score(self, micro_batch, **options)

    monkeypatch.setattr(Policy, "score", limited)
    trainer, budget, metrics = trained(32)
    assert (budget.tokens, metrics["batch/num_out_of_memory"]) == (16, 1)
    assert torch.equal(trainer.policy.flat.theta_D, expected.policy.flat.theta_D)


@pytest.mark.unit
def test_layers_are_computed_again_and_give_the_same_gradient() -> None:
    plain, _, metrics = trained(128)
    again = trainer_of(128)
    recompute_layers(again.policy.model)
    calls = []
    again.policy.model.model.layers[0].mlp.register_forward_pre_hook(lambda *_: calls.append(1))
    again.step(groups(), ADVANTAGES)
    assert len(calls) == 2 * metrics["batch/num_micro_batches"]  # forward, and again in the backward pass
    assert torch.equal(again.policy.flat.grad_D, plain.policy.flat.grad_D)


@pytest.mark.unit
def test_a_row_that_did_not_fit_is_computed_again_and_shorter_ones_are_not(monkeypatch) -> None:
    """Memory is there for a micro-batch of 8 positions, or for any whose layers are computed again."""
    score = Policy.score

    def limited(self, micro_batch, **options):
        above = self.base.recompute_above
        is_again = above is not None and micro_batch.num_positions > above
        if micro_batch.num_positions > 16 and not is_again:
            torch.empty(TOO_MUCH, dtype=torch.uint8)
        return score(self, micro_batch, **options)

    expected, _, _ = trained(16)
    monkeypatch.setattr(Policy, "score", limited)
    long = [group([5] * 12, [completion([7] * 9, logprob=-3.0), completion([8] * 3, logprob=-2.0)], [1.0, 0.0])]
    alone = BatchConfig(tokens_per_row=0, tokens_per_micro_batch=32)
    trainer, said = Trainer(policy_(), SGD_LIKE, LossConfig(), alone), []
    budget = trainer.budget
    budget.say = said.append
    metrics = trainer.step(long, [[1.0, -1.0]])
    assert (budget.tokens, trainer.policy.base.recompute_above) == (16, 16)
    assert metrics["batch/recomputed_share"] == pytest.approx(20 / 34)
    assert "longer rows with layers computed again" in said[0]
    monkeypatch.undo()
    plain = Trainer(policy_(), SGD_LIKE, LossConfig(), replace(alone, tokens_per_micro_batch=16))
    plain.step(long, [[1.0, -1.0]])
    assert torch.equal(trainer.policy.flat.theta_D, plain.policy.flat.theta_D)
    assert expected.policy.version == 1


@pytest.mark.unit
@pytest.mark.parametrize(("above", "num_again"), [(None, 0), (0, 2), (16, 1), (64, 0)])
def test_layers_of_long_rows_alone_are_computed_again(above, num_again) -> None:
    """Rows of 20 and of 14 positions, each a micro-batch."""
    policy = policy_()
    policy.base.recompute_above = above
    calls = []
    policy.model.model.layers[0].mlp.register_forward_pre_hook(lambda *_: calls.append(1))
    for num_positions in (20, 14):
        policy.score(stack([made_up_row(8, num_positions - 7)])).logprobs_N.sum().backward()
    assert len(calls) == 2 + num_again


@pytest.mark.unit
def test_a_budget_buys_positions_in_proportion() -> None:
    plain, again = measured_batch_memory(policy_(), row_tokens=32)
    one, two = (plain.positions(num_bytes) for num_bytes in (2**27, 2**28))
    assert two - one == pytest.approx(one, rel=0.05)
    assert again.positions(2**27) > 1.1 * one


@pytest.mark.unit
def test_a_memory_budget_computes_rows_again_that_would_not_fit(tmp_path) -> None:
    """The longest row has 164 positions, a micro-batch 512."""
    plain, _ = measured_batch_memory(policy_(), row_tokens=164)
    for fitting, tokens, above in ((1000, 512, None), (150, 150, 150)):
        config = toy(tmp_path / "run", memory_budget=1.1 * plain.of(fitting) / 2**30)
        config = replace(config, sampling=replace(config.sampling, max_tokens=100))
        found = assemble.plan_of(config, model_dir(TOY_MODEL), policy_())
        assert found.tokens == pytest.approx(tokens, abs=1)
        assert found.recompute_above == (None if above is None else pytest.approx(above, abs=1))
    with pytest.raises(OutOfMemoryError, match=r"a row of 164 tokens .* does not fit in training: 0\.0001 GiB"):
        assemble.plan_of(replace(config, memory_budget=1e-4), model_dir(TOY_MODEL), policy_())


@pytest.mark.loop
def test_a_resumed_run_keeps_the_tokens_that_memory_allowed(monkeypatch, tmp_path) -> None:
    config = toy(tmp_path / "run", **SIZE)
    with memory_for(300, monkeypatch):
        stopped(config, after=2)
    run(config)  # without the limit
    allowed = [row["batch/tokens_allowed"] for row in rows(tmp_path / "run")]
    assert allowed == [256.0] * 5
    assert [row["batch/num_out_of_memory"] for row in rows(tmp_path / "run")] == [1, 0, 0, 0, 0]


LIMITED = """
import resource, sys, torch
sys.path.insert(0, "tests")
from support.policies import TOY_MODEL
from support.engines import random_b
from support.rollouts import completion, group
from rlora.train.batching import BatchConfig, made_up_row, stack
from rlora.lora.config import LoraConfig
from rlora.train.losses import LossConfig
from rlora.model.sources import ModelConfig, model_dir
from rlora.train.optimizer import OptimizerConfig
from rlora.train.policy import Policy
from rlora.train.trainer import Trainer

torch.set_num_threads(1)
dtype, compile_, mebibytes = sys.argv[1:]
work = [group([5] * 20, [completion([7] * 200, logprob=-3.0) for _ in range(40)], [1.0] + [0.0] * 39)] * 4
config = ModelConfig(name=TOY_MODEL.name, dtype=dtype, compile=compile_)
policy = Policy.load(model_dir(TOY_MODEL), config, LoraConfig(rank=2), seed=1)
random_b(policy, scale=0.05)
first = Trainer(policy, OptimizerConfig(), LossConfig(), BatchConfig(tokens_per_micro_batch=256))
first.step(work[:1], [[1.0] + [-1.0] * 39])  # all is loaded
policy.version = 0
batch = BatchConfig(tokens_per_row=220, tokens_per_micro_batch=65536)
trainer = Trainer(policy, OptimizerConfig(), LossConfig(), batch)
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + int(mebibytes) * 2**20, resource.RLIM_INFINITY))
metrics = trainer.step(work, [[1.0] + [-1.0] * 39] * 4)
print(trainer.budget.tokens, metrics["batch/num_out_of_memory"], trainer.policy.version)
"""


@pytest.mark.loop
@pytest.mark.skipif(sys.platform != "linux", reason="limits the address space as Linux does")
@pytest.mark.parametrize(
    ("dtype", "compile_", "mebibytes"),
    [("float32", "off", 192), ("bfloat16", "off", 256), ("bfloat16", "on", 160)],
)
def test_a_kernel_that_refuses_memory_is_survived(dtype, compile_, mebibytes) -> None:
    command = [sys.executable, "-c", LIMITED, dtype, compile_, str(mebibytes)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    tokens, failures, version = map(int, done.stdout.splitlines()[-1].split())
    assert 16 <= tokens < 65536
    assert failures > 0
    assert version == 1
