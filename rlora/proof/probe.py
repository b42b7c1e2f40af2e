"""The probe: policies whose every tensor is large enough to be seen alone, and what a wrong answer to one looks like.

A trained update is small at first, and what an engine loses of it lies below its rounding for many steps. So before a
run trusts an engine, it hands over two policies that were made for this: the current one, disturbed in each tensor by
noise of such a size that each disturbance by itself moves log-probabilities by several times the rounding. How far a
tensor moves them is known from the gradient, whose norm is the root mean square over all directions.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from rlora.full.weights import Snapshot
from rlora.lora.flat import Slot
from rlora.proof.evidence import clipped_error, root_mean_square
from rlora.proof.scoring import Drawn, score
from rlora.seeding import generator
from rlora.train.policy import Policy
from rlora.types import SamplingParams

EFFECT = 6.0  # of one tensor's disturbance, times the noise
LEAST_EFFECT = 0.3  # nats
_SEEN = 0.6  # of the effect that is wanted
_ROUNDS = 4  # in which tensors that are not seen grow
_MOST_GROWTH, _LEAST_GROWTH = 4.0, 1.5  # of a size from round to round; the most over the median at the start
_PASSES = 3  # of random signs, over which a gradient's norm is averaged
_SCALES = (0.0, 0.25, 0.5, 0.75, 0.8, 0.9, 0.95, 1.05, 1.1, 1.25, 1.5, 2.0, 4.0)
_IS_BETTER = 0.5  # of the error: an explanation must halve it


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Probe:
    """A disturbed policy: the flat vector it starts from, and what is added to it, on the CPU."""

    start_D: torch.Tensor
    added_D: torch.Tensor


@contextmanager
def computing(policy: Policy, theta_D: torch.Tensor) -> Iterator[None]:
    """Let the policy compute with other numbers for the length of the block, without a copy of the model."""
    kept_D = policy.flat.theta_D.detach().to("cpu", copy=True)
    try:
        _assign(policy, theta_D)
        yield
    finally:
        _assign(policy, kept_D)


@torch.no_grad()
def _assign(policy: Policy, theta_D: torch.Tensor) -> None:
    policy.flat.theta_D.copy_(theta_D)
    policy.refresh_served()


def make_probe(policy: Policy, tokens: Drawn, sampling: SamplingParams, *, noise: float, seed: int) -> Probe:
    """Return a disturbance of `policy`, every tensor of which moves the log-probabilities of `tokens` by several times
    the `noise` (nats).

    Sizes come from the gradient at the policy, whose norm is the root mean square over all directions. It is blind
    where attention is (a query counts once keys differ), so tensors that the gradient at the disturbed policy does not
    show are left out one by one, and grow until they are seen. One without any gradient (an expert that nobody asked)
    gets the median size.
    """
    slots = [slot for slot in policy.flat.slots if not slot.name.endswith("lora_A")]
    start_D, direction_D = _start(policy, seed), torch.zeros(policy.flat.theta_D.shape)
    for index, slot in enumerate(slots):
        random = torch.randn(slot.shape, generator=generator(seed, "probe", "direction", index))
        policy.flat.view(direction_D, slot).copy_(random)
    wanted = max(EFFECT * noise, LEAST_EFFECT)
    with computing(policy, start_D):
        effects = _effects(policy, tokens, slots, temperature=sampling.temperature, seed=seed)
    median = effects[effects > 0].median() if bool((effects > 0).any()) else effects.new_tensor(1.0)
    sizes = (wanted / torch.where(effects > 0, effects, median)).clamp(max=_MOST_GROWTH * wanted / median)

    def disturbed() -> Probe:
        added_D = torch.zeros_like(start_D)
        for slot, size in zip(slots, sizes.tolist(), strict=True):
            policy.flat.view(added_D, slot).copy_(policy.flat.view(direction_D, slot) * size)
        return Probe(start_D=start_D, added_D=added_D)

    probe = disturbed()
    with computing(policy, probe.start_D + probe.added_D):
        shown = sizes * _effects(policy, tokens, slots, temperature=sampling.temperature, seed=seed + 1)
    unseen = (shown < wanted * _SEEN).nonzero().flatten().tolist()
    for _ in range(_ROUNDS):
        found = {
            index: lost
            for index in unseen
            if (lost := _lost(policy, probe, tokens, sampling, slots[index])) < wanted * _SEEN
        }
        if not found:
            break
        for index, lost in found.items():
            sizes[index] *= min(_MOST_GROWTH, max(_LEAST_GROWTH, wanted / max(lost, 1e-9)))
        probe, unseen = disturbed(), list(found)
    return probe


def _start(policy: Policy, seed: int) -> torch.Tensor:
    """Return the policy's numbers, with an A in place of one that an adapter left zero."""
    start_D = policy.flat.theta_D.detach().to("cpu", copy=True)
    for index, slot in enumerate(policy.flat.slots):
        if slot.name.endswith("lora_A") and not policy.flat.view(start_D, slot).any():
            random = torch.randn(slot.shape, generator=generator(seed, "probe", "start", index))
            policy.flat.view(start_D, slot).copy_(random * slot.shape[-1] ** -0.5)
    return start_D


def _lost(policy: Policy, probe: Probe, tokens: Drawn, sampling: SamplingParams, slot: Slot) -> float:
    """Return by how much log-probabilities change when one tensor is left as it was, nats (root mean square)."""
    without_D = probe.start_D + probe.added_D
    with computing(policy, without_D):
        with_N = score(policy, tokens, sampling).logprobs_N
    policy.flat.view(without_D, slot).copy_(policy.flat.view(probe.start_D, slot))
    with computing(policy, without_D):
        return root_mean_square(score(policy, tokens, sampling).logprobs_N - with_N)


def _effects(policy: Policy, tokens: Drawn, slots: Sequence[Slot], *, temperature: float, seed: int) -> torch.Tensor:
    """Return, for each tensor, by how many nats (root mean square over tokens) a disturbance of size 1 moves them."""
    micro_batch = tokens.micro_batch.to(policy.device)
    squares = torch.zeros(len(slots))
    for number in range(_PASSES):
        policy.flat.zero_grad()
        with torch.enable_grad():
            logprobs_N = policy.score(micro_batch, temperature=temperature).logprobs_N
            signs_N = torch.randint(2, logprobs_N.shape, generator=generator(seed, "signs", number)) * 2.0 - 1
            (logprobs_N * signs_N.to(logprobs_N)).sum().backward()
        squares += torch.stack([policy.flat.view(policy.flat.grad_D, slot).square().sum().cpu() for slot in slots])
    policy.flat.zero_grad()
    return (squares / (_PASSES * len(micro_batch.target_N))).sqrt()


def snapshot_of(policy: Policy, probe: Probe, *, version: int) -> Snapshot:
    """Return the probe as what is handed to a sampler, called `version`."""
    with computing(policy, probe.start_D + probe.added_D):
        return policy.parametrization.snapshot(version)


def explain(
    policy: Policy, probe: Probe, other: Probe | None, tokens: Drawn, sampling: SamplingParams, *, noise: float
) -> str | None:
    """Return what explains best that a sampler's log-probabilities are not the probe's, or None if nothing tried does.

    Tried are: the base, the policy served before (`other`), the whole update scaled, and one tensor, one layer's or
    all of one kind without their updates.
    """
    sampler_N = tokens.sampler_N[tokens.is_first_N]

    def error(theta_D: torch.Tensor) -> float:
        with computing(policy, theta_D):
            logprobs_N = score(policy, tokens, sampling).logprobs_N
        return clipped_error(sampler_N - logprobs_N[tokens.is_first_N], noise)

    full_D = probe.start_D + probe.added_D
    best, explanation = error(full_D) * _IS_BETTER, None
    for name, theta_D in _guesses(policy, probe, other, full_D):
        if (found := error(theta_D)) < best:
            best, explanation = found, name
    return explanation


def _guesses(
    policy: Policy, probe: Probe, other: Probe | None, full_D: torch.Tensor
) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield what may have been served, with its numbers."""
    if other is not None:
        yield "the version that was loaded before it", other.start_D + other.added_D
    for scale in _SCALES:
        name = f"the update scaled by {scale:g}" if scale else "the policy without its update"
        yield name, probe.start_D + scale * probe.added_D
    yield from _mixed(policy, full_D)
    groups: dict[str, list[Slot]] = {}
    for slot in policy.flat.slots:
        if not slot.name.endswith("lora_A"):
            path = slot.name.removesuffix(".lora_B").removesuffix(".weight")
            groups.setdefault(f"{path} without its update", []).append(slot)
            groups.setdefault(f"all of {path.rpartition('.')[2]} without their updates", []).append(slot)
            layer = next((f"layer {part}" for part in path.split(".") if part.isdecimal()), None)
            if layer is not None:
                groups.setdefault(f"{layer} without its update", []).append(slot)
    for name, slots in groups.items():
        theta_D = full_D.clone()
        for slot in slots:
            policy.flat.view(theta_D, slot).copy_(policy.flat.view(probe.start_D, slot))
        yield name, theta_D


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
