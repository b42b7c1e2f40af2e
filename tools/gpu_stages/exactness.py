"""Bits: what the same requests and the same batch give when they are asked again."""

import os
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from gpu_stages.models import random_model
from gpu_stages.setting import assembled, problems, rewarded, run_config
from gpu_stages.stage import CheckError, Context, digest

INVARIANT = {  # what --sampler.exact sets (rlora.system.exactness), not imported before the stage's process starts
    "VLLM_BATCH_INVARIANT": "1",
    "CUBLAS_WORKSPACE_CONFIG": ":16:8",
    "CUBLASLT_WORKSPACE_SIZE": "1",
}
_DRAWS = {"cold_and_warm": (0, 1), "warm_and_warm": (1, 2), "beside_others": (2, 3)}


def exact(context: Context) -> None:
    """Bits with an engine of its own and the variables of INVARIANT; CheckError when one differs."""
    folder = random_model(context, "qwen3-1.7b")
    config = run_config(context, folder)
    with assembled(context, config, folder) as parts:
        record = bits(context, parts, config)
    different = [name for name in _DRAWS if min(record[name].values()) < 1]
    different += [] if record["gradients_the_same"] else ["gradients"]
    if different:
        raise CheckError(f"not the same bits: {', '.join(different)}")


def bits(context: Context, parts: Any, config: Any) -> dict[str, Any]:
    """Ask the same three times, then beside others; compute the same gradient three times. Say and return the shares
    of completions that are equal.
    """
    sampling = replace(config.sampling, max_tokens=min(256, config.sampling.max_tokens))
    few = 4 if context.is_tiny else 16
    draws = [
        parts.engine.sample(problems(count), sampling, num_samples=4, seed=3, key=("exact",))[:few]
        for count in (few, few, few, 2 * few)
    ]
    completions = [[completion for group in draw for completion in group.completions] for draw in draws]
    record: dict[str, Any] = {name: equal_shares(completions[a], completions[b]) for name, (a, b) in _DRAWS.items()}
    gradients = {_gradient(parts, config, draws[2]) for _ in range(3)}
    record["gradients_the_same"] = len(gradients) == 1
    shares = ", ".join(f"{name.replace('_', ' ')} {record[name]['logprobs']:.0%}" for name in _DRAWS)
    same = "the same" if record["gradients_the_same"] else "DIFFERENT"
    context.say(
        bits=record,
        batch_invariant=os.environ.get("VLLM_BATCH_INVARIANT"),
        headline=f"equal log-probabilities: {shares}; gradients {same}",
    )
    return record


def equal_shares(first: Sequence[Any], second: Sequence[Any]) -> dict[str, float]:
    """Return the shares of completions whose tokens, and whose log-probabilities, are the same bits in both."""
    pairs = list(zip(first, second, strict=True))
    return {
        name: round(sum(getattr(a, part) == getattr(b, part) for a, b in pairs) / len(pairs), 4)
        for name, part in (("tokens", "token_ids"), ("logprobs", "logprobs"))
    }


def _gradient(parts: Any, config: Any, sampled: Sequence[Any]) -> str:
    """Return a digest of the gradient of rewards on these samples, of the policy as it is."""
    from rlora.train.advantages import advantages_of
    from rlora.train.batching import build_batch

    groups = rewarded(parts.engine.judge(sampled))
    advantages = [advantages_of(group, "centered") for group in groups]
    limit = replace(
        config.batch, tokens_per_micro_batch=min(config.batch.tokens_per_micro_batch, parts.trainer.budget.tokens)
    )
    batch = build_batch(groups, advantages, limit, version=parts.policy.version)
    parts.policy.flat.zero_grad()
    for micro_batch in batch.micro_batches:
        moved = micro_batch.to(parts.policy.device)
        (parts.policy.score(moved).logprobs_N * moved.advantages_N).sum().backward()
    value = digest(parts.policy.flat.grad_D.cpu().numpy().tobytes())
    parts.policy.flat.zero_grad()
    return value
