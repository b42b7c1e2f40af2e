"""Samplers that lie, each in one way, with labels as the truth would have them; and one that is honest but rounds."""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch

from rlora.full.weights import Snapshot
from rlora.lora.adapter import Adapter
from rlora.sampler.base import Sampler
from rlora.sampler.distribution import log_probabilities
from rlora.seeding import derive_seed, generator
from rlora.types import Completion, SampleRequest, SamplingParams
from support.engines import Around

Groups = list[list[Completion]]


class Liar(Around):
    """Passes everything on; a lie overrides `changed` (what is loaded) or `answers` (what is drawn)."""

    def __init__(self, sampler: Sampler):
        self._sampler, self.loaded = sampler, list[Any]()

    def load(self, snapshots: Sequence[Snapshot]) -> None:
        self.loaded += snapshots
        self._sampler.load([replace(self.changed(one), version=one.version) for one in self.loaded[-len(snapshots) :]])

    def changed(self, adapter: Adapter) -> Adapter:
        return adapter

    def sample(self, requests: Sequence[SampleRequest], sampling: SamplingParams, *, seed: int) -> Groups:
        return self.answers(requests, sampling, seed)

    def answers(self, requests: Sequence[SampleRequest], sampling: SamplingParams, seed: int) -> Groups:
        return self.honest(requests, sampling, seed)

    def honest(self, requests: Sequence[SampleRequest], sampling: SamplingParams, seed: int) -> Groups:
        return self._sampler.sample(requests, sampling, seed=seed)

    def by_base(self, requests: Sequence[SampleRequest], sampling: SamplingParams, seed: int) -> Groups:
        version = self.loaded[-1].version if self.loaded else -1
        groups = self.honest([replace(one, policy=None) for one in requests], sampling, seed)
        return [[replace(one, version=version) for one in group] for group in groups]

    def by_other(
        self, other: Adapter, requests: Sequence[SampleRequest], sampling: SamplingParams, seed: int
    ) -> Groups:
        """Serve another adapter under the current one's name for this call."""
        current = self.loaded[-1]
        self._sampler.load([replace(other, version=current.version)])
        groups = self.honest(requests, sampling, seed)
        self._sampler.load([self.changed(current)])
        return groups


def later(lie: type[Liar], *, num_honest_loads: int) -> type[Around]:
    """Return a sampler that is honest for as many loads, and lies from then on."""

    class Later(Around):
        def __init__(self, sampler: Sampler):
            self._sampler, self._honest, self._lie = sampler, Liar(sampler), lie(sampler)

        @property
        def _now(self) -> Liar:
            return self._lie if len(self._honest.loaded) > num_honest_loads else self._honest

        def load(self, snapshots: Sequence[Snapshot]) -> None:
            self._honest.load(snapshots)
            if self._now is self._lie:
                self._lie.load(snapshots)
            else:
                self._lie.loaded += snapshots

        def sample(self, requests: Sequence[SampleRequest], sampling: SamplingParams, *, seed: int) -> Groups:
            return self._now.sample(requests, sampling, seed=seed)

    return Later


def scaled(adapter: Adapter, factor: float, *, chosen: Callable[[str], bool] = lambda _: True) -> Adapter:
    tensors = {
        name: tensor * factor if name.endswith("lora_B") and chosen(name) else tensor
        for name, tensor in adapter.tensors.items()
    }
    return replace(adapter, tensors=tensors)


def scales(factor: float) -> type[Liar]:
    class Scales(Liar):
        def changed(self, adapter: Adapter) -> Adapter:
            return scaled(adapter, factor)

    return Scales


def drops(part: str) -> type[Liar]:
    class Drops(Liar):
        def changed(self, adapter: Adapter) -> Adapter:
            return scaled(adapter, 0.0, chosen=lambda name: part in name)

    return Drops


class MixesProjections(Liar):
    """Serves each value projection the update of the key projection of its layer, and the other way round."""

    def changed(self, adapter: Adapter) -> Adapter:
        names = {"k_proj": "v_proj", "v_proj": "k_proj"}
        tensors = {}
        for name, tensor in adapter.tensors.items():
            kind = name.split(".")[-2]
            tensors[name] = adapter.tensors[name.replace(kind, names[kind])] if kind in names else tensor
        return replace(adapter, tensors=tensors)


class MixesLayers(Liar):
    """Serves the layers' updates in the opposite order."""

    def changed(self, adapter: Adapter) -> Adapter:
        layers = sorted({int(part) for name in adapter.tensors for part in name.split(".") if part.isdecimal()})
        opposite = dict(zip(map(str, layers), map(str, reversed(layers)), strict=True))
        tensors = {
            name: adapter.tensors[".".join(opposite.get(part, part) for part in name.split("."))]
            for name in adapter.tensors
        }
        return replace(adapter, tensors=tensors)


class ServesBase(Liar):
    """Serves the base for everything."""

    def answers(self, requests: Sequence[SampleRequest], sampling: SamplingParams, seed: int) -> Groups:
        return self.by_base(requests, sampling, seed)


class ServesPrevious(Liar):
    """Loads each adapter one swap late."""

    def changed(self, adapter: Adapter) -> Adapter:
        return self.loaded[-2] if len(self.loaded) > 1 else adapter


class HalfByBase(Liar):
    """Answers every second request by the base."""

    def answers(self, requests: Sequence[SampleRequest], sampling: SamplingParams, seed: int) -> Groups:
        truth, lie = self.honest(requests, sampling, seed), self.by_base(requests, sampling, seed)
        return [lie[index] if index % 2 else truth[index] for index in range(len(requests))]


class HalfOfEachGroupByBase(Liar):
    """Draws every second completion of a group from the base."""

    def answers(self, requests: Sequence[SampleRequest], sampling: SamplingParams, seed: int) -> Groups:
        truth, lie = self.honest(requests, sampling, seed), self.by_base(requests, sampling, seed)
        return [
            [
                one if request.policy is None or index % 2 == 0 else other
                for index, (one, other) in enumerate(zip(*pair, strict=True))
            ]
            for request, pair in zip(requests, zip(truth, lie, strict=True), strict=True)
        ]


class OthersRollouts(Liar):
    """Serves the canary rightly, and all else by an adapter of another run."""

    def answers(self, requests: Sequence[SampleRequest], sampling: SamplingParams, seed: int) -> Groups:
        if not self.loaded or requests[0].key[0] == "canary" or requests[0].policy is None:
            return self.honest(requests, sampling, seed)
        current = self.loaded[-1]
        tensors = {
            name: torch.randn(tensor.shape, generator=generator(7, name)) * (0.02 if name.endswith("B") else 0.1)
            for name, tensor in current.tensors.items()
        }
        return self.by_other(replace(current, tensors=tensors), requests, sampling, seed)


class PreviousRollouts(Liar):
    """Serves the canary rightly, and all else by the version before."""

    def answers(self, requests: Sequence[SampleRequest], sampling: SamplingParams, seed: int) -> Groups:
        if len(self.loaded) < 2 or requests[0].key[0] == "canary":
            return self.honest(requests, sampling, seed)
        return self.by_other(self.loaded[-2], requests, sampling, seed)


class BaseRollouts(Liar):
    """Serves the canary rightly, and all else by the base."""

    def answers(self, requests: Sequence[SampleRequest], sampling: SamplingParams, seed: int) -> Groups:
        if requests[0].key[0] == "canary":
            return self.honest(requests, sampling, seed)
        return self.by_base(requests, sampling, seed)


def draws_at(temperature: float) -> type[Liar]:
    class DrawsAt(Liar):
        """Draws at another temperature, and reports what the tokens have at the right one."""

        def answers(self, requests: Sequence[SampleRequest], sampling: SamplingParams, seed: int) -> Groups:
            groups = self.honest(requests, replace(sampling, temperature=temperature), seed)
            return rescored(self._sampler, requests, groups, sampling)

    return DrawsAt


def reports_at(temperature: float) -> type[Liar]:
    class ReportsAt(Liar):
        """Draws at the right temperature, and reports what the tokens have at another one."""

        def answers(self, requests: Sequence[SampleRequest], sampling: SamplingParams, seed: int) -> Groups:
            groups = self.honest(requests, sampling, seed)
            return rescored(self._sampler, requests, groups, replace(sampling, temperature=temperature))

    return ReportsAt


def cuts_to(top_p: float, *, renormalises: bool) -> type[Liar]:
    class CutsTo(Liar):
        """Draws from the likeliest tokens alone."""

        def answers(self, requests: Sequence[SampleRequest], sampling: SamplingParams, seed: int) -> Groups:
            groups = self.honest(requests, replace(sampling, top_p=top_p), seed)
            return groups if renormalises else rescored(self._sampler, requests, groups, sampling)

    return CutsTo


class OldTokens(Liar):
    """Draws tokens from the version before (the base, at first), and reports what the right one says of them."""

    def answers(self, requests: Sequence[SampleRequest], sampling: SamplingParams, seed: int) -> Groups:
        if not self.loaded:
            return self.honest(requests, sampling, seed)
        if len(self.loaded) < 2:
            groups = self.by_base(requests, sampling, seed)
        else:
            groups = self.by_other(self.loaded[-2], requests, sampling, seed)
        return rescored(self._sampler, requests, groups, sampling)


class IgnoresSeed(Liar):
    """Draws with the same seed whatever is asked for."""

    def answers(self, requests: Sequence[SampleRequest], sampling: SamplingParams, seed: int) -> Groups:
        return self.honest(requests, sampling, 0)


class ForgetsSeed(Liar):
    """Draws with a seed of its own at each call."""

    def answers(self, requests: Sequence[SampleRequest], sampling: SamplingParams, seed: int) -> Groups:
        self.calls = getattr(self, "calls", 0) + 1
        return self.honest(requests, sampling, derive_seed(self.calls))


class CopiesOneSample(Liar):
    """Draws once a prompt, and gives that as all samples."""

    def answers(self, requests: Sequence[SampleRequest], sampling: SamplingParams, seed: int) -> Groups:
        return [[group[0]] * len(group) for group in self.honest(requests, sampling, seed)]


class LosesFirstToken(Liar):
    """Gives the engine each prompt without its first token."""

    def answers(self, requests: Sequence[SampleRequest], sampling: SamplingParams, seed: int) -> Groups:
        return self.honest([replace(one, token_ids=one.token_ids[1:]) for one in requests], sampling, seed)


class TextOfAnother(Liar):
    """Gives each completion the text of its neighbour."""

    def answers(self, requests: Sequence[SampleRequest], sampling: SamplingParams, seed: int) -> Groups:
        groups = self.honest(requests, sampling, seed)
        return [
            [replace(one, text=other.text) for one, other in zip(group, group[1:] + group[:1], strict=True)]
            for group in groups
        ]


def rounds(nats: float, lie: Callable[[Sampler], Any] = Liar) -> type[Around]:
    """Return an honest sampler, or a lie, whose log-probabilities have Gaussian noise, a function of tokens and of what
    is served, as another implementation has.
    """

    class Rounds(Around):
        def __init__(self, sampler: Sampler):
            self._sampler: Any = lie(sampler)

        def load(self, snapshots: Sequence[Snapshot]) -> None:
            self._sampler.load(snapshots)

        def sample(self, requests: Sequence[SampleRequest], sampling: SamplingParams, *, seed: int) -> Groups:
            groups = self._sampler.sample(requests, sampling, seed=seed)
            return [[disturbed(one, nats) for one in group] for group in groups]

    return Rounds


def disturbed(completion: Completion, nats: float) -> Completion:
    logprobs = []
    for index, logprob in enumerate(completion.logprobs):
        random = derive_seed(*completion.token_ids[: index + 1], repr(logprob))
        u, v = (random % 2**31 + 1) / 2**31, (random >> 31) / 2**31
        logprobs.append(min(0.0, logprob + nats * math.sqrt(-2 * math.log(u)) * math.cos(2 * math.pi * v)))
    return replace(completion, logprobs=tuple(logprobs))


@torch.no_grad()
def rescored(sampler: Any, requests: Sequence[SampleRequest], groups: Groups, sampling: SamplingParams) -> Groups:
    """Return completions with the log-probabilities that the torch sampler's model gives their tokens."""
    results = []
    for request, group in zip(requests, groups, strict=True):
        scored = []
        for one in group:
            if request.policy is None:
                with sampler._policy.adapter_off():
                    scored.append(_rescored(sampler, request, one, sampling))
            else:
                sampler._compute_with(request.policy)
                scored.append(_rescored(sampler, request, one, sampling))
        results.append(scored)
    return results


def _rescored(sampler: Any, request: SampleRequest, completion: Completion, sampling: SamplingParams) -> Completion:
    logprobs = []
    for index, token in enumerate(completion.token_ids):
        row = torch.tensor([[*request.token_ids, *completion.token_ids[:index]]])
        logprobs.append(float(log_probabilities(sampler._policy.next_token_logits(row), sampling)[0, token]))
    return replace(completion, logprobs=tuple(logprobs))
