"""The probe: policies whose every tensor is large enough to be seen, and what a wrong answer to one looks like.

A trained update is small at first, and what an engine loses of it lies below its rounding for many steps. So before a
run trusts an engine, it hands over policies that were made for this: the current one, disturbed in some kinds of
tensors (queries and keys, say), so that each disturbance moves the log-probabilities of drawn tokens by about as much
as the others, and all together by `TOGETHER` nats (root mean square). More is no gain: a model that is disturbed
further multiplies its rounding too. A disturbance is noise; how far it moves them is known from the gradient, whose
norm is the root mean square over all directions.

An error e of the sampler is looked for in every tensor at once: with d_j the derivative of the log-probabilities by
the size of tensor j's disturbance, one backward pass with e as the gradient of the tokens gives all <e, d_j>. Those
that stand out are then left out one by one.
"""

import statistics
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch

from rlora.full.weights import Snapshot
from rlora.lora.flat import Slot
from rlora.proof.evidence import MAX_DEVIATIONS, root_mean_square
from rlora.proof.scoring import Drawn, logprobs_of
from rlora.seeding import generator
from rlora.train.policy import Policy
from rlora.types import SamplingParams

NUM_PROBES = 4
TOGETHER = 0.8  # nats that a probe is away from the policy; docs/log.md has what others gave
PART = 0.6  # of a tensor's disturbance that may be there too much or too little
_PASSES = 3  # of random signs
_MOST_OVER_MEDIAN = 8.0  # of a size: a gradient that is all but dead says nothing
_SEEN, _ROUNDS, _MOST_GROWTH, _LEAST_GROWTH = 0.6, 5, 4.0, 1.5  # how tensors grow that the gradient does not show


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


def path_of(slot: Slot) -> str:
    """Return the path of the layer that a tensor belongs to."""
    return slot.name.removesuffix(".lora_B").removesuffix(".weight")


def disturbed_slots(policy: Policy) -> list[list[Slot]]:
    """Return the tensors that each of `NUM_PROBES` probes disturbs: all but A, whose product with B is what is served;
    a kind whole, and about as many in each.
    """
    kinds: dict[str, list[Slot]] = {}
    for slot in policy.flat.slots:
        if not slot.name.endswith("lora_A"):
            kinds.setdefault(path_of(slot).rpartition(".")[2], []).append(slot)
    groups: list[list[Slot]] = [[] for _ in range(NUM_PROBES)]
    for slots in sorted(kinds.values(), key=len, reverse=True):
        min(groups, key=len).extend(slots)
    return [group for group in groups if group]


def effects_of(policy: Policy, tokens: Drawn, sampling: SamplingParams, *, seed: int) -> dict[str, float]:
    """Return by how many nats (root mean square over tokens) noise of size 1 in a tensor moves log-probabilities, from
    gradients of their sums with random signs.
    """
    count, slots = len(tokens.sampler_N), [slot for group in disturbed_slots(policy) for slot in group]
    squares = torch.zeros(len(slots))
    with computing(policy, _start(policy, seed)):
        for number in range(_PASSES):
            signs_N = torch.randint(2, (count,), generator=generator(seed, "signs", number)) * 2.0 - 1
            gradient_D = gradient(policy, tokens, signs_N, temperature=sampling.temperature)
            squares += torch.stack([policy.flat.view(gradient_D, slot).square().sum() for slot in slots])
    found = (squares / (_PASSES * count)).sqrt().tolist()
    return dict(zip([slot.name for slot in slots], found, strict=True))


def gradient(policy: Policy, tokens: Drawn, weights_N: torch.Tensor, *, temperature: float) -> torch.Tensor:
    """Return the gradient (D, on the CPU) of the weighted sum of the tokens' log-probabilities."""
    policy.flat.zero_grad()
    with torch.enable_grad():
        logprobs_N = policy.score(tokens.micro_batch.to(policy.device), temperature=temperature).logprobs_N
        (logprobs_N * weights_N.to(logprobs_N)).sum().backward()
    gradient_D = policy.flat.grad_D.to("cpu", copy=True)
    policy.flat.zero_grad()
    return gradient_D


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Probe:
    """A policy of which the tensors `slots` are disturbed: the flat vector it starts from, and what is added to it, on
    the CPU.

    `effect` is what each tensor was to move log-probabilities by, nats; `hidden` are the tensors that the gradient did
    not show, whose disturbance was found by leaving them out.
    """

    start_D: torch.Tensor
    added_D: torch.Tensor
    slots: Sequence[Slot]
    effect: float
    hidden: Sequence[Slot]

    @property
    def theta_D(self) -> torch.Tensor:
        """The flat vector of the probe."""
        return self.start_D + self.added_D

    def without(self, policy: Policy, slots: Sequence[Slot]) -> torch.Tensor:
        """Return the flat vector without the disturbance of some tensors."""
        theta_D = self.theta_D
        for slot in slots:
            policy.flat.view(theta_D, slot).copy_(policy.flat.view(self.start_D, slot))
        return theta_D


def start_logprobs(policy: Policy, tokens: Drawn, sampling: SamplingParams, *, seed: int) -> torch.Tensor:
    """Return the log-probabilities (N) of tokens, nats, from where all probes start."""
    with computing(policy, _start(policy, seed)):
        return logprobs_of(policy, tokens, sampling)


def make_probe(
    policy: Policy,
    effects: Mapping[str, float],
    tokens: Drawn,
    start_N: torch.Tensor,
    sampling: SamplingParams,
    *,
    number: int,
    seed: int,
) -> Probe:
    """Return a disturbance by noise of the tensors of group `number`, of sizes that the `effects` suggest.

    `start_N` are the tokens' `start_logprobs`. The gradient is blind where attention is (a query counts once keys
    differ), so tensors that it hardly shows are left out one by one, and grow until they are missed. One without a
    gradient (an expert that nobody asked) gets the median size.
    """
    slots, start_D = disturbed_slots(policy)[number], _start(policy, seed)
    added_D, effect = torch.zeros_like(start_D), TOGETHER * len(slots) ** -0.5
    shown = torch.tensor([effects[slot.name] for slot in slots])
    median = statistics.median([one for one in effects.values() if one > 0] or [1.0])
    wanted = effect / torch.where(shown > 0, shown, torch.tensor(median))
    sizes = wanted.clamp(max=_MOST_OVER_MEDIAN * effect / median)
    for index, (slot, size) in enumerate(zip(slots, sizes.tolist(), strict=True)):
        noise = torch.randn(slot.shape, generator=generator(seed, "probe", number, index))
        policy.flat.view(added_D, slot).copy_(noise * size)
    hidden = [slots[index] for index in (sizes < wanted).nonzero().flatten().tolist()]
    probe = Probe(start_D=start_D, added_D=added_D, slots=slots, effect=effect, hidden=hidden)
    return _grown(policy, _scaled(policy, probe, tokens, start_N, sampling), tokens, sampling)


def _scaled(policy: Policy, probe: Probe, tokens: Drawn, start_N: torch.Tensor, sampling: SamplingParams) -> Probe:
    """Return the probe at a distance of about `TOGETHER` nats from the policy."""
    for _ in range(3):
        with computing(policy, probe.theta_D):
            distance = root_mean_square(logprobs_of(policy, tokens, sampling) - start_N)
        if 0.8 * TOGETHER <= distance <= 1.25 * TOGETHER:
            break
        factor = min(4.0, max(0.25, TOGETHER / max(distance, 1e-9)))
        probe = replace(probe, added_D=probe.added_D * factor)
    return probe


def _grown(policy: Policy, probe: Probe, tokens: Drawn, sampling: SamplingParams) -> Probe:
    """Return the probe with those tensors grown that the gradient did not show and that nobody would miss."""
    unseen = list(probe.hidden)
    for _ in range(_ROUNDS):
        lost = {slot.name: root_mean_square(missed(policy, probe, tokens, sampling, slot)) for slot in unseen}
        unseen = [slot for slot in unseen if lost[slot.name] < probe.effect * _SEEN]
        if not unseen:
            break
        added_D = probe.added_D.clone()
        for slot in unseen:
            factor = min(_MOST_GROWTH, max(_LEAST_GROWTH, probe.effect / max(lost[slot.name], 1e-9)))
            policy.flat.view(added_D, slot).mul_(factor)
        probe = replace(probe, added_D=added_D)
    return probe


def _start(policy: Policy, seed: int) -> torch.Tensor:
    """Return the policy's numbers, with an A in place of one that an adapter left zero."""
    start_D = policy.flat.theta_D.detach().to("cpu", copy=True)
    for index, slot in enumerate(policy.flat.slots):
        if slot.name.endswith("lora_A") and not policy.flat.view(start_D, slot).any():
            random = torch.randn(slot.shape, generator=generator(seed, "probe", "start", index))
            policy.flat.view(start_D, slot).copy_(random * slot.shape[-1] ** -0.5)
    return start_D


def missed(policy: Policy, probe: Probe, tokens: Drawn, sampling: SamplingParams, slot: Slot) -> torch.Tensor:
    """Return by how much log-probabilities change (N) when one tensor is left as it was, nats.

    In 16-bit precision that is half of the way from twice its disturbance to none of it: the trainer's
    log-probabilities of the probe itself are in the sampler's error as well, and their rounding would look like a part
    of the tensor.
    """
    none_D = probe.without(policy, [slot])
    is_rounded = policy.dtype != torch.float32
    with computing(policy, none_D):
        none_N = logprobs_of(policy, tokens, sampling)
    with computing(policy, 2 * probe.theta_D - none_D if is_rounded else probe.theta_D):
        return (none_N - logprobs_of(policy, tokens, sampling)) / (2 if is_rounded else 1)


def snapshot_of(policy: Policy, probe: Probe, *, version: int) -> Snapshot:
    """Return the probe as what is handed to a sampler, called `version`."""
    with computing(policy, probe.theta_D):
        return policy.parametrization.snapshot(version)


def suspects(policy: Policy, probe: Probe, gradient_D: torch.Tensor) -> list[Slot]:
    """Return the tensors in the order in which they may explain the sampler's error: those along which it lies most, by
    the gradient of the tokens weighted with it.
    """
    slots = probe.slots
    along = [float((policy.flat.view(gradient_D, s) * policy.flat.view(probe.added_D, s)).sum()) for s in slots]
    return [slots[index] for index in sorted(range(len(slots)), key=lambda index: -abs(along[index]))]


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """How much of a tensor's disturbance is not there (1: all of it; below 0: too much is), in deviations too."""

    slot: Slot
    lacking: float
    z: float

    @property
    def is_off(self) -> bool:
        """Whether it is more than chance."""
        return abs(self.lacking) > PART and abs(self.z) > MAX_DEVIATIONS


def part_of(
    policy: Policy,
    probe: Probe,
    tokens: Drawn,
    error_N: torch.Tensor,
    sampling: SamplingParams,
    slot: Slot,
    *,
    noise: float,
) -> Part:
    """Return how much of one tensor's disturbance the sampler's error shows to be missing."""
    missed_N = missed(policy, probe, tokens, sampling, slot) * tokens.is_first_N
    along, squared = float(error_N @ missed_N), float(missed_N.square().sum().clamp(min=1e-12))
    return Part(slot=slot, lacking=along / squared, z=along / (noise * squared**0.5))
