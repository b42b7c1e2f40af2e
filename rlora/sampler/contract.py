"""The contract of completions, checked where they come in: what breaks it is the sampler's fault, and named so."""

import math
from collections.abc import Callable, Sequence

from rlora.errors import SamplerError
from rlora.types import Completion, SampleRequest, SamplingParams, StopReason, digest_of

# An exact log-probability is at most 0, and a drawn token's hardly below -100 (e^-100 of all draws). An engine that
# rounds may be above 0 by its noise, which is measured and bounded by the proof; beyond this it is no probability.
MAX_LOGPROB = 0.45
MIN_LOGPROB = -100.0


def check_completions(
    requests: Sequence[SampleRequest],
    completions: Sequence[Sequence[Completion]],
    sampling: SamplingParams,
    *,
    num_tokens: int | None = None,
    text_of: Callable[[Sequence[int]], str] | None = None,
) -> None:
    """Raise SamplerError, which names prompt and value, unless these are completions of the requests.

    There must be as many as were asked for, each of 1 to `max_tokens` tokens below `num_tokens` (the rows of the
    model's embedding), each token with a log-probability. `text_of` says what text tokens have; a completion that a
    string ended is cut within its last token, so only the beginning of its text is compared.
    """
    if len(completions) != len(requests):
        raise SamplerError(f"the sampler answered {len(completions)} prompts; {len(requests)} were asked.")
    for number, (request, group) in enumerate(zip(requests, completions, strict=True)):
        where = f"prompt {number} ({'/'.join(map(str, request.key))})"
        if len(group) != request.num_samples:
            raise SamplerError(
                f"the sampler gave {len(group)} completions of {where}; {request.num_samples} were asked for."
            )
        versions = {completion.version for completion in group}
        if len(versions) > 1:
            raise SamplerError(f"the sampler's completions of {where} are of several versions: {sorted(versions)}.")
        for index, completion in enumerate(group):
            reason = _fault(completion, request, sampling, num_tokens) or _other_text(completion, text_of)
            if reason:
                raise SamplerError(
                    f"completion {index} of {where} is none: {reason}. The policy is unchanged; check the sampler, "
                    "not the learning rate."
                )


def _fault(
    completion: Completion, request: SampleRequest, sampling: SamplingParams, num_tokens: int | None
) -> str | None:
    """Return what is wrong with the numbers of a completion, or None."""
    tokens, logprobs = completion.token_ids, completion.logprobs
    if not tokens:
        return "it has no tokens"
    if len(tokens) > sampling.max_tokens:
        return f"it has {len(tokens)} tokens, and {sampling.max_tokens} are allowed"
    if len(logprobs) != len(tokens):
        return f"it has {len(tokens)} tokens and {len(logprobs)} log-probabilities"
    if completion.policy != (request.policy or 0):
        return f"it is of policy {completion.policy}, and policy {request.policy or 0} was asked for"
    if completion.prompt is not None and completion.prompt != digest_of(request.token_ids):
        return f"it was drawn after another prompt than the {len(request.token_ids)} tokens that were given"
    if min(tokens) < 0 or (num_tokens is not None and max(tokens) >= num_tokens):
        token = min(tokens) if min(tokens) < 0 else max(tokens)
        return f"it has the token {token}, and the model's are 0 to {'...' if num_tokens is None else num_tokens - 1}"
    if not all(map(math.isfinite, logprobs)) or max(logprobs) > MAX_LOGPROB or min(logprobs) < MIN_LOGPROB:
        index = next(i for i, one in enumerate(logprobs) if not MIN_LOGPROB <= one <= MAX_LOGPROB)  # NaN is in no range
        return (
            f"its token {index} has the log-probability {logprobs[index]}, and a drawn token's lies between "
            f"{MIN_LOGPROB:g} and 0"
        )
    return None


def _other_text(completion: Completion, text_of: Callable[[Sequence[int]], str] | None) -> str | None:
    """Return that a completion's text is not that of its tokens, or None."""
    if text_of is None:
        return None
    said = text_of(completion.token_ids)
    is_same = said.startswith(completion.text) if completion.stop is StopReason.STOP_STRING else said == completion.text
    return None if is_same else f"its text is {completion.text[:40]!r}, and its tokens say {said[:40]!r}"
