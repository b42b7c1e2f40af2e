"""The unembedding with a low-rank update: its log-probabilities, its gradients, and where it is refused."""

import pytest
import torch
import transformers
from support.engines import spec
from support.models import folder_of
from support.policies import TOY_MODEL, make_policy
from support.runs import toy
from torch import nn

from rlora.errors import ConfigError
from rlora.loop import run
from rlora.lora.config import LoraConfig
from rlora.lora.linear import Factors, LoraLinear
from rlora.lora.variants.unembedding import adapted_logits, adapted_token_logprobs
from rlora.model.sources import ModelConfig
from rlora.run_config import RunConfig
from rlora.sampler import base
from rlora.sampler.base import SamplerConfig
from rlora.sampler.build import build_sampler
from rlora.train.batching import Row, stack
from rlora.train.policy import Policy
from rlora.types import SampleRequest, SamplingParams

pytestmark = pytest.mark.unit
WITH_HEAD = LoraConfig(rank=2, layers="all+unembedding")


def head_of(rank: int, dtype: torch.dtype, num_tokens: int = 50) -> LoraLinear:
    torch.manual_seed(0)
    a, b = nn.Parameter(torch.randn(rank, 8) * 0.3), nn.Parameter(torch.randn(num_tokens, rank) * 0.3)
    layer = LoraLinear(nn.Linear(8, num_tokens, bias=False, dtype=dtype))
    layer.factors = Factors(a=a, b=b, scale=3.0 / rank)
    return layer


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("chunk", [3, 256])
@pytest.mark.parametrize("rank", [1, 4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_values_and_gradients_equal_log_softmax_by_autograd(monkeypatch, temperature, chunk, rank, dtype) -> None:
    monkeypatch.setattr("rlora.model.logprobs.CHUNK_TOKENS", chunk)
    layer = head_of(rank, dtype)
    hidden = torch.randn(10, 8).to(dtype).requires_grad_()
    targets, weights = torch.randint(0, 50, (10,)), torch.randn(10)
    weight = layer.base.weight.float()
    values, entropy = adapted_token_logprobs(hidden, weight, layer, targets, temperature=temperature)
    (values * weights).sum().backward()

    a, b, x = (t.detach().to(dtype).float().requires_grad_() for t in (layer.factors.a, layer.factors.b, hidden))
    scaled = (b.to(dtype) * layer.factors.scale).float()  # as a server folds it in
    log_p = ((x @ weight.T + (x @ a.T) @ scaled.T) / temperature).log_softmax(-1)
    (log_p[torch.arange(10), targets] * weights).sum().backward()
    torch.testing.assert_close(values, log_p[torch.arange(10), targets], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(entropy, -(log_p.exp() * log_p).sum(-1), rtol=1e-5, atol=1e-5)
    close = {"rtol": 1e-4, "atol": 1e-5} if dtype is torch.float32 else {"rtol": 1e-2, "atol": 1e-2}
    torch.testing.assert_close(layer.factors.a.grad, a.grad, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(layer.factors.b.grad, b.grad, **close)
    torch.testing.assert_close(hidden.grad.float(), x.grad, **close)
    assert layer.base.weight.grad is None
    assert not entropy.requires_grad
    with torch.no_grad():
        logits = adapted_logits(hidden, weight, layer) / temperature
    torch.testing.assert_close(logits.log_softmax(-1), log_p.detach(), rtol=1e-5, atol=1e-5)


def test_memory_does_not_hold_logits() -> None:
    layer, sizes = head_of(2, torch.float32, num_tokens=1000), []

    def seen(tensor: torch.Tensor) -> torch.Tensor:
        sizes.append(tensor.numel())
        return tensor

    hidden = torch.randn(600, 8, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(seen, seen):
        adapted_token_logprobs(hidden, layer.base.weight, layer, torch.zeros(600, dtype=torch.long))
    assert max(sizes, default=0) <= 8000  # the head itself; logits of a chunk are 256,000


def test_no_tokens_give_no_values() -> None:
    layer = head_of(1, torch.float32)
    none = torch.zeros(0, dtype=torch.long)
    values, entropy = adapted_token_logprobs(torch.randn(0, 8), layer.base.weight, layer, none)
    assert values.shape == entropy.shape == (0,)


def test_trainer_reference_sampler_and_merged_model_agree(toy_dir) -> None:
    policy = make_policy(toy_dir, lora=WITH_HEAD)
    sampler = build_sampler(spec(policy, toy_dir, TOY_MODEL, SamplerConfig(kind="torch")))
    sampler.load([policy.snapshot()])
    prompt = (3, 4, 5, 6)
    request = SampleRequest(token_ids=prompt, num_samples=8, key=("t",))
    completions = sampler.sample([request], SamplingParams(max_tokens=12), seed=0)[0]
    part = stack([Row(prompt=prompt, completions=tuple(completions), advantages=(0.0,) * 8)])
    with torch.no_grad():
        scored = policy.score(part).logprobs_N
        with policy.adapter_off():
            base_scored = policy.score(part).logprobs_N
    assert float((scored - part.sampler_logprobs_N).abs().max()) < 1e-4

    model = transformers.AutoModelForCausalLM.from_pretrained(toy_dir, dtype=torch.float32)
    plain, tensors = [], policy.flat.tensors()
    for is_merged in (False, True):
        if is_merged:
            for path in {name.rpartition(".")[0] for name in tensors}:
                update = WITH_HEAD.scale * tensors[f"{path}.lora_B"] @ tensors[f"{path}.lora_A"]
                model.get_submodule(path).weight.data += update
        values = []
        for one in completions:
            with torch.no_grad():
                log_p = model(torch.tensor([[*prompt, *one.token_ids]])).logits[0, 3:-1].log_softmax(-1)
            values += log_p[torch.arange(len(one.token_ids)), torch.tensor(one.token_ids)].tolist()
        plain.append(torch.tensor(values))
    torch.testing.assert_close(base_scored, plain[0], rtol=0, atol=2e-5)
    torch.testing.assert_close(scored, plain[1], rtol=0, atol=5e-5)
    without = {name: tensor for name, tensor in tensors.items() if not name.startswith("lm_head")}
    other = make_policy(toy_dir, lora=LoraConfig(rank=2))
    other.flat.assign(without)
    with torch.no_grad():
        assert float((other.score(part).logprobs_N - scored).abs().max()) > 1e-2  # the unembedding's update counts


def test_a_tied_unembedding_is_refused(tmp_path) -> None:
    folder = folder_of("Llama", tmp_path, tie_word_embeddings=True)
    with pytest.raises(ConfigError, match=r"input embeddings are the same matrix \(tied\)"):
        Policy.load(folder, ModelConfig(dtype="float32"), WITH_HEAD, seed=0)
    config = toy(tmp_path / "run", model=ModelConfig(name=str(folder), dtype="float32"), lora=WITH_HEAD)
    with pytest.raises(ConfigError, match=r"\(tied\)"):
        run(config)
    assert not (tmp_path / "run").exists()


def test_vllms_cpu_build_is_refused_before_anything_loads(monkeypatch, toy_dir) -> None:
    monkeypatch.setattr(base, "is_vllm_installed", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ConfigError, match=r"vLLM's CPU build serves adapters of the unembedding wrongly"):
        RunConfig(run_dir="x", lora=WITH_HEAD).check()
    RunConfig(run_dir="x", lora=WITH_HEAD, sampler=SamplerConfig(kind="torch")).check()
    policy = make_policy(toy_dir, lora=WITH_HEAD)
    with pytest.raises(ConfigError, match=r"--sampler\.kind torch"):
        build_sampler(spec(policy, toy_dir, TOY_MODEL, SamplerConfig(kind="vllm")))
