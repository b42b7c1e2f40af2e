"""The real engine beside the policy that it should serve."""

import torch

from rlora.lora.adapter import Adapter
from rlora.lora.config import LoraConfig
from rlora.model.sources import ModelConfig, load_tokenizer, model_dir
from rlora.sampler.base import SamplerConfig
from rlora.tasks import task
from rlora.tasks.prompts import PromptConfig, PromptRenderer
from rlora.train.batching import Row, stack
from rlora.train.policy import Policy
from rlora.types import SampleRequest, SamplingParams
from support.engines import RANK_1, random_b, spec

BUNDLED = ModelConfig()


class Bench:
    """An engine with the policy that it should serve."""

    def __init__(self, model: ModelConfig = BUNDLED, *, lora: LoraConfig = RANK_1, kv_cache_gb: float = 0.25):
        from rlora.sampler.vllm.engine import VllmSampler

        self.folder = model_dir(model)
        self.policy = Policy.load(self.folder, model, lora, seed=0)
        config = SamplerConfig(kind="vllm", kv_cache_gb=kv_cache_gb, max_num_seqs=64)
        self.sampler = VllmSampler(spec(self.policy, self.folder, model, config))
        self.prompts = self.arithmetic_prompts(model)

    def arithmetic_prompts(self, model: ModelConfig) -> list:
        tokenizer = load_tokenizer(self.folder, model)
        renderer = PromptRenderer(tokenizer, PromptConfig(), instruction=task("arithmetic").instruction)
        return [renderer.render(problem).token_ids for problem in task("arithmetic").load("test", None)[:8]]

    def put(self, *, version: int, scale: float = 1e-2) -> Adapter:
        """Give the policy new numbers and load them."""
        random_b(self.policy, scale=scale, seed=version)
        self.policy.version = version
        adapter = self.policy.snapshot()
        self.sampler.load([adapter])
        return adapter

    def draw(self, *, policy: int | None = 0, num_samples: int = 4, max_tokens: int = 12, seed: int = 0):
        requests = [
            SampleRequest(token_ids=prompt, num_samples=num_samples, key=("t", index), policy=policy)
            for index, prompt in enumerate(self.prompts)
        ]
        return self.sampler.sample(requests, SamplingParams(max_tokens=max_tokens), seed=seed)

    @torch.no_grad()
    def difference(self, completions, *, is_base: bool = False) -> float:
        """Return the mean absolute difference to the trainer's log-probabilities, nats."""
        total, count = 0.0, 0
        for prompt, group in zip(self.prompts, completions, strict=True):
            part = stack([Row(prompt=prompt, completions=tuple(group), advantages=(0.0,) * len(group))])
            part = part.to(self.policy.device)
            if is_base:
                with self.policy.adapter_off():
                    logprobs = self.policy.score(part).logprobs_N
            else:
                logprobs = self.policy.score(part).logprobs_N
            total += float((logprobs - part.sampler_logprobs_N).abs().sum())
            count += logprobs.numel()
        return total / count
