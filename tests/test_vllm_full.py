"""All weights of the bundled model handed to the real engine: served, proven, put back for the base, not leaking."""

import dataclasses
import time

import psutil
import pytest
import torch
from support import liars

from rlora.errors import StaleAdapterError
from rlora.model.sources import ModelConfig, end_token_ids, load_tokenizer, model_dir
from rlora.proof.hot_swap import HotSwap
from rlora.proof.probe import NUM_PROBES
from rlora.sampler.base import EngineSpec, SamplerConfig, is_vllm_installed
from rlora.system.memory import give_back_freed_memory
from rlora.tasks import task
from rlora.tasks.prompts import PromptConfig, PromptRenderer
from rlora.train.batching import Row, stack
from rlora.train.policy import Policy
from rlora.types import SampleRequest, SamplingParams

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.skipif(not is_vllm_installed(), reason="vLLM is not installed"),
    pytest.mark.filterwarnings("ignore"),  # of vLLM and what it imports
]


class FullBench:
    """An engine without adapters, and the policy whose weights it should serve."""

    def __init__(self, model: ModelConfig):
        from rlora.sampler.vllm.engine import VllmSampler

        folder = model_dir(model)
        tokenizer = load_tokenizer(folder, model)
        self.policy = Policy.load(folder, model, None, seed=0)
        self.base_D = self.policy.flat.theta_D.to(torch.bfloat16)
        self.sampler = VllmSampler(
            EngineSpec(
                folder=folder,
                model=model,
                lora=None,
                config=SamplerConfig(kind="vllm", kv_cache_gb=0.25, max_num_seqs=64),
                end_token_ids=end_token_ids(folder, tokenizer),
                target_modules=(),
                max_length=160,
            )
        )
        renderer = PromptRenderer(tokenizer, PromptConfig(), instruction=task("arithmetic").instruction)
        self.prompts = [renderer.render(problem).token_ids for problem in task("arithmetic").load("test", None)[:8]]

    def change(self, *, version: int, scale: float = 0.02) -> None:
        """Give the policy new numbers: the base's, each times 1 plus noise."""
        random = torch.Generator().manual_seed(version)
        theta_D = self.policy.flat.theta_D
        theta_D.copy_(self.base_D)
        theta_D.mul_(1 + scale * torch.randn(theta_D.shape, generator=random))
        self.policy.refresh_served()
        self.policy.version = version

    def draw(self, *, policy: int | None = 0, max_tokens: int = 12, is_cold: bool = False):
        """Sample; if `is_cold` with no prompt cached, which rounds otherwise on a processor with AMX."""
        if is_cold:
            assert self.sampler._llm.reset_prefix_cache()
        requests = [
            SampleRequest(token_ids=prompt, num_samples=4, key=("t", index), policy=policy)
            for index, prompt in enumerate(self.prompts)
        ]
        return self.sampler.sample(requests, SamplingParams(max_tokens=max_tokens), seed=0)

    @torch.no_grad()
    def difference(self, completions) -> float:
        """Return the mean absolute difference to the trainer's log-probabilities, nats."""
        differences = []
        for prompt, group in zip(self.prompts, completions, strict=True):
            part = stack([Row(prompt=prompt, completions=tuple(group), advantages=(0.0,) * len(group))])
            differences.append((self.policy.score(part).logprobs_N - part.sampler_logprobs_N).abs())
        return float(torch.cat(differences).mean())


@pytest.fixture(scope="module", params=["float32", "bfloat16"], ids=lambda dtype: f"head-{dtype}")
def bench(request):
    """The tied unembedding is packed for the CPU only where logits are in the model's precision: both are tried."""
    made = FullBench(ModelConfig(head_dtype=request.param))
    yield made
    made.sampler.close()


def test_the_next_sample_has_the_new_weights_logprobs(bench) -> None:
    """Wrong by far, and soon, if the unembedding or the cached prompts were still those of the version before."""
    base = bench.draw(policy=None)
    assert bench.difference(base) < 0.06
    for version in (1, 2):
        bench.change(version=version)
        bench.sampler.load([bench.policy.snapshot()])
        completions = bench.draw()
        assert {one.version for group in completions for one in group} == {version}
        assert completions != base
        right = bench.difference(completions)
        bench.change(version=version + 100)
        wrong = bench.difference(completions)
        assert right < 0.06
        assert wrong > 4 * right
        bench.change(version=version)
    mixed = bench.sampler.sample(
        [
            SampleRequest(token_ids=prompt, num_samples=4, key=("t", index), policy=None if index % 2 else 0)
            for index, prompt in enumerate(bench.prompts)
        ],
        SamplingParams(max_tokens=1),
        seed=0,
    )
    assert {group[0].version for group in mixed[::2]} == {2}
    assert {group[0].version for group in mixed[1::2]} == {-1}
    assert bench.draw(policy=None, is_cold=True) == base  # the base's weights are back, to the bit
    assert bench.draw(is_cold=True) == completions


def test_an_honest_engine_is_proven_and_a_swap_is_quick(bench) -> None:
    bench.change(version=0, scale=0.0)
    swap = HotSwap(bench.policy, bench.sampler, bench.prompts, seed=1)
    swap.swap()
    seconds = []
    for version in range(1, 4):
        bench.change(version=version, scale=0.05)
        start = time.perf_counter()
        metrics = swap.swap()
        seconds.append(time.perf_counter() - start)
        assert metrics["proof/canary_is_decided_previous"] == metrics["proof/canary_is_decided_base"] == 1
        assert metrics["proof/canary_served_fraction_previous"] == pytest.approx(1, abs=0.2)
        swap.prove_served(None)
        swap.prove_served(0)
    assert sorted(seconds)[1] < 5
    print(f"swap with proof: {[round(one, 2) for one in seconds]} s")


@pytest.mark.parametrize("scale", [0.02, 3e-3])
@pytest.mark.parametrize("lie", [liars.ServesBase, liars.ServesPrevious])
def test_an_engine_made_to_lie_is_caught_at_the_first_swap(bench, lie, scale) -> None:
    bench.change(version=0, scale=0.0)
    lying = liars.later(lie, num_honest_loads=NUM_PROBES + 1)(bench.sampler)
    swap = HotSwap(bench.policy, lying, bench.prompts, seed=1)
    swap.swap()
    bench.change(version=1, scale=scale)
    with pytest.raises(StaleAdapterError, match="does not serve version 1"):
        swap.swap()


def test_loading_again_and_again_leaks_no_memory(bench) -> None:
    process, snapshot = psutil.Process(), bench.policy.snapshot()
    for version in range(3):
        bench.sampler.load([dataclasses.replace(snapshot, version=version)])
        bench.draw(max_tokens=1)
    give_back_freed_memory()  # as training does after each step: what was freed is no leak
    before = process.memory_info().rss
    for version in range(3, 13):
        bench.sampler.load([dataclasses.replace(snapshot, version=version)])
        bench.draw(max_tokens=1)
    give_back_freed_memory()
    assert process.memory_info().rss - before < 100 * 2**20  # ten copies would be 2.7 GB
