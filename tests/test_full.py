"""Full fine-tuning: gradients, rounding, snapshots, and the proof, on small models and with the torch sampler."""

import dataclasses

import pytest
import torch
import transformers
from support import liars
from support.full import KINDS, reference_gradient
from support.models import folder_of
from support.policies import TOY_MODEL
from support.training import ADVANTAGES, SGD_LIKE, groups, groups_at

from rlora.errors import ConfigError, ModelError, ProofError, StaleAdapterError
from rlora.full import head, parameters
from rlora.full.head import trained_token_logprobs
from rlora.full.parameters import Full
from rlora.full.weights import load_weights, save_weights
from rlora.model.base import Base
from rlora.model.sources import ModelConfig, end_token_ids, load_tokenizer
from rlora.proof.hot_swap import HotSwap
from rlora.proof.probe import NUM_PROBES
from rlora.sampler.base import EngineSpec, SamplerConfig
from rlora.sampler.torch_sampler import TorchSampler
from rlora.train.batching import BatchConfig, build_batch
from rlora.train.losses import LossConfig
from rlora.train.optimizer import OptimizerConfig
from rlora.train.policy import Policy
from rlora.train.trainer import Trainer
from rlora.types import SampleRequest, SamplingParams

pytestmark = pytest.mark.unit
FP32 = ModelConfig(dtype="float32")


def load(folder, model: ModelConfig = FP32) -> Policy:
    return Policy.load(folder, model, None, seed=0)


def disturb(policy: Policy, scale: float, seed: int = 0) -> None:
    """Change every weight by a random part of its matrix's size."""
    random = torch.Generator().manual_seed(seed)
    for slot in policy.flat.slots:
        values = policy.flat.view(policy.flat.theta_D, slot)
        values += scale * values.std().nan_to_num(1.0) * torch.randn(values.shape, generator=random)
    policy.refresh_served()


BATCHES = [
    BatchConfig(),
    BatchConfig(tokens_per_micro_batch=1, tokens_per_row=0),
    BatchConfig(tokens_per_micro_batch=40, tokens_per_row=20),
]


@pytest.mark.parametrize(("kind", "options"), KINDS)
@pytest.mark.parametrize("batch", BATCHES)
def test_gradient_equals_plain_autograd_for_every_weight(kind, options, batch, tmp_path) -> None:
    folder = folder_of(kind, tmp_path, **options)
    expected = reference_gradient(folder, temperature=0.7)
    policy = load(folder)
    trainer = Trainer(policy, SGD_LIKE, LossConfig(), temperature=0.7)
    trainer.apply(build_batch(groups(), ADVANTAGES, batch, version=0))
    assert {slot.name for slot in policy.flat.slots} == expected.keys()
    for slot in policy.flat.slots:
        actual = policy.flat.view(policy.flat.grad_D, slot)
        torch.testing.assert_close(actual, expected[slot.name], rtol=1e-4, atol=1e-6, msg=slot.name)
    assert float(policy.flat.grad_D.norm()) > 1e-3


@pytest.mark.parametrize("kept", [0, 2**27])
def test_a_bf16_gradient_is_as_near_to_fp32_as_plain_autograds(tmp_path, monkeypatch, kept) -> None:
    monkeypatch.setattr(head, "KEPT_BYTES", kept)
    folder = folder_of("Llama", tmp_path, tie_word_embeddings=True)
    exact = reference_gradient(folder, temperature=1.0)
    plain = reference_gradient(folder, temperature=1.0, dtype=torch.bfloat16)
    policy = load(folder, ModelConfig())
    Trainer(policy, SGD_LIKE, LossConfig()).apply(build_batch(groups(), ADVANTAGES, BatchConfig(), version=0))
    for slot in policy.flat.slots:
        ours = policy.flat.view(policy.flat.grad_D, slot)
        error, theirs = (float((one - exact[slot.name]).norm()) for one in (ours, plain[slot.name]))
        assert error < 1.3 * theirs + 1e-6, slot.name


@pytest.mark.parametrize("num_tokens", [0, 1, 7])
@pytest.mark.parametrize(("chunk", "num_kept"), [(1, 0), (1, 3), (3, 4), (256, 0), (256, 7)])
def test_the_heads_gradient_equals_log_softmaxs(monkeypatch, num_tokens, chunk, num_kept) -> None:
    monkeypatch.setattr("rlora.model.logprobs.CHUNK_TOKENS", chunk)  # 1: blocks of 50 / 7 rows
    monkeypatch.setattr(head, "KEPT_BYTES", num_kept * 50 * 4)
    torch.manual_seed(0)
    hidden, weight = torch.randn(num_tokens, 8, requires_grad=True), torch.randn(50, 8)
    targets, weights = torch.randint(0, 50, (num_tokens,)), torch.randn(num_tokens)
    grad_head = torch.ones(50, 8)  # it is added to
    values, entropy = trained_token_logprobs(hidden, weight, targets, grad_head_VH=grad_head, temperature=0.7)
    (values * weights).sum().backward()
    copies = [one.detach().clone().requires_grad_() for one in (hidden, weight)]
    log_p = (copies[0] @ copies[1].T / 0.7).log_softmax(-1)
    expected = log_p[torch.arange(num_tokens), targets]
    (expected * weights).sum().backward()
    torch.testing.assert_close(values, expected)
    torch.testing.assert_close(entropy, -(log_p.exp() * log_p).sum(-1))
    torch.testing.assert_close(hidden.grad, copies[0].grad, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(grad_head - 1, copies[1].grad, rtol=1e-4, atol=1e-5)


def test_probabilities_are_kept_up_to_a_bound(monkeypatch) -> None:
    monkeypatch.setattr(head, "KEPT_BYTES", 100 * 50 * 4)
    for num_tokens, num_kept in ((60, 60), (600, 100)):
        hidden = torch.randn(num_tokens, 8, requires_grad=True)
        targets = torch.zeros(num_tokens, dtype=torch.long)
        values, _ = trained_token_logprobs(hidden, torch.randn(50, 8), targets, grad_head_VH=torch.zeros(50, 8))
        assert [len(one) for one in values.grad_fn.saved_tensors if one.shape[1:] == (50,)] == [num_kept]


def test_nothing_is_held_twice(tmp_path) -> None:
    """Model and vector share memory in fp32; gradients are in the flat buffer alone; a tied weight has one slot."""
    policy = load(folder_of("Llama", tmp_path, tie_word_embeddings=True))
    Trainer(policy, SGD_LIKE, LossConfig()).apply(build_batch(groups(), ADVANTAGES, BatchConfig(), version=0))
    weights = dict(policy.model.named_parameters())
    storage = policy.flat.theta_D.untyped_storage().data_ptr()
    assert all(weight.grad is None for weight in weights.values())
    assert {weight.untyped_storage().data_ptr() for weight in weights.values()} == {storage}
    assert sum(weight.numel() for weight in weights.values()) == policy.flat.theta_D.numel()
    assert "lm_head.weight" not in {slot.name for slot in policy.flat.slots}


def test_updates_smaller_than_bf16_are_kept_in_the_vector_until_they_count(tmp_path) -> None:
    policy = load(folder_of("Llama", tmp_path), ModelConfig())
    weight = policy.model.model.layers[0].mlp.up_proj.weight
    before, base_D = weight.detach().clone(), policy.flat.theta_D.clone()
    num_updates = 0
    while torch.equal(weight, before):
        policy.flat.theta_D.add_(base_D, alpha=2**-11)  # an eighth of the step to the next number of bf16
        policy.refresh_served()
        num_updates += 1
    assert 2 <= num_updates <= 5
    assert weight.dtype == torch.bfloat16
    tensors = policy.snapshot().tensors
    for slot in policy.flat.slots:
        expected = policy.flat.view(policy.flat.theta_D, slot).bfloat16()
        assert torch.equal(tensors[slot.name], expected)
        assert torch.equal(
            policy.model.state_dict()[slot.name.replace("embed_tokens.", "embed_tokens.base.")], expected
        )


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_base_and_older_versions_can_be_scored_meanwhile(dtype, tmp_path) -> None:
    model = ModelConfig(dtype=dtype)
    folder = folder_of("Llama", tmp_path, tie_word_embeddings=True)
    policy, fresh = load(folder, model), load(folder, model)
    part = build_batch(groups(), ADVANTAGES, BatchConfig(), version=0).micro_batches[0]
    tokens = torch.tensor([[5, 6, 7]])

    @torch.no_grad()
    def seen(policy: Policy) -> list[torch.Tensor]:
        return [policy.score(part).logprobs_N, policy.next_token_logits(tokens)]

    base = seen(fresh)
    disturb(policy, 0.1)
    first, snapshot = seen(policy), policy.snapshot()
    disturb(policy, 0.1, seed=1)
    second = seen(policy)
    with policy.adapter_off():
        torch.testing.assert_close(seen(policy), base, rtol=0, atol=0)
    with policy.swapped(snapshot):
        torch.testing.assert_close(seen(policy), first, rtol=0, atol=0)
    torch.testing.assert_close(seen(policy), second, rtol=0, atol=0)
    fresh.assign(snapshot)
    torch.testing.assert_close(seen(fresh), first, rtol=0, atol=0)
    assert float((first[0] - base[0]).abs().max()) > 1e-2 < float((second[0] - first[0]).abs().max())


def test_the_kl_term_does_not_disturb_the_gradient(tmp_path) -> None:
    """The base is scored between forward and backward pass: with a tiny coefficient the gradient is as without."""
    gradients = []
    for coefficient in (0.0, 1e-9):
        policy = load(folder_of("Llama", tmp_path / str(coefficient)), ModelConfig())
        disturb(policy, 0.05)
        trainer = Trainer(policy, SGD_LIKE, LossConfig(kl_coefficient=coefficient))
        metrics = trainer.apply(build_batch(groups(), ADVANTAGES, BatchConfig(), version=0, keep_all=True))
        gradients.append(policy.flat.grad_D.clone())
    assert metrics["loss/kl_to_base"] > 1e-5
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-3, atol=1e-6)


def test_training_raises_the_probability_of_what_was_rewarded(toy_dir) -> None:
    policy = load(toy_dir, ModelConfig())
    trainer = Trainer(policy, OptimizerConfig(learning_rate=1e-3), LossConfig(name="reinforce"))
    rewarded = [[1.0, 0.0, 0.0]] * 3

    @torch.no_grad()
    def mean_logprob() -> float:
        batch = build_batch(groups(), rewarded, BatchConfig(), version=0)
        return float(torch.cat([policy.score(part).logprobs_N for part in batch.micro_batches]).mean())

    before = mean_logprob()
    for version in range(10):
        metrics = trainer.apply(build_batch(groups_at(version), rewarded, BatchConfig(), version=version))
    assert mean_logprob() - before > 0.5
    assert metrics["optimizer/step_size"] == metrics["optimizer/learning_rate"] == 1e-3


class Scaled(torch.nn.Embedding):
    """An embedding of a kind of its own, as some models have."""

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return 2 * super().forward(tokens)


def test_an_embedding_of_another_kind_is_left_to_autograd_and_adds_to_the_tied_unembeddings(tmp_path) -> None:
    folder = folder_of("Llama", tmp_path, tie_word_embeddings=True)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    model.model.embed_tokens.__class__ = Scaled
    full = Full(Base(model, name="toy", folder=folder, head_dtype=torch.float32))
    grad_head_VH = full.flat.view(full.flat.grad_D, full.flat.slots[0])
    assert type(model.get_input_embeddings()) is Scaled
    grad_head_VH.fill_(1.0)
    model.model.embed_tokens(torch.tensor([3, 3, 5])).sum().backward()
    assert grad_head_VH[:6, 0].tolist() == [1, 1, 1, 5, 1, 3]


def test_a_padding_token_has_no_gradient_as_an_input_and_a_repeated_one_all_of_its_own() -> None:
    grad = torch.zeros(6, 2)
    embedding = parameters.TrainedEmbedding(torch.nn.Embedding(6, 2, padding_idx=0), grad)
    embedding(torch.tensor([[1, 4, 0], [4, 4, 2]])).backward(torch.ones(2, 3, 2))
    assert grad[:, 0].tolist() == [0, 1, 1, 0, 3, 0]


def test_a_model_folder_is_what_transformers_loads(toy_dir, tmp_path) -> None:
    policy = load(toy_dir, ModelConfig(dtype="bfloat16"))
    disturb(policy, 0.1)
    weights = policy.snapshot()
    save_weights(weights, tmp_path / "model")
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    assert again.dtype == torch.bfloat16
    assert weights.num_bytes == 2 * policy.flat.theta_D.numel()
    for name, parameter in again.named_parameters():
        assert torch.equal(parameter, weights.tensors[name]), name
    assert load_tokenizer(tmp_path / "model", TOY_MODEL).encode("12") == load_tokenizer(toy_dir, TOY_MODEL).encode("12")
    shapes = {slot.name: slot.shape for slot in policy.flat.slots}
    assert load_weights(tmp_path / "model", shapes).keys() == shapes.keys()
    with pytest.raises(ModelError, match="is it another model's"):
        load_weights(tmp_path / "model", {"model.norm.weight": (7,)})
    (tmp_path / "model" / "model.safetensors").write_bytes(b"nothing")
    with pytest.raises(ModelError, match="cannot be read"):
        load_weights(tmp_path / "model", shapes)
    with pytest.raises(ModelError, match=r"holds no model\.safetensors"):
        load_weights(tmp_path, shapes)


def test_a_model_whose_weights_are_rearranged_on_loading_is_refused(tmp_path) -> None:
    folder = folder_of("Qwen3Moe", tmp_path, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=16)
    with pytest.raises(ConfigError, match=r"rearranges .* of its weights on loading .* Use --method lora"):
        load(folder)


def test_weights_of_two_precisions_are_refused(tmp_path) -> None:
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(vocab_size=8, hidden_size=32, num_hidden_layers=0))
    model.model.norm.bfloat16()
    with pytest.raises(ConfigError, match="needs weights of one precision"):
        Full(Base(model, name="toy", folder=tmp_path, head_dtype=torch.float32))


def spec(folder, model: ModelConfig) -> EngineSpec:
    return EngineSpec(
        folder=folder,
        model=model,
        lora=None,
        config=SamplerConfig(kind="torch"),
        end_token_ids=end_token_ids(folder, load_tokenizer(folder, model)),
        target_modules=(),
        max_length=160,
    )


PROMPTS = [range(2, 20), range(20, 38)]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_an_honest_sampler_is_proven_and_asked_for_base_and_policy_by_turns(toy_dir, dtype) -> None:
    model = dataclasses.replace(TOY_MODEL, dtype=dtype)
    policy, sampler = load(toy_dir, model), TorchSampler(spec(toy_dir, model))
    swap = HotSwap(policy, sampler, PROMPTS, seed=1)
    assert swap.swap()["proof/canary_is_decided_base"] == 0  # nothing was trained: the policy is the base
    for version in range(1, 4):
        disturb(policy, 0.1, seed=version)
        policy.version = version
        metrics = swap.swap()
        for other in ("base", "previous"):
            assert metrics[f"proof/canary_is_decided_{other}"] == 1
            assert metrics[f"proof/canary_served_fraction_{other}"] == pytest.approx(1, abs=1e-3)
        swap.prove_served(None)
        swap.prove_served(0)
    request = SampleRequest(token_ids=tuple(PROMPTS[0]), num_samples=4, key=("t",))
    (mine, bases) = (
        sampler.sample([dataclasses.replace(request, policy=who)], SamplingParams(max_tokens=4), seed=0)[0]
        for who in (0, None)
    )
    assert {one.version for one in mine} == {3}
    assert mine != bases


@pytest.mark.parametrize("lie", [liars.ServesBase, liars.ServesPrevious])
@pytest.mark.parametrize("scale", [0.1, 1e-6])
def test_a_sampler_that_begins_to_lie_is_caught(toy_dir, lie, scale) -> None:
    policy = load(toy_dir, TOY_MODEL)
    wrap = liars.later(lie, num_honest_loads=NUM_PROBES + 1)  # the probes, and the policy as it starts
    swap = HotSwap(policy, wrap(TorchSampler(spec(toy_dir, TOY_MODEL))), PROMPTS, seed=1)
    swap.swap()

    def go_on() -> None:
        for version in (1, 2):
            disturb(policy, scale, seed=version)
            policy.version = version
            swap.swap()

    with pytest.raises(StaleAdapterError, match=r"the sampler does not serve version \d of the policy"):
        go_on()


class ForgetsTheBase(liars.Liar):
    """Answers requests for the base with the policy, once weights are loaded."""

    def answers(self, requests, sampling, seed):
        if not self.loaded:
            return self.honest(requests, sampling, seed)
        asked = self.honest([dataclasses.replace(request, policy=0) for request in requests], sampling, seed)
        is_base = [request.policy is None for request in requests]
        return [
            [dataclasses.replace(one, version=-1) for one in group] if base else group
            for base, group in zip(is_base, asked, strict=True)
        ]


def test_an_engine_that_answers_for_the_base_with_the_policy_is_caught_before_the_first_step(toy_dir) -> None:
    swap = HotSwap(load(toy_dir, TOY_MODEL), ForgetsTheBase(TorchSampler(spec(toy_dir, TOY_MODEL))), PROMPTS, seed=1)
    with pytest.raises(ProofError, match="the base's are answered by something else"):
        swap.swap()


def test_an_engine_that_begins_to_answer_for_the_base_with_the_policy_is_caught(toy_dir) -> None:
    policy = load(toy_dir, TOY_MODEL)
    forgetful = liars.later(ForgetsTheBase, num_honest_loads=NUM_PROBES + 1)
    swap = HotSwap(policy, forgetful(TorchSampler(spec(toy_dir, TOY_MODEL))), PROMPTS, seed=1)
    swap.swap()
    disturb(policy, 0.1)
    policy.version = 1
    swap.swap()
    swap.prove_served(0)
    with pytest.raises(StaleAdapterError, match=r"does not serve the base model: .* that of version 1 of the policy"):
        swap.prove_served(None)


@pytest.mark.parametrize("num_tokens", [1, 100, 200, 300, 5000, 10**7])
def test_blocks_of_the_unembedding_are_even(num_tokens) -> None:
    """An odd number of rows is not taken by compiled products, and would be computed otherwise than its neighbours."""
    rows = head.block_rows(num_tokens, 49152, 192)
    assert rows % 64 == 0
    assert rows == 64 or 0.9 < rows * num_tokens / (49152 * 192) <= 1
