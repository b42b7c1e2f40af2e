"""What a wrong answer to a probe looks like: guesses at what was served in its place, and the one that fits."""

from collections.abc import Iterator, Sequence

import torch

from rlora.lora.flat import Slot
from rlora.proof.evidence import clipped_error
from rlora.proof.probe import Probe, computing, path_of
from rlora.proof.scoring import Drawn, logprobs_of
from rlora.train.policy import Policy
from rlora.types import SamplingParams

_MOST_TRIED = 14  # tensors, of those that deviate most
_SCALES = (0.0, 0.25, 0.5, 0.75, 0.8, 0.9, 0.95, 1.05, 1.1, 1.25, 1.5, 2.0, 4.0)
_EXPLAINED = 0.6  # of what the square of the error has above the noise's


def explain(
    policy: Policy,
    probe: Probe,
    other: Probe | None,
    tokens: Drawn,
    sampling: SamplingParams,
    order: Sequence[Slot],
    *,
    noise: float,
) -> str | None:
    """Return what explains best that a sampler's log-probabilities are not the probe's, or None if nothing tried does.

    Tried are: the policy served before (`other`), the whole update scaled, updates mixed up, all of a layer or a kind
    left out, and each of the tensors that deviate most.
    """
    sampler_N = tokens.sampler_N[tokens.is_first_N]

    def error(theta_D: torch.Tensor) -> float:
        with computing(policy, theta_D):
            logprobs_N = logprobs_of(policy, tokens, sampling)
        return clipped_error(sampler_N - logprobs_N[tokens.is_first_N], noise)

    square = error(probe.theta_D) ** 2
    best, explanation = (square - _EXPLAINED * max(0.0, square - noise**2)) ** 0.5, None
    for name, theta_D in _guesses(policy, probe, other, order):
        if (found := error(theta_D)) < best:
            best, explanation = found, name
    return explanation


def _guesses(
    policy: Policy, probe: Probe, other: Probe | None, order: Sequence[Slot]
) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield what may have been served, with its numbers."""
    if other is not None:
        yield "the version that was loaded before it", other.theta_D
    for scale in _SCALES:
        name = f"the update scaled by {scale:g}" if scale else "the policy without its update"
        yield name, probe.start_D + scale * probe.added_D
    slots = probe.slots
    groups: dict[str, list[Slot]] = {}
    for slot in order[:_MOST_TRIED]:
        groups[f"{path_of(slot)} without its update"] = [slot]
    for slot in slots:
        path = path_of(slot)
        groups.setdefault(f"all of {path.rpartition('.')[2]} without their updates", []).append(slot)
        layer = next((f"layer {part}" for part in path.split(".") if part.isdecimal()), None)
        if layer is not None:
            groups.setdefault(f"{layer} without its update", []).append(slot)
    for name, chosen in groups.items():
        yield name, probe.without(policy, chosen)
    yield from _mixed(policy, probe.theta_D)


def _mixed(policy: Policy, full_D: torch.Tensor) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield updates that reached another layer or another projection than their own."""
    by_name = {slot.name: slot for slot in policy.flat.slots}
    layers = sorted({int(part) for name in by_name for part in name.split(".") if part.isdecimal()})
    kinds = sorted({name.split(".")[-2] for name in by_name if name.endswith("lora_B")})
    swaps: dict[str, dict[str, str]] = {
        f"the updates of {one} and {other} mixed up": {one: other, other: one}
        for number, one in enumerate(kinds)
        for other in kinds[number + 1 :]
    }
    for what, order in (("the opposite order", layers[::-1]), ("another layer's place", layers[1:] + layers[:1])):
        swaps[f"the layers' updates in {what}"] = dict(zip(map(str, layers), map(str, order), strict=True))
    for explanation, swap in swaps.items():
        theta_D = full_D.clone()
        for name, slot in by_name.items():
            source = by_name.get(".".join(swap.get(part, part) for part in name.split(".")))
            if source is not None and source.shape == slot.shape:
                policy.flat.view(theta_D, slot).copy_(policy.flat.view(full_D, source))
        yield explanation, theta_D
