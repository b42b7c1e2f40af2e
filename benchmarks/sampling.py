"""Tokens a second of one engine setting on the quickstart's requests; prints one JSON line.

`exact` times rlora's sampler and vLLM's own `generate` in the same engine in turn, and loads and proofs of swaps;
`default` times vLLM as it comes: its own process, its own scheduling, no seeds.
"""

import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from rlora.lora.config import LoraConfig
from rlora.lora.peft.peft_format import save_adapter, served_modules
from rlora.model.sources import ModelConfig, end_token_ids, load_tokenizer, model_dir
from rlora.proof.hot_swap import HotSwap
from rlora.sampler.base import EngineSpec, SamplerConfig
from rlora.tasks import task
from rlora.tasks.prompts import PromptConfig, PromptRenderer
from rlora.train.policy import Policy
from rlora.types import SampleRequest, SamplingParams

ROUNDS, MAX_TOKENS = 5, 32
MODEL = ModelConfig()


def parts() -> tuple[Path, Policy, list[tuple[int, ...]]]:
    """Return the model's folder, a policy whose adapter is not zero, and the prompts."""
    folder = model_dir(MODEL)
    policy = Policy.load(folder, MODEL, LoraConfig(), seed=0)
    change(policy, 0)
    renderer = PromptRenderer(load_tokenizer(folder, MODEL), PromptConfig(), instruction=task("arithmetic").instruction)
    return (
        folder,
        policy,
        [renderer.render(problem).token_ids for problem in task("arithmetic").load("train", None)[:32]],
    )


def change(policy: Policy, version: int) -> None:
    """Give the policy other numbers."""
    random = torch.Generator().manual_seed(version)
    for name, parameter in policy.flat.parameters.items():
        if name.endswith("lora_B"):
            parameter.data.copy_(torch.randn(parameter.shape, generator=random) * 3e-4)
    policy.version = version


def exact() -> dict[str, Any]:
    from rlora.sampler.vllm.engine import VllmSampler

    folder, policy, prompts = parts()
    ends = end_token_ids(folder, load_tokenizer(folder, MODEL))
    sampler = VllmSampler(
        EngineSpec(
            folder=folder,
            model=MODEL,
            lora=policy.config,
            config=SamplerConfig(),
            end_token_ids=ends,
            target_modules=tuple(served_modules(policy.snapshot())),
            max_length=160,
        )
    )
    swap = HotSwap(policy, sampler, prompts)
    swap.swap()
    loads, swaps = [], []
    for version in range(1, 2 + ROUNDS):
        change(policy, version)
        start = time.perf_counter()
        swap.swap()
        swaps.append(time.perf_counter() - start)
        adapter = policy.snapshot()
        start = time.perf_counter()
        sampler.load([adapter])
        loads.append(time.perf_counter() - start)
    result: dict[str, Any] = {"load_seconds": statistics.median(loads), "swap_seconds": statistics.median(swaps)}

    requests = [SampleRequest(token_ids=prompt, num_samples=8, key=(index,)) for index, prompt in enumerate(prompts)]

    def ours(seed: int) -> int:
        groups = sampler.sample(requests, SamplingParams(max_tokens=MAX_TOKENS), seed=seed)
        return sum(len(one.token_ids) for group in groups for one in group)

    def theirs(seed: int) -> int:
        params = [sampler._params(request, SamplingParams(max_tokens=MAX_TOKENS), seed) for request in requests]
        outputs = sampler._llm.generate(
            [{"prompt_token_ids": list(prompt)} for prompt in prompts],
            params,
            lora_request=sampler._current[0],
            use_tqdm=False,
        )
        return sum(len(one.token_ids) for output in outputs for one in output.outputs)

    rates: dict[str, list[float]] = {"ours": [], "theirs": []}
    for seed in range(ROUNDS + 1):
        for name, draw in (("ours", ours), ("theirs", theirs)):
            start = time.perf_counter()
            tokens = draw(seed)
            if seed:  # the first round warms up
                rates[name].append(tokens / (time.perf_counter() - start))
    result["ours_tokens_per_second"] = statistics.median(rates["ours"])
    result["theirs_tokens_per_second"] = statistics.median(rates["theirs"])
    return result


def default() -> dict[str, Any]:
    os.environ["VLLM_LOGGING_LEVEL"] = "ERROR"
    from vllm import LLM
    from vllm import SamplingParams as VllmParams
    from vllm.lora.request import LoRARequest

    folder, policy, prompts = parts()
    with tempfile.TemporaryDirectory() as adapter_dir:
        save_adapter(policy.snapshot(), Path(adapter_dir))
        llm = LLM(
            str(folder),
            dtype="bfloat16",
            max_model_len=160,
            max_num_seqs=256,
            enable_lora=True,
            max_lora_rank=1,
            max_loras=1,
            kv_cache_memory_bytes=2**30,
            logprobs_mode="processed_logprobs",
            generation_config="vllm",
        )
        request = LoRARequest("a", 1, adapter_dir)
        params = VllmParams(n=8, temperature=1.0, max_tokens=MAX_TOKENS, logprobs=0)
        rates = []
        for round_ in range(ROUNDS + 1):
            start = time.perf_counter()
            outputs = llm.generate(
                [{"prompt_token_ids": list(prompt)} for prompt in prompts], params, lora_request=request, use_tqdm=False
            )
            tokens = sum(len(one.token_ids) for output in outputs for one in output.outputs)
            if round_:
                rates.append(tokens / (time.perf_counter() - start))
    return {"tokens_per_second": statistics.median(rates)}


if __name__ == "__main__":
    print("RESULT" + json.dumps({"exact": exact, "default": default}[sys.argv[1]]()), flush=True)
