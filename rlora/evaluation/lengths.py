"""Lengths of an evaluation that the model has positions for."""

from dataclasses import replace

from rlora.evaluation.config import MAX_PROMPT_TOKENS, MAX_TOKENS, EvalConfig


def fitted(config: EvalConfig, positions: int | None) -> tuple[EvalConfig, str]:
    """Return the configuration with lengths that a model has positions for, and what was cut ("": nothing).

    Only a length that was left at its default gives way: the prompts' first, of which half the positions are kept.
    """
    prompt, tokens = config.sampler.max_prompt_tokens, config.max_tokens
    if positions is None or prompt + tokens <= positions:
        return config, ""
    if prompt == MAX_PROMPT_TOKENS:
        least = positions // 2 if tokens == MAX_TOKENS else 1
        prompt = min(prompt, max(least, positions - tokens))
    if tokens == MAX_TOKENS:
        tokens = min(tokens, max(1, positions - prompt))
    limits = (
        ("prompts", config.sampler.max_prompt_tokens, prompt),
        ("completions", config.max_tokens, tokens),
    )
    cuts = [f"{name} may have {now:,} tokens in place of {before:,}" for name, before, now in limits if now < before]
    changed = replace(config, max_tokens=tokens, sampler=replace(config.sampler, max_prompt_tokens=prompt))
    return changed, f"The model has {positions:,} positions, so {' and '.join(cuts)}." if cuts else ""
