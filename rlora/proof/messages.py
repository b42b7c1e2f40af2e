"""What the errors of the proof say: what is wrong, and what kind of lie it looks like."""

import torch

from rlora.proof.comparison import Comparison
from rlora.proof.evidence import Sums, clipped_error
from rlora.train.policy import Policy

NAMES = {"base": "the base model", "previous": "the version before it"}
_NOTHING_LOST = (
    "Nothing was trained on its samples. Check the sampler's version and its settings; --sampler.kind torch is the "
    "reference."
)

COPIES_OF_ONE = (
    "the sampler gives copies of one completion where it was asked for several draws: their own probabilities do not "
    "allow so many. Nothing was trained on them. Check that each sample has a seed of its own."
)
OTHER_DRAWS = (
    "the sampler draws other tokens for the same request with the same seed: a run could be neither repeated nor "
    "resumed. Check that it passes the seed on."
)
SAME_DRAWS = "the sampler draws the same tokens with another seed: check that it passes the seed on."


def name(policy: Policy) -> str:
    """Return what the policy's version is called."""
    return f"version {policy.version} of the policy"


def no_numbers(policy: Policy) -> str:
    """Return that the policy computes no numbers any more, though its own are finite."""
    return (
        f"the log-probabilities of {name(policy)} are not numbers: its update was far too large. Nothing was handed to "
        "the sampler, and the last checkpoint is good. Go on from it with --branch NEW_DIR and a lower "
        "--optimizer.learning-rate."
    )


def peer(name: str) -> str:
    """Return what another policy that the same sampler serves is called."""
    return f"{name}, another policy"


def stale(where: str, wanted: str, served: str, comparison: Comparison, *, is_identical: bool = False) -> str:
    """Return that another version is served than the one that should be."""
    why = (
        f"the canary's sample is bit-identical to that of {served}, though the trainer tells the two apart"
        if is_identical
        else f"on the {where}, log-probabilities lie {comparison.other_error:.2g} nats from {served} and "
        f"{comparison.error:.2g} from {wanted} (root mean square), {comparison.separation:.1f} deviations apart"
    )
    return f"the sampler does not serve {wanted}: {why}. {_NOTHING_LOST}"


def neither(
    where: str, policy: Policy, sampler_N: torch.Tensor, new_N: torch.Tensor, base_N: torch.Tensor, noise: float
) -> str:
    """Return that what is served is neither this version nor another, and what it may be."""
    error, from_base = clipped_error(sampler_N - new_N, noise), clipped_error(sampler_N - base_N, noise)
    direction_N = new_N - base_N
    fraction = float((sampler_N - base_N) @ direction_N / direction_N.square().sum().clamp(min=1e-30))
    rest = clipped_error(sampler_N - base_N - fraction * direction_N, noise)
    if looks := looks_like_base(sampler_N, new_N, base_N, noise):
        looks = f"It looks like {looks}."
    elif rest < error / 2:
        looks = f"It looks as if the update were scaled by {fraction:.2f}."
    else:
        looks = (
            "It looks like a part of the update, another adapter, another temperature or another prompt; the probe at "
            "the start of a run tells which (docs/proof.md)."
        )
    return (
        f"the sampler serves neither {name(policy)} nor another: on the {where}, log-probabilities lie {error:.2g} "
        f"nats from it and {from_base:.2g} from the base (root mean square), and the noise is {noise:.2g}. {looks} "
        f"{_NOTHING_LOST}"
    )


def looks_like_base(sampler_N: torch.Tensor, new_N: torch.Tensor, base_N: torch.Tensor, noise: float) -> str | None:
    """Return that the tokens which are not the version's are the base's, and how many they are; None if not."""
    is_off_N = (sampler_N - new_N).abs() > 3 * noise
    is_base_N = (sampler_N - base_N).abs() <= 3 * noise
    if float(is_base_N[is_off_N].float().mean()) < 0.7 or not bool(is_off_N.any()):
        return None
    if float(is_base_N.float().mean()) > 0.9:
        return NAMES["base"]
    return f"the base model in a part of the requests (at least {float(is_off_N.float().mean()):.0%} of the tokens)"


def far_off(policy: Policy, error: float, noise: float, num_tokens: int) -> str:
    """Return that a step's tokens as a whole are further from the version than the noise."""
    return (
        f"the sampler does not serve {name(policy)} in all rollouts: over {num_tokens} tokens of this step its "
        f"log-probabilities are {error:.2g} nats off (root mean square), and the noise is {noise:.2g}. It looks as if "
        f"a part of the requests were answered by something else. {_NOTHING_LOST}"
    )


def part_served(what: str, sums: Sums) -> str:
    """Return that the rollouts have another part of the update than all of it."""
    return (
        f"the sampler does not serve {what} as it is: its log-probabilities have {1 + sums.relative:.2f} of the update "
        f"({sums.z:+.1f} standard errors from 1). It looks like an update that is scaled, lacks a part, or is left out "
        f"in a part of the requests. {_NOTHING_LOST}"
    )


def other_temperature(what: str, sums: Sums) -> str:
    """Return that log-probabilities go with the trainer's, but not one to one."""
    return (
        f"the sampler's log-probabilities are not those of {what}: they are as at "
        f"{1 / max(1e-3, 1 + sums.relative):.2f} times the temperature ({sums.z:+.1f} standard errors). Check the "
        f"sampler's temperature, and that it reports log-probabilities after it. {_NOTHING_LOST}"
    )


def surprising(what: str, sums: Sums) -> str:
    """Return that the drawn tokens are not as likely as draws are."""
    looks = (
        "less likely than draws from it are, as from a higher temperature or from another version"
        if sums.z > 0
        else "likelier than draws from it are, as from a lower temperature, top-k, top-p or greedy sampling"
    )
    return (
        f"the sampler's tokens were not drawn from {what}: they are {looks} ({sums.z:+.1f} standard deviations). "
        f"{_NOTHING_LOST}"
    )


def tail(what: str, share: float, sums: Sums) -> str:
    """Return that too few or too many draws lie in the tail of the distribution."""
    looks = "top-p, top-k or min-p is on" if sums.deviation < sums.weight else "they come from another distribution"
    return (
        f"the sampler's tokens were not drawn from {what}: behind the likeliest tokens that have {share:.0%} of the "
        f"probability lie {sums.deviation:.0f} of its draws, where {sums.weight:.0f} are expected. It looks as if "
        f"{looks}. {_NOTHING_LOST}"
    )


def not_greedy(what: str, gap: float, noise: float) -> str:
    """Return that greedy tokens are not the likeliest ones."""
    return (
        f"the sampler's tokens are not the likeliest ones of {what}: they lie {gap:.2g} nats below (root mean square), "
        f"and the noise is {noise:.2g}. {_NOTHING_LOST}"
    )


def two_models(noise: float, most: float, num_tokens: int) -> str:
    """Return that sampler and trainer differ on the base by more than rounding."""
    return (
        f"sampler and trainer differ by {noise:.2f} nats on the base model (root mean square, {num_tokens} drawn "
        f"tokens), and two implementations of one model by {most:g} at most. Either they hold different weights, or "
        "the sampler changes the distribution (temperature, top-k, penalties), or it is given another prompt. "
        f"{_NOTHING_LOST}"
    )


def probe(error: float, noise: float, looks: str | None) -> str:
    """Return that a probe is not served as it was handed over."""
    return (
        "the sampler does not serve what it is given: the "
        f"log-probabilities of a probe, every tensor of which can be seen, are off by {error:.2g} nats, where the "
        f"noise is {noise:.2g}. It looks like {looks or 'nothing that was tried (docs/proof.md)'}. {_NOTHING_LOST}"
    )


def policy_beside(error: float, noise: float) -> str:
    """Return that requests for the policy are answered by something else in a mixed batch."""
    return (
        "in a batch of requests for the policy and for the base, the policy's are answered by something else: "
        f"{error:.2g} nats from the policy, where the noise is {noise:.2g}. {_NOTHING_LOST}"
    )


def base_beside(error: float, noise: float) -> str:
    """Return that requests for the base are answered by something else in a mixed batch."""
    return (
        "in a batch of requests for the policy and for the base, the base's are answered by something else: "
        f"{error:.2g} nats from the base, where the noise is {noise:.2g}. {_NOTHING_LOST}"
    )
