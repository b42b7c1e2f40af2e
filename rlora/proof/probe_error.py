"""Whether a sampler serves a probe: all of it, as it is, and every tensor of it."""

from collections.abc import Iterable, Iterator, Sequence

import torch

from rlora.errors import ProofError
from rlora.lora.flat import Slot
from rlora.proof import messages
from rlora.proof.evidence import CLIP, Scores, clipped_error, root_mean_square, served_sums
from rlora.proof.explain import explain
from rlora.proof.probe import Part, Probe, computing, part_of, suspects
from rlora.proof.scoring import Drawn, logprobs_of, rounding_of, score_with_gradient
from rlora.train.policy import Policy
from rlora.types import SamplingParams

MAX_PROBE_ERROR = 6.0  # times the noise on the base: a disturbed model multiplies its rounding, up to twice here
_SUSPECTS, _HIDDEN = 1, 8  # tensors that are left out one by one: likely ones, and those that no gradient shows
_MORE_SUSPECTS = 8  # likely ones where there is a doubt
_DOUBTFUL_ERROR = (1.3, 1.75)  # times the noise on the base, in fp32 and in 16 bits; above it, there is a doubt
_DOUBTFUL_DEVIATIONS = 5.5  # of a tensor's disturbance, above which there is one too


def probe_error(
    policy: Policy, probe: Probe, previous: Probe | None, tokens: Drawn, sampling: SamplingParams, *, noise: float
) -> tuple[Scores, float]:
    """Return the trainer's scores of tokens that were drawn from a probe, and by how much the sampler is off, nats.

    Raises ProofError for more than the noise on the base explains, for another part of the disturbance than all of it,
    and for a tensor that is not there; it says what was served, the `previous` probe for one.
    """

    def error_of(scores: Scores) -> torch.Tensor:
        return (tokens.sampler_N - scores.logprobs_N).clamp(-CLIP * noise, CLIP * noise) * tokens.is_first_N

    with computing(policy, probe.theta_D):
        scores, gradient_D = score_with_gradient(policy, tokens, sampling, error_of)
    with computing(policy, probe.start_D):
        start_N = logprobs_of(policy, tokens, sampling)
    order, first = suspects(policy, probe, gradient_D), tokens.is_first_N
    sampler_N, probe_N = tokens.sampler_N[first], scores.logprobs_N[first]
    error = clipped_error(sampler_N - probe_N, noise)
    served = served_sums(sampler_N, probe_N, start_N[first], trainer_noise=rounding_of(policy, noise))
    if error <= MAX_PROBE_ERROR * noise and not served.is_off:
        parts = _parts(policy, probe, tokens, error_of(scores), sampling, order, error=error, noise=noise)
        if not any(part.is_off for part in parts):
            return scores, error
    with policy.adapter_off():
        base_N = logprobs_of(policy, tokens, sampling)[first]
    looks = messages.looks_like_base(sampler_N, probe_N, base_N, noise)
    if looks is None:
        looks = explain(policy, probe, previous, tokens, sampling, order, noise=noise)
    raise ProofError(messages.probe(root_mean_square(sampler_N - probe_N), noise, looks))


def _parts(
    policy: Policy,
    probe: Probe,
    tokens: Drawn,
    error_N: torch.Tensor,
    sampling: SamplingParams,
    order: Sequence[Slot],
    *,
    error: float,
    noise: float,
) -> Iterator[Part]:
    """Yield how much is missing of the likeliest tensors of `order` and of those that no gradient shows; and of more
    where the error is larger than on the base, or lies along one of these: the gradient puts tensors that move much
    before those that move little.
    """

    def parts(slots: Iterable[Slot]) -> Iterator[Part]:
        for slot in slots:
            yield part_of(policy, probe, tokens, error_N, sampling, slot, noise=max(noise, error))

    tried = dict.fromkeys([*order[:_SUSPECTS], *probe.hidden[:_HIDDEN]])
    is_in_doubt = error > _DOUBTFUL_ERROR[policy.dtype != torch.float32] * noise
    for part in parts(tried):
        is_in_doubt = is_in_doubt or abs(part.z) > _DOUBTFUL_DEVIATIONS
        yield part
    if is_in_doubt:
        yield from parts(slot for slot in order[:_MORE_SUSPECTS] if slot not in tried)
