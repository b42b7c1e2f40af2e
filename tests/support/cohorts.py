"""Cohorts of the toy preset: members that differ in all that may differ, and samplers that mix them up."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from rlora.cohort.cohort import Cohort
from rlora.full.weights import Snapshot
from rlora.lora.config import LoraConfig
from rlora.run_config import RunConfig
from rlora.sampler.base import Sampler
from rlora.train.losses import LossConfig
from rlora.types import Completion, SampleRequest, SamplingParams
from support.engines import Around
from support.liars import scaled
from support.runs import toy

SIZE = {"problems_per_step": 6, "samples_per_problem": 32, "num_steps": 4}


def member(folder: Path, *, rate: float = 1e-2, **changes) -> RunConfig:
    config = toy(folder / "unused", **SIZE)
    return replace(config, optimizer=replace(config.optimizer, learning_rate=rate), **changes)


def unequal(folder: Path) -> list[RunConfig]:
    """Four members that differ in seed, rate, rank, alpha, layers, loss, advantage and share of the batch."""
    return [
        member(folder, rate=3e-3),
        member(folder, seed=1, lora=LoraConfig(rank=4, alpha=16.0)),
        member(folder, seed=2, rate=3e-2, advantage="centered", loss=LossConfig(kl_coefficient=0.05)),
        member(folder, lora=LoraConfig(rank=2, layers="attention"), problems_per_step=4),
    ]


def cohort_of(folder: Path, configs: Sequence[RunConfig], **options) -> Cohort:
    cohort = Cohort(folder, **options)
    cohort.add_all(configs, [None] * len(configs))
    return cohort


class Mixed(Around):
    """Passes everything on; a lie overrides `changed` (what is loaded) or `served` (whose number is answered)."""

    from_version = -100  # of all members; probes have negative ones

    def __init__(self, sampler: Sampler):
        self._sampler, self._loaded = sampler, dict[int, Snapshot]()

    @property
    def lies(self) -> bool:
        return min(one.version for one in self._loaded.values()) >= self.from_version

    def load(self, snapshots: Sequence[Snapshot]) -> None:
        self._loaded |= {one.policy: one for one in snapshots}
        self._sampler.load([self.changed(one) if self.lies else one for one in snapshots])

    def changed(self, snapshot: Snapshot) -> Snapshot:
        return snapshot

    def served(self, policy: int) -> int:
        return policy

    def sample(
        self, requests: Sequence[SampleRequest], sampling: SamplingParams, *, seed: int
    ) -> list[list[Completion]]:
        def told(request: SampleRequest) -> SampleRequest:
            number = request.policy if request.policy is None or not self.lies else self.served(request.policy)
            return replace(request, policy=number if number in (None, *self._loaded) else request.policy)

        groups = self._sampler.sample([told(one) for one in requests], sampling, seed=seed)
        return [
            [
                replace(one, policy=request.policy or 0)
                if request.policy is None
                else replace(one, policy=request.policy, version=self._loaded[request.policy].version)
                for one in group
            ]
            for request, group in zip(requests, groups, strict=True)
        ]


class SwapsTwo(Mixed):
    """Answers the requests for the first two members by one another."""

    def served(self, policy: int) -> int:
        return {0: 1, 1: 0}.get(policy, policy)


class OneForAll(Mixed):
    """Answers every member's requests by the first member."""

    def served(self, policy: int) -> int:
        return 0


class DropsOfOne(Mixed):
    """Leaves one projection of the second member out."""

    def changed(self, snapshot: Snapshot) -> Snapshot:
        return scaled(snapshot, 0.0, chosen=lambda name: "1.mlp.up_proj" in name) if snapshot.policy == 1 else snapshot


def later(lie: type[Mixed], *, from_version: int) -> type[Mixed]:
    """Return a lie that begins once all members have this version."""
    return type(f"Later{lie.__name__}", (lie,), {"from_version": from_version})
