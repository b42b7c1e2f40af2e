"""Supervised training: packing, loss and gradient, held-out log-loss, rates."""

import math
from array import array

import pytest
import torch
from support.policies import TOY_MODEL, make_policy

from rlora.evaluation.log_loss import LogLoss, log_loss, ratio
from rlora.lora.config import LoraConfig
from rlora.lora.learning_rate import recommend_supervised
from rlora.tasks.examples import Example
from rlora.train.batching import BatchConfig
from rlora.train.losses import LossConfig
from rlora.train.optimizer import OptimizerConfig
from rlora.train.packing import pack, pack_batch
from rlora.train.policy import Policy
from rlora.train.token_budget import TokenBudget
from rlora.train.trainer import Trainer

pytestmark = [pytest.mark.unit, pytest.mark.filterwarnings("ignore::DeprecationWarning:peft")]
STILL = OptimizerConfig(learning_rate=1e-9, max_grad_norm=0.0)


def examples(count: int = 7, *, seed: int = 0) -> list[Example]:
    """Return examples of 4 to 40 tokens, two turns of which are trained."""
    random = torch.Generator().manual_seed(seed)
    found = []
    for index in range(count):
        length = int(torch.randint(4, 41, (1,), generator=random))
        mask = [0, 1, 1] + [0] * (length - 4) + [1]
        tokens = torch.randint(2, 50, (length,), generator=random).tolist()
        found.append(Example(id=str(index), token_ids=array("i", tokens), is_trained=bytes(mask)))
    return found


def loss_and_gradient(toy_dir, batch) -> tuple[float, torch.Tensor]:
    policy = make_policy(toy_dir)
    metrics = Trainer(policy, STILL, LossConfig()).apply(batch)
    return metrics["loss/value"], policy.flat.grad_D.clone()


def reference(model, examples_) -> torch.Tensor:
    """Return the loss that Transformers computes of labels, each example by itself, over all trained tokens."""
    total, count = torch.zeros(()), 0
    for example in examples_:
        ids = torch.tensor([list(example.token_ids)])
        labels = torch.where(torch.tensor([list(example.is_trained)]).bool(), ids, -100)
        total = total + model(input_ids=ids, labels=labels).loss * example.num_trained
        count += example.num_trained
    return total / count


@pytest.mark.parametrize("row", [0, 30, 64, 512])
def test_a_packed_batch_has_the_loss_and_the_gradient_of_examples_alone(toy_dir, row) -> None:
    alone = pack_batch(examples(), BatchConfig(tokens_per_row=0, tokens_per_micro_batch=1), version=0)
    packed = pack_batch(examples(), BatchConfig(tokens_per_row=row, tokens_per_micro_batch=128), version=0)
    assert len(alone.micro_batches) == 7
    assert row < 64 or len(packed.micro_batches) < 7
    assert packed.num_trained_tokens == alone.num_trained_tokens == 21
    (loss, gradient), (expected, exact) = (loss_and_gradient(toy_dir, batch) for batch in (packed, alone))
    assert loss == pytest.approx(expected, abs=1e-5)
    assert float((gradient - exact).abs().max()) < 1e-5
    assert float(exact.abs().max()) > 1e-3


def test_loss_and_gradient_are_those_of_peft_and_transformers(toy_dir, tmp_path) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    from rlora.lora.peft.peft_format import save_adapter

    policy = make_policy(toy_dir, lora=LoraConfig(rank=3))
    save_adapter(policy.snapshot(), tmp_path)
    trainer = Trainer(policy, STILL, LossConfig(), BatchConfig(tokens_per_row=100))
    loss = trainer.step_supervised(examples())["loss/value"]
    base = AutoModelForCausalLM.from_pretrained(toy_dir, dtype=torch.float32)
    model = PeftModel.from_pretrained(base, tmp_path, is_trainable=True).eval()
    theirs = reference(model, examples())
    theirs.backward()
    assert loss == pytest.approx(theirs.item(), abs=1e-5)
    ours = {slot.name: policy.flat.grad_D[slot.offset : slot.offset + slot.size] for slot in policy.flat.slots}
    parameters = {n: p for n, p in model.named_parameters() if ".lora_" in n}
    assert len(parameters) == len(ours)
    for name, parameter in parameters.items():
        name = name.removeprefix("base_model.model.").replace(".default.weight", "")
        assert float((ours[name] - parameter.grad.flatten()).abs().max()) < 1e-5
    assert max(float(p.grad.abs().max()) for p in parameters.values()) > 1e-3


def test_full_fine_tuning_has_the_gradient_of_transformers(toy_dir) -> None:
    from transformers import AutoModelForCausalLM

    policy = Policy.load(toy_dir, TOY_MODEL, None, seed=0)
    loss = Trainer(policy, STILL, LossConfig()).step_supervised(examples())["loss/value"]
    model = AutoModelForCausalLM.from_pretrained(toy_dir, dtype=torch.float32)
    theirs = reference(model, examples())
    theirs.backward()
    assert loss == pytest.approx(theirs.item(), abs=1e-5)
    gradients = dict(model.named_parameters())
    for slot in policy.flat.slots:
        gradient = policy.flat.grad_D[slot.offset : slot.offset + slot.size].view(slot.shape)
        assert float((gradient - gradients[slot.name].grad).abs().max()) < 1e-5


def test_rows_are_filled_and_longer_examples_stay_alone() -> None:
    parts = pack(examples(40), BatchConfig(tokens_per_row=64, tokens_per_micro_batch=256))
    rows = [row for part in parts for row in part]
    assert sum(len(row.examples) for row in rows) == 40
    assert max(map(len, rows)) <= 64
    assert sum(map(len, rows)) > 0.85 * 64 * len(rows)
    long = Example(id="long", token_ids=array("i", [5] * 100), is_trained=bytes([0] + [1] * 99))
    (first, *_), *_ = pack([*examples(), long], BatchConfig(tokens_per_row=64))
    assert first.examples == (long,)


def test_rows_are_as_long_as_the_longest_example_where_attention_costs_their_square() -> None:
    longest = max(map(len, examples()))
    parts = pack(examples(), BatchConfig(tokens_per_row=512), squares=True)
    assert max(len(row) for part in parts for row in part) == longest


def test_supervised_steps_log_nothing_of_a_sampler(toy_dir) -> None:
    metrics = Trainer(make_policy(toy_dir), STILL, LossConfig()).step_supervised(examples())
    assert {name.partition("/")[0] for name in metrics} == {"loss", "policy", "optimizer", "batch"}
    assert "batch/sharing" not in metrics
    assert metrics["batch/num_trained_tokens"] == 21


def test_memory_that_runs_out_halves_the_micro_batches_and_moves_no_result(toy_dir) -> None:
    def step(fails: int) -> tuple[dict, torch.Tensor, list[str]]:
        policy, said = make_policy(toy_dir), []
        trainer = Trainer(policy, OptimizerConfig(learning_rate=1e-3), LossConfig())
        trainer.budget.say = said.append
        left, whole = [fails], policy.score

        def score(*args, **kwargs):
            if left[0]:
                left[0] -= 1
                raise MemoryError
            return whole(*args, **kwargs)

        policy.score = score
        return trainer.step_supervised(examples()), policy.flat.theta_D.clone(), said

    (_, straight, _), (metrics, theta_D, said) = step(0), step(2)
    assert metrics["batch/num_out_of_memory"] == 2
    assert metrics["batch/tokens_allowed"] == BatchConfig().tokens_per_micro_batch // 4
    assert len(said) == 2
    assert float((theta_D - straight).abs().max()) < 1e-4


def test_held_out_loss_is_the_loss_of_each_example(toy_dir) -> None:
    from transformers import AutoModelForCausalLM

    policy = Policy.load(toy_dir, TOY_MODEL, LoraConfig(), seed=0)  # B is zero: the base
    found = log_loss(policy, examples(), TokenBudget(BatchConfig(tokens_per_row=64)))
    model = AutoModelForCausalLM.from_pretrained(toy_dir, dtype=torch.float32)
    for example, nats, tokens in zip(examples(), found.nats_E, found.tokens_E, strict=True):
        assert nats / tokens == pytest.approx(reference(model, [example]).item(), abs=1e-5)
    assert found.bits.mean == pytest.approx(found.nats.mean / math.log(2))
    assert found.nats.low < found.nats.mean < found.nats.high


def test_the_interval_covers_the_mean_of_a_ratio() -> None:
    random = torch.Generator().manual_seed(0)
    covered = 0
    for _ in range(100):
        counts = torch.randint(5, 200, (60,), generator=random)
        losses = counts * (1.5 + 0.5 * torch.randn(60, generator=random))
        estimate = ratio(losses.tolist(), counts.tolist())
        covered += estimate.low <= 1.5 <= estimate.high
    assert 88 <= covered <= 99


def test_paired_differences_are_narrower_than_the_losses() -> None:
    base = LogLoss(nats_E=(1.0, 40.0, 9.0, 2.0), tokens_E=(2, 10, 4, 3))
    policy = LogLoss(nats_E=(0.8, 39.0, 8.6, 1.7), tokens_E=(2, 10, 4, 3))
    difference = policy.less(base)
    assert difference.mean == pytest.approx(-1.9 / 19)
    assert difference.high - difference.low < policy.nats.high - policy.nats.low


def test_supervised_rates_are_ten_or_fifteen_times_those_of_full_fine_tuning() -> None:
    def rate(**options) -> float:
        return recommend_supervised(model_type="llama", hidden_size=576, **options).rate

    assert rate(num_steps=500) == pytest.approx(10 * rate(method="full"))
    assert rate(num_steps=99) == pytest.approx(15 * rate(method="full"))
    assert rate(method="full") == pytest.approx(5e-5 * (2000 / 576) ** 0.781)
    assert rate(alpha=16) == pytest.approx(2 * rate())
    known = recommend_supervised(model_type="qwen3", hidden_size=2048, num_steps=1000)
    assert known.warning(known.rate) is None
    assert "above the known window" in str(known.warning(5 * known.rate))
